"""Draws breast tissue stained with haematoxylin and eosin: tumour nests, stroma with fibres, fat, necrosis and lymphocytes.

A specimen is a function of the place: which tissue lies at (x, y) microns follows from smooth random fields, which cells from a
hash of the place, so that any part of a slide can be drawn by itself, at any scale, and fits its neighbours. Light is absorbed:
two maps hold the amounts of the stains, at the end glass * exp(-density) is photographed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mtl.imaging.stain import STAINS

NOTHING, TUMOR, STROMA, NECROSIS, INFLAMED, REST = 0, 1, 2, 5, 6, 7  # values of native masks
BLOCK = 512  # pixels: side of what is drawn at once
MARGIN = 12.0  # microns around a block whose cells may reach into it
# Microns between the crests of the fields that decide on the tissue, and values above which they do.
WAVELENGTHS = {"nests": (70, 160), "bulk": (900, 2600), "necrosis": (200, 350), "fat": (200, 420), "inflamed": (110, 260)}
THRESHOLDS = {"nests": 0.3, "necrosis": 1.3, "fat": 1.25, "inflamed": 0.75}
BULK_WEIGHT = 0.7
HAEMATOXYLIN = np.asarray([0, 0.20, 0.05, 0, 0, 0.09, 0.10, 0.02], np.float32)  # amount by tissue, without nuclei
EOSIN = np.asarray([0, 0.26, 0.46, 0, 0, 0.62, 0.34, 0.30], np.float32)
FIBROUS = np.asarray([0, 0.10, 0.45, 0, 0, 0.15, 0.35, 0.10], np.float32)  # how much fibres change eosin


@dataclass(frozen=True)
class Kind:
    """One kind of nucleus; lengths in microns.

    Attributes:
        pitch: Side of the square cells of a grid, shifted row by row, that hold at most one nucleus each.
        jitter: Largest distance from the middle of its cell, each way.
        share: By tissue, the share of the cells that hold one.
        radius: Smallest and largest.
        elongation: Smallest and largest; the area stays.
        amount: Of haematoxylin.
        rim: How much more of it there is at the border; with a paler middle and a nucleolus.
    """

    pitch: float
    jitter: float
    share: dict[int, float]
    radius: tuple[float, float]
    elongation: tuple[float, float]
    amount: float
    rim: float = 0.0

    def chances(self) -> np.ndarray:
        """Return `share` as [8] by tissue."""
        return np.asarray([self.share.get(tissue, 0.0) for tissue in range(8)])


# Neighbours of a lymphocyte lie at least 5.4 microns away, so that in crowds they touch but can be told apart.
LYMPHOCYTE = Kind(7.6, 1.1, {TUMOR: 0.012, STROMA: 0.03, NECROSIS: 0.01, INFLAMED: 0.5}, (2.9, 3.6), (1.0, 1.15), 1.45)
KINDS = (
    Kind(12.5, 2.5, {TUMOR: 0.85, NECROSIS: 0.04}, (4.4, 6.2), (1.0, 1.35), 0.5, 0.5),
    Kind(14.0, 5.0, {STROMA: 0.4, INFLAMED: 0.25}, (2.6, 3.4), (2.4, 4.0), 0.85),
    LYMPHOCYTE,
)
LYMPHOCYTES = KINDS.index(LYMPHOCYTE)
FAT = Kind(46.0, 3.0, {REST: 1.0}, (19.0, 22.0), (1.0, 1.1), 0.0)


class Waves:
    """A smooth random field with mean 0 and deviation 1: the sum of plane waves.

    Args:
        rng: Decides it.
        wavelengths: Shortest and longest, in microns.
        direction: None for all directions, else the mean direction of the crests' normals in radians.
    """

    def __init__(
        self, rng: np.random.Generator, wavelengths: tuple[float, float], direction: float | None = None, count: int = 10
    ) -> None:
        angle = rng.uniform(0, 2 * np.pi, count) if direction is None else rng.normal(direction, 0.28, count)
        number = 2 * np.pi / rng.uniform(*wavelengths, count)
        self.x, self.y, self.phase = number * np.cos(angle), number * np.sin(angle), rng.uniform(0, 2 * np.pi, count)

    def on_grid(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return [len(y), len(x)] float32: by a product of matrices, which is fast."""
        across, along = np.outer(self.x, x), np.outer(y, self.y) + self.phase
        rows = np.concatenate([np.cos(along), -np.sin(along)], axis=1).astype(np.float32)
        columns = np.concatenate([np.cos(across), np.sin(across)]).astype(np.float32)
        return rows @ columns * np.float32(np.sqrt(2 / len(self.x)))

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return [N] float32 at single places."""
        return (np.cos(np.outer(x, self.x) + np.outer(y, self.y) + self.phase).sum(1) * np.sqrt(2 / len(self.x))).astype(
            np.float32
        )


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains: [3] RGB of the glass, optical densities [2, 3] of the two stains."""

    glass: np.ndarray
    densities: np.ndarray


def draw_stain(rng: np.random.Generator, laboratory: int) -> Stain:
    """Draw the staining of a slide; laboratories differ in strength and colour more than their slides do."""
    strength = np.asarray([[1.0, 1.0], [0.8, 0.75], [1.15, 0.9]])[laboratory % 3] * rng.uniform(0.88, 1.12, 2)
    tint = np.asarray([[0, 0, 0], [0.06, -0.1, 0.08], [-0.05, 0.02, 0.12]])[laboratory % 3]
    vectors = np.maximum(STAINS[:2] + tint * [[1.0], [0.6]] + rng.normal(0, 0.015, (2, 3)), 0.01)
    return Stain(np.asarray([243.0, 241.0, 245.0]) + rng.normal(0, 1.5, 3), vectors * strength[:, None])


@dataclass(frozen=True)
class Cells:
    """Nuclei: `x`, `y`, `radius` [N] in microns, `elongation`, `angle`, `shade` and `kind` [N] (index into `KINDS`)."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    elongation: np.ndarray
    angle: np.ndarray
    shade: np.ndarray
    kind: np.ndarray

    def select(self, keep: np.ndarray) -> Cells:
        """Return the cells for which `keep` [N] is True."""
        return Cells(*(values[keep] for values in vars(self).values()))


@dataclass(frozen=True)
class Specimen:
    """The tissue of a slide.

    Attributes:
        seed: Decides everything but the stain.
        stain: How it is stained.
        pieces: [n, 4] middle and half axes (x, y, a, b) in microns of the pieces on the glass; None is tissue everywhere.
        infiltrated: There are lymphocytes, and inflamed stroma full of them.
    """

    seed: int
    stain: Stain
    pieces: np.ndarray | None = None
    infiltrated: bool = True

    @cached_property
    def fields(self) -> dict[str, Waves]:
        """The fields that decide on the tissue, and what its outline and its fibres look like."""
        rng = np.random.default_rng([self.seed, 1])
        fields = {name: Waves(rng, wavelengths) for name, wavelengths in WAVELENGTHS.items()}
        direction = rng.uniform(0, np.pi)
        fields |= {f"fibres{n}": Waves(rng, (5, 17), direction + turn, 14) for n, turn in enumerate((0.0, 0.9))}
        return {**fields, "bundles": Waves(rng, (60, 140)), "outline": Waves(rng, (300, 1500))}

    def tissue(self, x: np.ndarray, y: np.ndarray, grid: bool = True) -> np.ndarray:
        """Return native mask values, uint8: [len(y), len(x)] on a grid, or [N] at single places (microns)."""
        value = {
            name: field.on_grid(x, y) if grid else field.at(x, y) for name, field in self.fields.items() if name in WAVELENGTHS
        }
        tissue = np.full(value["nests"].shape, STROMA, np.uint8)
        if self.infiltrated:
            tissue[value["inflamed"] > THRESHOLDS["inflamed"]] = INFLAMED
        tissue[value["fat"] > THRESHOLDS["fat"]] = REST
        nests = value["nests"] + BULK_WEIGHT * value["bulk"] > THRESHOLDS["nests"]
        tissue[nests] = TUMOR
        tissue[nests & (value["necrosis"] > THRESHOLDS["necrosis"])] = NECROSIS
        if self.pieces is not None:
            rough = self.fields["outline"].on_grid(x, y) if grid else self.fields["outline"].at(x, y)
            across, along = (x[None], y[:, None]) if grid else (x, y)
            depth = [1 - ((across - cx) / a) ** 2 - ((along - cy) / b) ** 2 for cx, cy, a, b in self.pieces]
            tissue[np.max(depth, axis=0) + 0.12 * rough < 0] = NOTHING
        return tissue

    def cells(self, box: tuple[float, float, float, float]) -> Cells:
        """Return the nuclei whose middle lies in (x_min, y_min, x_max, y_max) microns; none lies on a lymphocyte."""
        # Lymphocytes just outside the box may push a nucleus inside away.
        wide = (box[0] - MARGIN, box[1] - MARGIN, box[2] + MARGIN, box[3] + MARGIN)
        parts = [self._grown(number, wide if number == LYMPHOCYTES else box) for number in range(len(KINDS))]
        small = parts[LYMPHOCYTES]
        for number, cells in enumerate(parts):
            if number != LYMPHOCYTES and len(cells.x) and len(small.x):
                distance = np.hypot(cells.x[:, None] - small.x, cells.y[:, None] - small.y)
                parts[number] = cells.select((distance > 0.8 * (cells.radius[:, None] + small.radius)).all(axis=1))
        inside = (small.x >= box[0]) & (small.x < box[2]) & (small.y >= box[1]) & (small.y < box[3])
        parts[LYMPHOCYTES] = small.select(inside)
        return Cells(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def _grown(self, number: int, box: tuple[float, float, float, float]) -> Cells:
        """Return the nuclei of one kind in a box; `number` of `KINDS`, or -1 for fat."""
        kind = KINDS[number] if number >= 0 else FAT
        first, last = np.floor(np.asarray(box).reshape(2, 2) / kind.pitch).astype(np.int64)
        columns, rows = np.arange(first[0] - 1, last[0] + 2), np.arange(first[1], last[1] + 1)
        column, row = (axis.ravel() for axis in np.meshgrid(columns, rows))
        chance = _hash(self.seed, number, column, row, 7)
        shift = _hash(self.seed, number, np.full_like(row, -1), row, 1)[0]
        x = (column + shift) * kind.pitch + kind.jitter * (2 * chance[0] - 1)
        y = (row + 0.5) * kind.pitch + kind.jitter * (2 * chance[1] - 1)
        there = chance[2] < kind.chances()[self.tissue(x, y, grid=False)]
        there &= (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        if number == LYMPHOCYTES and not self.infiltrated:
            there[:] = False
        radius = kind.radius[0] + (kind.radius[1] - kind.radius[0]) * chance[3]
        elongation = kind.elongation[0] + (kind.elongation[1] - kind.elongation[0]) * chance[4]
        kinds = np.full(len(x), number)
        return Cells(x, y, radius, elongation, np.pi * chance[5], 0.85 + 0.3 * chance[6], kinds).select(there)


def without_lymphocytes(specimen: Specimen) -> Specimen:
    """Return the same tissue with neither lymphocytes nor inflamed stroma."""
    return replace(specimen, infiltrated=False)


def draw_block(
    specimen: Specimen, corner: tuple[int, int], size: tuple[int, int], spacing: float = 0.5
) -> tuple[np.ndarray, np.ndarray, Cells]:
    """Draw a part of a slide, of at most about `BLOCK` pixels each way.

    Args:
        specimen: The tissue.
        corner: (x, y) of its first pixel on the slide.
        size: (height, width) in pixels.
        spacing: Microns per pixel.

    Returns:
        [H, W, 3] uint8, the native mask [H, W] uint8, and the lymphocytes whose middle lies inside, in microns of the slide.
    """
    import cv2

    (left, top), (height, width) = corner, size
    x, y = (left + np.arange(width) + 0.5) * spacing, (top + np.arange(height) + 0.5) * spacing
    tissue = specimen.tissue(x, y)
    bundle = 1 / (1 + np.exp(-4 * specimen.fields["bundles"].on_grid(x, y)))
    fibres = bundle * specimen.fields["fibres0"].on_grid(x, y) + (1 - bundle) * specimen.fields["fibres1"].on_grid(x, y)
    amounts = np.empty((height, width, 2), np.float32)
    amounts[..., 0] = HAEMATOXYLIN[tissue]
    amounts[..., 1] = EOSIN[tissue] * (1 + FIBROUS[tissue] * np.tanh(fibres))
    box = (left * spacing, top * spacing, (left + width) * spacing, (top + height) * spacing)
    wide = (box[0] - MARGIN, box[1] - MARGIN, box[2] + MARGIN, box[3] + MARGIN)
    reach = FAT.radius[1] * 1.1
    fat = specimen._grown(-1, (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach))
    _thin(amounts, fat, tissue == REST, box[:2], spacing)
    cells = specimen.cells(wide)
    _stain(amounts, cells, box[:2], spacing)
    rng = np.random.default_rng([specimen.seed, 2, left % 2**32, top % 2**32])
    amounts *= 1 + 0.06 * rng.standard_normal((height, width, 1), np.float32)
    light: np.ndarray = cv2.exp(-cv2.transform(amounts, specimen.stain.densities.T.astype(np.float32)))
    light *= specimen.stain.glass.astype(np.float32)
    light += 1.5 * rng.standard_normal((height, width, 1), np.float32)
    inside = (cells.x >= box[0]) & (cells.x < box[2]) & (cells.y >= box[1]) & (cells.y < box[3])
    found = cells.select(inside & (cells.kind == LYMPHOCYTES))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8), tissue, found


def draw_region(
    specimen: Specimen, corner: tuple[int, int], size: tuple[int, int], spacing: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a part of a slide of any size, block by block.

    Returns:
        [H, W, 3] uint8, the native mask [H, W] uint8, and per lymphocyte [N, 4] its box (x_min, y_min, x_max, y_max) in pixels
        of the region.
    """
    image, tissue = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    boxes = [np.zeros((0, 4))]
    for rows, columns in blocks(size):
        part = rows.stop - rows.start, columns.stop - columns.start
        place = corner[0] + columns.start, corner[1] + rows.start
        image[rows, columns], tissue[rows, columns], cells = draw_block(specimen, place, part, spacing)
        middle = np.stack([cells.x, cells.y], axis=1) / spacing - corner
        half = extent(cells) / spacing
        boxes.append(np.concatenate([middle - half, middle + half], axis=1))
    return image, tissue, np.concatenate(boxes)


def blocks(size: tuple[int, int], side: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of the blocks of a raster of (height, width), row by row."""
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            yield slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))


def extent(cells: Cells) -> np.ndarray:
    """Return half the width and height [N, 2] of ellipses, in microns."""
    long, short = cells.radius * np.sqrt(cells.elongation), cells.radius / np.sqrt(cells.elongation)
    cos, sin = np.cos(cells.angle), np.sin(cells.angle)
    return np.stack([np.hypot(long * cos, short * sin), np.hypot(long * sin, short * cos)], axis=1)


def _patches(
    cells: Cells, corner: tuple[float, float], spacing: float, size: tuple[int, int]
) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Yield number, slices, cover in [0, 1] and relative distance from the middle of each cell that reaches into the raster."""
    long, short = cells.radius * np.sqrt(cells.elongation) / spacing, cells.radius / np.sqrt(cells.elongation) / spacing
    x, y = (cells.x - corner[0]) / spacing, (cells.y - corner[1]) / spacing
    low = np.floor(np.stack([x, y], axis=1) - long[:, None] - 2).astype(np.int64).clip(0)
    high = np.minimum(np.ceil(np.stack([x, y], axis=1) + long[:, None] + 2).astype(np.int64), (size[1], size[0]))
    cos, sin = np.cos(cells.angle), np.sin(cells.angle)
    for n in np.flatnonzero((low < high).all(axis=1)):
        across = np.arange(low[n, 0], high[n, 0], dtype=np.float32)[None] + np.float32(0.5 - x[n])
        along = np.arange(low[n, 1], high[n, 1], dtype=np.float32)[:, None] + np.float32(0.5 - y[n])
        u, v = (across * cos[n] + along * sin[n]) / long[n], (along * cos[n] - across * sin[n]) / short[n]
        distance = np.sqrt(u * u + v * v)
        cover = np.clip((1 - distance) * (short[n] / 1.6) + 0.5, 0, 1)
        yield int(n), (slice(low[n, 1], high[n, 1]), slice(low[n, 0], high[n, 0])), cover, distance


def _stain(amounts: np.ndarray, cells: Cells, corner: tuple[float, float], spacing: float) -> None:
    """Add nuclei to the amounts of the stains [H, W, 2]; what eosin stains makes room for them."""
    for n, where, cover, distance in _patches(cells, corner, spacing, amounts.shape[:2]):
        kind, patch = KINDS[cells.kind[n]], amounts[where]
        thickness = cover
        if kind.rim:
            nucleolus = np.exp(-((distance / 0.22) ** 2))
            thickness = cover * (0.75 + kind.rim * np.exp(-(((distance - 0.88) / 0.16) ** 2)) + 0.8 * nucleolus)
        patch[..., 0] = patch[..., 0] * (1 - 0.7 * cover) + kind.amount * cells.shade[n] * thickness
        patch[..., 1] *= 1 - 0.5 * cover


def _thin(amounts: np.ndarray, cells: Cells, there: np.ndarray, corner: tuple[float, float], spacing: float) -> None:
    """Take the stains away where fat was, inside `there` [H, W]: preparation dissolves it."""
    for _, where, cover, _ in _patches(cells, corner, spacing, there.shape):
        amounts[where] *= (1 - 0.96 * cover * there[where])[..., None]


def _hash(seed: int, number: int, column: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """Return [count, N] numbers in [0, 1) that depend on the arguments only (the mixer of SplitMix64, Steele et al. 2014)."""
    key = np.asarray([seed, number + 1], np.uint64) * np.asarray([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], np.uint64)
    base = column.astype(np.uint64) * np.uint64(0x8CB92BA72F3D8DD7) ^ row.astype(np.uint64) * np.uint64(0xABC98388FB8FAC03)
    values = (base ^ key[0] ^ key[1])[None] + np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((values ^ (values >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53
