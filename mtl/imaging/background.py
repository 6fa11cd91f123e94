"""What of an MR volume or slice is background, whose value need not be 0: one value at the border, or noisy air.

Skull-stripped data hold one value wherever there is no brain: 0 as a rule, but also the -1024 of a converter, or what 0 became
when the values were standardised. Data of whole heads show noisy air, which is the darkest there is.
"""

from __future__ import annotations

import numpy as np

SURE = 8  # times: the background is one value where it is so much more frequent at the border than the next frequent one
LEVELS = 255
CLEAR = 0.5  # between air and Otsu's threshold, which may part dark from bright tissue
SPECK = 3  # side of the kernel that removes noise above the threshold


def background_value(image: np.ndarray) -> float | None:
    """Return the one value that the background has, None where it has none.

    Args:
        image: [...] grey values of a slice or a volume in any unit.
    """
    border = [side for axis in range(image.ndim) for side in (image.take(0, axis).ravel(), image.take(-1, axis).ravel())]
    values, counts = np.unique(np.concatenate(border), return_counts=True)
    most = int(np.argmax(counts))
    others = np.delete(counts, most)
    return float(values[most]) if counts[most] >= SURE * others.max(initial=0) else None


def not_background(volume: np.ndarray) -> np.ndarray:
    """Mark what a volume shows: what differs from the one value of its background, else what is brighter than noisy air.

    Args:
        volume: [slices, rows, columns] grey values in any unit.

    Returns:
        The same shape, bool.
    """
    import cv2

    value = background_value(volume)
    if value is not None:
        return volume != volume.dtype.type(value)
    low, high = np.percentile(volume, (0.1, 99.5)).astype(np.float64)
    share = np.clip((volume.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    levels = np.rint(LEVELS * np.sqrt(share)).astype(np.uint8)  # the root spreads dark values
    otsu, _ = cv2.threshold(levels.reshape(len(levels), -1), 0, LEVELS, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    air = int(np.argmax(np.bincount(levels[levels <= otsu])))
    shown = (levels > air + CLEAR * (otsu - air)).astype(np.uint8)
    kernel = np.ones((SPECK, SPECK), np.uint8)
    return np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, kernel) for plane in shown]) > 0
