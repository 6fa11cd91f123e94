"""Data that travels between rooms: samples, windows, batches, results.

Coordinates are continuous pixels: pixel (column 0, row 0) covers [0, 1) x [0, 1), so its centre is (0.5, 0.5) and an
image spans [0, width] x [0, height]. Points are (x, y), boxes are (x_min, y_min, x_max, y_max). Three rasters exist:
*original* (the file as stored), *working* (the whole image at the scale the network sees) and *network* (one window
of the working raster, padded to the input size).

Torch is imported for type checking only, so that data families and the command line stay fast to start.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


REGION = "region"  # name of the mask that says where in an image objects were looked for


@dataclass
class Objects:
    """Annotated objects of one image; zero objects is an annotation too.

    Attributes:
        outlines: Per object, [n, 2] float32 contour whose extent is its box.
        labels: [N] int64, index into the data family's `object_classes`.
        points: [N, 2] float32, the expert's point or the contour's centroid.
        derived: [N] bool, True where the outline was computed from a point, not drawn by an expert.
        mask_outlines: Contours to fill in masks where they differ from `outlines` (published square masks), or None.
        ids: [N] int64, position in the annotation file; survives cropping, so parts of one object can be joined again.
    """

    outlines: list[np.ndarray]
    labels: np.ndarray
    points: np.ndarray
    derived: np.ndarray
    mask_outlines: list[np.ndarray] | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            self.ids = np.arange(len(self.labels), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> np.ndarray:
        """[N, 4] float32 extents of the outlines."""
        if not self.outlines:
            return np.zeros((0, 4), np.float32)
        points, counts = np.concatenate(self.outlines), np.asarray([len(outline) for outline in self.outlines])
        firsts = np.cumsum(counts) - counts
        extents = np.minimum.reduceat(points, firsts), np.maximum.reduceat(points, firsts)
        return np.concatenate(extents, axis=1).astype(np.float32)

    def select(self, keep: np.ndarray) -> Objects:
        """Return the objects at the given positions (bool mask or indices)."""
        if np.asarray(keep).dtype == bool and np.all(keep):
            return self
        index = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=np.int64)
        return Objects(
            outlines=[self.outlines[i] for i in index],
            labels=self.labels[index],
            points=self.points[index],
            derived=self.derived[index],
            mask_outlines=None if self.mask_outlines is None else [self.mask_outlines[i] for i in index],
            ids=self.ids[index],
        )

    def map(self, transform: Any) -> Objects:
        """Return the objects with `transform([n, 2] array) -> [n, 2] array` applied to every coordinate."""
        counts = [len(o) for o in self.outlines]
        masks = self.mask_outlines or []
        flat = np.concatenate([*self.outlines, *masks, self.points.reshape(-1, 2)], axis=0)
        moved = np.asarray(transform(flat), dtype=np.float32) if len(flat) else flat
        ends = np.cumsum([*counts, *[len(o) for o in masks]], dtype=np.int64)
        parts = [moved[start:end] for start, end in pairwise([0, *ends.tolist(), len(moved)])]
        return replace(
            self,
            outlines=parts[: len(counts)],
            mask_outlines=None if self.mask_outlines is None else parts[len(counts) : len(counts) + len(masks)],
            points=parts[-1].reshape(-1, 2),
        )


@dataclass
class Sample:
    """One image with whichever labels exist; a label that is None or missing from a dict is *absent*, not empty.

    Attributes:
        image: [H, W, C] uint8 (or float32 for MRI).
        sample_id: Unique in its data set and stable across machines.
        group: Patient, slide or near-duplicate cluster.
        source: Data set it came from.
        objects: Annotated objects.
        masks: [H, W] (class per pixel) or [H, W, K] (independent channels) uint8 by name. `REGION` is 1 where objects were
            looked for, if that is not the whole image; points outside it are no false positives.
        labels: By name an image-level class index, a number, or [C] float of independent classes: 1, 0, or NaN where unknown.
            NaN (of independent classes: nothing but NaN) is absent.
        pixel_scale: Stored pixels per pixel of the data set's reference raster (0.5 for a half-size copy).
    """

    image: np.ndarray
    sample_id: str
    group: str
    source: str
    objects: Objects | None = None
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, float | np.ndarray] = field(default_factory=dict)
    pixel_scale: float = 1.0


@dataclass(frozen=True)
class Record:
    """What is known of a sample before its pixels are read.

    Attributes:
        sample_id: As in `Sample`.
        group: Unit of the split that the settings ask for (`data.group_by`).
        source: Data set it came from.
        path: Image file.
        annotation: Annotation file, if any.
        size: (height, width) of the stored image, or None where only decoding would tell.
        pixel_scale: As in `Sample`.
        stratum: Value by which splits are balanced (for example a severity grade).
        class_counts: Objects (or 1 for an image-level class) per class name; drives class-aware sampling and tables.
        groups: Units that a split may keep apart, as far as they are known of this sample: {"patient": .., "field": ..}. What
            results claim of a unit follows from them, so a guess does not belong here.
        official_split: `train`, `val` or `test` where the data set fixes it.
        content_hash: sha256 of the image file; filled when the split is made.
        labels: Which labels are known, each named as in `TaskSpec.label`; None where every label of the family is.
        values: Image-level grades (class index) and numbers by label name that `class_counts` does not tell; for baselines,
            which read no pixel. Optional tasks put theirs here, so that they do not change class-aware sampling.
        training: False for samples that only serve evaluation (slices of a volume that training leaves out).
        attributes: What tables break results down by: {"sex": "female", "age": "40-59"}.
        spacing: Millimetres between (slices, rows, columns) of the stored image, along its axes, where known.
        case: Volume that the image is a slice of; empty where the group is one. A patient may have several.
        skew: Cosines of the angles between (slices, rows), (slices, columns), (rows, columns); None where all are right.
    """

    sample_id: str
    group: str
    source: str
    path: str
    annotation: str | None = None
    size: tuple[int, int] | None = None
    pixel_scale: float = 1.0
    stratum: int = 0
    class_counts: dict[str, int] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    official_split: str | None = None
    content_hash: str = ""
    labels: tuple[str, ...] | None = None
    values: dict[str, float] = field(default_factory=dict)
    training: bool = True
    attributes: dict[str, str] = field(default_factory=dict)
    spacing: tuple[float, float, float] | None = None
    case: str = ""
    skew: tuple[float, float, float] | None = None

    def knows(self, label: str) -> bool:
        """Return whether a label (`objects`, `mask:<name>`, `class:<name>`) of this sample is known."""
        return self.labels is None or label in self.labels


@dataclass(frozen=True)
class Window:
    """One network input cut from the working raster of an image.

    working = (original - content corner) * scale;  network = working - offset + pad.

    Attributes:
        index: Position of the window among the `count` windows of its image.
        count: Number of windows of the image.
        scale: (x, y) working pixels per original pixel.
        offset: (x, y) of the window's corner in the working raster.
        pad: (left, top) network pixels before the image content begins.
        valid: (height, width) of the image content inside the network input.
        size: (height, width) of the network input.
        working_size: (height, width) of the whole image in the working raster.
        original_size: (height, width) of the stored image.
        pixel_scale: As in `Sample`: original pixels per reference pixel.
        content: (x_min, y_min, x_max, y_max) of the part of the original that the working raster shows; None is all of it.
    """

    index: int
    count: int
    scale: tuple[float, float]
    offset: tuple[float, float]
    pad: tuple[float, float]
    valid: tuple[int, int]
    size: tuple[int, int]
    working_size: tuple[int, int]
    original_size: tuple[int, int]
    pixel_scale: float = 1.0
    content: tuple[int, int, int, int] | None = None

    def working_to_network(self, points: np.ndarray) -> np.ndarray:
        """Map [..., 2] points (x, y)."""
        return points - np.asarray(self.offset, np.float32) + np.asarray(self.pad, np.float32)

    def network_to_working(self, points: np.ndarray) -> np.ndarray:
        """Map [..., 2] points (x, y)."""
        return points + np.asarray(self.offset, np.float32) - np.asarray(self.pad, np.float32)

    def original_to_working(self, points: np.ndarray) -> np.ndarray:
        """Map [..., 2] points (x, y)."""
        return (points - np.asarray(self.content_box[:2], np.float32)) * np.asarray(self.scale, np.float32)

    def working_to_original(self, points: np.ndarray) -> np.ndarray:
        """Map [..., 2] points (x, y)."""
        return points / np.asarray(self.scale, np.float32) + np.asarray(self.content_box[:2], np.float32)

    @property
    def content_box(self) -> tuple[int, int, int, int]:
        """(x_min, y_min, x_max, y_max) of the part of the original that the working raster shows."""
        return self.content or (0, 0, self.original_size[1], self.original_size[0])

    def cut(self, original: np.ndarray) -> np.ndarray:
        """Cut the shown part out of an array [H, W, ...] of the original's size (a view)."""
        left, top, right, bottom = self.content_box
        return original[top:bottom, left:right]

    @property
    def working_pixels_per_reference(self) -> tuple[float, float]:
        """(x, y) working pixels per reference pixel, to turn a physical radius into working pixels."""
        return self.scale[0] * self.pixel_scale, self.scale[1] * self.pixel_scale


@dataclass(frozen=True)
class SampleMeta:
    """Where a row of a batch comes from."""

    sample_id: str
    group: str
    source: str
    window: Window


@dataclass
class TaskBatch:
    """Images with partial labels.

    Attributes:
        images: [B, C, H, W] float32, normalised.
        targets: By task. detection, roi_classification, heatmap, points: list of B dicts `boxes` [N, 4] float32, `labels` [N]
            int64, `points` [N, 2] float32, `ids` [N] int64, in network pixels; points also `region` [H, W] bool where they
            were not looked for everywhere. segmentation: [B, K, H, W] float32 (multilabel) or [B, H, W] int64. classification:
            [B] int64. multilabel_classification: [B, C] float32, NaN where a class is unknown. regression: [B] float32. Where a
            label is absent the row holds a placeholder that nobody may read.
        present: By task, [B] bool: is the label known? Always on the CPU: it decides what is computed, and asking a GPU would
            make every training step wait for it.
        meta: One entry per row.
    """

    images: torch.Tensor
    targets: dict[str, Any]
    present: dict[str, torch.Tensor]
    meta: list[SampleMeta]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Rows that are labelled, by task."""
        return {
            task: tuple(row for row, labelled in enumerate(known.tolist()) if labelled) for task, known in self.present.items()
        }

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """Move the images and targets; same arguments as `torch.Tensor.to`."""
        return self._apply(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> TaskBatch:
        """Pin the images and targets; called by the data loader."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self, function: Any) -> TaskBatch:
        def walk(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: walk(entry) for key, entry in value.items()}
            if isinstance(value, list):
                return [walk(entry) for entry in value]
            return function(value) if hasattr(value, "pin_memory") else value

        return replace(self, images=walk(self.images), targets=walk(self.targets))


@dataclass
class ImageResult:
    """Predictions, or the truth in the same form, for one whole image in its working raster.

    Attributes:
        sample_id, group, source: As in `Sample`.
        window: Any window of the image (for scales and sizes).
        tasks: By task, a dict of numpy arrays (see `docs/architecture.md`, "What a task predicts"). A task that is missing is
            absent: nobody knows its label.
        attributes, spacing, case, skew: As in `Record`; only the truth has them.
    """

    sample_id: str
    group: str
    source: str
    window: Window
    tasks: dict[str, dict[str, np.ndarray]]
    attributes: dict[str, str] = field(default_factory=dict)
    spacing: tuple[float, float, float] | None = None
    case: str = ""
    skew: tuple[float, float, float] | None = None


Arrays = dict[str, np.ndarray]
