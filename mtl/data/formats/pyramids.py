"""Which pages of a tiled TIFF are one picture at several resolutions, and which are other pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError

OTHER_PICTURE = (
    0.25  # share of the slide's area from which a page is no label and no overview of the glass, but another picture
)
AFAR, UNLIKE = 16, 12.0  # side at which copies are compared, and the mean difference up to which they are some


def find_levels(path: Path, file: Any) -> list[Any]:
    """Return the largest page that is stored in tiles and smaller copies of it, largest first.

    Args:
        path: The file, for messages.
        file: It, as tifffile opened it.

    Raises:
        DataError: It holds several pictures.
    """
    import tifffile

    groups: list[list[Any]] = [[page for level in s.levels for page in level.pages[:1]] for s in file.series]
    alone = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
    candidates = [page for group in (*groups, alone) for page in group if isinstance(page, tifffile.TiffPage)]
    first: Any = max(candidates, key=lambda page: (page.is_tiled, page.imagelength * page.imagewidth))
    pages = next((group for group in groups if any(page.offset == first.offset for page in group)), [first])
    marked = {page.offset for page in candidates if page.is_reduced} | {page.offset for page in pages if len(pages) > 1}
    if len(pages) == 1:  # copies that no format of a scanner announces
        pages = alone
    wide, high = first.imagewidth, first.imagelength

    def is_copy(page: Any) -> bool:
        if not page.is_tiled or page.samplesperpixel != first.samplesperpixel or page.imagewidth >= wide:
            return False
        if page.offset not in marked:  # it does not say so: a shrunk copy is a whole number of times smaller
            times = round(wide / page.imagewidth)
            return times > 1 and abs(wide / times - page.imagewidth) <= 1 and abs(high / times - page.imagelength) <= 1
        return abs(page.imagewidth / wide * high - page.imagelength) <= 1 + 0.01 * page.imagelength

    levels = [first, *sorted(filter(is_copy, pages), key=lambda page: -page.imagewidth)]
    known = {page.offset for page in levels}
    least = OTHER_PICTURE * wide * high
    others = {
        page.offset: f"{page.imagewidth} x {page.imagelength}"
        for page in candidates
        if page.offset not in known | marked and page.imagewidth * page.imagelength >= least
    }
    if others:
        raise DataError(
            f"{path}: holds {1 + len(others)} pictures ({wide} x {high}, {', '.join(list(others.values())[:3])} pixels); "
            "expected one and smaller copies of it. Save each one as a file of its own."
        )
    return levels


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two pictures [h, w, 3] of any size show the same, seen from afar."""
    import cv2

    small = [cv2.resize(picture, (AFAR, AFAR), interpolation=cv2.INTER_AREA).astype(np.float32) for picture in (first, second)]
    return float(np.abs(small[0] - small[1]).mean()) <= UNLIKE
