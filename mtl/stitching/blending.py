"""Maps of overlapping windows, blended with weights that fall linearly to zero over the overlap."""

from __future__ import annotations

import numpy as np

from mtl.core.types import Window
from mtl.stitching.territories import edge_distance, spans


class BlendedMaps:
    """[K, h, w] maps on a grid of `stride` working pixels, blended where windows overlap.

    Holds one float32 accumulator of the whole image, or of a band of rows that moves down it (`pop`).

    Args:
        rows: Height of the band in map pixels: at least that of a window; None is the whole image.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self.top = 0
        self.sum = np.zeros((0, 0, 0), np.float32)
        self.weight = np.zeros((0, 0), np.float32)

    def add(self, window: Window, values: np.ndarray, stride: float = 1.0) -> None:
        """Take the map [K, h, w] of one window; in a band no window may reach above or below it."""
        values, x, y = align(np.asarray(values), window, stride)
        if not self.sum.size:
            height, width = (int(-(-length // stride)) for length in window.working_size)
            self.sum = np.zeros((len(values), min(self.rows or height, height), width), np.float32)
            self.weight = np.zeros(self.sum.shape[1:], np.float32)
        y -= self.top
        height, width = min(values.shape[1], self.sum.shape[1] - y), min(values.shape[2], self.sum.shape[2] - x)
        here = (slice(y, y + height), slice(x, x + width))
        if window.count == 1:
            self.sum[(slice(None), *here)], self.weight[here] = values[:, :height, :width], 1.0
            return
        weight = blend(window, stride, x, y + self.top, width, height)
        self.sum[(slice(None), *here)] += values[:, :height, :width] * weight
        self.weight[here] += weight

    def result(self) -> np.ndarray:
        """Return the blended maps [K, h, w] float32 of the whole image."""
        return np.divide(self.sum, np.maximum(self.weight, np.finfo(np.float32).tiny), out=self.sum)

    def pop(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first rows of the band and move it down by as many.

        Args:
            count: At most the height of the band.

        Returns:
            [K, count, w] float32 blended maps, and [count, w] bool: did any window look there?
        """
        seen = self.weight[:count] > 0
        maps = self.sum[:, :count] / np.maximum(self.weight[:count], np.finfo(np.float32).tiny)
        for array in (*self.sum, self.weight):
            array[: -count or None] = array[count:].copy()
            array[len(array) - count :] = 0
        self.top += count
        return maps, seen


def align(values: np.ndarray, window: Window, stride: float) -> tuple[np.ndarray, int, int]:
    """Cut the padding off a network map and return it with the map pixel (x, y) of the working grid at which it starts.

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


def blend(window: Window, stride: float, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Return [height, width] weights that fall linearly towards inner edges; equal on the middle line of an overlap."""
    profiles = []
    for first, count, (start, length, full) in zip((x, y), (width, height), spans(window), strict=True):
        centres = (first + np.arange(count) + 0.5) * stride
        # A map pixel that an edge cuts through still counts a little, so that none is left without weight.
        profiles.append(np.maximum(edge_distance(centres, start, length, full) / length, 1e-3 * stride / length))
    return (profiles[1][:, None] * profiles[0][None, :]).astype(np.float32)
