"""What is drawn around a cell of which only a point is known."""

from __future__ import annotations

import numpy as np

ELLIPSE_VERTICES = 24  # a multiple of 4, so that the extent is exact
_ANGLES = np.arange(ELLIPSE_VERTICES) * (2 * np.pi / ELLIPSE_VERTICES)
ELLIPSE = 0.5 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # extent 1 x 1 around the origin
RECTANGLE = np.asarray([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def is_size(value: float | list[float]) -> bool:
    """Return whether a setting is a positive number, or two."""
    sides = [value, value] if isinstance(value, int | float) else value
    return len(sides) == 2 and all(side > 0 for side in sides)


def pair(value: float | list[float]) -> np.ndarray:
    """Return (width, height)."""
    return np.broadcast_to(np.asarray(value, np.float64), (2,))
