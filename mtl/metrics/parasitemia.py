"""Parasitemia: the share of red cells that are infected, per image and per patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD, box_probabilities, deciding_problem, labels_of_boxes
from mtl.core.errors import ConfigError, DataError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Record
from mtl.metrics.base import StudyMetric, TaskMetric, Truths, bland_altman, mean_of, ratio, weighted_pearson
from mtl.metrics.detection import DetectionMetric

Thresholds = dict[str, dict[str, float]]


@STUDY_METRICS.register("parasitemia")
class Parasitemia(StudyMetric):
    """Agreement of 100 * infected / (infected + healthy) from detected and annotated counts.

    Detections count from the stored score threshold of the detection task on. Per group (patient) the counts of all its images
    are added before the division. `<group>` below is what a group is.

    - `mae_image`, `mae_<group>`: mean absolute error in percentage points.
    - `pearson_image`, `pearson_<group>`: Pearson r, NaN below 3 values or when one side is constant.
    - `images_without_cells`: images in which no red cell was detected; their predicted parasitemia counts as 0.

    Images (groups) without an annotated red cell have no true value and are left out; a prediction without a detected one has
    no value. Its baseline is the mean over the training images.

    Args:
        specs: Active tasks by name.
        group_by: What a group is.
        task: The detection task that counts.
        infected: Its class of infected red cells.
        healthy: Its class of uninfected red cells.
        classes_from: A task that classifies boxes and whose class stands for that of the detector; null keeps the detector's.
    """

    value_of = "image"
    unit = "%"
    lower_is_better = ("mae_*", "*s_without_cells")

    def __init__(
        self, specs: dict[str, TaskSpec], group_by: str = "patient", *, task: str = "detection", infected: str = "Infected",
        healthy: str = "Healthy", classes_from: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(specs, group_by)
        if task not in specs or specs[task].kind != "detection":
            found = ", ".join(name for name, spec in specs.items() if spec.kind == "detection") or "none"
            raise ConfigError(
                f"Study metric `parasitemia` needs a detection task named `{task}`; detection tasks here: {found}."
            )
        classes = specs[task].classes
        missing = [name for name in (infected, healthy) if name not in classes]
        if missing:
            raise ConfigError(
                f"Study metric `parasitemia` needs the classes `{infected}` and `{healthy}` in task `{task}`; it has "
                f"{', '.join(classes)} ({', '.join(missing)} missing). Use data with both classes or remove the metric."
            )
        self.task, self.tasks, self.decider = task, (task,), classes_from
        if classes_from:
            if problem := deciding_problem(specs, task, classes_from, "parasitemia.classes_from"):
                raise ConfigError(problem)
            self.tasks, self.deciders = (task, classes_from), {task: classes_from}
        self.classes = infected, healthy
        self.columns = [classes.index(infected), classes.index(healthy)]

    def compute(
        self, metrics: dict[str, TaskMetric], thresholds: Thresholds, weights: dict[str, np.ndarray] | None = None,
        values: dict[str, dict[str, float]] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return the scalars named in the class docstring."""
        metric = metrics[self.task]
        weight = metric.image_weights(None if weights is None else weights[self.task])
        predicted, true = self._counts(metric, thresholds)
        found = {}
        for unit, (claims, truth, share) in {
            "image": (predicted, true, weight),
            self.group_by: self._grouped(metric, predicted, true, weight),
        }.items():
            known = truth.sum(1) > 0
            guess, value, share = _percent(claims[known]), _percent(truth[known]), share[known]
            found[f"mae_{unit}"] = float(mean_of(np.repeat(np.abs(guess - value), share.astype(int))))
            found[f"pearson_{unit}"] = weighted_pearson(guess, value, share)
        silent = (predicted.sum(1) == 0) & (true.sum(1) > 0)
        return found | {"images_without_cells": float(weight @ silent)}

    def details(self, metrics: dict[str, TaskMetric], thresholds: Thresholds) -> dict[str, Any]:
        """Return what a scatter and a Bland-Altman figure need, per image and per group, and what was left out."""
        metric = metrics[self.task]
        predicted, true = self._counts(metric, thresholds)
        groups, _ = metric.group_index()
        names = {"image": [record["sample_id"] for record in metric.records], self.group_by: groups}
        tables = {
            "image": (predicted, true),
            self.group_by: self._grouped(metric, predicted, true, metric.image_weights(None))[:2],
        }
        agreement, left_out = {}, {}
        for unit, (claims, truth) in tables.items():
            known = truth.sum(1) > 0
            left_out[unit] = int((~known).sum())
            agreement[unit] = bland_altman(_percent(claims[known]), _percent(truth[known])) | {
                "names": [name for name, keep in zip(names[unit], known, strict=True) if keep]
            }
        silent = int(((predicted.sum(1) == 0) & (true.sum(1) > 0)).sum())
        return {"agreement": agreement, "without_truth": left_out, "images_without_cells": silent, "sign": self.unit}

    def notes(self, values: dict[str, float]) -> list[str]:
        """Return who decides the classes, and what images without a detected red cell count as."""
        silent = values.get("images_without_cells", 0)
        decided = [f"the class of each detected cell is that of task `{self.decider}`."] if self.decider else []
        return decided + ([f"{silent:.0f} images in which no red cell was detected count as 0 %."] if silent else [])

    def value(self, tasks: Mapping[str, Arrays], thresholds: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the parasitemia of one image in percent; None without red cells, or where nothing decided their classes."""
        found = tasks.get(self.task)
        labels = None if found is None else self._labels(found, thresholds)
        if found is None or labels is None:
            return None
        if "scores" in found:
            limit = thresholds.get(self.task, {}).get("score", DEFAULT_THRESHOLD)
            labels = labels[np.asarray(found["scores"] >= np.float32(limit))]
        counts = np.bincount(labels, minlength=len(self.specs[self.task].classes))[self.columns]
        return float(_percent(counts[None])[0]) if counts.sum() else None

    def training_value(self, records: Sequence[Record], truths: Truths) -> float:
        """Return the mean over the images with annotated red cells, of which the index knows the counts."""
        spec = self.specs[self.task]
        members = dict(zip(spec.classes, spec.members, strict=True)) if spec.members else {}
        shares = []
        for record in (record for record in records if record.knows(spec.label)):
            infected, healthy = (
                sum(record.class_counts.get(member, 0) for member in members.get(name, (name,))) for name in self.classes
            )
            shares.append(percent_infected(infected, healthy))
        return float(mean_of(np.array(shares)))

    def _labels(self, found: Arrays, thresholds: Mapping[str, Mapping[str, float]]) -> np.ndarray | None:
        """[N] class of each box; None where the task that decides said nothing of them."""
        if not self.decider:
            return np.asarray(found["labels"], np.int64)
        return labels_of_boxes(found, self.decider, self.specs[self.decider], thresholds.get(self.decider, {}))

    def _counts(self, metric: TaskMetric, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
        """Detected and annotated (infected, healthy) counts, each [records, 2]."""
        assert isinstance(metric, DetectionMetric)
        if not metric.records:
            return np.zeros((0, 2)), np.zeros((0, 2))
        limit = thresholds[self.task]["score"]
        if self.decider:
            key = ("decided", self.decider, limit, tuple(sorted(thresholds[self.decider].items())))
            predicted = metric.cached(key, lambda: self._decided(metric.records, thresholds))
        else:
            predicted = metric.counts_at(limit)[1]
        return predicted[:, self.columns], metric.ranking.truth[:, self.columns].astype(np.float64)

    def _decided(self, records: Sequence[dict[str, Any]], thresholds: Thresholds) -> np.ndarray:
        """[records, classes] detections from the score threshold on, in the classes that the deciding task gives them."""
        assert self.decider is not None
        counts = []
        for record in records:
            labels = self._labels(record, thresholds)
            if labels is None:
                raise DataError(
                    f"The records of task `{self.task}` lack `{box_probabilities(self.decider)}`, which "
                    f"parasitemia.classes_from={self.decider} needs: they were made without it. Evaluate the run again."
                )
            sure = record["scores"] >= np.float32(thresholds[self.task]["score"])
            counts.append(np.bincount(labels[sure], minlength=len(self.specs[self.task].classes)))
        return np.array(counts, np.float64)

    def _grouped(
        self, metric: TaskMetric, predicted: np.ndarray, true: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add the counts of the images of each group; a group weighs what its images weigh (bootstraps draw whole groups)."""
        names, index = metric.group_index()
        share = np.zeros(len(names))
        sums = np.zeros((2, len(names), 2))
        np.maximum.at(share, index, weight)
        np.add.at(sums[0], index, predicted)
        np.add.at(sums[1], index, true)
        return sums[0], sums[1], share


def percent_infected(infected: Any, healthy: Any, empty: float = float("nan")) -> np.ndarray:
    """Return the infected red cells in percent of all red cells; `empty` where there are none."""
    return ratio(100.0 * np.asarray(infected), np.add(infected, healthy), empty)


def _percent(counts: np.ndarray) -> np.ndarray:
    """[n, 2] (infected, healthy) to percent infected; 0 where nothing was counted."""
    return percent_infected(counts[:, 0], counts[:, 1], 0.0)
