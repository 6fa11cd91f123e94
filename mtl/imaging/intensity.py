"""Grey values of MR images, which have no unit: where the head is, and values that are comparable between scanners.

One function finds the foreground of skull-stripped slices and of whole heads, so that every source, training and prediction are
treated alike.
"""

from __future__ import annotations

import numpy as np

from mtl.imaging.background import above_air, background_value

SIDE = 256  # pixels of the copy in which the head is looked for
SMOOTH = 1.0  # sigma there
RING = 0.08  # width of the zone along the border, in sides
GAP = 0.025  # the background is one value where fewer pixels than this, per pixel of the head, are darker than the threshold
OPENED = 5  # side of the kernel that removes lines and lettering, in pixels of the copy
CLOSED = 9  # side of the kernel that closes gaps, in pixels of the copy
SMALLEST = 0.1  # parts below this share of the largest one are captions, not the head (temporal lobes and cerebellum are parts)
SATURATED = 0.97  # share of the brightest value above which what touches the border is a frame
BLANK = 0.5  # share of the brightest value below which the one value of the border is background
BLACK = 0.05  # share of the brightest value up to which the one value of the border may be black, compressed
LEAST = 50  # pixels; less is no foreground
PERCENTILES = (1.0, 99.0)


def brain_mask(image: np.ndarray) -> np.ndarray:
    """Find the foreground of an MR image: the brain, or the head where the skull is shown, with all cavities inside.

    Where the background is exactly one value, as in skull-stripped data, the mask ends exactly there, whatever that is;
    elsewhere the value halfway between the most frequent dark one and Otsu's threshold decides. White frames are background.

    Args:
        image: [H, W] or [H, W, C] grey values in any unit; channels show the same place.

    Returns:
        [H, W] bool, all False where nothing is shown.
    """
    import cv2

    grey = _grey(image)
    height, width = grey.shape
    empty = np.zeros((height, width), bool)
    if not grey.any():
        return empty
    factor = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if factor < 1 else grey.copy()
    frame = _frame(small)
    shown = above_air(cv2.GaussianBlur(np.where(frame, 0, small), (0, 0), SMOOTH), ~frame, _ring(small.shape))
    above = (small > 0) & ~frame
    if np.count_nonzero(above & ~shown) < GAP * np.count_nonzero(shown):
        shown = above
    else:
        shown = cv2.morphologyEx(shown.astype(np.uint8), cv2.MORPH_OPEN, _disc(OPENED)) > 0
    found = _filled(_large_parts(shown.astype(np.uint8)))
    if factor < 1:
        found = cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    # Smoothing and closing reach over the edge; what is exactly background and open to the outside is none of the head.
    mask = (found > 0) & ~_outside(grey == 0)
    return mask if np.count_nonzero(mask) >= LEAST else empty


def standardise(image: np.ndarray, mask: np.ndarray, method: str, limit: float) -> np.ndarray:
    """Map each channel to the unit interval by its values inside a mask; 0 outside.

    `zscore`: clip(0.5 + z / (2 * limit), 0, 1) with z in standard deviations from the mean. `percentile`: the 1st to the 99th
    percentile become 0 to 1. A channel without contrast inside the mask is blank: a missing modality.

    Args:
        image: [H, W, C] in any unit.
        mask: [H, W] bool.
        method: `zscore` or `percentile`.
        limit: Largest z that is told apart (zscore only).

    Returns:
        [H, W, C] float32.
    """
    output = np.zeros(image.shape, np.float32)
    for channel in range(image.shape[2]):
        values = image[..., channel][mask].astype(np.float64)
        if not len(values) or np.ptp(values) == 0:
            continue
        if method == "zscore":
            unit = 0.5 + (values - values.mean()) / (2 * limit * values.std())
        else:
            low, high = np.percentile(values, PERCENTILES)
            unit = (values - low) / max(high - low, np.finfo(np.float32).tiny)
        output[..., channel][mask] = np.clip(unit, 0, 1)
    return output


def _grey(image: np.ndarray) -> np.ndarray:
    """Join channels to [H, W] float32 in [0, 1]: the brightest channel, each in units of its 99.5th percentile."""
    channels = np.atleast_3d(image)
    joined = np.zeros(channels.shape[:2], np.float32)
    for index in range(channels.shape[2]):
        values = channels[..., index].astype(np.float32)
        values = np.abs(values - background) if (background := _background(values)) else values
        shown = values[values > 0]
        if len(shown):
            joined = np.maximum(joined, np.clip(values / np.percentile(shown, 99.5), 0, 1))
    return joined


def _background(values: np.ndarray) -> float:
    """Return what is background in [h, w] float32 where that is not 0: the value to take off."""
    value = background_value(values)
    if values.min() < 0:  # standardised before, or filled by a converter; what the border shows is background
        border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        return float(np.median(border)) if value is None else value
    # A white frame is none, whatever it has in common with a background; nor is nearly black what compression made of black.
    bright = np.percentile(values, 99.5)
    real = value is not None and value < BLANK * bright and (value >= BLACK * bright or value == values.min())
    return float(value) if value is not None and real else 0.0


def _ring(size: tuple[int, ...]) -> np.ndarray:
    """Mark the pixels near the border, [h, w] bool."""
    width = max(1, round(RING * max(size)))
    ring = np.ones(size, bool)
    ring[width:-width, width:-width] = False
    return ring


def _frame(grey: np.ndarray) -> np.ndarray:
    """Mark what is white and touches the border, [h, w] bool, with the pixels around it."""
    import cv2

    white = (grey >= SATURATED).astype(np.uint8)
    return cv2.dilate(_touching(white).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _touching(flags: np.ndarray) -> np.ndarray:
    """Return the parts of [h, w] uint8 that touch the border, as bool."""
    import cv2

    count, parts = cv2.connectedComponents(flags, connectivity=4)
    touching = np.zeros(count, bool)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        touching[edge] = True
    touching[0] = False
    return touching[parts]


def _outside(background: np.ndarray) -> np.ndarray:
    return _touching(background.astype(np.uint8))


def _disc(side: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _large_parts(flags: np.ndarray) -> np.ndarray:
    """Close gaps and keep the parts that are not small beside the largest, [h, w] uint8."""
    import cv2

    margin = CLOSED  # closing at the border would see nothing beyond it
    padded = cv2.copyMakeBorder(flags, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(CLOSED))[margin:-margin, margin:-margin]
    count, parts, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(closed), connectivity=4)
    if count < 2:
        return np.zeros_like(flags)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    return (areas >= SMALLEST * areas.max()).astype(np.uint8)[parts]


def _filled(flags: np.ndarray) -> np.ndarray:
    """Fill what is not open to the border, [h, w] uint8."""
    return (~_touching(1 - flags)).astype(np.uint8)
