"""Where the picture is: the box of what is not a dark border, and the circle that a round field of view fills."""

from __future__ import annotations

import numpy as np

LONGEST = 512  # pixels of the copy that is looked at
FILLED = 0.02  # a row or column belongs to the picture when this share of it is bright
SMALLEST = 0.1  # a box below this share of the image is no border but a dark picture
Box = tuple[int, int, int, int]


def content_box(image: np.ndarray, threshold: float = 0.06, margin: float = 0.0) -> Box:
    """Find the part of an image that is not a dark border.

    Args:
        image: [H, W, C].
        threshold: Share of the brightest value (its 99th percentile) below which a pixel is border.
        margin: Share of the box's sides that is left around it.

    Returns:
        (x_min, y_min, x_max, y_max) in pixels; the whole image where nothing, or nearly everything, is border.
    """
    import cv2

    height, width = image.shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    brightness = cv2.resize(image.max(axis=2), small, interpolation=cv2.INTER_AREA).astype(np.float32)
    bright = brightness > threshold * np.percentile(brightness, 99)
    whole = (0, 0, width, height)
    columns, rows = _longest_run(bright.mean(axis=0) > FILLED), _longest_run(bright.mean(axis=1) > FILLED)
    left, right = (edge * width / small[0] for edge in columns)
    top, bottom = (edge * height / small[1] for edge in rows)
    across, along = margin * (right - left), margin * (bottom - top)
    box = (
        max(0, round(left - across)), max(0, round(top - along)),
        min(width, round(right + across)), min(height, round(bottom + along)),
    )  # fmt: skip
    return box if (box[2] - box[0]) * (box[3] - box[1]) >= SMALLEST * width * height else whole


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Return (first, last + 1) of the longest unbroken stretch of True; a caption in the border is a stretch of its own."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])


def outside_circle(box: Box, scale: tuple[float, float], corner: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Mark what lies outside the circle around a box.

    The camera may cut the circle at the top and bottom, so its diameter is the longer side of the box.

    Args:
        box: In original pixels.
        scale: (x, y) raster pixels per original pixel; where they differ the circle is an ellipse.
        corner: (x, y) of the raster's corner in original pixels.
        size: (height, width) of the raster.

    Returns:
        [height, width] bool.
    """
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    radius = max(box[2] - box[0], box[3] - box[1]) / 2
    y, x = np.ogrid[: size[0], : size[1]]
    across = ((x + 0.5) / scale[0] + corner[0] - centre[0]) / radius
    along = ((y + 0.5) / scale[1] + corner[1] - centre[1]) / radius
    return across**2 + along**2 > 1.0
