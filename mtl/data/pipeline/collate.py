"""Items of the data set -> `TaskBatch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mtl.core.task import TaskSpec
from mtl.core.types import TaskBatch
from mtl.kinds.base import rules_of


class Collate:
    """Stack images and targets; absent labels become placeholders that `present` marks.

    Args:
        specs: Tasks by name.
        tasks: Names of those in the batch.
    """

    def __init__(self, specs: dict[str, TaskSpec], tasks: list[str]) -> None:
        self.specs, self.tasks = specs, list(tasks)

    def __call__(self, items: list[dict[str, Any]]) -> TaskBatch:
        """Return the batch of `items`, as `SampleDataset` makes them."""
        images = torch.from_numpy(np.stack([item["image"] for item in items]))
        size = (int(images.shape[2]), int(images.shape[3]))
        targets = {
            task: rules_of(self.specs[task]).stack(self.specs[task], [item["targets"][task] for item in items], size)
            for task in self.tasks
        }
        present = {task: torch.tensor([item["present"][task] for item in items], dtype=torch.bool) for task in self.tasks}
        return TaskBatch(images, targets, present, [item["meta"] for item in items])


def init_worker(worker: int) -> None:
    """Give a worker one thread: OpenCV and torch would each start one per core."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
