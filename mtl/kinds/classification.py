"""Classification: one class per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Record
from mtl.imaging.outlines import Size
from mtl.kinds.base import DIGITS, Annotations, RecordChange, TaskKind, TaskPrediction, TrainingStatistics
from mtl.kinds.classes import class_columns, class_entry, class_values, image_entry, majority, most_frequent, scored_class
from mtl.metrics.classification import ClassificationMetric
from mtl.stitching.joiners import MeanJoiner


@KINDS.register("classification")
class Classification(TaskKind):
    """Prediction: `probabilities` [C], which add up to 1. Target: the index of the class."""

    metric_class = ClassificationMetric
    has_decision_threshold = True
    image_level = True
    guessable = True

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return the class index as an int64 scalar."""
        if not annotations.knows(spec.label):
            return None
        return np.int64(annotations.labels[spec.label_name])

    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> Any:
        """Return [B] int64; 0 where absent."""
        import torch

        return torch.tensor([0 if row is None else int(row) for row in rows], dtype=torch.int64)

    def truth(self, target: Any) -> Arrays:
        """Return `label` ()."""
        return {"label": np.asarray(target)}

    def joiner(self) -> MeanJoiner:
        """Average over windows."""
        return MeanJoiner()

    def class_counts(self, spec: TaskSpec, records: Sequence[Record]) -> list[float]:
        """Return the images of each class, by their values where the index tells these."""
        graded = [int(record.values[spec.label_name]) for record in records if spec.label_name in record.values]
        return (
            [float(graded.count(index)) for index in range(len(spec.classes))]
            if graded
            else super().class_counts(spec, records)
        )

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Return the baseline that predicts the most frequent class of training."""
        index = most_frequent(spec, statistics)
        return {f"always {spec.classes[index]}": majority(index)}

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return the class, its probability and those of all classes."""
        return image_entry(found.arrays["probabilities"], found.spec, found.thresholds, DIGITS)

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return the columns of the class."""
        return class_columns(spec)

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the class and its probabilities."""
        return class_values(spec, entry)

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return the annotated and the predicted class."""
        return scored_class(spec, record["label"], record["probabilities"], thresholds)

    def slice_counts(self, spec: TaskSpec, entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Return in how many slices each class is the stated one."""
        stated = [entry["class_name"] for entry in entries]
        return {name: stated.count(name) for name in spec.classes}

    def words(self, found: TaskPrediction) -> str:
        """Return the class, with its probability where it is predicted."""
        if "probabilities" not in found.arrays:
            return found.spec.classes[int(found.arrays["label"])]
        entry = class_entry(found.arrays["probabilities"], found.spec, found.thresholds)
        return f"{entry['class_name']} {entry['confidence']:.2f}"
