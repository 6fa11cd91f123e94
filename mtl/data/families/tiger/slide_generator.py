"""Whole synthetic slides: tiled TIFF files of any size, generated tile by tile, with their tissue mask and the truth."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError
from mtl.core.files import beside, write_json
from mtl.data.families.tiger.painter import NOTHING, Specimen, blocks, generate_block, generate_stain

SHRINK = 4  # side of a level in sides of the next; readers know 2, 3 and 4
SMALLEST = 512  # pixels: a level of this size is the last
QUALITY = 88


def generate_slide(
    path: Path,
    size: int | tuple[int, int],
    seed: int,
    *,
    spacing: float = 0.5,
    pieces: int = 1,
    laboratory: int = 0,
    tile: int = 512,
    pyramid: bool = True,
) -> Path:
    """Generate a slide of any size in little memory; a tile depends on (seed, place) only.

    Beside `<folder>/images/<slide>.tif`, which is `path`, it writes `tissue-masks/<slide>_tissue.tif` (1 tissue, 0 glass, as
    many pixels), `truth/<slide>_classes.tif` (native mask values) and `truth/<slide>.json`: `points`, the middles of all
    lymphocytes as (x, y) in microns from the corner of the slide, `spacing` in microns per pixel, `size` (height, width) in
    pixels, `area_mm2` by native mask value.

    Args:
        path: The slide, in a folder of its own.
        size: (height, width) in pixels, or the side of a square.
        seed: Of everything random.
        spacing: Microns per pixel, written into the resolution tags.
        pieces: Pieces of tissue on the glass.
        laboratory: Who stained it, see `generate_stain`.
        tile: Side of the tiles in pixels, a multiple of 16.
        pyramid: Add smaller copies, each a quarter as wide as the one before.

    Returns:
        `path`.

    Raises:
        ConfigError: tifffile is not installed, or a size makes no sense.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ConfigError(f"Generating slides needs tifffile. Run: {install_command('slides')}.") from error
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or tile < 16 or tile % 16 or pieces < 1 or not spacing > 0:
        raise ConfigError(
            f"size={height} x {width}, tile={tile}, pieces={pieces}, spacing={spacing}: expected sides and pieces of at least "
            "1, tiles of a multiple of 16 and a spacing above 0."
        )
    path = Path(path)
    folder, name = path.parent.parent, path.stem
    for other in (path.parent, folder / "tissue-masks", folder / "truth"):
        other.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 3])
    stain = generate_stain(rng, laboratory)
    specimen = Specimen(seed, stain, _pieces(rng, pieces, (height * spacing, width * spacing)))
    generated = _GeneratedSlide(specimen, (height, width), spacing, tile)
    with beside(path) as place, tifffile.TiffWriter(place, bigtiff=3 * height * width > 2**31) as file:
        options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", **_tags(tile, spacing)}
        file.write(generated.tiles(), shape=(height, width, 3), dtype=np.uint8, compressionargs={"level": QUALITY}, **options)
        for number, level in enumerate(generated.levels() if pyramid else (), start=1):
            options |= _tags(tile, spacing * SHRINK**number)
            file.write(level, subfiletype=1, compressionargs={"level": QUALITY}, **options)
    masks = {folder / "tissue-masks" / f"{name}_tissue.tif": True, folder / "truth" / f"{name}_classes.tif": False}
    for target, binary in masks.items():
        with beside(target) as place, tifffile.TiffWriter(place) as file:
            options = {"photometric": "minisblack", "compression": "zlib", **_tags(tile, spacing)}
            file.write(generated.masks(binary), shape=(height, width), dtype=np.uint8, **options)
    write_json(folder / "truth" / f"{name}.json", generated.truth())
    return path


def _tags(tile: int, spacing: float) -> dict[str, Any]:
    """Return what all images of a file have in common: tiles, and pixels per centimetre."""
    return {"tile": (tile, tile), "resolution": (1e4 / spacing,) * 2, "resolutionunit": "CENTIMETER", "metadata": None}


@dataclass
class _GeneratedSlide:
    """A slide that is generated once, tile by tile; what else is needed of it stays in memory, small.

    Attributes:
        specimen: The tissue.
        size: (height, width) in pixels.
        spacing: Microns per pixel.
        tile: Side of the tiles.
        points: Lymphocytes so far, [N, 2] in microns.
        counts: Pixels so far by tissue.
    """

    specimen: Specimen
    size: tuple[int, int]
    spacing: float
    tile: int
    points: list[np.ndarray] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(8, np.int64))
    _packed: list[bytes] = field(default_factory=list)
    _small: np.ndarray | None = None

    def tiles(self) -> Iterator[np.ndarray]:
        """Generate the tiles [tile, tile, 3], row by row; those at the edge are filled up with their last pixels."""
        shape = -(-self.size[0] // SHRINK), -(-self.size[1] // SHRINK), 3
        with tempfile.TemporaryFile() as file:  # the map keeps the file
            self._small = np.memmap(file, np.uint8, "w+", shape=shape)
        for rows, columns in blocks(self.size, self.tile):
            part = rows.stop - rows.start, columns.stop - columns.start
            image, tissue, cells = generate_block(self.specimen, (columns.start, rows.start), part, self.spacing)
            self.points.append(np.stack([cells.x, cells.y], axis=1))
            self.counts += np.bincount(tissue.ravel(), minlength=8)
            self._packed.append(zlib.compress(self._filled(tissue).tobytes(), 1))
            small = _shrunk(image)
            top, left = rows.start // SHRINK, columns.start // SHRINK
            self._small[top : top + small.shape[0], left : left + small.shape[1]] = small
            yield self._filled(image)

    def levels(self) -> Iterator[np.ndarray]:
        """Return the smaller copies, each made from the one before, down to `SMALLEST`."""
        level = self._small
        while level is not None and max(level.shape) * SHRINK > SMALLEST:
            yield level
            level = _shrunk(level)

    def masks(self, binary: bool) -> Iterator[np.ndarray]:
        """Return the tiles [tile, tile] of the native mask, or of 1 where there is tissue."""
        for packed in self._packed:
            tissue = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.tile, self.tile)
            yield (tissue != NOTHING).astype(np.uint8) if binary else tissue

    def truth(self) -> dict[str, Any]:
        """Return what is known of the whole slide once it is generated."""
        area = self.counts * (self.spacing / 1000) ** 2
        return {
            "spacing": self.spacing,
            "size": list(self.size),
            "area_mm2": {str(value): area[value] for value in np.flatnonzero(self.counts) if value != NOTHING},
            "points": np.round(np.concatenate([np.zeros((0, 2)), *self.points]), 2),
        }

    def _filled(self, part: np.ndarray) -> np.ndarray:
        missing = [(0, self.tile - part.shape[0]), (0, self.tile - part.shape[1]), (0, 0)][: part.ndim]
        return np.pad(part, missing, mode="edge") if any(after for _, after in missing) else part


def _pieces(rng: np.random.Generator, count: int, size: tuple[float, float]) -> np.ndarray:
    """Lay pieces of tissue side by side on a glass of (height, width) microns: [count, 4] as `Specimen.pieces`."""
    height, width = size
    columns = max(1, round(np.sqrt(count * width / height)))
    rows = -(-count // columns)
    cell = np.asarray([width / columns, height / rows])
    pieces = []
    for number in range(count):
        middle = (np.asarray([number % columns, number // columns]) + 0.5 + rng.uniform(-0.04, 0.04, 2)) * cell
        pieces.append([*middle, *(cell * rng.uniform(0.4, 0.46, 2))])
    return np.asarray(pieces)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Average squares of `SHRINK` pixels."""
    import cv2

    height, width = -(-image.shape[0] // SHRINK), -(-image.shape[1] // SHRINK)
    missing = [(0, height * SHRINK - image.shape[0]), (0, width * SHRINK - image.shape[1]), (0, 0)]
    whole = np.pad(image, missing, mode="edge") if any(after for _, after in missing) else image
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
