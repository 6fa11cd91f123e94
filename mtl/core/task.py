"""What a task is: a name, a kind, classes, the labels it needs and the number it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Kind = Literal["detection", "roi_classification", "segmentation", "heatmap", "points", "classification", "regression"]

# Operating points of the cell detection score of TIGER (https://tiger.grand-challenge.org): false positives per mm2.
FALSE_POSITIVES_PER_MM2 = (10, 20, 50, 100, 200, 300)

# Metrics that each kind logs during validation (`val/<task>/<metric>`), the primary one first. All primaries lie in
# [0, 1] and are better when higher, so that `val/score` can be their weighted mean.
KIND_METRICS: dict[str, tuple[str, ...]] = {
    "detection": ("map50", "map", "map75", "f1_macro", "f1_pooled", "precision_pooled", "recall_pooled", "count_mae"),
    "roi_classification": ("f1_macro", "accuracy", "balanced_accuracy"),
    "segmentation": (
        "dice_per_image", "iou_per_image", "dice_pooled", "iou_pooled", "precision_pooled", "recall_pooled", "aupr",
        "dice_nonempty", "iou_nonempty",
    ),
    "heatmap": ("peak_f1", "peak_precision", "peak_recall", "mse", "mae", "pearson"),
    "points": (
        "froc", "f1", "precision", "recall", "ap", "count_mae", *(f"sensitivity_at_{rate}" for rate in FALSE_POSITIVES_PER_MM2),
    ),
    "classification": ("f1_macro", "accuracy", "balanced_accuracy", "auroc"),
    "regression": ("pearson", "mae", "rmse"),
}  # fmt: skip
# Added where the classes of a classification task are ordered, where there are two (the second is the positive one), and
# where images are slices of volumes.
ORDINAL_METRICS = ("quadratic_kappa",)
BINARY_METRICS = ("sensitivity", "specificity")
VOLUME_METRICS = ("dice_per_case", "iou_per_case", "mae_volume_mm3")
LOWER_IS_BETTER = frozenset({"mae", "mse", "rmse", "count_mae", "loss"})


def higher_is_better(metric: str) -> bool:
    """Say in which direction a metric improves.

    Args:
        metric: Its name, with a path in front (`val/detection/map50`) or a unit behind (`mae_patient`) or neither.
    """
    name = metric.rpartition("/")[2]
    return not (name in LOWER_IS_BETTER or name.startswith(("mae_", "hd95")) or "s_without_" in name)


@dataclass(frozen=True)
class TaskSpec:
    """One supervised objective as a data family offers it and a head serves it.

    Attributes:
        name: Name in configs, logs and results (`detection`).
        kind: What kind of target and head it is.
        classes: Class names in index order, without background.
        label: The label of a `Sample` it is made from: `objects`, `mask:<name>` or `class:<name>`.
        members: For tasks made from objects: per class, the names of the object classes that count as it. Objects of
            other classes are invisible to the task.
        multilabel: Segmentation only: independent (sigmoid) channels, one per class, instead of one class per pixel.
        ignore_index: Value of multiclass targets that neither loss nor metrics see.
        primary: The metric that selects checkpoints; empty takes the first of `metrics`.
        ordinal: Classification only: the classes are grades, in ascending order.
        volumetric: Segmentation only: the images of a case are slices of one volume.
        resolution: Points only: network pixels per reference pixel, which is a micron in a data family with such a task. Filled
            in from the geometry, so that heads can be set up in microns.
        colours: By class, the colour in which its data family has it drawn; None, or no colours at all, takes the palette.
        unremarkable: Classes that are drawn with thin lines.
        labels: Segmentation of regions inside each other only: by class, the values that a label file has there, first the one
            that stands where none of the classes inside it is. Empty gives each class a file of its own.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    label: str = "objects"
    members: tuple[tuple[str, ...], ...] = ()
    multilabel: bool = True
    ignore_index: int = 255
    primary: str = ""
    ordinal: bool = False
    volumetric: bool = False
    resolution: float = 1.0
    colours: tuple[Colour | None, ...] = ()
    unremarkable: tuple[str, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are logged for this task."""
        names = KIND_METRICS[self.kind]
        if self.kind == "classification":
            names += (ORDINAL_METRICS if self.ordinal else ()) + (BINARY_METRICS if len(self.classes) == 2 else ())
        return names + (VOLUME_METRICS if self.kind == "segmentation" and self.volumetric else ())

    @property
    def primary_metric(self) -> str:
        """Name of the metric that selects checkpoints."""
        return self.primary or self.metrics[0]

    def higher_is_better(self, metric: str | None = None) -> bool:
        """Say in which direction a metric (default: the primary one) improves."""
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
            "resolution": self.resolution, "colours": [colour and list(colour) for colour in self.colours],
            "unremarkable": list(self.unremarkable), "labels": [list(values) for values in self.labels],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskSpec:
        """Rebuild a spec from `to_dict`; what an earlier release did not store has its default."""
        plain = dict(values)
        for key in ("classes", "unremarkable"):
            plain[key] = tuple(plain.get(key, ()))
        for key in ("members", "labels"):
            plain[key] = tuple(tuple(entries) for entries in plain.get(key, ()))
        plain["colours"] = tuple(None if colour is None else tuple(colour) for colour in plain.get("colours", ()))
        return cls(**plain)
