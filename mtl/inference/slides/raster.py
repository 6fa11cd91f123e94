"""A slide as the network sees it: at another scale, read part by part, and where it shows tissue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.data.formats.slides import MASK_ENDING, TIFF_SUFFIXES, SlideFile, TiledTiff

OVERVIEW = 2048  # pixels of the longer side of a picture of the whole slide
BLOCK = 2048  # side of what is read at once for it
DARK = 0.1  # darker than this is no glass and no tissue: what the scanner left out
SAMPLES = 16  # windows that stand for a whole slide
LOOKED_AT = 48  # rows and columns of windows among which they are chosen
LARGEST_UNTILED_MASK = 2**28  # pixels of a mask that is not stored in tiles
Size = tuple[int, int]
Reader = Callable[[int, int, int, int], np.ndarray]


class Resized:
    """A slide at another size, read part by part: every pixel is what resizing the whole slide would give.

    Shrinking averages the area of a pixel, enlarging interpolates linearly, as `Geometry.to_working` does.

    Args:
        slide: The slide.
        size: (height, width) that the whole slide gets.
        level: Resolution to start from.
        treat: Applied to stored pixels [h, w, 3] first.
    """

    def __init__(
        self, slide: SlideFile, size: Size, level: int = 0, treat: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.slide, self.size, self.level, self.treat = slide, size, level, treat
        self.full = slide.levels[level]
        self.factor = (self.full[0] / size[0], self.full[1] / size[1])

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a rectangle that lies inside the picture, [height, width, 3] uint8."""
        top, rows = weights(y, height, self.size[0], self.full[0])
        left, columns = weights(x, width, self.size[1], self.full[1])
        shape = (height if rows is None else rows.shape[1], width if columns is None else columns.shape[1])
        pixels = self.slide.read(left, top, shape[1], shape[0], self.level)
        if self.treat is not None:
            pixels = self.treat(pixels)
        if rows is None and columns is None:
            return pixels
        values = pixels.astype(np.float32)
        if rows is not None:
            values = (rows @ values.reshape(shape[0], -1)).reshape(height, shape[1], -1)
        if columns is not None:
            lines = np.ascontiguousarray(values.swapaxes(0, 1)).reshape(shape[1], -1)
            values = (columns @ lines).reshape(width, height, -1).swapaxes(0, 1)
        return np.clip(values + 0.5, 0, 255).astype(np.uint8)  # halves go up, as in OpenCV


def sample(raster: Resized, tissue: Tissue | None, side: Size) -> np.ndarray:
    """Put together a picture that stands for a slide at its raster's scale: windows with tissue, spread over the slide.

    Args:
        raster: The slide.
        tissue: Where to look; None is everywhere.
        side: (height, width) of the windows.

    Returns:
        [h, w, 3] uint8: the whole raster if it is no larger than `SAMPLES` windows, else windows side by side, always the same.
    """
    height, width = raster.size
    if height * width <= SAMPLES * side[0] * side[1]:
        return raster.read(0, 0, width, height)
    side = min(side[0], height), min(side[1], width)
    tops, lefts = (
        np.linspace(0, whole - part, min(LOOKED_AT, -(-whole // part))).astype(int).tolist()
        for whole, part in zip(raster.size, side, strict=True)
    )
    places: list[tuple[int, int]] = [(x, y) for y in tops for x in lefts]
    shares = (
        np.ones(len(places)) if tissue is None else np.array([tissue.within(*at, side[1], side[0]).mean() for at in places])
    )
    full = np.flatnonzero(shares >= shares.max() / 2)
    chosen = full[np.linspace(0, len(full) - 1, min(SAMPLES, len(full))).astype(int)]
    return np.concatenate([raster.read(x, y, side[1], side[0]) for x, y in (places[index] for index in chosen)], axis=1)


def weights(first: int, count: int, size: int, full: int) -> tuple[int, Any | None]:
    """Return how pixels of a resized line are made from the stored ones.

    Args:
        first: First pixel that is wanted.
        count: How many.
        size: Pixels of the whole resized line.
        full: Pixels of the whole stored line.

    Returns:
        The first stored pixel that is needed, and [count, stored pixels] float32 weights, nearly all of them 0 and not stored;
        None where nothing is resized.
    """
    from scipy.sparse import csr_array

    if size == full:
        return first, None
    factor = full / size
    wanted = np.arange(first, first + count)
    if factor > 1:
        start, end = wanted * factor, np.minimum((wanted + 1) * factor, full)
        lowest, highest = int(start[0]), min(int(np.ceil(end[-1] - 1e-9)), full)
        stored = np.arange(lowest, highest)
        shared = np.minimum(end[:, None], stored + 1) - np.maximum(start[:, None], stored)
        table = np.clip(shared, 0.0, None)
    else:
        centre = np.clip((wanted + 0.5) * factor - 0.5, 0, full - 1)
        lowest, highest = int(centre[0]), min(int(centre[-1]) + 2, full)
        table = np.clip(1 - np.abs(centre[:, None] - np.arange(lowest, highest)), 0.0, None)
    return lowest, csr_array((table / table.sum(axis=1, keepdims=True)).astype(np.float32))


def overview(slide: SlideFile, size: Size) -> np.ndarray:
    """Return the whole slide at (height, width), [height, width, 3] uint8, in little memory."""
    raster = Resized(slide, size, slide.level_for(size))
    step = max(1, int(BLOCK / max(raster.factor)))
    picture = np.empty((*size, 3), np.uint8)
    for y in range(0, size[0], step):
        for x in range(0, size[1], step):
            height, width = min(step, size[0] - y), min(step, size[1] - x)
            picture[y : y + height, x : x + width] = raster.read(x, y, width, height)
    return picture


def overview_size(size: Size) -> Size:
    """Return the (height, width) of a picture of something of a size, at most `OVERVIEW` pixels long."""
    factor = max(1.0, max(size) / OVERVIEW)
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


# --------------------------------------------------------------------------------------------------- tissue


class Tissue:
    """Where a slide shows tissue, by a mask of any size that covers it; a pixel is what the mask says at its centre.

    Args:
        size: (height, width) of the mask.
        read: Returns a rectangle (x, y, width, height) of the mask, [height, width]; 0 is no tissue.
        raster: (height, width) of the raster that is asked about.
    """

    def __init__(self, size: Size, read: Reader, raster: Size) -> None:
        self.size, self.raster = size, raster
        self._read = read

    def within(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return [height, width] bool for a rectangle of the raster."""
        rows, columns = self._squares(np.arange(y, y + height) + 0.5, 0), self._squares(np.arange(x, x + width) + 0.5, 1)
        part = self._read(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        return part[np.ix_(rows - rows[0], columns - columns[0])] > 0

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return [N] bool for points (x, y) of the raster that lie near each other."""
        if not len(points):
            return np.zeros(0, bool)
        rows, columns = self._squares(points[:, 1], 0), self._squares(points[:, 0], 1)
        top, left = rows.min(), columns.min()
        return self._read(left, top, columns.max() - left + 1, rows.max() - top + 1)[rows - top, columns - left] > 0

    def overview(self, size: Size) -> np.ndarray:
        """Return the whole at (height, width), [height, width] bool: what the mask says at the centre of each pixel."""
        rows, columns = (((np.arange(n) + 0.5) * whole / n).astype(np.int64) for n, whole in zip(size, self.size, strict=True))
        return np.stack([self._read(0, row, self.size[1], 1)[0, columns] for row in rows.tolist()]) > 0

    def _squares(self, places: np.ndarray, axis: int) -> np.ndarray:
        squares = (places * (self.size[axis] / self.raster[axis])).astype(np.int64)
        return np.clip(squares, 0, self.size[axis] - 1)


def mask_of(slide: Path, folder: str | Path) -> Path:
    """Return the tissue mask `<slide>_tissue.tif` of a slide.

    Raises:
        DataError: The folder has none.
    """
    names = [f"{slide.stem}{MASK_ENDING}{suffix}" for suffix in TIFF_SUFFIXES]
    found = [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
    if not found:
        raise DataError(
            f"{slide}: `slide.tissue_masks={folder}` holds no `{names[0]}`. Add it, or set slide.tissue_masks=null to look for "
            "tissue by colour."
        )
    return found[0]


def tissue_from_file(path: Path, slide: SlideFile, raster: Size) -> tuple[Tissue, Callable[[], None]]:
    """Open a tissue mask, stored in tiles or not, at any scale.

    Returns:
        The tissue, and what closes the file.

    Raises:
        DataError: The mask is damaged or has another shape than the slide.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            whole = not page.is_tiled and page.imagewidth * page.imagelength <= LARGEST_UNTILED_MASK
            flat = page.samplesperpixel == 1 and page.dtype is not None and page.dtype.kind in "bui"
            pages = 1 + sum(isinstance(other, tifffile.TiffPage) and not other.is_reduced for other in list(tiff.pages)[1:])
            pixels = np.asarray(page.asarray()) != 0 if whole and flat and pages == 1 else None
    except Exception as error:  # decoders raise nearly anything
        raise DataError(f"{path}: cannot be read as a tissue mask ({str(error).splitlines()[0]}). Replace it.") from error
    if whole and pages > 1:
        raise DataError(f"{path}: holds {pages} pages; expected one mask. Save the one that is meant as a file of its own.")
    if whole and pixels is None:
        raise DataError(
            f"{path}: has {page.samplesperpixel} channels of {page.dtype}; expected a mask with one whole number per pixel. "
            "Convert it."
        )
    close: Callable[[], None]
    if pixels is not None:
        size, read, close = (pixels.shape[0], pixels.shape[1]), array_reader(pixels), lambda: None
    else:
        file = TiledTiff(path, mask=True)
        size, close = file.size, file.close

        def read(x: int, y: int, width: int, height: int) -> np.ndarray:
            return file.read(x, y, width, height)[..., 0]

    factors = [own / stored for own, stored in zip(slide.size, size, strict=True)]
    if abs(factors[0] / factors[1] - 1) > 0.01 + 1 / min(size):
        close()
        raise DataError(
            f"{path}: is {size[1]} x {size[0]} pixels, which does not cover the {slide.size[1]} x {slide.size[0]} of "
            f"{slide.path}. Give the mask of this slide, at any scale."
        )
    return Tissue(size, read, raster), close


def tissue_by_colour(picture: np.ndarray, saturation: float, raster: Size) -> Tissue:
    """Find tissue on the overview of a slide: what is colourful and not black, holes closed, with a margin of two pixels.

    Args:
        picture: [h, w, 3] uint8 overview.
        saturation: Least saturation (0 to 1) of stained tissue.
        raster: (height, width) of the raster that will be asked about.
    """
    import cv2

    smooth = cv2.GaussianBlur(picture, (5, 5), 0).astype(np.float32)
    brightest, darkest = smooth.max(axis=2), smooth.min(axis=2)
    found = (brightest - darkest >= saturation * np.maximum(brightest, 1)) & (brightest >= 255 * DARK)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    mask = cv2.dilate(closed, kernel)
    return Tissue(mask.shape[:2], array_reader(mask), raster)


def array_reader(pixels: np.ndarray) -> Reader:
    """Read rectangles out of an array [H, W]."""
    return lambda x, y, width, height: pixels[y : y + height, x : x + width]
