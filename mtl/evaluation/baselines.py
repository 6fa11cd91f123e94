"""What a model without any insight would score: a row of every results table.

A baseline is scored by the same evaluator as the model: its records are copied with the predictions replaced, so images,
labels, matching and metrics are identical.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtl.core.task import BINARY_METRICS, TaskSpec
from mtl.core.types import Record
from mtl.metrics.base import TaskMetric, mean_of
from mtl.metrics.breakdown import by_source
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.matching import ranked_record
from mtl.metrics.points import DENSEST, MM2

RecordChange = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class TrainingStatistics:
    """What a baseline may know of the training images.

    Attributes:
        class_counts: By task, per class the number of objects (images for image-level classes) in its labelled training images.
        images: By task, the number of labelled training images.
        by_source: By classification task and source, per class the number of training images.
        means: By regression task or study metric, the mean training value.
        densities: By points task, per class the number of points per mm2 of its labelled training images.
    """

    class_counts: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    by_source: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    densities: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def from_records(
        cls, specs: dict[str, TaskSpec], records: Iterable[Record], means: dict[str, float] | None = None,
        percentages: dict[str, tuple[str, str]] | None = None,
    ) -> TrainingStatistics:  # fmt: skip
        """Count classes in the index of the training images.

        Args:
            specs: Active tasks by name.
            records: Training records; each counts for the tasks whose label it knows. One that does not say which it knows is
                unlabelled where it has neither annotation file nor counts. Those that only serve evaluation do not count.
            means: Mean training value by regression task.
            percentages: By study metric (`parasitemia`), the names of its positive and negative object class.
        """
        some = [r for r in records if r.training and (r.labels or r.annotation is not None or r.class_counts)]
        statistics = cls(means=dict(means or {}))
        for task, spec in specs.items():
            labelled = [record for record in some if record.knows(spec.label)]
            members = spec.members or tuple((name,) for name in spec.classes)
            statistics.class_counts[task] = _count(labelled, members)
            statistics.images[task] = len(labelled)
            if spec.kind == "points" and (area := sum(map(_area_mm2, labelled))):
                statistics.densities[task] = [count / area for count in statistics.class_counts[task]]
            if spec.kind == "classification":
                statistics.by_source[task] = {
                    source: _count([record for record in labelled if record.source == source], members)
                    for source in sorted({record.source for record in labelled})
                }
        for name, (positive, negative) in (percentages or {}).items():
            counts = [(r.class_counts.get(positive, 0), r.class_counts.get(negative, 0)) for r in some]
            shares = [100.0 * first / (first + second) for first, second in counts if first + second]
            statistics.means[name] = float(mean_of(np.array(shares)))
        return statistics


def _count(records: list[Record], members: tuple[tuple[str, ...], ...]) -> list[float]:
    """Objects (or images) of each class."""
    return [float(sum(record.class_counts.get(name, 0) for record in records for name in names)) for names in members]


def _area_mm2(record: Record) -> float:
    """Area of an image whose reference pixel is a micron; 0 where its size is not known."""
    height, width = record.size or (0, 0)
    return height * width * MM2 / record.pixel_scale**2


def baseline_summary(evaluator: Evaluator, statistics: TrainingStatistics) -> dict[str, dict[str, Any]]:
    """Score the baseline of every task and study metric on the images that the evaluator holds.

    Detection: nothing detected, and the mean training count for `count_mae`. Classes: the most frequent of training.
    Segmentation: all background or all foreground (multiclass: one class everywhere), whichever scores higher. Heatmap: zero
    everywhere. Points: nothing found, or a lattice as dense as the points in training, whichever scores higher. Regression,
    parasitemia and TIL score: the mean of training. A mean over tasks: that of their baselines.

    Returns:
        By task: `name` says what the baseline does, `metrics` holds its numbers (NaN where undefined). Classification tasks
        with training images of several sources also have `from_source` (see `_from_source`), which tells how far the source
        alone gives the label away.
    """
    found = {task: _task_baseline(evaluator, task, statistics) for task in evaluator.specs}
    for task in found:
        if len(statistics.by_source.get(task, {})) > 1:
            found[task]["from_source"] = _from_source(evaluator, task, statistics)
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


def _from_source(evaluator: Evaluator, task: str, statistics: TrainingStatistics) -> dict[str, Any]:
    """Predict for each image the shares of the classes in the training images of its source.

    The most frequent class of the source is predicted; the shares are the scores of the AUROC. An image of a source that
    training does not have gets the shares of all training images.

    Returns:
        `name`, `metrics`, and `per_source` with the metrics within each source.
    """
    spec = evaluator.specs[task]
    counts = {source: np.array(values) for source, values in statistics.by_source[task].items()}
    shares = {source: values / max(values.sum(), 1.0) for source, values in counts.items()}
    overall = np.array(statistics.class_counts[task]) / max(sum(statistics.class_counts[task]), 1.0)

    def change(record: dict[str, Any]) -> dict[str, Any]:
        share = shares.get(record["source"], overall)
        return _majority(int(np.argmax(share)))(record) | {"probabilities": share}

    metric = _changed(evaluator, task, change)
    guesses = ", ".join(f"{source} {spec.classes[int(np.argmax(share))]}" for source, share in shares.items())
    metrics = metric.compute(metric.default_thresholds)
    inside = {source: {name: row[name] for name in metrics} for source, row in by_source(metric, {}).items()}
    return {"name": f"from the source alone ({guesses})", "metrics": metrics, "per_source": inside}


def source_notes(tasks: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> list[str]:
    """Say which classification tasks are not solved better than by knowing the source.

    Args:
        tasks: `tasks` of `metrics.json`.
        baseline: From `baseline_summary`.
    """
    notes = []
    for task, entry in baseline.items():
        guess = entry.get("from_source", {}).get("metrics", {})
        # A constant has a sensitivity or a specificity of 1, so these two say nothing alone.
        pairs = {name: (tasks[task].get(name), value) for name, value in guess.items() if name not in BINARY_METRICS}
        listed = [
            f"{name} {_number(ours)} against {_number(value)}"
            for name, (ours, value) in pairs.items()
            if ours is not None and np.isfinite(value) and not ours > value
        ]
        if listed:
            notes.append(
                f"Task `{task}` is not solved better than by the source of an image alone: {', '.join(listed)}. The network "
                "may have learned to tell the sources apart."
            )
    return notes


def _number(value: float) -> str:
    return f"{value:.3f}"


def _changed(evaluator: Evaluator, task: str, change: RecordChange) -> TaskMetric:
    """Return the metric of a task with the predicted part of its records replaced."""
    metric = evaluator.empty().metrics[task]
    metric.add([record | change(record) for record in evaluator.metrics[task].records])
    return metric


def _task_baseline(evaluator: Evaluator, task: str, statistics: TrainingStatistics) -> dict[str, Any]:
    spec = evaluator.specs[task]
    best: dict[str, Any] = {}
    for name, change in _changes(spec, statistics).items():
        metric = _changed(evaluator, task, change)
        records, metrics = metric.records, metric.compute(metric.default_thresholds)
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
    if spec.kind == "points":
        densities = statistics.densities.get(spec.name, [0.0])
        dense = np.minimum(densities, DENSEST)
        training = ", as in training" if sum(dense) == sum(densities) else ""
        found = {f"a lattice of {sum(dense):,.0f} points per mm2{training}": _lattice(dense)} if sum(dense) else {}
        return found | {"nothing found": _without_predictions}
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


def _lattice(densities: np.ndarray) -> RecordChange:
    """Predict points that know nothing of the image, evenly spread and as dense per class as said (per mm2).

    The first points of a lattice score best, so that each threshold leaves a sparser one; where in an image they begin differs,
    lest all images gain a point at one threshold. Every point reaches the default threshold of 0.5.
    """

    def change(record: dict[str, Any]) -> dict[str, Any]:
        start = zlib.crc32(record["sample_id"].encode()) / 2**32
        density = (np.arange(len(record["chance"])) + start) / record["frame"]
        placed, labels = np.nonzero((density[:, None] < densities) & (record["chance"] >= 0))
        scores = 1 - 0.5 * density[placed] / densities[labels]
        return ranked_record(scores, labels, record["chance"][placed, labels], record["truth"])

    return change


def _zero_heatmap(record: dict[str, Any]) -> dict[str, Any]:
    sums = record["sums"].copy()
    sums[:, [1, 3, 5]] = 0
    sums[:, 6], sums[:, 7] = sums[:, 2], sums[:, 4]
    return _without_predictions(record) | {"sums": sums}


def _all_background(record: dict[str, Any]) -> dict[str, Any]:
    silent = {key: np.zeros_like(record[key]) for key in ("hits", "predicted", "curve_hits", "curve_predicted")}
    # An empty mask is one diagonal away from an annotated one.
    if "hd95" in record:
        silent["hd95"] = np.where(record["truth"] > 0, record["diagonal"], np.nan)
    if "hd95_case" in record:
        silent["hd95_case"] = np.where(record["annotated_case"], record["diagonal_case"], np.nan)
    return silent


def _all_foreground(record: dict[str, Any]) -> dict[str, Any]:
    hits = {key: np.ones_like(record[key]) * record["truth"][:, None] for key in ("hits", "curve_hits")}
    full = {key: np.full_like(record[key], record["pixels"]) for key in ("predicted", "curve_predicted")}
    return hits | full | _no_distance(record)


def _no_distance(record: dict[str, Any]) -> dict[str, Any]:
    """Surfaces of the annotation are not at hand any more, so what is not empty has no distance to them."""
    return {key: np.full_like(record[key], np.nan) for key in ("hd95", "hd95_case") if key in record}


def _one_class(index: int) -> RecordChange:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        confusion = np.zeros_like(record["confusion"])
        confusion[:, index] = record["truth"]
        counts = {"hits": confusion.diagonal()[:, None].copy(), "predicted": confusion.sum(0)[:, None]}
        return {"confusion": confusion} | counts | _no_distance(record)

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
