"""What a task's metric does: keep one small record per whole image, decide at the end."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, ImageResult, Record

Value = TypeVar("Value")
# Reads the annotation of some images, pixels included, image by image.
Truths = Callable[[Iterable[Record]], Iterator[ImageResult]]

# Decision thresholds that are tried for scores of objects and peaks.
SCORE_GRID = tuple(round(step / 100, 2) for step in range(1, 100))


class TaskMetric(ABC):
    """Scores one task over whole images.

    `reduce` turns an image into a small record (numpy, picklable); everything else works on records, so that ranks exchange
    records once per epoch, thresholds are re-applied without a forward pass, and a bootstrap is a re-weighting. Records
    are kept sorted by sample id, so no number depends on the order in which images arrived.

    Attributes:
        names: Names of its metrics, the primary one first.
        image_metric: The one by which images are ranked; empty takes the primary one.
        class_means: By metric that is a mean over classes, the column of `per_class` that holds what is averaged.
        examples: The column of `per_class` that counts the examples of a class.
        records: One dict per image, each with `sample_id`, `group` and `source`, slices of a volume also with `case` where the
            group is not the volume; changed by `add` and `reset` only.
    """

    names: ClassVar[tuple[str, ...]] = ()
    image_metric: ClassVar[str] = ""
    class_means: ClassVar[Mapping[str, str]] = {}
    examples: ClassVar[str] = "n"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.records: list[dict[str, Any]] = []
        self._cache: dict[Any, Any] = {}

    @classmethod
    def names_of(cls, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of the metrics of one task."""
        return cls.names

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Take records of images that were not seen before."""
        self.records.extend(records)
        self.records.sort(key=lambda record: record["sample_id"])
        self._cache.clear()

    def reset(self) -> None:
        """Forget all records."""
        self.records = []
        self._cache.clear()

    def finish(self) -> None:
        """Complete the records once all images are there."""
        self._cache.clear()

    def find(self, sample_id: str) -> dict[str, Any] | None:
        """Return the record of one image, or None."""
        place = bisect_left(self.records, sample_id, key=lambda record: record["sample_id"])
        found = self.records[place : place + 1]
        return found[0] if found and found[0]["sample_id"] == sample_id else None

    def cached(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return what `make` gives, made once for the records at hand."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def stacked(self, key: str) -> np.ndarray:
        """[records, ...] the arrays of one record key."""
        return self.cached(("stacked", key), lambda: np.stack([np.asarray(record[key]) for record in self.records]))

    def group_index(self) -> tuple[list[str], np.ndarray]:
        """Return the sorted names of the groups, and [records] the position of each record's group among them."""
        return self.cached("groups", lambda: _index([record["group"] for record in self.records]))

    def case_index(self) -> tuple[list[str], np.ndarray]:
        """Return the sorted names of the cases (volumes), and [records] the position of each record's case among them."""
        return self.cached("cases", lambda: _index([case_of(record) for record in self.records]))

    def image_weights(self, weights: np.ndarray | None) -> np.ndarray:
        """[records] float64; ones where no weights are given."""
        return np.ones(len(self.records)) if weights is None else np.asarray(weights, dtype=np.float64)

    def score(self, prediction: ImageResult, truth: ImageResult, native: bool) -> dict[str, Any]:
        """Reduce one image that is labelled for this task.

        Args:
            prediction: Of the image, in its working raster.
            truth: Masks in the original raster where `native`, all else in the working raster.
            native: Compare masks in the original raster.
        """
        task = self.spec.name
        return self.reduce(prediction.tasks[task], truth.tasks[task], truth.window.working_pixels_per_reference)

    @abstractmethod
    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Reduce one image to a record; `scale` is (x, y) working pixels per reference pixel."""

    @abstractmethod
    def choose_thresholds(self) -> dict[str, float]:
        """Pick the decision thresholds on the records at hand (validation, by the caller's promise)."""

    @abstractmethod
    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalar metrics (those of `spec.metrics` at least); NaN where one is not defined.

        Args:
            thresholds: From `choose_thresholds` on validation, or the defaults.
            weights: [records] how often each image counts (bootstrap); None counts each once.
        """

    @abstractmethod
    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return `per_class` tables and curves (plain lists) for `metrics.json` and the report."""

    def notes(self) -> list[str]:
        """Return what a reader must know of the numbers, beside what holds for every task."""
        return []

    @property
    def without_example(self) -> str:
        """What becomes of a class that no annotation shows, for a note."""
        return "so no mean contains it"

    def image_value(self, record: dict[str, Any], thresholds: dict[str, float]) -> float:
        """Return how well one image is solved, higher is better: its `image_metric`, 1 / (1 + v) where lower is better."""
        single = copy.copy(self)
        single.records, single._cache = [record], {}
        name = self.image_metric or self.spec.primary_metric
        value = single.compute(thresholds)[name]
        return value if self.spec.higher_is_better(name) else 1 / (1 + max(value, 0.0))

    def confusion(self, thresholds: dict[str, float], weight: np.ndarray) -> dict[str, Any]:
        """Return `confusion` [truth][predicted] of the images that count, where there is one class each; else nothing."""
        return {}

    def case_table(self, thresholds: dict[str, float]) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the table of the volumes, by case and class; empty where the images are no slices."""
        return {}

    @property
    def distances_in_mm(self) -> bool | None:
        """Whether distances of surfaces are in millimetres; None where none was measured."""
        return None

    def measure_surfaces(self, thresholds: dict[str, float]) -> None:  # noqa: B027 (most metrics have no surfaces)
        """Measure distances of surfaces in the images to come, in masks cut at these thresholds; nothing without masks."""

    @property
    @abstractmethod
    def default_thresholds(self) -> dict[str, float]:
        """Thresholds in force before any were chosen."""


class StudyMetric(ABC):
    """A number of the whole study, made from one or several tasks (parasitemia, the mean over lesions, the TIL score).

    It is built from its settings in the configuration of a run wherever a run is judged or used, so that evaluation and
    prediction mean the same by it. Sub-classes are registered with `@STUDY_METRICS.register("name")`; keyword-only arguments
    are YAML keys. A key `task` (one name), `tasks` (a list) or `classes_from` (one name, or null) names what it is made from,
    so that a run without one of these tasks can leave the metric out.

    Args:
        specs: Active tasks by name.
        group_by: What a `group` is (`patient`, `field`); used in the names of metrics.

    Attributes:
        tasks: Names of the tasks it is made from.
        deciders: By detection task, the task whose class stands for the one that the detector gives to a box. The boxes of
            predictions and records then carry what it says of them (`mtl.core.decision.box_probabilities`), and one network
            has to predict both.
        value_of: What a prediction gives a value of: `image`, `slide` (sub-classes of `SlideMetric`) or nothing. The value of
            an image is written under the name that the configuration gives the metric: in JSON, as a column, in the legend
            of pictures.
        unit: Of its values.
        digits: Decimals of its column in `predictions.csv`.
        lower_is_better: Those of its values that improve when they fall; patterns as of file names.
    """

    tasks: tuple[str, ...] = ()
    deciders: Mapping[str, str] = {}
    value_of: ClassVar[Literal["", "image", "slide"]] = ""
    unit: ClassVar[str] = ""
    digits: ClassVar[int] = 4
    lower_is_better: ClassVar[tuple[str, ...]] = ("mae_*",)

    def __init__(self, specs: dict[str, TaskSpec], group_by: str = "patient") -> None:
        self.specs = specs
        self.group_by = group_by

    @abstractmethod
    def compute(
        self,
        metrics: dict[str, TaskMetric],
        thresholds: dict[str, dict[str, float]],
        weights: dict[str, np.ndarray] | None = None,
        values: dict[str, dict[str, float]] | None = None,
    ) -> dict[str, float]:
        """Return the scalar metrics.

        Args:
            metrics: By task.
            thresholds: By task.
            weights: By task, [records] as in `TaskMetric.compute`.
            values: By task, what `TaskMetric.compute` gives for the same weights, where the caller has it.
        """

    @abstractmethod
    def details(self, metrics: dict[str, TaskMetric], thresholds: dict[str, dict[str, float]]) -> dict[str, Any]:
        """Return data for figures and tables, as plain lists.

        Returns:
            Any of: `per_task`, the metrics of each task; `agreement`, by what is compared (`image`, `patient`) what
            `bland_altman` gives and the `names`; `sign`, the unit of these values; `without_truth`, by the same names how many
            were left out.
        """

    def notes(self, values: dict[str, float]) -> list[str]:
        """Return what a reader must know of the numbers that `compute` gave."""
        return []

    def value(self, tasks: Mapping[str, Arrays], thresholds: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the value of one image, predicted or annotated, of a metric of images.

        Args:
            tasks: As `ImageResult.tasks`; objects at any place, boxes with what the `deciders` say of them.
            thresholds: By task; applied to what has scores or probabilities, 0.5 unless named.

        Returns:
            None where the image has no value.
        """
        return None

    def training_value(self, records: Sequence[Record], truths: Truths) -> float:
        """Return what the training images say, for a baseline; NaN where they say nothing.

        Args:
            records: Annotated images of the training split.
            truths: Reads annotations with their masks; for those that the index does not suffice.
        """
        return float("nan")

    def baseline(
        self, found: Mapping[str, dict[str, Any]], metrics: Mapping[str, TaskMetric], training_value: float
    ) -> dict[str, Any] | None:
        """Return a baseline as `name` and `metrics`; None where there is none.

        The training value, whatever the image shows, is compared with what `details` names as true.

        Args:
            found: Baselines of the tasks.
            metrics: By task, with the records of the images that are scored.
            training_value: From `training_value`; NaN where it is not known.
        """
        if not np.isfinite(training_value):
            return None
        thresholds = {task: metrics[task].default_thresholds for task in self.tasks}
        values = {}
        for of, pairs in self.details(dict(metrics), thresholds).get("agreement", {}).items():
            values[f"mae_{of}"] = float(mean_of(np.abs(np.asarray(pairs["true"], np.float64) - training_value)))
            values[f"pearson_{of}"] = float("nan")
        return {"name": f"training mean {training_value:.3g}", "metrics": values}


class SlideMetric(StudyMetric):
    """A study metric that a slide has a value of too: how many cells there are in how much of one class of tissue.

    Attributes:
        cells: The task that finds the cells.
        tissue: The task that tells the tissue.
        stroma: The class of it whose area counts.
    """

    value_of = "slide"
    cells: str
    tissue: str
    stroma: str

    @abstractmethod
    def of_slide(self, cells: float, area_um2: float) -> float:
        """Return the value of a slide with so many cells and square microns; NaN where it has none."""


def deciders_of(study: Iterable[StudyMetric]) -> dict[str, str]:
    """Return by detection task which task decides the classes of its boxes; of several the first."""
    found: dict[str, str] = {}
    for metric in study:
        found = {**metric.deciders, **found}
    return found


def case_of(record: dict[str, Any]) -> str:
    """Return the volume that an image is a slice of: the group of a record that names none."""
    return str(record.get("case") or record["group"])


def _index(names: list[str]) -> tuple[list[str], np.ndarray]:
    """Sorted names, each once, and the position of each entry among them."""
    found, index = np.unique(names, return_inverse=True)
    return found.tolist(), index.astype(np.int64)


def ratio(numerator: Any, denominator: Any, empty: float = float("nan")) -> np.ndarray:
    """Divide element by element; `empty` where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, empty), where=bottom != 0)


def mean_of(values: np.ndarray, axis: int | None = None) -> Any:
    """Mean over the entries that are not NaN; NaN where none is left."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(axis), known.sum(axis))[()]


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[K] mean of [n, K] over the entries that are not NaN, each counted `weight` times; NaN where none counts."""
    known = ~np.isnan(values)
    return ratio(weight @ np.where(known, values, 0.0), weight @ known)


def precision_recall_f1(true_positive: Any, predicted: Any, truth: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the three from counts.

    Nothing predicted although there is something to find gives precision 0; predictions where there is nothing to find give
    recall 0 and F1 0. All three are NaN where there is neither.
    """
    hits, claims, targets = (np.asarray(value, np.float64) for value in (true_positive, predicted, truth))
    nothing = (claims + targets) == 0
    precision = np.where(nothing, np.nan, ratio(hits, claims, 0.0))
    recall = np.where(nothing, np.nan, ratio(hits, targets, 0.0))
    return precision, recall, ratio(2 * hits, claims + targets)


def nearest_best(values: Any, grid: Any, default: float = 0.5) -> float:
    """Return the grid value with the highest score; on a plateau, the one nearest to `default` (then the lower)."""
    scores = np.asarray(values, np.float64)
    if not np.isfinite(scores).any():
        return default
    best = np.flatnonzero(scores >= np.nanmax(scores) - 1e-12)
    return float(min((grid[i] for i in best), key=lambda value: (round(abs(value - default), 9), value)))


def pearson(sums: Any) -> float:
    """Pearson r from weighted sums (n, sum x, sum y, sum xx, sum yy, sum xy); NaN where either side is constant."""
    n, x, y, xx, yy, xy = (float(value) for value in sums)
    if n <= 0:
        return float("nan")
    variance_x, variance_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    # Below this a difference of two equal sums is rounding noise.
    if variance_x <= 1e-12 * xx / n or variance_y <= 1e-12 * yy / n:
        return float("nan")
    return float(np.clip((xy / n - x * y / n**2) / np.sqrt(variance_x * variance_y), -1.0, 1.0))


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Pearson r of two [n] arrays, each pair counted `weights` times; NaN where fewer than 3 count or one is constant."""
    keep = weights > 0
    x, y, weights = x[keep], y[keep], weights[keep]
    if weights.sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    total = weights.sum()
    x, y = x - weights @ x / total, y - weights @ y / total
    return pearson((total, weights @ x, weights @ y, weights @ (x * x), weights @ (y * y), weights @ (x * y)))


def bland_altman(predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Return the figure of Bland and Altman (Lancet 1986): mean and difference of each pair, bias, 95 % limits of agreement."""
    difference = predicted - true
    bias = float(mean_of(difference))
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return {
        "predicted": predicted.tolist(), "true": true.tolist(), "mean": ((predicted + true) / 2).tolist(),
        "difference": difference.tolist(), "bias": bias, "limits": [bias - spread, bias + spread],
    }  # fmt: skip


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders the numbers in names by value."""
    parts: list[str] = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
