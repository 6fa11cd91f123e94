"""What a model without any insight would score: a row of every results table.

A baseline is scored by the same evaluator as the model: its records are copied with the predictions replaced, so images,
labels, matching and metrics are identical.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtl.core.decision import predicted_classes
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.kinds.base import RecordChange, TrainingStatistics, rules_of
from mtl.metrics.base import StudyMetric, TaskMetric, Truths
from mtl.metrics.breakdown import by_source
from mtl.metrics.classification import BINARY_METRICS
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.points import MM2


def count_training(
    specs: dict[str, TaskSpec], records: Iterable[Record], means: dict[str, float] | None = None,
    study: Mapping[str, StudyMetric] | None = None, truths: Truths = lambda records: iter(()),
) -> TrainingStatistics:  # fmt: skip
    """Count classes in the index of the training images.

    Args:
        specs: Active tasks by name.
        records: Training records; each counts for the tasks whose label it knows. One that does not say which it knows is
            unlabelled where it has neither annotation file nor counts. Those that only serve evaluation do not count.
        means: Mean training value by task where the records do not tell it.
        study: Study metrics whose training value is wanted, by name.
        truths: Reads annotations for those of them that the records do not suffice.
    """
    some = [r for r in records if r.training and (r.labels or r.annotation is not None or r.class_counts)]
    statistics = TrainingStatistics(means=dict(means or {}))
    for task, spec in specs.items():
        rules, labelled = rules_of(spec), [record for record in some if record.knows(spec.label)]
        statistics.class_counts[task] = rules.class_counts(spec, labelled)
        statistics.known[task] = [float(sum(name in record.class_counts for record in labelled)) for name in spec.classes]
        statistics.images[task] = len(labelled)
        if rules.fixed_scale and (area := sum(map(_area_mm2, labelled))):
            statistics.densities[task] = [count / area for count in statistics.class_counts[task]]
        numbers = [record.values[spec.label_name] for record in labelled if spec.label_name in record.values]
        if not spec.classes and numbers and task not in statistics.means:
            statistics.means[task] = float(np.mean(numbers))
        if rules.guessable:
            statistics.by_source[task] = {
                source: rules.class_counts(spec, [record for record in labelled if record.source == source])
                for source in sorted({record.source for record in labelled})
            }
    statistics.means |= {name: metric.training_value(some, truths) for name, metric in (study or {}).items()}
    return statistics


def _area_mm2(record: Record) -> float:
    """Area of an image whose reference pixel is a micron; 0 where its size is not known."""
    height, width = record.size or (0, 0)
    return height * width * MM2 / record.pixel_scale**2


def baseline_summary(evaluator: Evaluator, statistics: TrainingStatistics) -> dict[str, dict[str, Any]]:
    """Score the baseline of every task and study metric on the images that the evaluator holds.

    Each kind of task knows the baselines that make sense for it (`TaskKind.baselines`); of several the best by the primary
    metric counts. A study metric knows its own (`StudyMetric.baseline`).

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
        if made := study.baseline(found, evaluator.metrics, statistics.means.get(name, float("nan"))):
            found[name] = made
    return found


def _from_source(evaluator: Evaluator, task: str, statistics: TrainingStatistics) -> dict[str, Any]:
    """Predict for each image the shares of the classes in the training images of its source.

    The most frequent class of the source is predicted (of two equally frequent ones the second); the shares are the scores of
    the AUROC. An image of a source that training does not have gets the shares of all training images.

    Returns:
        `name`, `metrics`, and `per_source` with the metrics within each source.
    """
    spec = evaluator.specs[task]
    counts = {source: np.array(values) for source, values in statistics.by_source[task].items()}
    shares = {source: values / max(values.sum(), 1.0) for source, values in counts.items()}
    overall = np.array(statistics.class_counts[task]) / max(sum(statistics.class_counts[task]), 1.0)

    def change(record: dict[str, Any]) -> dict[str, Any]:
        return {"probabilities": shares.get(record["source"], overall)}

    metric = _changed(evaluator, task, change)
    guesses = ", ".join(f"{source} {spec.classes[int(predicted_classes(share, spec, {}))]}" for source, share in shares.items())
    metrics = metric.compute(metric.default_thresholds)
    inside = {source: {name: row[name] for name in metrics} for source, row in by_source(metric, {}).items()}
    return {"name": f"from the source alone ({guesses})", "metrics": metrics, "per_source": inside}


def source_notes(tasks: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> list[str]:
    """Return notes on classification tasks that are not solved better than by knowing the source.

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
    spec, rules = evaluator.specs[task], rules_of(evaluator.specs[task])
    best: dict[str, Any] = {}
    for name, change in rules.baselines(spec, statistics).items():
        metrics = rules.baseline_metrics(_changed(evaluator, task, change), statistics)
        value = metrics[spec.primary_metric] * (1 if spec.higher_is_better() else -1)
        if not best or (np.isfinite(value) and not value <= best["value"]):
            best = {"name": name, "metrics": metrics, "value": value}
    return {"name": best["name"], "metrics": best["metrics"]}
