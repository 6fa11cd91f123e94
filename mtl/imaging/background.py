"""What of an MR volume or slice is background, whose value need not be 0: one value at the border, or noisy air.

Skull-stripped data hold one value wherever there is no brain: 0 as a rule, but also the -1024 of a converter, or what 0 became
when the values were standardised. Data of whole heads show noisy air, which is the darkest there is.
"""

from __future__ import annotations

import numpy as np

SURE = 8  # times: the background is one value where it is so much more frequent at the border than the next frequent one
LEVELS = 255
CLEAR = 0.5  # between air and Otsu's threshold, which may part dark from bright tissue
DARK = 0.8  # share of Otsu's threshold up to which a value may be that of air
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
    shown = above_air(share).astype(np.uint8)
    kernel = np.ones((SPECK, SPECK), np.uint8)
    return np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, kernel) for plane in shown]) > 0


def above_air(grey: np.ndarray, possible: np.ndarray | None = None, edge: np.ndarray | None = None) -> np.ndarray:
    """Mark what is brighter than the air: above the value halfway between the most frequent dark one and Otsu's threshold.

    Args:
        grey: [...] grey values in [0, 1], of two dimensions or more.
        possible: The same shape, bool: where there may be air; None is everywhere.
        edge: The same shape, bool: where there is air although the most frequent dark value is tissue; None asks nowhere.

    Returns:
        The same shape, bool.
    """
    import cv2

    # The root spreads dark values, or Otsu would part a bright tumour from a dark brain.
    levels = np.rint(LEVELS * np.sqrt(grey)).astype(np.uint8)
    otsu, _ = cv2.threshold(levels.reshape(len(levels), -1), 0, LEVELS, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    dark = levels <= otsu
    if possible is not None:
        dark &= possible
    air = _most_frequent(levels[dark])
    if edge is not None and air > DARK * otsu:  # a dark brain fills the picture; there is air in its corners
        air = min(air, _most_frequent(levels[dark & edge]))
    return levels > air + CLEAR * (otsu - air)


def _most_frequent(levels: np.ndarray) -> int:
    return int(np.argmax(np.bincount(levels, minlength=1)))
