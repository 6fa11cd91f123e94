"""RoI classification: a class for each box of a detection task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.drawing.layers import Layers
from mtl.kinds.base import RecordChange, TaskPrediction, TrainingStatistics
from mtl.kinds.classes import class_columns, class_values, majority, most_frequent, scored_class
from mtl.kinds.objects import ObjectKind
from mtl.metrics.classification import RoiClassificationMetric
from mtl.stitching.joiners import RegionJoiner


@KINDS.register("roi_classification")
class RoiClassification(ObjectKind):
    """Prediction: `probabilities` [N, C], row by row for the boxes of the first detection task.

    Scored at the annotated boxes, so that the figure does not depend on the detector.
    """

    metric_class = RoiClassificationMetric
    of_boxes = True

    def joiner(self) -> RegionJoiner:
        """Take each box from the window that speaks for it."""
        return RegionJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Return the baseline that predicts the most frequent class of training."""
        index = most_frequent(spec, statistics)
        return {f"always {spec.classes[index]}": majority(index)}

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return nothing of the image: the classes stand beside the boxes."""
        return {}

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return the columns of a box's class."""
        return class_columns(spec)

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the class of one box, from its `class_entry`; nothing of a whole image."""
        return class_values(spec, entry) if "class_name" in entry else {}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return how many objects are annotated and predicted as each class, and of how many both agree."""
        rows = self.scored_objects(spec, record, thresholds)
        found: dict[str, Any] = {"objects": len(rows), "right": sum(row["annotated"] == row.get("predicted") for row in rows)}
        for side in ("annotated", "predicted"):
            found |= {f"{side}_{name}": sum(row.get(side) == name for row in rows) for name in spec.classes}
        return found

    def scored_objects(
        self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return the annotated and the predicted class of every object."""
        return [
            scored_class(spec, label, probabilities, thresholds)
            for label, probabilities in zip(record["label"], record["probabilities"], strict=True)
        ]

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Draw nothing: the boxes are drawn by their detection task."""
