"""From what each window says to what is said of the whole image, in the working raster.

A kind of task names the joiner of its predictions (`mtl.kinds`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mtl.core.types import Arrays, Window
from mtl.stitching.blending import BlendedMaps
from mtl.stitching.territories import Neighbourhood, claim, close_points, depth, inside, overlapping_boxes, suppress

# Boxes of different windows that overlap more than this are one object.
DUPLICATE_IOU = 0.5
# How far beyond its territory a window's object may lie, as a share of the object's size.
SLACK = 0.25


# Of each joined box, [N, 2]: its window, and its row in what that window said. For what is said about the boxes.
ORIGIN = "origin"


class Joiner(ABC):
    """Collects what the windows of one image say for one task.

    Attributes:
        of_boxes: `result` is told the joined boxes, with their `origin`.
    """

    of_boxes: ClassVar[bool] = False

    @abstractmethod
    def add(self, window: Window, prediction: Arrays) -> None:
        """Take what one window says, in network pixels."""

    @abstractmethod
    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Return what is said of the whole image, in the working raster.

        Args:
            windows: All windows of the image, in order.
            boxes: Of a joiner about boxes: what a `BoxJoiner` gave, where one did.
        """


class _ObjectJoiner(Joiner):
    """Keeps the rows of each window until all are there."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Arrays]] = []
        self.extra: Arrays = {}

    def _stack(self) -> tuple[Arrays, np.ndarray]:
        self.parts.sort(key=lambda part: part[0])
        arrays = {key: np.concatenate([part[key] for _, part in self.parts]) for key in self.parts[0][1]}
        count = [len(next(iter(part.values()))) for _, part in self.parts]
        return arrays, np.repeat([index for index, _ in self.parts], count)


class BoxJoiner(_ObjectJoiner):
    """Boxes: territory of the centre, then suppression across windows whatever the class.

    Suppression is blind to the class because one cell that two windows name differently must not count twice;
    alternatives that one window gives for one cell stay.
    """

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take one window."""
        boxes = _boxes_to_working(prediction["boxes"], window)
        rows = {key: np.asarray(value) for key, value in prediction.items() if key != "boxes"}
        rows[ORIGIN] = np.stack([np.full(len(boxes), window.index), np.arange(len(boxes))], axis=1)
        keep = inside(_centres(boxes), window)
        self.parts.append((window.index, {"boxes": boxes[keep], **{key: value[keep] for key, value in rows.items()}}))

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Return `boxes`, best first, with everything that came with them and their `origin`."""
        arrays, window = self._stack()
        corners = arrays["boxes"]
        keep, shared = _claims(_centres(corners), SLACK * (corners[:, 2:] - corners[:, :2]), window, windows)
        contested = np.flatnonzero(keep & shared)
        pairs = contested[overlapping_boxes(corners[contested], DUPLICATE_IOU)]
        keep &= suppress(arrays["scores"], pairs[window[pairs[:, 0]] != window[pairs[:, 1]]])
        height, width = windows[0].working_size
        arrays["boxes"] = np.clip(corners, 0.0, np.array([width, height, width, height], np.float32)).astype(np.float32)
        keep &= (arrays["boxes"][:, 2:] > arrays["boxes"][:, :2]).all(axis=1)
        return _best_first(arrays, keep)


class RegionJoiner(_ObjectJoiner):
    """Class probabilities at boxes.

    At annotated boxes, which come with `ids` and `boxes`, an object seen by several windows counts where it lies deepest. At
    detected ones, each box that was kept is taken from where it came from.
    """

    of_boxes = True

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take `probabilities`, and `ids` and `boxes` where these are annotated."""
        if "ids" not in prediction:
            self.parts.append((window.index, {"probabilities": np.asarray(prediction["probabilities"], np.float32)}))
            return
        boxes = _boxes_to_working(prediction["boxes"], window)
        ids, probabilities = np.asarray(prediction["ids"], np.int64), np.asarray(prediction["probabilities"], np.float32)
        self.parts.append((window.index, {"ids": ids, "probabilities": probabilities, "depth": depth(_centres(boxes), window)}))

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Return `probabilities` in the order of the joined boxes, or with the `ids` of annotated ones."""
        if "ids" not in self.parts[0][1]:
            assert boxes is not None
            said = {index: part["probabilities"] for index, part in self.parts}
            rows = [said[window][row] for window, row in boxes[ORIGIN].tolist()]
            return {"probabilities": np.stack(rows) if rows else self.parts[0][1]["probabilities"][:0]}
        arrays, _ = self._stack()
        # Per id the deepest first; np.unique returns the first occurrence.
        order = np.lexsort((-arrays["depth"], arrays["ids"]))
        ids, first = np.unique(arrays["ids"][order], return_index=True)
        return {"probabilities": arrays["probabilities"][order[first]], "ids": ids}


class MeanJoiner(Joiner):
    """Image-level values: the mean over windows."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Arrays]] = []

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take one window."""
        self.parts.append((window.index, {key: np.asarray(value, np.float32) for key, value in prediction.items()}))

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Join."""
        self.parts.sort(key=lambda part: part[0])
        return {key: np.stack([part[key] for _, part in self.parts]).mean(axis=0) for key in self.parts[0][1]}


class MapJoiner(Joiner):
    """Probabilities per pixel."""

    def __init__(self) -> None:
        self.maps = BlendedMaps()

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take one window."""
        self.maps.add(window, prediction["probabilities"])

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Join."""
        return {"probabilities": self.maps.result().astype(np.float32, copy=False)}


class PointJoiner(_ObjectJoiner):
    """Points: territory, then suppression across windows within the head's `radius`, whatever the class.

    As for boxes, one cell that two windows name differently counts once.
    """

    constants: tuple[str, ...] = ("radius",)
    blind = True  # to the class

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take one window."""
        self.extra = {key: np.asarray(prediction[key], np.float32) for key in self.constants}
        points = window.network_to_working(np.asarray(prediction["points"], np.float32).reshape(-1, 2))
        keep = inside(points, window)
        scores, labels = np.asarray(prediction["scores"]), np.asarray(prediction["labels"])
        self.parts.append((window.index, {"points": points[keep], "scores": scores[keep], "labels": labels[keep]}))

    @property
    def distance(self) -> float:
        """Working pixels within which the points of two windows are one cell; half of it is the slack of a territory.

        At least two, also of a head that suppresses nothing: two windows never place a point exactly alike.
        """
        return max(float(self.extra["radius"]), 2.0)

    def add_claimed(
        self, window: Window, prediction: Arrays, around: Neighbourhood, where: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        """Take one window and drop at once what its neighbours speak for; for images with very many windows.

        Args:
            window: The window.
            prediction: What the head says.
            around: The windows near it, itself included.
            where: Tells which points [N, 2] (working pixels) lie where objects may be; None is everywhere.
        """
        self.add(window, prediction)
        _, part = self.parts.pop()
        points, slack = part["points"], self.distance / 2
        keep, shared = claim(points, np.full((len(points), 2), slack), window, around.of(window, slack))
        if where is not None:
            keep &= where(points)
        if keep.any():
            self.parts.append((window.index, {key: value[keep] for key, value in {**part, "shared": shared}.items()}))

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Join what the windows said; those that came through `add_claimed` need not be named again."""
        arrays, window = self._stack()
        points, labels, shared = arrays["points"], arrays["labels"], arrays.pop("shared", None)
        keep = np.ones(len(points), bool)
        if shared is None:
            keep, shared = _claims(points, np.full((len(points), 2), self.distance / 2), window, windows)
        contested = np.flatnonzero(keep & shared)
        pairs = contested[close_points(points[contested], self.distance)]
        same = window[pairs[:, 0]] != window[pairs[:, 1]]
        if not self.blind:
            same &= labels[pairs[:, 0]] == labels[pairs[:, 1]]
        keep &= suppress(arrays["scores"], pairs[same])
        return {**_best_first(arrays, keep), **self.extra}


class PeakJoiner(PointJoiner):
    """A map at the head's stride, and its peaks: territory, then suppression of the same class within 2 sigma."""

    constants = ("stride", "sigma")
    blind = False  # each class has a channel of its own

    def __init__(self) -> None:
        super().__init__()
        self.maps = BlendedMaps()

    def add(self, window: Window, prediction: Arrays) -> None:
        """Take one window."""
        super().add(window, prediction)
        self.maps.add(window, prediction["heatmap"], float(prediction["stride"]))

    @property
    def distance(self) -> float:
        """Two standard deviations of a peak."""
        return 2 * max(float(self.extra["sigma"]), 1.0) * float(self.extra["stride"])

    def result(self, windows: list[Window], boxes: Arrays | None = None) -> Arrays:
        """Join."""
        return {"heatmap": self.maps.result().astype(np.float32, copy=False), **super().result(windows)}


def _claims(points: np.ndarray, slack: np.ndarray, window: np.ndarray, windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Call `claim` for the points of all windows, [N] being the position of each point's window in `windows`."""
    keep, shared = np.ones(len(points), bool), np.zeros(len(points), bool)
    neighbourhood = Neighbourhood(windows)
    for own in np.unique(window):
        mine = np.flatnonzero(window == own)
        near = neighbourhood.of(windows[own], float(slack[mine].max()))
        keep[mine], shared[mine] = claim(points[mine], slack[mine], windows[own], near)
    return keep, shared


def _best_first(arrays: Arrays, keep: np.ndarray) -> Arrays:
    order = np.flatnonzero(keep)
    order = order[np.argsort(-arrays["scores"][order], kind="stable")]
    return {key: value[order] for key, value in arrays.items()}


def _boxes_to_working(boxes: np.ndarray, window: Window) -> np.ndarray:
    return window.network_to_working(np.asarray(boxes, np.float32).reshape(-1, 2, 2)).reshape(-1, 4)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
