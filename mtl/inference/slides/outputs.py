"""What prediction leaves on disk for a slide: its mask, its cells, its score and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import PARTIAL, beside
from mtl.core.raster import resize_map
from mtl.core.task import Colour
from mtl.drawing.paint import fit, outline, side_by_side, with_legend
from mtl.drawing.palette import INK, PAPER

TILE = 512
BIG = 2**31  # pixels from which a mask is written as BigTIFF
DENSITY_UM = 100.0  # standard deviation of the smoothing of the cell density
TINT = 0.6
PANEL = 1200  # pixels of the longer side of a panel of the overview


@dataclass
class SlideOutcome:
    """What became of one slide: `summary` (the content of its `til-score.json`), or `error`.

    Attributes:
        path: The slide.
        summary: Plain values.
        error: Why there is none.
        skipped: It was finished before.
    """

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    error: DataError | None = None
    skipped: bool = False


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove results of other settings and what an interrupted prediction left, so that nothing old lies beside new files."""
    for name in names:
        for path in (folder / name, *folder.glob(PARTIAL.format(name=name, process="*"))):
            path.unlink(missing_ok=True)


def write_mask(
    path: Path, size: tuple[int, int], bands: Iterable[np.ndarray], um: tuple[float, float], values: dict[str, int]
) -> None:
    """Write a mask of class ids as a tiled TIFF with deflate compression, row of tiles by row of tiles.

    Args:
        path: The file.
        size: (height, width).
        bands: [rows, width] uint8 from top to bottom; drawn from as they are written.
        um: (x, y) microns per pixel, for the resolution tags.
        values: Names of the values, for the description.
    """
    import tifffile

    with beside(path) as partial, tifffile.TiffWriter(partial, bigtiff=size[0] * size[1] > BIG) as writer:
        writer.write(
            tiles_of(bands, size), shape=size, dtype=np.uint8, tile=(TILE, TILE), compression="zlib", photometric="minisblack",
            resolution=(10_000 / um[0], 10_000 / um[1]), resolutionunit="CENTIMETER", description=json.dumps(values),
            metadata=None, maxworkers=1,
        )  # fmt: skip


def tiles_of(bands: Iterable[np.ndarray], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Cut bands of rows into tiles, filled up with 0 at the right and at the bottom."""
    across = -(-size[1] // TILE)
    row, filled = np.zeros((TILE, across * TILE), np.uint8), 0

    def cut() -> Iterator[np.ndarray]:
        for column in range(across):
            yield row[:, column * TILE : (column + 1) * TILE].copy()

    for band in bands:
        while len(band):
            part, band = band[: TILE - filled], band[TILE - filled :]
            row[filled : filled + len(part), : size[1]] = part
            filled += len(part)
            if filled == TILE:
                yield from cut()
                row[:], filled = 0, 0
    if filled:
        yield from cut()


def write_points(
    path: Path, points: np.ndarray, scores: np.ndarray, um: tuple[float, float], names: list[str] | None = None
) -> None:
    """Write cells in the format of grand-challenge.org, one line each.

    Args:
        path: The file.
        points: [N, 2] (x, y) in stored pixels.
        scores: [N] probabilities.
        um: (x, y) microns per stored pixel. Coordinates are in millimetres; the third is the spacing in microns, as in the
            challenge's own examples.
        names: [N] classes; None leaves them out.
    """
    places = points.astype(np.float64) * np.asarray(um) / 1000.0
    labels = [None] * len(points) if names is None else names
    with beside(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "Multiple points", "version": {"major": 1, "minor": 0}, "points": [')
        for number, (place, score, name) in enumerate(zip(places, scores, labels, strict=True)):
            point = [round(float(place[0]), 6), round(float(place[1]), 6), round(um[0], 6)]
            entry = {"name": name} if name is not None else {}
            content = json.dumps({**entry, "point": point, "probability": round(float(score), 6)})
            file.write(f"{',' if number else ''}\n{content}")
        file.write("\n]}\n")


def draw_overview(
    picture: np.ndarray,
    classes: list[tuple[str, np.ndarray]],
    density: np.ndarray | None,
    bulk: np.ndarray | None,
    lines: list[str],
    colours: Mapping[str, Colour],
    tissue: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a slide as it is, with its tissue in colours, and with the density of its cells.

    Args:
        picture: [h, w, 3] uint8.
        classes: (name, [h, w] share of each pixel in [0, 1]); empty leaves out the tissue.
        density: Cells per square millimetre, [h, w] at any resolution, or None.
        bulk: [h, w] bool, outlined; None where it is not used.
        lines: What the legend says besides.
        colours: By class.
        tissue: [h, w] share of each pixel that is tissue, at any resolution; glass has no density. None is tissue everywhere.

    Returns:
        [H, W, 3] uint8.
    """
    picture = fit(picture, PANEL)
    size = (picture.shape[0], picture.shape[1])
    # On grey, so that colours look like those of the legend.
    grey = 96 + np.float32(0.6) * np.repeat(picture.mean(axis=2, dtype=np.float32, keepdims=True), 3, axis=2)
    panels = [picture]
    if classes:
        tinted = grey
        for name, share in classes:
            strength = TINT * np.clip(_shrunk(share, size), 0, 1)[..., None]
            tinted = tinted * (1 - strength) + np.asarray(colours[name], np.float32) * strength
        panels.append(tinted)
    if density is not None:
        inside = np.ones(size, np.float32) if tissue is None else np.clip(_shrunk(tissue, size), 0, 1)
        panels.append(_glow(grey, resize_map(density, size), inside))
    panels = [np.ascontiguousarray(np.clip(panel, 0, 255).astype(np.uint8)) for panel in panels]
    if bulk is not None:
        for panel in panels:
            outline(panel, _shrunk(bulk, size) > 0.5, INK, 2)
    legend = [*((colours[name], name) for name, _ in classes), *((PAPER, line) for line in lines)]
    return with_legend(side_by_side(panels), legend)


def _shrunk(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average a map [h, w] down to (height, width) float32."""
    import cv2

    return cv2.resize(values.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)


def density_of(points: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Return the smoothed number of cells per square millimetre on a coarse grid that covers the slide.

    Args:
        points: [N, 2] (x, y) in microns.
        size: (height, width) of the slide in microns.

    Returns:
        [h, w] float32, with pixels of about a quarter of `DENSITY_UM`.
    """
    import cv2

    height, width = (max(1, round(4 * length / DENSITY_UM)) for length in size)
    x, y = (np.clip(points[:, axis] * (count / size[1 - axis]), 0, count - 1) for axis, count in ((0, width), (1, height)))
    counts = np.zeros((height, width), np.float32)
    np.add.at(counts, (y.astype(np.int64), x.astype(np.int64)), 1.0)
    smooth = cv2.GaussianBlur(counts, (0, 0), 4.0, borderType=cv2.BORDER_REFLECT)
    return smooth * np.float32(height * width / (size[0] * size[1] / 1e6))


def _glow(grey: np.ndarray, density: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Lay a density over a grey picture, as far as `inside` [h, w] says; the densest place has the full colour."""
    import cv2

    heat = np.sqrt(density / max(float(density.max()), 1e-9))
    bright = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = (np.clip(heat, 0, 1) * inside)[..., None]
    return grey * (1 - share) + cv2.cvtColor(bright, cv2.COLOR_BGR2RGB) * share
