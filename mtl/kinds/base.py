"""The contract of a task kind, and what its methods are told.

A kind is one class without state, registered with `@KINDS.register("name")` in a file of `mtl/kinds`. It says how a label
becomes a target and a batch, how windows are joined, what is measured, what a model without insight would score, and what
a prediction leaves in files and pictures; no other room asks for a kind by name. Importing one imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD
from mtl.core.task import Kind, TaskSpec, kind_named
from mtl.core.types import Arrays, Objects, Record, Window
from mtl.drawing.layers import Layers
from mtl.drawing.palette import PAPER
from mtl.imaging.outlines import Size, clip_objects, points_inside
from mtl.metrics.base import TaskMetric

DIGITS = 4  # decimals of scores and probabilities in files

RecordChange = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class Annotations:
    """What is known of one raster, a window or a whole image, in its pixels.

    Attributes:
        size: (height, width) of the raster.
        objects: Moved to the raster, not clipped (masks are filled from whole outlines); None where absent.
        masks: By name, moved to the raster.
        labels: Of the whole image, by name.
        object_classes: Names behind `objects.labels`.
        min_visible: Share of its box that an object must keep inside the raster to count as a box.
        enough: [N] which objects were visible enough before a transform moved them; None is all.
        inside: [N] which objects had their point inside the picture before; None is all.
        moved: A transform moved the picture, so that what lay beyond its border is fill now.
        region: [h, w] bool, where objects were looked for; None is everywhere.
    """

    size: Size
    objects: Objects | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    object_classes: tuple[str, ...] = ()
    min_visible: float = 0.0
    enough: np.ndarray | None = None
    inside: np.ndarray | None = None
    moved: bool = False
    region: np.ndarray | None = None

    def knows(self, label: str) -> bool:
        """Return whether a label (`objects`, `mask:<name>`, `class:<name>`) is known; zero objects is a label."""
        source, _, name = label.partition(":")
        if source == "objects":
            return self.objects is not None
        if source == "mask":
            return name in self.masks
        return name in self.labels and not bool(np.isnan(self.labels[name]).all())

    @cached_property
    def visible(self) -> Objects:
        """The objects whose boxes are visible enough, clipped to the raster."""
        assert self.objects is not None
        chosen = self.objects if self.enough is None else self.objects.select(self.enough)
        return clip_objects(chosen, self.size, self.min_visible)[0]

    @cached_property
    def peaks(self) -> Objects:
        """Of `visible`, those whose peak may be drawn: one beyond the picture would land on fill once the picture moves."""
        assert self.objects is not None
        if not self.moved or self.inside is None:
            return self.visible  # without a transform the tail of a peak beyond the border belongs here
        return self.visible.select(np.isin(self.visible.ids, self.objects.ids[self.inside]))

    @cached_property
    def pointed(self) -> Objects:
        """The objects whose point lies inside the raster, clipped."""
        assert self.objects is not None
        shown = points_inside(self.objects, self.size)
        return clip_objects(self.objects.select(shown if self.inside is None else shown & self.inside), self.size)[0]


@dataclass
class TaskPrediction:
    """What is said of one image for one task, by the network or by the annotation (both forms of `ImageResult.tasks`).

    Attributes:
        spec: The task.
        arrays: As in `docs/architecture.md`, "What a task predicts".
        size: (height, width) of the raster in which boxes and points are given.
        window: Any window of the image where that raster is the original, and maps lie in the working raster; None where all
            lies in the working raster.
        thresholds: Decision thresholds; what is not named is 0.5.
        memo: What a kind computed already (the mask of the original).
    """

    spec: TaskSpec
    arrays: Arrays
    size: Size
    window: Window | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def threshold(self, name: str = "score") -> float:
        """Return a decision threshold; 0.5 where none is known."""
        return float(self.thresholds.get(name, DEFAULT_THRESHOLD))

    @property
    def kept(self) -> np.ndarray:
        """[N] bool: which objects reach the threshold; all where they have no score."""
        if "scores" in self.arrays:
            return np.asarray(self.arrays["scores"] >= self.threshold())
        return np.ones(len(self.arrays["labels"]), bool)


@dataclass
class TrainingStatistics:
    """What a baseline may know of the training images.

    Attributes:
        class_counts: By task, per class the number of objects (images for image-level classes) in its labelled training images.
        known: By task, per class the number of training images of which the index tells something of that class.
        images: By task, the number of labelled training images.
        by_source: By task whose classes can be guessed from the source of an image, and source, per class the number of
            training images.
        means: By task, the mean training value of a number; by study metric its training value, NaN where it has none.
        densities: By task whose objects are points, per class the number of points per mm2 of its labelled training images.
    """

    class_counts: dict[str, list[float]] = field(default_factory=dict)
    known: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    by_source: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    densities: dict[str, list[float]] = field(default_factory=dict)


class TaskKind(Kind):
    """Everything that depends on the kind of a task.

    Attributes:
        metric_class: What measures it.
        finds: What its predictions list: boxes or points with scores and labels; empty where they list nothing.
        counted: Counts per class of an image come from such a task (the first that finds boxes, else the first of points).
        areas: Its predictions are masks.
        image_level: It says one thing of a whole image; of a volume, one thing of each slice.
        guessable: How frequent its classes are in a source is a guess at them, so that a source can give them away.
    """

    metric_class: ClassVar[type[TaskMetric]]
    finds: ClassVar[Literal["", "boxes", "points"]] = ""
    counted: ClassVar[bool] = False
    areas: ClassVar[bool] = False
    image_level: ClassVar[bool] = False
    guessable: ClassVar[bool] = False

    # -- measures ------------------------------------------------------------------------------------------------------

    def metrics_of(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names that the metric gives for a task."""
        return self.metric_class.names_of(spec)

    def metric(self, spec: TaskSpec, hit_radius: float) -> TaskMetric:
        """Return a new metric."""
        return self.metric_class(spec)

    # -- from labels to a batch ----------------------------------------------------------------------------------------

    def mask_names(self, spec: TaskSpec) -> set[str]:
        """Return the names of the masks that a target is made from or scored within."""
        source, _, name = spec.label.partition(":")
        return {name} if source == "mask" else set()

    def class_mask(self, spec: TaskSpec) -> str | None:
        """Return the name of a mask that holds one class per pixel, whose padding is `spec.ignore_index`; None without one."""
        return None

    def any_label(self, spec: TaskSpec) -> Any:
        """Return a value that a label of a whole image may have."""
        return 0

    @abstractmethod
    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return what a task learns from, rendered from the moved coordinates and never resampled; None where it is absent."""

    @abstractmethod
    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> Any:
        """Return the targets of a batch as `TaskBatch.targets` holds them; a placeholder stands where a row is None.

        Args:
            spec: The task.
            rows: From `target`.
            size: (height, width) of the network input.
        """

    @abstractmethod
    def truth(self, target: Any) -> Arrays:
        """Put a target into the form in which predictions are compared with it (`docs/architecture.md`)."""

    # -- counts of classes ---------------------------------------------------------------------------------------------

    def counted_names(self, spec: TaskSpec) -> set[str]:
        """Return the names in `Record.class_counts` under which the index counts what a task learns."""
        return {name for names in spec.members for name in names} or set(spec.classes)

    def class_counts(self, spec: TaskSpec, records: Sequence[Record]) -> list[float]:
        """Return the number of objects (or images) of each class in labelled records."""
        members = spec.members or tuple((name,) for name in spec.classes)
        return [float(sum(record.class_counts.get(name, 0) for record in records for name in names)) for names in members]

    # -- baselines -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Return the candidate baselines of a task: name, and replacement of the predicted part of a record."""

    def baseline_metrics(self, metric: TaskMetric, statistics: TrainingStatistics) -> dict[str, float]:
        """Return the numbers of a baseline, of which `metric` holds the changed records."""
        return metric.compute(metric.default_thresholds)

    # -- files of predictions ------------------------------------------------------------------------------------------

    @abstractmethod
    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return the entry of a task in the JSON file of an image, in plain values."""

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return the columns of `predictions.csv` that hold something of a whole image."""
        return []

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of `columns`, from what `summary` gave."""
        return {}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return by column what is annotated and what is predicted in one image, for the table of an evaluation.

        Args:
            spec: The task.
            record: Of its metric.
            thresholds: Of the task.
        """
        return {}

    def scored_objects(
        self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return the same of every annotated object of an image, where a prediction is made for each; else nothing."""
        return []

    def maps(self, found: TaskPrediction) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield (what it is, class, pixels) of every picture file, at the size of the original image.

        What it is: `mask`, `confidence_map` or `heatmap`. The class is empty where a task has one channel.
        """
        yield from ()

    def slice_counts(self, spec: TaskSpec, entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Return in how many slices of a volume each class was stated; `entries` are the summaries of its slices."""
        return {}

    # -- pictures ------------------------------------------------------------------------------------------------------

    def words(self, found: TaskPrediction) -> str:
        """Return what an image-level kind says, in a few words."""
        return ""

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Add to the layers over a picture what a task says; an image-level kind adds its words to the legend."""
        if self.image_level:
            layers.legend.append((PAPER, f"{found.spec.name}: {self.words(found)}"))

    def reference(self, spec: TaskSpec, truth: Arrays, prediction: Arrays) -> Arrays:
        """Return an annotation with what is needed to draw it like the prediction beside it."""
        return truth

    def for_pictures(self, spec: TaskSpec, truth: Arrays, box: tuple[int, int, int, int], size: Size) -> Arrays:
        """Return an annotation of the original raster as small as pictures need it.

        Args:
            spec: The task.
            truth: Its annotation.
            box: (x_min, y_min, x_max, y_max) of the part that is shown.
            size: (height, width) to which that part is shrunk.
        """
        return truth

    # -- masks (kinds with `areas`) ------------------------------------------------------------------------------------

    def channels(self, found: TaskPrediction) -> list[np.ndarray]:
        """Return one [h, w] bool mask per class in the raster of the arrays: annotated, or predicted at the thresholds."""
        raise _without_masks(found)

    def mask(self, found: TaskPrediction, size: Size) -> np.ndarray:
        """Return the hard mask at a size of the whole original: [K, H, W] in {0, 1}, or [H, W] class indices, uint8."""
        raise _without_masks(found)

    def confidence_map(self, found: TaskPrediction) -> np.ndarray:
        """Return how sure the network is of each pixel of the original: [K, H, W], or [H, W] of the predicted class."""
        raise _without_masks(found)

    def area_ratios(self, found: TaskPrediction) -> dict[str, float]:
        """Return the share of all pixels of the original that each class covers, as `<class>_area_ratio`."""
        raise _without_masks(found)


def _without_masks(found: TaskPrediction) -> TypeError:
    return TypeError(f"`{found.spec.name}` is a {found.spec.kind} task, which has no masks")


def rules_of(spec: TaskSpec) -> TaskKind:
    """Return everything that the kind of a task decides."""
    return rules_named(spec.kind)


def rules_named(kind: str) -> TaskKind:
    """Return everything that a kind decides."""
    found = kind_named(kind)
    assert isinstance(found, TaskKind)
    return found


def first_of(specs: Mapping[str, TaskSpec], among: Iterable[str], finds: str) -> str | None:
    """Return the name of the first task whose counted predictions list boxes (or points), among those given."""
    names = set(among)
    rules = ((task, rules_of(spec)) for task, spec in specs.items() if task in names)
    return next((task for task, rule in rules if rule.counted and rule.finds == finds), None)


def mask_classes(specs: Mapping[str, TaskSpec], tasks: Iterable[str]) -> list[str]:
    """Return the names of all masks of some tasks, in the order in which they are drawn; they decide the colours."""
    return [name for task in tasks if rules_of(specs[task]).areas for name in specs[task].classes]


def rounded(value: Any, digits: int = DIGITS) -> float:
    """Return a number as files hold it."""
    return round(float(value), digits)
