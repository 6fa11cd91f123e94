"""Whole-slide images on disk, read part by part. Imports neither torch nor, at module level, what reads TIFF."""

from __future__ import annotations

import logging
import re
import struct
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError, DataError

# Formats of scanners, all of them dialects of TIFF.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".scn", ".bif")
TIFF_SUFFIXES = (".tif", ".tiff")
ALL_SUFFIXES = (*TIFF_SUFFIXES, *SLIDE_SUFFIXES)
MASK_ENDING = "_tissue"  # `<slide>_tissue.tif` says where the slide shows tissue
TILE_WIDTH, SUB_IFDS = 322, 330  # tags: only tiled pictures have the first; the second names further directories
DIRECTORIES = 256  # that are looked at
# Decoded tiles are kept as long as a band of rows needs them: two rows of tiles and this many lines, in so many bytes at most.
BAND = 512
CACHE = 384 * 2**20
UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}  # by the tag ResolutionUnit: inch, cm, mm, um
UM_PER_OME_UNIT = {"nm": 1e-3, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "mm": 1e3, "cm": 1e4}  # micro sign, and mu
PLAUSIBLE_UM = (0.02, 10.0)  # outside, the tags mean a screen or a printer
RGB, YCBCR = 2, 6  # the tag PhotometricInterpretation
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions that return the stored values: YCbCr stays YCbCr
Size = tuple[int, int]


def is_slide(path: Path) -> bool:
    """Return whether a file is a slide: a scanner's format, or a TIFF that is stored in tiles."""
    suffix = path.suffix.lower()
    return suffix in SLIDE_SUFFIXES or (suffix in TIFF_SUFFIXES and path.is_file() and _is_tiled(path))


def is_tissue_mask(path: Path) -> bool:
    """Return whether a file is named like a tissue mask, and is stored like a slide or lies beside its own."""
    if not path.stem.endswith(MASK_ENDING):
        return False
    slide = path.stem.removesuffix(MASK_ENDING)
    return is_slide(path) or (
        path.suffix.lower() in TIFF_SUFFIXES
        and any(other.is_file() and is_slide(other) for other in (path.with_name(slide + s) for s in ALL_SUFFIXES))
    )


def _is_tiled(path: Path) -> bool:
    """Look for the tag TileWidth in the directories of a TIFF (classic or BigTIFF)."""
    try:
        with path.open("rb") as file:
            return any(TILE_WIDTH in tags for tags in _directories(file))
    except (OSError, ValueError, OverflowError, struct.error):  # a damaged file can name any place
        return False


def _directories(file: BinaryIO) -> Iterator[set[int]]:
    """Yield the tags of each directory, those of smaller copies included."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    place, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    width = struct.calcsize(place)
    coming, seen = [struct.unpack_from(order + place, head, width)[0]], {0}
    while coming and len(seen) <= DIRECTORIES:
        at = coming.pop(0)
        if at in seen:
            continue
        seen.add(at)
        file.seek(at)
        count = struct.unpack(order + number, file.read(struct.calcsize(number)))[0]
        if count > 4096:
            return
        table = file.read(count * entry)
        yield {struct.unpack_from(order + "H", table, start)[0] for start in range(0, len(table) - 1, entry)}
        coming += struct.unpack(order + place, file.read(width))
        for start in range(0, count * entry, entry):
            tag, _, values = struct.unpack_from(order + "HH" + place, table, start)
            if tag == SUB_IFDS and 0 < values <= DIRECTORIES:
                inline = table[start + entry - width : start + entry]
                if values > 1:
                    file.seek(struct.unpack(order + place, inline)[0])
                    inline = file.read(values * width)
                coming += struct.unpack(order + place * values, inline)


def require_readers() -> None:
    """Make sure that what reads slides is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        import imagecodecs  # noqa: F401
        import tifffile  # noqa: F401
        import tiffslide  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Slides are read with tifffile, imagecodecs and tiffslide, and `{error.name}` is not installed. "
            f"Run: {install_command('slides')}."
        ) from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what it says of damaged files is told in one sentence


class SlideFile(ABC):
    """A picture too large to be decoded at once.

    Attributes:
        path: The file.
        levels: (height, width) of each resolution, the stored one first.
        spacing: (x, y) microns per pixel of the first level; None where the file does not say.
    """

    path: Path
    levels: list[Size]
    spacing: tuple[float, float] | None

    @property
    def size(self) -> Size:
        """(height, width) of the slide."""
        return self.levels[0]

    @abstractmethod
    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Decode a rectangle that lies inside the picture.

        Args:
            x: Its left edge, in pixels of the level.
            y: Its upper edge.
            width: Pixels.
            height: Pixels.
            level: Position in `levels`.

        Returns:
            [height, width, channels] uint8; RGB unless the file is a mask.

        Raises:
            DataError: The file is damaged.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> SlideFile:
        return self

    def __exit__(self, raised: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def level_for(self, size: Size) -> int:
        """Return the coarsest level that is at least as large as (height, width)."""
        return max(k for k, own in enumerate(self.levels) if k == 0 or (own[0] >= size[0] and own[1] >= size[1]))


def open_slide(path: Path) -> SlideFile:
    """Open a slide for reading.

    Raises:
        ConfigError: What reads it is not installed.
        DataError: The file is missing, damaged, or no picture in colour of 8 bits.
    """
    require_readers()
    return TiledTiff(path) if path.suffix.lower() in TIFF_SUFFIXES else ScannerSlide(path)


class TiledTiff(SlideFile):
    """A tiled TIFF, with or without a pyramid, decoded tile by tile; the tiles last used are kept.

    Args:
        path: The file.
        mask: It holds one value per pixel and is read as 0 or 1; a tile that is not stored is 0. Tiles of a picture are white.
    """

    def __init__(self, path: Path, mask: bool = False) -> None:
        import tifffile

        self.path = path
        self.mask = mask
        with _as_data_error(path):
            self._tiff = tifffile.TiffFile(path)
            try:
                self._pages = self._find_levels()
                self._check()
            except BaseException:
                self._tiff.close()
                raise
        self.levels = [(int(page.imagelength), int(page.imagewidth)) for page in self._pages]
        self.spacing = spacing_of(self._pages[0]) or described_spacing(
            self._pages[0].description, self._tiff.pages.first.description, self.size[1]
        )
        self._tiles: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._held = 0
        lines = BAND + 2 * self._pages[0].tilelength
        self._limit = min(CACHE, lines * self.size[1] * (1 if mask else 3))

    def _find_levels(self) -> list[Any]:
        """Return the largest page that is stored in tiles and smaller copies of it, largest first."""
        import tifffile

        groups: list[list[Any]] = [[page for level in s.levels for page in level.pages[:1]] for s in self._tiff.series]
        alone = [page for page in self._tiff.pages if isinstance(page, tifffile.TiffPage)]
        candidates = [page for group in (*groups, alone) for page in group if isinstance(page, tifffile.TiffPage)]
        first: Any = max(candidates, key=lambda page: (page.is_tiled, page.imagelength * page.imagewidth))
        pages = next((group for group in groups if any(page.offset == first.offset for page in group)), alone)
        if len(pages) == 1:  # copies that are not marked as such
            pages = alone
        wide, high = first.imagewidth, first.imagelength

        def is_copy(page: Any) -> bool:
            alike = page.is_tiled and page.samplesperpixel == first.samplesperpixel and page.imagewidth < wide
            return alike and abs(page.imagewidth / wide * high - page.imagelength) <= 1 + 0.01 * page.imagelength

        return [first, *sorted(filter(is_copy, pages), key=lambda page: -page.imagewidth)]

    def _check(self) -> None:
        page = self._pages[0]
        samples, dtype, colours = page.samplesperpixel, page.dtype, page.photometric
        whole = dtype is not None and dtype.kind in "bui"
        if self.mask:
            good, expected = whole and samples == 1, "a tiled mask with one whole number per pixel"
        else:
            shown = colours == RGB or (colours == YCBCR and page.compression not in LOSSLESS)
            good = whole and dtype.itemsize == 1 and samples in (3, 4) and shown and page.planarconfig == 1
            expected = "a tiled picture in RGB of 8 bits per colour"
        if not good or not page.is_tiled:
            name = getattr(colours, "name", colours)
            raise DataError(
                f"{self.path}: has {samples} channels of {dtype} ({name}{'' if page.is_tiled else ', not in tiles'}); "
                f"expected {expected}. Convert it."
            )

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Decode a rectangle; see `SlideFile.read`."""
        page = self._pages[level]
        high, wide = page.tilelength, page.tilewidth
        result = np.empty((height, width, 1 if self.mask else 3), np.uint8)
        for row in range(y // high, -(-(y + height) // high)):
            for column in range(x // wide, -(-(x + width) // wide)):
                tile = self._tile(level, row * (-(-page.imagewidth // wide)) + column)
                top, left = max(y, row * high), max(x, column * wide)
                bottom, right = min(y + height, (row + 1) * high), min(x + width, (column + 1) * wide)
                cut = tile[top - row * high : bottom - row * high, left - column * wide : right - column * wide]
                result[top - y : bottom - y, left - x : right - x] = cut
        return result

    def _tile(self, level: int, index: int) -> np.ndarray:
        key = (level, index)
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        tile = self._decode(self._pages[level], index)
        self._tiles[key] = tile
        self._held += tile.nbytes
        while self._held > self._limit and len(self._tiles) > 1:
            self._held -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, page: Any, index: int) -> np.ndarray:
        shape = (page.tilelength, page.tilewidth)
        with _as_data_error(self.path):
            count = page.databytecounts[index]
            if count == 0:  # sparse files leave out empty tiles
                return np.full((*shape, 1 if self.mask else 3), 0 if self.mask else 255, np.uint8)
            handle = self._tiff.filehandle
            handle.seek(page.dataoffsets[index])
            data = handle.read(count)
            if len(data) < count:
                raise ValueError("the file ends early")
            tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
            found = page.decode(data, index, **tables)[0]
            pixels = np.asarray(found)[0] != 0 if self.mask else np.asarray(found)[0, ..., :3]
        if pixels.shape[:2] != shape:  # the last ones of a row or column may be stored cut
            pixels = np.pad(pixels, ((0, shape[0] - pixels.shape[0]), (0, shape[1] - pixels.shape[1]), (0, 0)))
        return pixels.astype(np.uint8, copy=False)

    def close(self) -> None:
        """Release the file and the tiles."""
        self._tiff.close()
        self._tiles.clear()
        self._held = 0


class ScannerSlide(SlideFile):
    """A slide in a scanner's own format, read through tiffslide.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import tiffslide

        self.path = path
        with _as_data_error(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that it knows in part
            self._slide = tiffslide.TiffSlide(path)
            facts = self._slide.properties
            self.levels = [(height, width) for width, height in self._slide.level_dimensions]
        found = (facts.get(tiffslide.PROPERTY_NAME_MPP_X), facts.get(tiffslide.PROPERTY_NAME_MPP_Y))
        self.spacing = None if found[0] is None or found[1] is None else plausible(float(found[0]), float(found[1]))

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Decode a rectangle; see `SlideFile.read`."""
        factor = self.size[1] / self.levels[level][1], self.size[0] / self.levels[level][0]
        with _as_data_error(self.path):
            place = (round(x * factor[0]), round(y * factor[1]))
            pixels = np.asarray(self._slide.read_region(place, level, (width, height), as_array=True))
            if pixels.dtype != np.uint8 or pixels.shape[2] < 3:
                raise ValueError(f"{pixels.shape[2]} channels of {pixels.dtype}, expected RGB of 8 bits")
        return pixels[..., :3]

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def spacing_of(page: Any) -> tuple[float, float] | None:
    """Return (x, y) microns per pixel by the resolution tags of a TIFF page; None where they say nothing of use."""
    unit = UM_PER_UNIT.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    found = [page.tags.valueof(tag) for tag in ("XResolution", "YResolution")]
    if unit is None or None in found or any(not number or not parts for number, parts in found):
        return None
    x, y = (unit * parts / number for number, parts in found)
    return plausible(x, y)


def described_spacing(description: str, first: str, width: int) -> tuple[float, float] | None:
    """Return (x, y) microns per pixel as OME or Aperio write it into descriptions; None where they say nothing of use.

    Args:
        description: Of the page.
        first: Of the first page of the file, where OME describes all.
        width: Pixels of the page.
    """
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", unescape(first)):
        facts = dict(re.findall(r'(\w+)="([^"]*)"', pixels))
        sides = [
            _number(facts.get(f"PhysicalSize{axis}", "")) * UM_PER_OME_UNIT.get(facts.get(f"PhysicalSize{axis}Unit", "um"), 0.0)
            for axis in "XY"
        ]
        if facts.get("SizeX") == str(width):
            return plausible(*sides)
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    return None if found is None else plausible(_number(found[1]), _number(found[1]))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def plausible(x: float, y: float) -> tuple[float, float] | None:
    """Return the spacing unless it cannot be that of a microscope."""
    return (x, y) if all(PLAUSIBLE_UM[0] <= value <= PLAUSIBLE_UM[1] for value in (x, y)) else None


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Turn what the readers raise for a foreign or damaged file into one sentence."""
    try:
        yield
    except (DataError, MemoryError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such slide.") from error
    except Exception as error:  # decoders raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(str(path), path.name).rstrip(".")
        hint = "Replace the file, or convert it to a tiled TIFF."
        raise DataError(f"{path}: cannot be read as a slide ({reason}). {hint}") from error
