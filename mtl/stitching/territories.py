"""Which window speaks for which place of an image, and what several windows report twice.

Neighbouring windows overlap, so a cell near a border is predicted two to four times. Every place *belongs* to the window in
which it lies deepest (the border is the middle line of the overlap); a window's objects count in its own territory and a little
beyond, and what two windows then still both report is suppressed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl.core.types import Window


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
    for axis, (start, length, full) in enumerate(spans(window)):
        position = points[:, axis].astype(np.float64)
        total *= np.clip(edge_distance(position, start, length, full), 0.0, None)
        total[(position < start) | (position > start + length)] = 0.0
    return total


def owners(points: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Return for each working-raster point [N, 2] the position in `windows` of the window it belongs to, [N] int64."""
    if not len(points):
        return np.zeros(0, np.int64)
    return np.argmax(np.stack([depth(points, window) for window in windows]), axis=0)


def spans(window: Window) -> list[tuple[float, float, float]]:
    """Return (start, length, full length) of a window's content in the working raster, for x and y."""
    return [
        (window.offset[0], float(window.valid[1]), float(window.working_size[1])),
        (window.offset[1], float(window.valid[0]), float(window.working_size[0])),
    ]


def edge_distance(position: np.ndarray, start: float, length: float, full: float) -> np.ndarray:
    """Return the distance to the nearer inner edge in [0, length]; `length` where both edges are edges of the image."""
    distance = np.full(position.shape, length, np.float64)
    if start > 0:
        distance = np.minimum(distance, position - start)
    if start + length < full:
        distance = np.minimum(distance, start + length - position)
    return distance


def inside(points: np.ndarray, window: Window) -> np.ndarray:
    """Return which working-raster points lie on image content, not on padding."""
    keep = np.ones(len(points), bool)
    for axis, (start, length, _) in enumerate(spans(window)):
        keep &= (points[:, axis] >= start) & (points[:, axis] <= start + length)
    return keep


class Neighbourhood:
    """Finds the windows that a window shares places with.

    Args:
        windows: Of one image, by index.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        self._first = np.array([window.offset for window in windows]).reshape(-1, 2)
        self._last = self._first + np.array([window.valid[::-1] for window in windows]).reshape(-1, 2)

    def of(self, window: Window, slack: float = 0.0) -> list[Window]:
        """Return the windows that come closer than `slack` pixels to `window`, itself included."""
        first, last = np.array(window.offset), np.array(window.offset) + window.valid[::-1]
        near = ((self._first <= last + slack) & (self._last >= first - slack)).all(axis=1)
        return [self.windows[index] for index in np.flatnonzero(near).tolist()]


def claim(points: np.ndarray, slack: np.ndarray, own: Window, near: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Decide which of its points a window may report, and which of them a neighbour may report too.

    Args:
        points: [N, 2] working pixels, of `own`.
        slack: [N, 2] pixels by which a point may lie beyond the territory: two windows never place an object exactly alike,
            and without slack a cell on the border can fall to neither.
        own: The window.
        near: The windows around it (`Neighbourhood.of`), itself included.

    Returns:
        Two [N] bool: once moved towards the middle of its window by up to `slack`, the point belongs to it; give or take
        `slack`, the point lies in more than one window.
    """
    if len(near) == 1 or not len(points):
        return np.ones(len(points), bool), np.zeros(len(points), bool)
    middle = np.array([start + length / 2 for start, length, _ in spans(own)])
    position = next(index for index, window in enumerate(near) if window.index == own.index)
    mine = owners(points + np.clip(middle - points, -slack, slack), near) == position
    covered = np.zeros(len(points), np.int64)
    for window in near:
        start, end = np.array([(first, first + length) for first, length, _ in spans(window)]).T
        covered += ((points >= start - slack) & (points <= end + slack)).all(axis=1)
    return mine, covered > 1


def suppress(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Drop, best first, whatever is the same object as a better one that stays.

    Args:
        scores: [N] score of each object; of equal ones the first is the better.
        pairs: [P, 2] positions of two objects that are the same.

    Returns:
        [N] bool, True for what stays.
    """
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    keep = np.ones(len(scores), bool)
    swapped = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    ordered = np.where(swapped[:, None], pairs[:, ::-1], pairs)
    # By the rank of the better one, so that its own fate is sealed when its pairs are looked at.
    for better, worse in ordered[np.argsort(rank[ordered[:, 0]], kind="stable")].tolist():
        if keep[better]:
            keep[worse] = False
    return keep


def close_points(points: np.ndarray, distance: float) -> np.ndarray:
    """Return the pairs [P, 2] of points [N, 2] that are at most `distance` apart."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return np.zeros((0, 2), np.int64)
    return cKDTree(points.astype(np.float64)).query_pairs(distance, output_type="ndarray").astype(np.int64)


def overlapping_boxes(boxes: np.ndarray, least: float) -> np.ndarray:
    """Return the pairs [P, 2] of boxes [N, 4] whose intersection over union is above `least`."""
    order = np.argsort(boxes[:, 0], kind="stable")
    ordered = boxes[order]
    ends = np.searchsorted(ordered[:, 0], ordered[:, 2])  # boxes further right cannot touch
    pairs = []
    for position, end in enumerate(ends.tolist()):
        found = np.flatnonzero(_iou(ordered[position], ordered[position + 1 : end]) > least)
        pairs.append(np.stack([np.full(len(found), position), found + position + 1], axis=1))
    return order[np.concatenate(pairs)] if pairs else np.zeros((0, 2), np.int64)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    overlap = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0.0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - overlap
    return overlap / np.maximum(union, 1e-9)
