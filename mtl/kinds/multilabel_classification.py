"""Multi-label classification: independent classes of an image, each of which may be unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.decision import predicted_labels
from mtl.core.errors import DataError
from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.imaging.outlines import Size
from mtl.kinds.base import Annotations, RecordChange, TaskKind, TaskPrediction, TrainingStatistics, rounded
from mtl.metrics.base import ratio
from mtl.metrics.multilabel import MultilabelMetric
from mtl.stitching.joiners import MeanJoiner


@KINDS.register("multilabel_classification")
class MultilabelClassification(TaskKind):
    """Prediction: `probabilities` [C] of independent classes. Target: [C] of 1 (true), 0 (not) and NaN (not known)."""

    metric_class = MultilabelMetric
    image_level = True

    def any_label(self, spec: TaskSpec) -> Any:
        """Return that every class is true."""
        return np.ones(len(spec.classes), np.float32)

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return [C] float32; absent where no class is known."""
        if not annotations.knows(spec.label):
            return None
        target = np.array(annotations.labels[spec.label_name], np.float32)
        known = target[~np.isnan(target)]
        if target.shape != (len(spec.classes),) or not np.isin(known, (0, 1)).all():
            raise DataError(
                f"Label `{spec.label_name}` is {target.tolist()}; expected 1 (true), 0 (not) or NaN (unknown) for each of the "
                f"{len(spec.classes)} classes of task `{spec.name}`: {', '.join(spec.classes)}."
            )
        return target

    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> Any:
        """Return [B, C] float32; NaN where absent."""
        import torch

        unknown = np.full(len(spec.classes), np.nan, np.float32)
        return torch.from_numpy(np.stack([unknown if row is None else row for row in rows]))

    def truth(self, target: Any) -> Arrays:
        """Return `labels` [C]."""
        return {"labels": np.asarray(target)}

    def joiner(self) -> MeanJoiner:
        """Average over windows."""
        return MeanJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Return the baseline that predicts for every image how frequent each class is in training."""
        unknown = [0.0] * len(spec.classes)
        shares = ratio(statistics.class_counts.get(spec.name, unknown), statistics.known.get(spec.name, unknown))
        return {"shares of training": lambda record: {"probabilities": shares}}

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return which classes reach their thresholds, and the probabilities of all."""
        probabilities = found.arrays["probabilities"]
        return {
            "found": self._names(found),
            "probabilities": {name: rounded(p) for name, p in zip(found.spec.classes, probabilities, strict=True)},
        }

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return a column per class for the decision, and one for its probability."""
        return [*(f"{spec.name}_{name}" for name in spec.classes), *(f"{spec.name}_p_{name}" for name in spec.classes)]

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return 1 or 0 per class, and the probabilities."""
        values: dict[str, Any] = {f"{spec.name}_{name}": int(name in entry["found"]) for name in spec.classes}
        return values | {f"{spec.name}_p_{name}": value for name, value in entry["probabilities"].items()}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return 1 or 0 per class as annotated (empty where it is not known) and as predicted, and the probabilities."""
        claimed = predicted_labels(record["probabilities"], spec, thresholds)
        annotated = ["" if np.isnan(value) else int(value) for value in record["truth"]]
        return {
            **{f"annotated_{name}": value for name, value in zip(spec.classes, annotated, strict=True)},
            **{f"predicted_{name}": int(said) for name, said in zip(spec.classes, claimed, strict=True)},
            **{f"p_{name}": rounded(p) for name, p in zip(spec.classes, record["probabilities"], strict=True)},
        }

    def slice_counts(self, spec: TaskSpec, entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Return in how many slices each class was found."""
        found = [entry["found"] for entry in entries]
        return {name: sum(name in names for names in found) for name in spec.classes}

    def words(self, found: TaskPrediction) -> str:
        """Return the classes that are there, each with its probability where it is predicted; unknown ones with a `?`."""
        spec = found.spec
        if "probabilities" in found.arrays:
            values = dict(zip(spec.classes, found.arrays["probabilities"].tolist(), strict=True))
            words = [f"{name} {values[name]:.2f}" for name in self._names(found)]
        else:
            labels = dict(zip(spec.classes, found.arrays["labels"].tolist(), strict=True))
            words = [name for name, label in labels.items() if label == 1]
            words += [f"{name}?" for name, label in labels.items() if np.isnan(label)]
        return ", ".join(words) or "none"

    def _names(self, found: TaskPrediction) -> list[str]:
        claimed = predicted_labels(found.arrays["probabilities"], found.spec, found.thresholds)
        return [name for name, said in zip(found.spec.classes, claimed, strict=True) if said]
