"""From batches of windows to scored whole images; validation during training and final evaluation share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mtl.core.decision import box_probabilities
from mtl.core.types import ImageResult, TaskBatch
from mtl.heads.base import Output, Prediction
from mtl.inference.finite import check_finite
from mtl.metrics.evaluator import Evaluator
from mtl.model import MultiTaskModel, Rows
from mtl.stitching.stitcher import Stitcher


class Truth(Protocol):
    """Gives what is known of an image, masks in the original raster where `native` is set (`SampleDataset.truth`)."""

    def __call__(self, sample_id: str, native: bool = False) -> ImageResult: ...  # noqa: D102


# Is handed (prediction, truth) of every image that is finished.
KeepImages = Callable[[ImageResult, ImageResult], None]


class WholeImageScorer:
    """Decodes batches, joins windows to images and feeds an evaluator.

    Args:
        model: The network whose heads decode.
        evaluator: Receives one prediction and one truth per image.
        truth: Gives the truth of an image by its sample id, in the raster in which the evaluator compares masks.
        keep: Called with (prediction, truth) of each finished image, for example to keep examples for the report.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        evaluator: Evaluator,
        truth: Truth,
        keep: KeepImages | None = None,
    ) -> None:
        self.model = model
        self.evaluator = evaluator
        self.truth = truth
        self.keep = keep
        self.stitcher = Stitcher(model.specs)
        self.deciders = {pair for metric in evaluator.study.values() for pair in metric.deciders.items()}

    def update(self, outputs: dict[str, Output], batch: TaskBatch, rows: Rows | None = None) -> None:
        """Take one batch.

        RoI classes are judged at the annotated boxes, so that the figure does not depend on the detector. Where a study metric
        has them decide the classes of detected boxes, the same outputs are decoded at these as well.

        Args:
            outputs: Of the network.
            batch: What it saw.
            rows: By task, the rows of the batch that its output stands for; None is all. A detector and the task that decides
                the classes of its boxes have the same rows.

        Raises:
            NotFiniteError: The network says something that is not finite.
        """
        every = tuple(range(len(batch.meta)))
        rows = dict.fromkeys(outputs, every) if rows is None else rows
        predictions = self.model.decode(outputs, annotated_boxes(self.model, batch, rows))
        self._decide(outputs, predictions)
        decoded: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in every]
        for task, found in predictions.items():
            for row, prediction in zip(rows[task], found, strict=True):
                decoded[row][task] = to_arrays(prediction)
        check_finite(outputs, decoded, [meta.sample_id for meta in batch.meta], rows)
        for row, (meta, arrays) in enumerate(zip(batch.meta, decoded, strict=True)):
            for task, head in self.model.heads.items():
                if head.needs_boxes and task in arrays:
                    if not bool(batch.present[task][row]):
                        del arrays[task]
                        continue
                    target = batch.targets[task][row]
                    arrays[task] |= {"ids": target["ids"].cpu().numpy(), "boxes": target["boxes"].float().cpu().numpy()}
            self.stitcher.add(meta, arrays)
        for result in self.stitcher.pop_complete():
            truth = self.truth(result.sample_id, native=self.evaluator.native)
            self.evaluator.update(result, truth)
            if self.keep is not None:
                self.keep(result, truth)

    def _decide(self, outputs: dict[str, Output], predictions: dict[str, list[Prediction]]) -> None:
        """Add to detected boxes what a deciding task says of each; it travels with them."""
        for task, decider in self.deciders:
            if task not in predictions:
                continue
            found = predictions[task]
            head: Any = self.model.heads[decider]
            said = head.decode(outputs[decider], boxes=[row["boxes"] for row in found])
            for row, other in zip(found, said, strict=True):
                row[box_probabilities(decider)] = other["probabilities"]


def annotated_boxes(model: MultiTaskModel, batch: TaskBatch, rows: Rows) -> dict[str, list[Tensor]]:
    """Return, for each task whose head needs boxes, the annotated ones of its rows (none where absent)."""
    return {
        task: [
            batch.targets[task][row]["boxes"] if bool(batch.present[task][row]) else batch.images.new_zeros((0, 4))
            for row in rows[task]
        ]
        for task, head in model.heads.items()
        if head.needs_boxes and task in rows
    }


def to_arrays(prediction: dict[str, Any]) -> dict[str, np.ndarray]:
    """Move a prediction to the CPU as numpy arrays (float32 for every floating type)."""
    return {
        key: (value.detach().float() if value.is_floating_point() else value.detach()).cpu().numpy()
        if isinstance(value, Tensor)
        else np.asarray(value)
        for key, value in prediction.items()
    }
