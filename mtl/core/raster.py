"""Maps of the working raster, brought to the size of the original image. Imports OpenCV inside functions only."""

from __future__ import annotations

import numpy as np

from mtl.core.types import Window


def resize_map(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one [h, w] float map to (height, width) with linear interpolation."""
    import cv2

    values = np.ascontiguousarray(channel, dtype=np.float32)
    return values if values.shape == tuple(size) else cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one [h, w] hard mask to (height, width) bool.

    Where it shrinks, a pixel belongs to the result as soon as the mask touches it, so that structures smaller than a pixel
    do not vanish from pictures. Not for scoring.
    """
    import cv2

    hard = np.ascontiguousarray(mask != 0)
    if hard.shape == tuple(size):
        return hard
    shrinks = size[0] < hard.shape[0] or size[1] < hard.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST_EXACT
    # As float, since the share of one pixel in a large one would be rounded away in 8 bits.
    return cv2.resize(hard.astype(np.float32), (size[1], size[0]), interpolation=interpolation) > 0


def content_in(window: Window, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (x_min, y_min, x_max, y_max) of what the working raster shows in a picture of the whole original.

    Args:
        window: Any window of the image.
        size: (height, width) of that picture; at least one pixel is left for the content.
    """
    corners = []
    for length, full, low, high in zip(size[::-1], window.original_size[::-1], window.content_box[:2], window.content_box[2:],
                                       strict=True):  # fmt: skip
        first = min(round(low * length / full), length - 1)
        corners.append((first, min(max(round(high * length / full), first + 1), length)))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def cut_to_working(channel: np.ndarray, window: Window, stride: float) -> np.ndarray:
    """Enlarge a [h, w] map with `stride` working pixels per map pixel, and cut what reaches over the edge of the raster."""
    height, width = window.working_size
    full = resize_map(channel, (round(channel.shape[0] * stride), round(channel.shape[1] * stride)))
    return full[:height, :width]


def to_original(channel: np.ndarray, window: Window, size: tuple[int, int] | None = None, stride: float = 1.0) -> np.ndarray:
    """Bring a map of the working raster to the original image.

    Args:
        channel: [h, w] float.
        window: Any window of the image.
        size: (height, width) of the result, a picture of the whole original; None takes the original's own size.
        stride: Working pixels per map pixel; the last ones may reach over the edge.

    Returns:
        [H, W] float32; zero where the working raster shows nothing (a border that was cut off).
    """
    frame = window.original_size if size is None else size
    full = channel if stride == 1 else cut_to_working(channel, window, stride)
    if window.content is None:
        return resize_map(full, frame)
    left, top, right, bottom = content_in(window, frame)
    result = np.zeros(frame, np.float32)
    result[top:bottom, left:right] = resize_map(full, (bottom - top, right - left))
    return result
