"""Areas of a COCO file in which nobody marked objects one by one (`iscrowd`): run lengths, polygons, or a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]
FIRST_LETTER, BITS, MORE, NEGATIVE = 48, 5, 0x20, 0x10  # of run lengths packed into text, as pycocotools writes them


@dataclass(frozen=True)
class Crowd:
    """An annotation that stands for many objects.

    Attributes:
        number: Id of the annotation.
        segmentation: As in the file: `{"size": [height, width], "counts": ...}`, a list of polygons, or nothing.
        box: (x_min, y_min, x_max, y_max), the area where there is no segmentation; None where there is no box either.
    """

    number: Any
    segmentation: Any
    box: Box | None

    def area(self, size: tuple[int, int]) -> np.ndarray:
        """Return [H, W] bool, True in the area.

        Args:
            size: (height, width) of the image.

        Raises:
            ValueError: There is no area that could be read; the text says why.
        """
        if isinstance(self.segmentation, dict):
            return _from_runs(self.segmentation, size)
        polygons = self.segmentation or ([] if self.box is None else [[self.box[x] for x in (0, 1, 2, 1, 2, 3, 0, 3)]])
        if not isinstance(polygons, list) or not polygons:
            raise ValueError("it has no area: neither a segmentation nor a box")
        return _fill(polygons, size)


def _fill(polygons: list[Any], size: tuple[int, int]) -> np.ndarray:
    from mtl.imaging.outlines import clip_outline, fill_outlines

    try:
        corners = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    except (TypeError, ValueError):
        raise ValueError("its polygons are no lists of x and y") from None
    if not all(len(polygon) >= 3 and np.isfinite(polygon).all() for polygon in corners):
        raise ValueError("its polygons need three corners at least")
    return fill_outlines([clip_outline(polygon, size) for polygon in corners], size)


def _from_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the area of run lengths: of nothing and of the area in turn, down the columns."""
    if segmentation.get("size") != list(size):
        raise ValueError(f"its run lengths are for [height, width] {segmentation.get('size')}; the image has {list(size)}")
    counts = segmentation.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError("its run lengths do not fill the image")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _unpacked(text: str) -> list[int]:
    """Return run lengths packed into text: five bits per letter, from the third run on relative to the one before the last."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = digit = 0
        letter = MORE
        while letter & MORE and place < len(text):
            letter = ord(text[place]) - FIRST_LETTER
            value |= (letter & 0x1F) << BITS * digit
            place, digit = place + 1, digit + 1
        if letter & NEGATIVE:
            value |= -1 << BITS * digit
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
