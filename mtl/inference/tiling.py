"""From predictions per window to one prediction per image, in the working raster.

Neighbouring windows overlap, so a cell near a border is predicted two to four times. Objects: every place *belongs* to
the window in which it lies deepest (the border is the middle line of the overlap); a window's objects count in its own
territory and a little beyond, and what two windows then still both report is suppressed. Maps: blended with weights
that fall linearly to zero over the overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, SampleMeta, Window

Arrays = dict[str, np.ndarray]

# Boxes of different windows that overlap more than this are one object.
DUPLICATE_IOU = 0.5
# How far beyond its territory a window's object may lie, as a share of the object's size: two windows never place a box
# exactly alike, and without slack a cell on the border can fall to neither.
SLACK = 0.25


class Stitcher:
    """Collects the windows of images, in any order, and joins them.

    Only images with missing windows are held, each with one float32 accumulator per map.

    Args:
        specs: The tasks, by name; predictions of other tasks are refused.
    """

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = dict(specs)
        self._open: dict[tuple[str, str], _Image] = {}
        self._complete: list[ImageResult] = []

    def add(self, meta: SampleMeta, predictions: Mapping[str, Arrays]) -> None:
        """Take one window.

        Args:
            meta: Which image and which window of it.
            predictions: By task, numpy arrays in network pixels as `Head.decode` gives them. detection: any further array
                with one row per box travels with its box. roi_classification: `probabilities`, `ids` and `boxes`.
        """
        key = (meta.source, meta.sample_id)
        image = self._open.setdefault(key, _Image(meta))
        if meta.window.index in image.windows:
            raise ValueError(f"window {meta.window.index} of `{meta.sample_id}` was added twice")
        image.windows[meta.window.index] = meta.window
        for task, prediction in predictions.items():
            joiner = image.joiners.setdefault(task, JOINERS[self.specs[task].kind]())
            joiner.add(meta.window, prediction)
        if len(image.windows) == meta.window.count:
            self._complete.append(self._open.pop(key).result())

    def pop_complete(self) -> list[ImageResult]:
        """Return the images whose windows have all arrived since the last call."""
        complete, self._complete = self._complete, []
        return complete

    @property
    def pending(self) -> list[str]:
        """Sample ids of images that still miss windows."""
        return [sample_id for _, sample_id in self._open]


@dataclass
class _Image:
    meta: SampleMeta
    windows: dict[int, Window] = field(default_factory=dict)
    joiners: dict[str, Any] = field(default_factory=dict)

    def result(self) -> ImageResult:
        windows = [self.windows[index] for index in sorted(self.windows)]
        tasks = {task: joiner.result(windows) for task, joiner in self.joiners.items()}
        return ImageResult(self.meta.sample_id, self.meta.group, self.meta.source, windows[0], tasks)


# --------------------------------------------------------------------------------------------------- territories


def depth(points: np.ndarray, window: Window) -> np.ndarray:
    """Measure how deep points lie in a window, for comparison between windows of one image.

    The product over both axes of the distance to the nearest edge that is not an edge of the image; 0 outside. Where
    two neighbours overlap it is equal on the middle line.

    Args:
        points: [N, 2] working pixels.
        window: One window of the image.

    Returns:
        [N] float64.
    """
    total = np.ones(len(points))
    for axis, (start, length, full) in enumerate(_spans(window)):
        position = points[:, axis].astype(np.float64)
        total *= np.clip(_edge_distance(position, start, length, full), 0.0, None)
        total[(position < start) | (position > start + length)] = 0.0
    return total


def owners(points: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Return for each working-raster point [N, 2] the position in `windows` of the window it belongs to, [N] int64."""
    if not len(points):
        return np.zeros(0, np.int64)
    return np.argmax(np.stack([depth(points, window) for window in windows]), axis=0)


def _spans(window: Window) -> list[tuple[float, float, float]]:
    """(start, length, full length) of a window's content in the working raster, for x and y."""
    return [
        (window.offset[0], float(window.valid[1]), float(window.working_size[1])),
        (window.offset[1], float(window.valid[0]), float(window.working_size[0])),
    ]


def _edge_distance(position: np.ndarray, start: float, length: float, full: float) -> np.ndarray:
    """Distance to the nearer inner edge in [0, length]; `length` where both edges are edges of the image."""
    distance = np.full(position.shape, length, np.float64)
    if start > 0:
        distance = np.minimum(distance, position - start)
    if start + length < full:
        distance = np.minimum(distance, start + length - position)
    return distance


def _in_territory(points: np.ndarray, slack: np.ndarray, own: int, windows: list[Window]) -> np.ndarray:
    """Tell which points belong to window `own` once moved towards its middle by up to `slack` ([N, 2] pixels)."""
    if len(windows) == 1:
        return np.ones(len(points), bool)
    window = windows[own]
    middle = np.array([start + length / 2 for start, length, _ in _spans(window)])
    return owners(points + np.clip(middle - points, -slack, slack), windows) == own


def _contested(points: np.ndarray, slack: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Tell which points lie, give or take `slack` ([N, 2] pixels), in more than one window."""
    inside = np.zeros(len(points), np.int64)
    for window in windows:
        start, end = np.array([(first, first + length) for first, length, _ in _spans(window)]).T
        inside += ((points >= start - slack) & (points <= end + slack)).all(axis=1)
    return inside > 1


def _suppress(candidates: np.ndarray, scores: np.ndarray, window: np.ndarray, alike: Any) -> np.ndarray:
    """Drop, best first, what another window reports too.

    Args:
        candidates: [M] indices to look at; all others are kept.
        scores: [N] score of each object.
        window: [N] window of each object.
        alike: `alike(i, others) -> bool array`: are these the same object?

    Returns:
        [N] bool, True for what stays.
    """
    keep = np.ones(len(scores), bool)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    for position, best in enumerate(order):
        if keep[best]:
            others = order[position + 1 :]
            others = others[keep[others] & (window[others] != window[best])]
            if len(others):
                keep[others[alike(best, others)]] = False
    return keep


# --------------------------------------------------------------------------------------------------- one joiner per kind


class _Objects:
    """Keeps the rows of each window until all are there."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Arrays]] = []
        self.extra: Arrays = {}

    def _stack(self) -> tuple[Arrays, np.ndarray]:
        self.parts.sort(key=lambda part: part[0])
        arrays = {key: np.concatenate([part[key] for _, part in self.parts]) for key in self.parts[0][1]}
        count = [len(next(iter(part.values()))) for _, part in self.parts]
        return arrays, np.repeat([index for index, _ in self.parts], count)


class _Detections(_Objects):
    """Boxes: territory of the centre, then suppression across windows whatever the class.

    Suppression is blind to the class because one cell that two windows name differently must not count twice;
    alternatives that one window gives for one cell stay.
    """

    def add(self, window: Window, prediction: Arrays) -> None:
        boxes = _boxes_to_working(prediction["boxes"], window)
        rows = {key: np.asarray(value) for key, value in prediction.items() if key != "boxes"}
        keep = _inside(_centres(boxes), window)
        self.parts.append((window.index, {"boxes": boxes[keep], **{key: value[keep] for key, value in rows.items()}}))

    def result(self, windows: list[Window]) -> Arrays:
        arrays, window = self._stack()
        boxes = arrays["boxes"]
        centres, slack = _centres(boxes), SLACK * (boxes[:, 2:] - boxes[:, :2])
        keep = np.ones(len(boxes), bool)
        if len(windows) > 1:
            for own in np.unique(window):
                mine = window == own
                keep[mine] = _in_territory(centres[mine], slack[mine], int(own), windows)
            shared = np.flatnonzero(keep & _contested(centres, slack, windows))
            keep &= _suppress(shared, arrays["scores"], window, lambda i, js: _iou(boxes[i], boxes[js]) > DUPLICATE_IOU)
        height, width = windows[0].working_size
        arrays["boxes"] = np.clip(boxes, 0.0, np.array([width, height, width, height], np.float32)).astype(np.float32)
        keep &= (arrays["boxes"][:, 2:] > arrays["boxes"][:, :2]).all(axis=1)
        order = np.flatnonzero(keep)
        order = order[np.argsort(-arrays["scores"][order], kind="stable")]
        return {key: value[order] for key, value in arrays.items()}


class _RegionsOfInterest(_Objects):
    """Class probabilities at given boxes: an object seen by several windows counts where it lies deepest."""

    def add(self, window: Window, prediction: Arrays) -> None:
        boxes = _boxes_to_working(prediction["boxes"], window)
        ids, probabilities = np.asarray(prediction["ids"], np.int64), np.asarray(prediction["probabilities"], np.float32)
        self.parts.append((window.index, {"ids": ids, "probabilities": probabilities, "depth": depth(_centres(boxes), window)}))

    def result(self, windows: list[Window]) -> Arrays:
        arrays, _ = self._stack()
        # Per id the deepest first; np.unique returns the first occurrence.
        order = np.lexsort((-arrays["depth"], arrays["ids"]))
        ids, first = np.unique(arrays["ids"][order], return_index=True)
        return {"probabilities": arrays["probabilities"][order[first]], "ids": ids}


class _Mean:
    """Image-level values: the mean over windows."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Arrays]] = []

    def add(self, window: Window, prediction: Arrays) -> None:
        self.parts.append((window.index, {key: np.asarray(value, np.float32) for key, value in prediction.items()}))

    def result(self, windows: list[Window]) -> Arrays:
        self.parts.sort(key=lambda part: part[0])
        return {key: np.stack([part[key] for _, part in self.parts]).mean(axis=0) for key in self.parts[0][1]}


class _Maps:
    """[K, h, w] maps on a grid of `stride` working pixels, blended where windows overlap."""

    def __init__(self) -> None:
        self.sum = np.zeros((0, 0, 0), np.float32)
        self.weight = np.zeros((0, 0), np.float32)
        self.single: np.ndarray | None = None

    def add(self, window: Window, values: np.ndarray, stride: float) -> None:
        values, x, y = _align(np.asarray(values), window, stride)
        if window.count == 1:
            self.single = np.array(values, np.float32)
            return
        if not self.sum.size:
            size = [-(-length // stride) for length in window.working_size]
            self.sum = np.zeros((len(values), int(size[0]), int(size[1])), np.float32)
            self.weight = np.zeros(self.sum.shape[1:], np.float32)
        height, width = min(values.shape[1], self.sum.shape[1] - y), min(values.shape[2], self.sum.shape[2] - x)
        weight = _blend(window, stride, x, y, width, height)
        here = (slice(y, y + height), slice(x, x + width))
        self.sum[(slice(None), *here)] += values[:, :height, :width] * weight
        self.weight[here] += weight

    def result(self) -> np.ndarray:
        if self.single is not None:
            return self.single
        return np.divide(self.sum, np.maximum(self.weight, np.finfo(np.float32).tiny), out=self.sum)


class _Masks:
    """Probabilities per pixel."""

    def __init__(self) -> None:
        self.maps = _Maps()

    def add(self, window: Window, prediction: Arrays) -> None:
        self.maps.add(window, prediction["probabilities"], 1.0)

    def result(self, windows: list[Window]) -> Arrays:
        return {"probabilities": self.maps.result().astype(np.float32, copy=False)}


class _Heatmaps(_Objects):
    """A map at the head's stride, and its peaks: territory, then suppression of the same class within 2 sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = _Maps()

    def add(self, window: Window, prediction: Arrays) -> None:
        self.extra = {key: np.asarray(prediction[key], np.float32) for key in ("stride", "sigma")}
        self.maps.add(window, prediction["heatmap"], float(prediction["stride"]))
        points = window.network_to_working(np.asarray(prediction["points"], np.float32).reshape(-1, 2))
        keep = _inside(points, window)
        scores, labels = np.asarray(prediction["scores"]), np.asarray(prediction["labels"])
        self.parts.append((window.index, {"points": points[keep], "scores": scores[keep], "labels": labels[keep]}))

    def result(self, windows: list[Window]) -> Arrays:
        arrays, window = self._stack()
        points, labels = arrays["points"], arrays["labels"]
        keep = np.ones(len(points), bool)
        if len(windows) > 1:
            radius = max(float(self.extra["sigma"]), 1.0) * float(self.extra["stride"])
            slack = np.full((len(points), 2), radius)
            for own in np.unique(window):
                mine = window == own
                keep[mine] = _in_territory(points[mine], slack[mine], int(own), windows)

            def alike(i: int, js: np.ndarray) -> np.ndarray:
                return (labels[js] == labels[i]) & (np.linalg.norm(points[js] - points[i], axis=1) <= 2 * radius)

            keep &= _suppress(np.flatnonzero(keep & _contested(points, slack, windows)), arrays["scores"], window, alike)
        order = np.flatnonzero(keep)
        order = order[np.argsort(-arrays["scores"][order], kind="stable")]
        heatmap = self.maps.result().astype(np.float32, copy=False)
        return {"heatmap": heatmap, **{key: value[order] for key, value in arrays.items()}, **self.extra}


JOINERS: dict[str, Any] = {
    "detection": _Detections, "roi_classification": _RegionsOfInterest, "segmentation": _Masks, "heatmap": _Heatmaps,
    "classification": _Mean, "regression": _Mean,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- helpers


def _boxes_to_working(boxes: np.ndarray, window: Window) -> np.ndarray:
    return window.network_to_working(np.asarray(boxes, np.float32).reshape(-1, 2, 2)).reshape(-1, 4)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _inside(points: np.ndarray, window: Window) -> np.ndarray:
    """Tell which working-raster points lie on image content, not on padding."""
    keep = np.ones(len(points), bool)
    for axis, (start, length, _) in enumerate(_spans(window)):
        keep &= (points[:, axis] >= start) & (points[:, axis] <= start + length)
    return keep


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    overlap = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0.0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - overlap
    return overlap / np.maximum(union, 1e-9)


def _align(values: np.ndarray, window: Window, stride: float) -> tuple[np.ndarray, int, int]:
    """Cut the padding off a network map and return it with the cell (x, y) of the working grid at which it starts.

    Offsets and padding that are not multiples of the stride are met by linear interpolation.
    """
    left, top = window.pad[0] / stride, window.pad[1] / stride
    x, y = window.offset[0] / stride, window.offset[1] / stride
    column, row = int(np.floor(x)), int(np.floor(y))
    width = int(np.ceil((window.offset[0] + window.valid[1]) / stride - 1e-6)) - column
    height = int(np.ceil((window.offset[1] + window.valid[0]) / stride - 1e-6)) - row
    dx, dy = left - (x - column), top - (y - row)
    if dx == int(dx) and dy == int(dy) and dx >= 0 and dy >= 0:
        return values[:, int(dy) : int(dy) + height, int(dx) : int(dx) + width], column, row
    import cv2

    move = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = [
        cv2.warpAffine(channel.astype(np.float32), move, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for channel in values
    ]
    return np.stack(moved), column, row


def _blend(window: Window, stride: float, x: int, y: int, width: int, height: int) -> np.ndarray:
    """[height, width] weights that fall linearly towards inner edges; equal on the middle line of an overlap."""
    profiles = []
    for first, count, (start, length, full) in zip((x, y), (width, height), _spans(window), strict=True):
        centres = (first + np.arange(count) + 0.5) * stride
        # A cell that an edge cuts through still counts a little, so that no cell is left without weight.
        profiles.append(np.maximum(_edge_distance(centres, start, length, full) / length, 1e-3 * stride / length))
    return (profiles[1][:, None] * profiles[0][None, :]).astype(np.float32)
