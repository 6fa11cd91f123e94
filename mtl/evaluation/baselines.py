"""What a model without any insight would score: a row of every results table.

A baseline is scored by the same evaluator as the model: its records are copied with the predictions replaced, so images,
labels, matching and metrics are identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.metrics.base import mean_of
from mtl.metrics.evaluator import Evaluator

RecordChange = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class TrainingStatistics:
    """What a baseline may know of the training images.

    Attributes:
        class_counts: By task, per class the number of objects (images for image-level classes) in its labelled training images.
        images: By task, the number of labelled training images.
        means: By regression task or study metric, the mean training value.
    """

    class_counts: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_records(
        cls, specs: dict[str, TaskSpec], records: Iterable[Record], means: dict[str, float] | None = None,
        percentages: dict[str, tuple[str, str]] | None = None,
    ) -> TrainingStatistics:  # fmt: skip
        """Count classes in the index of the training images.

        Args:
            specs: Active tasks by name.
            records: Training records; each counts for the tasks whose label it knows. One that does not say which it knows is
                unlabelled where it has neither annotation file nor counts.
            means: Mean training value by regression task.
            percentages: By study metric (`parasitemia`), the names of its positive and negative object class.
        """
        some = [record for record in records if record.labels or record.annotation is not None or record.class_counts]
        statistics = cls(means=dict(means or {}))
        for task, spec in specs.items():
            labelled = [record for record in some if record.knows(spec.label)]
            members = spec.members or tuple((name,) for name in spec.classes)
            statistics.class_counts[task] = [
                float(sum(record.class_counts.get(name, 0) for record in labelled for name in names)) for names in members
            ]
            statistics.images[task] = len(labelled)
        for name, (positive, negative) in (percentages or {}).items():
            counts = [(r.class_counts.get(positive, 0), r.class_counts.get(negative, 0)) for r in some]
            shares = [100.0 * first / (first + second) for first, second in counts if first + second]
            statistics.means[name] = float(mean_of(np.array(shares)))
        return statistics


def baseline_summary(evaluator: Evaluator, statistics: TrainingStatistics) -> dict[str, dict[str, Any]]:
    """Score the baseline of every task and study metric on the images that the evaluator holds.

    Detection: nothing detected, and the mean training count for `count_mae`. Classes: the most frequent of training.
    Segmentation: all background or all foreground (multiclass: one class everywhere), whichever scores higher. Heatmap: zero
    everywhere. Regression and parasitemia: the mean of training. A mean over tasks: that of their baselines.

    Returns:
        By task: `name` says what the baseline does, `metrics` holds its numbers (NaN where undefined).
    """
    found = {task: _task_baseline(evaluator, task, statistics) for task in evaluator.specs}
    for name, study in evaluator.study.items():
        if made := study.baseline(found):
            found[name] = made
            continue
        constant = statistics.means.get(name)
        if constant is None:
            continue
        agreement = study.details(evaluator.metrics, evaluator.default_thresholds()).get("agreement", {})
        metrics = {}
        for unit, pairs in agreement.items():
            metrics[f"mae_{unit}"] = float(mean_of(np.abs(np.asarray(pairs["true"], np.float64) - constant)))
            metrics[f"pearson_{unit}"] = float("nan")
        found[name] = {"name": f"training mean {constant:.3g}", "metrics": metrics}
    return found


def _task_baseline(evaluator: Evaluator, task: str, statistics: TrainingStatistics) -> dict[str, Any]:
    spec = evaluator.specs[task]
    best: dict[str, Any] = {}
    for name, change in _changes(spec, statistics).items():
        copy = evaluator.empty()
        records = [record | change(record) for record in evaluator.metrics[task].records]
        copy.metrics[task].add(records)
        metrics = copy.metrics[task].compute(copy.metrics[task].default_thresholds)
        if spec.kind == "detection" and statistics.images.get(task):
            expected = sum(statistics.class_counts[task]) / statistics.images[task]
            metrics["count_mae"] = float(mean_of(np.array([abs(record["truth"].sum() - expected) for record in records])))
        value = metrics[spec.primary_metric] * (1 if spec.higher_is_better() else -1)
        if not best or (np.isfinite(value) and not value <= best["value"]):
            best = {"name": name, "metrics": metrics, "value": value}
    return {"name": best["name"], "metrics": best["metrics"]}


def _changes(spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
    """Return the candidate baselines of a task: name and replacement of the predicted part of a record."""
    if spec.kind == "detection":
        counted = " (count: training mean)" if statistics.images.get(spec.name) else ""
        return {f"nothing detected{counted}": _without_predictions}
    if spec.kind == "heatmap":
        return {"zero everywhere": _zero_heatmap}
    if spec.kind == "segmentation" and spec.multilabel:
        return {"all background": _all_background, "all foreground": _all_foreground}
    if spec.kind == "segmentation":
        return {f"{name} everywhere": _one_class(index) for index, name in enumerate(spec.classes)}
    if spec.kind == "regression":
        mean = statistics.means.get(spec.name, 0.0)
        return {f"training mean {mean:.3g}": lambda record: {"value": np.float64(mean)}}
    counts = statistics.class_counts.get(spec.name) or [1.0] * len(spec.classes)
    majority = int(np.argmax(counts))
    return {f"always {spec.classes[majority]}": _majority(majority)}


def _without_predictions(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key][:0] for key in ("scores", "labels", "hits")}


def _zero_heatmap(record: dict[str, Any]) -> dict[str, Any]:
    sums = record["sums"].copy()
    sums[:, [1, 3, 5]] = 0
    sums[:, 6], sums[:, 7] = sums[:, 2], sums[:, 4]
    return _without_predictions(record) | {"sums": sums}


def _all_background(record: dict[str, Any]) -> dict[str, Any]:
    return {key: np.zeros_like(record[key]) for key in ("hits", "predicted", "curve_hits", "curve_predicted")}


def _all_foreground(record: dict[str, Any]) -> dict[str, Any]:
    hits = {key: np.ones_like(record[key]) * record["truth"][:, None] for key in ("hits", "curve_hits")}
    return hits | {key: np.full_like(record[key], record["pixels"]) for key in ("predicted", "curve_predicted")}


def _one_class(index: int) -> RecordChange:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        confusion = np.zeros_like(record["confusion"])
        confusion[:, index] = record["truth"]
        return {"confusion": confusion, "hits": confusion.diagonal()[:, None].copy(), "predicted": confusion.sum(0)[:, None]}

    return change


def _majority(index: int) -> RecordChange:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        confusion = np.zeros_like(record["confusion"])
        confusion[:, index] = record["confusion"].sum(1)
        changed: dict[str, Any] = {"confusion": confusion}
        if "probabilities" in record:
            changed["probabilities"] = np.eye(len(record["probabilities"]))[index]
        return changed

    return change
