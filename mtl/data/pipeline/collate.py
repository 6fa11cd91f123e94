"""Items of the data set -> `TaskBatch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mtl.core.task import TaskSpec
from mtl.core.types import TaskBatch
from mtl.data.pipeline.targets import OBJECT_KINDS


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
        targets = {task: self._target(self.specs[task], [item["targets"][task] for item in items], size) for task in self.tasks}
        present = {task: torch.tensor([item["present"][task] for item in items], dtype=torch.bool) for task in self.tasks}
        return TaskBatch(images, targets, present, [item["meta"] for item in items])

    @staticmethod
    def _target(spec: TaskSpec, rows: list[Any], size: tuple[int, int]) -> Any:
        if spec.kind in OBJECT_KINDS:
            return [_objects(row) for row in rows]
        if spec.kind == "classification":
            return torch.tensor([0 if row is None else int(row) for row in rows], dtype=torch.int64)
        if spec.kind == "regression":
            return torch.tensor([0.0 if row is None else float(row) for row in rows], dtype=torch.float32)
        if spec.multilabel:
            absent = np.zeros((len(spec.classes), *size), np.uint8)
        else:
            absent = np.full(size, spec.ignore_index, np.uint8)
        stacked = torch.from_numpy(np.stack([absent if row is None else row for row in rows]))
        return stacked.float() if spec.multilabel else stacked.long()


def _objects(row: dict[str, np.ndarray] | None) -> dict[str, torch.Tensor]:
    if row is None:
        row = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "points": np.zeros((0, 2)), "ids": np.zeros(0)}
    floats, integers = ("boxes", "points"), ("labels", "ids")
    return {
        **{name: torch.from_numpy(np.array(row[name], np.float32)) for name in floats},
        **{name: torch.from_numpy(np.array(row[name], np.int64)) for name in integers},
        **{name: torch.from_numpy(row[name]) for name in ("region",) if name in row},
    }
