"""What a task is: a name, a kind, classes, the labels it needs and the number it is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, ClassVar

from mtl.core.registry import KINDS, STUDY_METRICS

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class Kind(ABC):
    """What a task kind decides, as far as the lower floors ask; the whole contract is `mtl.kinds.base.TaskKind`.

    Attributes:
        lower_is_better: Those of its metrics that improve when they fall; patterns as of file names.
        has_decision_threshold: One of several classes is true of an image; of two, a threshold decides.
        fixed_scale: Its heads say lengths in microns, so the network has to see a fixed number of pixels per micron.
        of_boxes: Its predictions are about the boxes of the first detection task, row by row.
    """

    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    has_decision_threshold: ClassVar[bool] = False
    fixed_scale: ClassVar[bool] = False
    of_boxes: ClassVar[bool] = False

    @abstractmethod
    def metrics_of(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of the metrics that are logged for a task, the primary one first.

        Primaries lie in [0, 1] and are better when higher, so that `val/score` can be their weighted mean.
        """

    @abstractmethod
    def metric(self, spec: TaskSpec, hit_radius: float) -> Any:
        """Return a new `mtl.metrics.base.TaskMetric` for a task.

        Args:
            spec: The task.
            hit_radius: Reference pixels within which a found point hits an annotated one, where points are compared.
        """

    @abstractmethod
    def joiner(self) -> Any:
        """Return a new `mtl.stitching.joiners.Joiner`, which makes one prediction of those of an image's windows."""


@cache
def kind_named(name: str) -> Kind:
    """Return what a task kind decides; there is one object of each.

    Raises:
        ConfigError: The kind is unknown; the message lists the valid ones.
    """
    kind = KINDS.build({"name": name})
    assert isinstance(kind, Kind)
    return kind


@cache
def _lower_is_better() -> frozenset[str]:
    declared = [kind_named(name).lower_is_better for name in KINDS.names()]
    declared += [frozenset(entry.constants.get("lower_is_better", ())) for entry in STUDY_METRICS.entries().values()]
    return frozenset({"loss", "loss_*"}).union(*declared)


def higher_is_better(metric: str) -> bool:
    """Return whether a metric improves when it rises.

    Args:
        metric: Its name, with a path in front (`val/detection/map50`) or a unit behind (`mae_patient`) or neither.
    """
    name = metric.rpartition("/")[2]
    return not any(fnmatchcase(name, pattern) for pattern in _lower_is_better())


@dataclass(frozen=True)
class TaskSpec:
    """One supervised objective as a data family offers it and a head serves it.

    Attributes:
        name: Name in configs, logs and results (`detection`).
        kind: What kind of target and head it is: the name of a file's class in `mtl.kinds`.
        classes: Class names in index order, without background.
        label: The label of a `Sample` it is made from: `objects`, `mask:<name>` or `class:<name>`.
        members: For tasks made from objects: per class, the names of the object classes that count as it. Objects of
            other classes are invisible to the task.
        multilabel: Segmentation only: independent (sigmoid) channels, one per class, instead of one class per pixel.
        ignore_index: Value of multiclass targets that neither loss nor metrics see.
        primary: The metric that selects checkpoints; empty takes the first of `metrics`.
        ordinal: Classification only: the classes are grades, in ascending order.
        volumetric: Segmentation only: the images of a case are slices of one volume.
        unit: Regression only: unit of the number (`%`, `years`); empty where it has none.
        whole_image: The label says something of the whole image (a share of its cells), so that windows of it would be taught
            and scored by what they do not show.
        resolution: Points only: network pixels per reference pixel, which is a micron in a data family with such a task. Filled
            in from the geometry, so that heads can be set up in microns.
        colours: By class, the colour in which its data family has it drawn; None, or no colours at all, takes the palette.
        unremarkable: Classes that stand for nothing to be found: drawn with thin lines, and of two never the positive one.
        labels: Segmentation of regions inside each other only: by class, the values that a label file has there, first the one
            that stands where none of the classes inside it is. Empty gives each class a file of its own.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    label: str = "objects"
    members: tuple[tuple[str, ...], ...] = ()
    multilabel: bool = True
    ignore_index: int = 255
    primary: str = ""
    ordinal: bool = False
    volumetric: bool = False
    resolution: float = 1.0
    unit: str = ""
    whole_image: bool = False
    colours: tuple[Colour | None, ...] = ()
    unremarkable: tuple[str, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()

    @property
    def label_name(self) -> str:
        """Name behind the source of the label (`grade` of `class:grade`); empty for objects."""
        return self.label.partition(":")[2]

    @property
    def rules(self) -> Kind:
        """What the kind of this task decides."""
        return kind_named(self.kind)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are logged for this task, the primary one of its kind first."""
        return self.rules.metrics_of(self)

    @property
    def primary_metric(self) -> str:
        """Name of the metric that selects checkpoints."""
        return self.primary or self.metrics[0]

    def higher_is_better(self, metric: str | None = None) -> bool:
        """Return whether a metric (default: the primary one) improves when it rises."""
        return higher_is_better(metric or self.primary_metric)

    def object_index(self, object_classes: tuple[str, ...]) -> dict[int, int]:
        """Map object class ids of the data to class indices of this task; unlisted ids are dropped."""
        return {
            object_classes.index(name): index
            for index, names in enumerate(self.members)
            for name in names
            if name in object_classes
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, as stored in checkpoints."""
        return {
            "name": self.name, "kind": self.kind, "classes": list(self.classes), "label": self.label,
            "members": [list(names) for names in self.members], "multilabel": self.multilabel,
            "ignore_index": self.ignore_index, "primary": self.primary, "ordinal": self.ordinal, "volumetric": self.volumetric,
            "resolution": self.resolution, "unit": self.unit, "whole_image": self.whole_image,
            "colours": [colour and list(colour) for colour in self.colours],
            "unremarkable": list(self.unremarkable), "labels": [list(values) for values in self.labels],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskSpec:
        """Rebuild a spec from `to_dict`; what an earlier release did not store has its default."""
        given = dict(values)
        for key in ("classes", "unremarkable"):
            given[key] = tuple(given.get(key, ()))
        for key in ("members", "labels"):
            given[key] = tuple(tuple(entries) for entries in given.get(key, ()))
        given["colours"] = tuple(None if colour is None else tuple(colour) for colour in given.get("colours", ()))
        return cls(**given)
