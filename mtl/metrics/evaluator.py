"""Scores all tasks of a run over whole images; training, evaluation and comparison use this one object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from mtl.core.files import plain
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult
from mtl.metrics.base import StudyMetric, TaskMetric, mean_of
from mtl.metrics.breakdown import by_source, by_subgroup, case_tables, surface_notes
from mtl.metrics.known import known_mean
from mtl.metrics.statistics import GroupBootstrap, bootstrap_intervals, group_notes, task_group_notes

Thresholds = dict[str, dict[str, float]]
Scores = dict[str, dict[str, float]]


class Evaluator:
    """Collects one record per image and task, and computes everything from them.

    A task that is missing in the truth of an image is absent there and is not scored; a sample id that comes twice counts once.

    Args:
        specs: Active tasks by name.
        study: Metrics across tasks, by name in the results.
        hit_radius: Reference pixels within which a heatmap peak or a predicted point hits an annotated one.
        score_weights: Weight of each task's primary metric in `score`; 1 unless named.
        group_by: What the group of a sample is (`patient`, `field`): used in names and notes.
        class_weighting: `equal`, or `known`: where a primary metric is a mean over classes, `score` takes the one in which
            classes with few examples weigh less (`known_mean`). The metrics themselves stay as they are.
        native: Compare masks in the original raster, in which the truth then has to come; predicted probabilities are enlarged
            and cut at the thresholds there. Otherwise in the working raster.
    """

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        study: dict[str, StudyMetric] | None = None,
        *,
        hit_radius: float = 72.0,
        score_weights: dict[str, float] | None = None,
        group_by: str = "patient",
        class_weighting: str = "equal",
        native: bool = False,
    ) -> None:
        self.specs = dict(specs)
        self.study = dict(study or {})
        self.hit_radius = hit_radius
        self.score_weights = dict(score_weights or {})
        self.group_by = group_by
        self.class_weighting = class_weighting
        self.native = native
        self.metrics: dict[str, TaskMetric] = {name: spec.rules.metric(spec, hit_radius) for name, spec in specs.items()}
        self._seen: dict[str, tuple[str, str]] = {}
        for metric in self.study.values():
            metric.group_by = group_by

    def empty(self) -> Evaluator:
        """Return an evaluator with the same settings and no records."""
        return Evaluator(self.specs, self.study, **self._settings)

    @classmethod
    def joined(cls, parts: Iterable[Evaluator], study: dict[str, StudyMetric]) -> Evaluator:
        """Return one evaluator over the tasks of several that share none (single-task runs of one seed).

        Args:
            parts: At least one; their metrics, with the records, are shared with the result. The first gives the settings.
            study: Metrics across tasks of the result.
        """
        parts = list(parts)
        whole = cls({task: spec for part in parts for task, spec in part.specs.items()}, study, **parts[0]._settings)
        for part in parts:
            whole.metrics |= part.metrics
            whole._seen |= part._seen
        return whole

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "hit_radius": self.hit_radius, "score_weights": self.score_weights, "group_by": self.group_by,
            "class_weighting": self.class_weighting, "native": self.native,
        }  # fmt: skip

    # -- records -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all records."""
        self._seen = {}
        for metric in self.metrics.values():
            metric.reset()

    def update(self, prediction: ImageResult, truth: ImageResult) -> None:
        """Score one whole image.

        Raises:
            ValueError: A task is labelled but was not predicted, or shapes disagree.
        """
        if truth.sample_id in self._seen:
            return
        identity: dict[str, Any] = {"sample_id": truth.sample_id, "group": truth.group, "source": truth.source}
        if truth.attributes:
            identity["attributes"] = dict(truth.attributes)
        if truth.case:
            identity["case"] = truth.case
        made = {}
        for task, metric in self.metrics.items():
            if task not in truth.tasks:
                continue
            if task not in prediction.tasks:
                raise ValueError(f"Sample `{truth.sample_id}` has labels for task `{task}` but no prediction.")
            made[task] = identity | metric.score(prediction, truth, self.native)
        self._seen[truth.sample_id] = (truth.group, truth.source)
        for task, record in made.items():
            self.metrics[task].add([record])

    def measure_surfaces(self, thresholds: Thresholds) -> None:
        """Also measure HD95 in the images to come, in masks cut at these thresholds."""
        for task, metric in self.metrics.items():
            metric.measure_surfaces(thresholds[task])

    def finish(self) -> None:
        """Complete the records after the last image: distances in whole volumes."""
        for metric in self.metrics.values():
            metric.finish()

    def records(self) -> dict[str, Any]:
        """Return everything that was collected: plain dicts, lists and numpy arrays, picklable."""
        return {
            "samples": [{"sample_id": name, "group": group, "source": source} for name, (group, source) in self._seen.items()],
            "tasks": {task: list(metric.records) for task, metric in self.metrics.items()},
        }

    def extend(self, records: dict[str, Any]) -> None:
        """Take the records of another evaluator (another rank, a file); samples seen already are ignored."""
        new = {s["sample_id"]: (s["group"], s["source"]) for s in records["samples"] if s["sample_id"] not in self._seen}
        for task, metric in self.metrics.items():
            metric.add(record for record in records["tasks"].get(task, []) if record["sample_id"] in new)
        self._seen.update(new)

    @property
    def groups(self) -> list[str]:
        """Names of all groups, sorted."""
        return sorted({group for group, _ in self._seen.values()})

    @property
    def names(self) -> list[str]:
        """Names of all tasks and study metrics."""
        return [*self.specs, *self.study]

    def labelled_groups(self, name: str) -> int:
        """Return how many groups have labels for a task, or for each task that a study metric is made from."""
        tasks = self.study[name].tasks if name in self.study else (name,)
        return min((len({record["group"] for record in self.metrics[task].records}) for task in tasks), default=0)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def thresholds(self) -> Thresholds:
        """Choose decision thresholds on the records at hand, which must be validation records."""
        return {task: metric.choose_thresholds() for task, metric in self.metrics.items()}

    def default_thresholds(self) -> Thresholds:
        """Return the thresholds in force before any were chosen."""
        return {task: metric.default_thresholds for task, metric in self.metrics.items()}

    def compute(self, thresholds: Thresholds, weights: dict[str, np.ndarray] | None = None) -> Scores:
        """Return all scalar metrics by task, study metrics under their own name.

        Args:
            thresholds: By task.
            weights: By task, [records] how often each image counts; None counts each once.
        """
        values = {
            task: metric.compute(thresholds[task], None if weights is None else weights[task])
            for task, metric in self.metrics.items()
        }
        across = {name: study.compute(self.metrics, thresholds, weights, values) for name, study in self.study.items()}
        return values | across

    def compute_by_group(self, thresholds: Thresholds, names: list[str]) -> Callable[[np.ndarray], Scores]:
        """Return a function from one weight per group (in the order of `names`) to scores: the step of a bootstrap."""
        position = {name: index for index, name in enumerate(names)}
        index = {
            task: np.array([position[record["group"]] for record in metric.records], np.int64)
            for task, metric in self.metrics.items()
        }
        return lambda counts: self.compute(thresholds, {task: counts[where] for task, where in index.items()})

    def primary_values(self, values: Scores, thresholds: Thresholds) -> dict[str, float]:
        """Return each task's primary metric in [0, 1] so that higher is better: 0 below 0; 1 / (1 + v) where lower is better.

        Correlation, kappa and R2 can be negative, the latter without limit, and would then outweigh all other tasks in `score`.
        """
        primary = {task: values[task][spec.primary_metric] for task, spec in self.specs.items() if task in values}
        if self.class_weighting == "known":
            primary = {task: known_mean(self.metrics[task], value, thresholds[task]) for task, value in primary.items()}
        bounded = {task: value if np.isnan(value) else max(value, 0.0) for task, value in primary.items()}
        return {task: v if self.specs[task].higher_is_better() else 1 / (1 + v) for task, v in bounded.items()}

    def score(self, values: Scores, thresholds: Thresholds) -> float:
        """Return the weighted mean of the tasks' primary metrics; NaN is left out (see `left_out`), NaN if none is left.

        Args:
            values: By task; those that are there count.
            thresholds: With which they were computed.
        """
        known = {task: value for task, value in self.primary_values(values, thresholds).items() if np.isfinite(value)}
        weights = np.array([self.score_weights.get(task, 1.0) for task in known])
        if weights.sum() <= 0:
            return float("nan")
        return float(weights @ np.array(list(known.values())) / weights.sum())

    def left_out(self, values: Scores) -> list[str]:
        """Return the tasks whose primary metric is not defined and is therefore not part of `score`."""
        primary = {task: values[task][spec.primary_metric] for task, spec in self.specs.items() if task in values}
        return [task for task, value in primary.items() if not np.isfinite(value)]

    def summary(self, thresholds: Thresholds, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Return the body of `metrics.json`, in plain JSON types (undefined numbers are null).

        Args:
            thresholds: Chosen on validation.
            bootstrap: Number of resamples over groups; 0 gives no intervals.
            seed: Of the bootstrap.

        Returns:
            `score`, `n_samples`, `n_groups`, `group_by`, `resolution` of masks, `thresholds`, `tasks` (per task `n` labelled
            images, metrics with the primary one first, `ci95`, `per_class`, `per_source`, `confusion` of classes,
            `per_subgroup` and `subgroup_gaps`), `study` (same form), `cases` (volumes by task, case and class), `hd95_units`
            by task and `notes`. An interval needs two groups with labels of the task. A study metric that compares values
            has `compared`, how many by what they belong to.
        """
        values = self.compute(thresholds)
        resampling = GroupBootstrap(self.groups, bootstrap, seed)
        intervals = bootstrap_intervals(self.compute_by_group(thresholds, resampling.names), resampling) or {}
        groups = {name: self.labelled_groups(name) for name in values}
        intervals = {name: found for name, found in intervals.items() if groups[name] > 1}
        tasks: dict[str, Any] = {}
        for task, metric in self.metrics.items():
            primary = metric.spec.primary_metric
            ordered = {primary: values[task][primary]} | values[task]
            tasks[task] = {"n": len(metric.records), **ordered} | {
                "ci95": {name: intervals.get(task, {}).get(name) for name in ordered},
                "per_class": metric.details(thresholds[task])["per_class"],
                "per_source": by_source(metric, thresholds[task]),
                **metric.confusion(thresholds[task], metric.image_weights(None)),
                **by_subgroup(metric, thresholds[task], resampling),
            }
        study = {
            name: {
                **values[name],
                "ci95": {m: intervals.get(name, {}).get(m) for m in values[name]},
                "compared": _compared(metric.details(self.metrics, thresholds)),
            }
            for name, metric in self.study.items()
        }
        units, about_surfaces = surface_notes(self.metrics, "native" if self.native else "working")
        notes = self._notes(values, thresholds) + about_surfaces
        if bootstrap:
            notes += group_notes(len(self.groups), self.group_by)
            notes += task_group_notes({task: groups[task] for task in tasks}, len(self.groups), self.group_by)
        return plain(
            {
                "score": self.score(values, thresholds), "n_samples": len(self._seen), "n_groups": len(self.groups),
                "group_by": self.group_by, "resolution": "native" if self.native else "working",
                "thresholds": thresholds, "bootstrap": bootstrap,
                "tasks": tasks, "study": study, "cases": case_tables(self.metrics, thresholds), "hd95_units": units,
                "notes": notes,
            }
        )  # fmt: skip

    def curves(self, thresholds: Thresholds) -> dict[str, Any]:
        """Return what the figures of the report need, by task or study metric, in plain JSON types."""
        found = {task: metric.details(thresholds[task])["curves"] for task, metric in self.metrics.items()}
        for name, study in self.study.items():
            found[name] = study.details(self.metrics, thresholds)
        return plain(found)

    def image_scores(self, thresholds: Thresholds, among: Collection[str] | None = None) -> dict[str, float]:
        """Return `score` of each image alone, by sample id: finds the best and worst examples of a report.

        A task counts for an image as `TaskMetric.image_value` says.

        Args:
            thresholds: By task.
            among: Sample ids to score; None takes all.
        """
        found: dict[str, list[float]] = {}
        for task, metric in self.metrics.items():
            chosen = metric.records if among is None else [record for record in map(metric.find, among) if record]
            for record in chosen:
                found.setdefault(record["sample_id"], []).append(metric.image_value(record, thresholds[task]))
        return {sample_id: float(mean_of(np.array(values))) for sample_id, values in sorted(found.items())}

    def _notes(self, values: Scores, thresholds: Thresholds) -> list[str]:
        notes = [f"Task `{task}` is not part of the score: its {self.specs[task].primary_metric} is undefined here."
                 for task in self.left_out(values)]  # fmt: skip
        if self.class_weighting == "known":
            notes.append(
                "In the score classes with few examples weigh less (evaluation.class_weighting=known); metrics do not."
            )
        for task, metric in self.metrics.items():
            rows = metric.details(thresholds[task])["per_class"]
            absent = [name for name, row in rows.items() if row.get("n") == 0]
            if absent and metric.records:
                notes.append(f"Task `{task}`: no example of {', '.join(absent)} in this split, {metric.without_example}.")
            notes += [f"Task `{task}`: {note}" for note in metric.notes()]
        return notes + [f"{name}: {note}" for name, study in self.study.items() for note in study.notes(values[name])]


def _compared(details: dict[str, Any]) -> dict[str, int]:
    """How many values a study metric compares, by what they belong to (image, patient)."""
    return {unit: len(pairs["true"]) for unit, pairs in details.get("agreement", {}).items()}
