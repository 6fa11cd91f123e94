"""What is drawn over an image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mtl.core.raster import content_in
from mtl.core.task import Colour
from mtl.core.types import Window


@dataclass
class Layers:
    """What is drawn over one image, in fractions of its width and height.

    Attributes:
        boxes: (name of the class, [N, 4] boxes), back to front.
        masks: (name, [h, w] bool at any resolution).
        heat: [h, w] float in [0, 1] at any resolution, or None.
        heat_extent: (height, width) that the heat covers; its last map pixels may reach over the edge of the image.
        points: [N, 2].
        dots: (name of the class, [N, 2] points).
        dot_radius: Radius of a dot as a fraction of the width: the distance below which two points would be one object.
        legend: (colour, text) entries.
        mask_names: Names of all masks of the picture, of which several tasks may share one; they decide titles.
        colours: By class; every class that is drawn has one.
        unremarkable: Classes whose boxes have thin lines.
        window: Of an image of which masks and heat show a part only (a border was cut off); None where they cover all of it.
    """

    boxes: list[tuple[str, np.ndarray]] = field(default_factory=list)
    masks: list[tuple[str, np.ndarray]] = field(default_factory=list)
    heat: np.ndarray | None = None
    heat_extent: tuple[float, float] = (1.0, 1.0)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    dots: list[tuple[str, np.ndarray]] = field(default_factory=list)
    dot_radius: float = 0.0
    legend: list[tuple[Colour, str]] = field(default_factory=list)
    mask_names: list[str] = field(default_factory=list)
    colours: dict[str, Colour] = field(default_factory=dict)
    unremarkable: frozenset[str] = frozenset()
    window: Window | None = None

    def region(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns that masks and heat cover in a picture of (height, width)."""
        left, top, right, bottom = (0, 0, size[1], size[0]) if self.window is None else content_in(self.window, size)
        return slice(top, bottom), slice(left, right)
