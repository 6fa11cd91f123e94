"""Generates Giemsa-stained thin blood smears as a phone sees them through an eyepiece.

Everything is measured in pixels of a whole field 5312 wide and scaled to the requested width. Light is absorbed: each cell adds
optical density to a canvas (so overlaps are darker), at the end background * exp(-density) is photographed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIELD_WIDTH = 5312
RED_RADIUS = 72.0
WHITE_RADIUS = 112.0
INFECTED, HEALTHY, WHITE = 0, 1, 2


@dataclass(frozen=True)
class Style:
    """What the smears of one patient have in common.

    Attributes:
        background: [3] RGB of the ground.
        cell: [3] optical density of a red cell.
        chromatin: [3] optical density of parasite nuclei, scaled for other purple parts.
        infected_share: Fraction of red cells with parasites.
        elongation: Mean stretch of red cells, 0 is round.
        pallor: How much paler the centre of a red cell is.
        radius: Mean radius of red cells in reference pixels.
    """

    background: np.ndarray
    cell: np.ndarray
    chromatin: np.ndarray
    infected_share: float
    elongation: float
    pallor: float
    radius: float


def generate_style(rng: np.random.Generator, healthy: bool) -> Style:
    """Generate the staining and the parasite load of a patient."""
    share = 0.0 if healthy else float(np.clip(np.exp(rng.normal(np.log(0.06), 0.7)), 0.015, 0.25))
    return Style(
        background=np.asarray([229, 183, 174]) + rng.normal(0, [5, 8, 7]),
        cell=np.asarray([0.085, 0.34, 0.09]) * rng.uniform(0.75, 1.25) * rng.uniform(0.85, 1.15, 3),
        chromatin=np.asarray([0.3, 1.9, 0.4]) * rng.uniform(0.85, 1.15, 3),
        infected_share=share,
        elongation=float(rng.uniform(0.02, 0.12)),
        pallor=float(rng.uniform(0.1, 0.4)),
        radius=RED_RADIUS * float(rng.uniform(0.95, 1.05)),
    )


@dataclass(frozen=True)
class Shape:
    """A closed curve around (x, y): radius * (1 + sum of harmonics)."""

    x: float
    y: float
    radius: float
    amplitudes: np.ndarray
    phases: np.ndarray

    def reach(self, angle: np.ndarray) -> np.ndarray:
        """Return the distance from the centre to the curve in the given directions."""
        total = np.ones_like(angle)
        for order, (amplitude, phase) in enumerate(zip(self.amplitudes, self.phases, strict=True), start=2):
            total += amplitude * np.cos(order * angle + phase)
        return self.radius * total

    def outline(self, vertices: int, start: float = 0.0) -> np.ndarray:
        """Return [vertices, 2] points on the curve."""
        angle = start + np.arange(vertices) * (2 * np.pi / vertices)
        reach = self.reach(angle)
        return np.stack([self.x + reach * np.cos(angle), self.y + reach * np.sin(angle)], axis=1)


@dataclass(frozen=True)
class GeneratedCell:
    """A cell on a picture: its class and curve in pixels of that picture."""

    label: int
    shape: Shape


class Canvas:
    """Optical density [height, width, 3] that shapes are added to."""

    def __init__(self, height: int, width: int) -> None:
        self.density = np.zeros((height, width, 3), np.float32)

    def cover(self, shape: Shape, softness: float = 0.8) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """Return the patch under a shape: its slices, the cover in [0, 1] and the relative distance from the centre."""
        extent = shape.radius * (1 + np.abs(shape.amplitudes).sum()) + 3 * softness + 1
        height, width = self.density.shape[:2]
        left, right = max(0, int(shape.x - extent)), min(width, int(shape.x + extent) + 2)
        top, bottom = max(0, int(shape.y - extent)), min(height, int(shape.y + extent) + 2)
        if left >= right or top >= bottom:
            return None
        # Centres of pixels lie at half coordinates.
        x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - shape.x)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - shape.y)
        distance = np.sqrt(x * x + y * y)
        reach = shape.reach(np.arctan2(y, x))
        alpha = 1 / (1 + np.exp(np.clip((distance - reach) * (2 / softness), -30, 30)))
        return (slice(top, bottom), slice(left, right)), alpha, distance / np.maximum(reach, 1e-3)

    def add(self, shape: Shape, stain: np.ndarray, softness: float = 0.8, pallor: float = 0.0, rim: float = 0.0) -> None:
        """Absorb light over a shape; `pallor` spares its centre, `rim` adds to its border."""
        patch = self.cover(shape, softness)
        if patch is None:
            return
        where, alpha, distance = patch
        thickness = alpha
        if pallor or rim:
            inner = np.exp(-((distance / 0.5) ** 2))
            border = np.exp(-(((distance - 0.88) / 0.12) ** 2))
            thickness = alpha * (1 - pallor * inner + rim * border)
        self.density[where] += thickness[..., None] * stain.astype(np.float32)

    def thin(self, shape: Shape, fraction: float) -> None:
        """Take a fraction of the density away inside a shape (a vacuole)."""
        patch = self.cover(shape)
        if patch is not None:
            self.density[patch[0]] *= (1 - fraction * patch[1])[..., None]

    def ring(self, shape: Shape, stain: np.ndarray, thickness: float) -> None:
        """Absorb light along the border of a shape."""
        patch = self.cover(shape, thickness)
        if patch is not None:
            alpha = patch[1]
            self.density[patch[0]] += (4 * alpha * (1 - alpha))[..., None] * stain.astype(np.float32)


def random_shape(
    rng: np.random.Generator, x: float, y: float, radius: float, wobble: float = 0.02, elongation: float = 0.04
) -> Shape:
    """Generate a roundish shape of about the given radius."""
    amplitudes = np.abs(rng.normal(0, [max(elongation, 1e-6), wobble, wobble / 2, wobble / 2]))
    return Shape(x, y, radius, np.minimum(amplitudes, [0.2, 0.08, 0.05, 0.05]), rng.uniform(0, 2 * np.pi, 4))


def add_red_cell(canvas: Canvas, rng: np.random.Generator, style: Style, shape: Shape, infected: bool) -> None:
    """Generate a red cell, with its parasites if it is infected."""
    rim = float(rng.uniform(0.0, 0.18))
    pallor = style.pallor * float(rng.uniform(0.5, 1.5))
    canvas.add(shape, style.cell * rng.uniform(0.8, 1.2), softness=max(0.6, 0.03 * shape.radius), pallor=pallor, rim=rim)
    if not infected:
        return
    first = rng.uniform(0, 2 * np.pi)
    count = 2 if rng.random() < 0.15 else 1
    for number in range(count):
        angle = first + number * np.pi + rng.normal(0, 0.3)
        distance = shape.radius * (rng.uniform(0.35, 0.55) if count == 2 else rng.uniform(0.05, 0.55))
        x, y = shape.x + distance * np.cos(angle), shape.y + distance * np.sin(angle)
        if count == 1 and rng.random() < 0.15:
            _add_late_form(canvas, rng, style, x, y, shape.radius)
        else:
            _add_ring_form(canvas, rng, style, x, y, shape.radius)


def _add_ring_form(canvas: Canvas, rng: np.random.Generator, style: Style, x: float, y: float, cell_radius: float) -> None:
    ring = random_shape(rng, x, y, cell_radius * rng.uniform(0.24, 0.34), 0.05, 0.1)
    canvas.thin(ring, float(rng.uniform(0.35, 0.6)))
    canvas.ring(ring, style.chromatin * rng.uniform(0.12, 0.22), max(0.5, 0.045 * cell_radius))
    angle = rng.uniform(0, 2 * np.pi)
    dot_x, dot_y = x + ring.radius * np.cos(angle), y + ring.radius * np.sin(angle)
    dot = random_shape(rng, dot_x, dot_y, cell_radius * rng.uniform(0.12, 0.17), 0.05, 0.12)
    canvas.add(dot, style.chromatin, softness=max(0.5, 0.03 * cell_radius))


def _add_late_form(canvas: Canvas, rng: np.random.Generator, style: Style, x: float, y: float, cell_radius: float) -> None:
    body = random_shape(rng, x, y, cell_radius * rng.uniform(0.34, 0.48), 0.1, 0.12)
    canvas.add(body, style.chromatin * np.asarray([1.0, 0.4, 0.6]), softness=max(0.7, 0.06 * cell_radius))
    for _ in range(int(rng.integers(2, 6))):
        angle, distance = rng.uniform(0, 2 * np.pi), body.radius * np.sqrt(rng.random()) * 0.8
        spot = random_shape(
            rng, x + distance * np.cos(angle), y + distance * np.sin(angle), cell_radius * rng.uniform(0.08, 0.14)
        )
        canvas.add(spot, style.chromatin * 0.6, softness=max(0.5, 0.03 * cell_radius))
    pigment = random_shape(rng, x, y, cell_radius * 0.09)
    canvas.add(pigment, np.asarray([0.7, 0.7, 0.9]))


def add_white_cell(canvas: Canvas, rng: np.random.Generator, style: Style, shape: Shape) -> None:
    """Generate a leukocyte: pale cytoplasm and a lobed nucleus."""
    canvas.add(shape, style.chromatin * np.asarray([0.35, 0.09, 0.18]), softness=max(0.8, 0.03 * shape.radius))
    lobes = int(rng.integers(2, 5))
    angle, nucleus = rng.uniform(0, 2 * np.pi), style.chromatin * np.asarray([1.5, 0.8, 1.1])
    before = None
    for _ in range(lobes):
        x, y = shape.x + 0.45 * shape.radius * np.cos(angle), shape.y + 0.45 * shape.radius * np.sin(angle)
        lobe = random_shape(rng, x, y, shape.radius * rng.uniform(0.3, 0.4), 0.05, 0.08)
        canvas.add(lobe, nucleus, softness=max(0.8, 0.03 * shape.radius))
        if before is not None:
            bridge = random_shape(rng, (x + before[0]) / 2, (y + before[1]) / 2, shape.radius * 0.16)
            canvas.add(bridge, nucleus * 0.6)
        before = (x, y)
        angle += rng.uniform(1.0, 1.6)


def generate_field(
    style: Style, rng: np.random.Generator, width: int, cells_per_field: tuple[int, int]
) -> tuple[np.ndarray, list[GeneratedCell]]:
    """Generate one photograph of a field.

    Args:
        style: Of the patient.
        rng: Decides everything else.
        width: Of the image in pixels; the height follows from the native 16:9.
        cells_per_field: Fewest and most red cells that are completely visible; a crowded field may hold fewer.

    Returns:
        [height, width, 3] uint8 and the cells that lie completely inside the field; experts leave out those cut by the rim.
    """
    scale = width / FIELD_WIDTH
    height = round(width * 9 / 16)
    centre = np.asarray([width * rng.uniform(0.47, 0.57), height * rng.uniform(0.48, 0.56)])
    field_radius = scale * rng.uniform(1480, 1560)
    canvas = Canvas(height, width)
    wanted = int(rng.integers(cells_per_field[0], cells_per_field[1] + 1))
    shapes = _place(style, rng, scale, centre, field_radius, height, wanted)
    cells = []
    for shape, white in shapes:
        infected = not white and rng.random() < style.infected_share
        if white:
            add_white_cell(canvas, rng, style, shape)
        else:
            add_red_cell(canvas, rng, style, shape, infected)
        outline = shape.outline(32)
        whole = (np.linalg.norm(outline - centre, axis=1) < field_radius).all()
        if whole and (outline >= 0).all() and (outline <= [width, height]).all():
            cells.append(GeneratedCell(WHITE if white else INFECTED if infected else HEALTHY, shape))
    _add_debris(canvas, rng, style, scale, centre, field_radius)
    return _photograph(canvas, rng, style, centre, field_radius, scale), cells


def _place(
    style: Style,
    rng: np.random.Generator,
    scale: float,
    centre: np.ndarray,
    field_radius: float,
    height: int,
    wanted: int,
) -> list[tuple[Shape, bool]]:
    """Throw cells on the field until enough lie inside; a fifth is pushed against a neighbour until they overlap a little."""
    spots = np.zeros((0, 3))  # x, y, radius
    shapes: list[tuple[Shape, bool]] = []
    whites, inside = min(int(rng.poisson(0.9)), wanted), 0
    for _ in range(60 * wanted):
        white = len(shapes) < whites
        radius = scale * (WHITE_RADIUS * rng.uniform(0.92, 1.08) if white else style.radius * rng.normal(1, 0.05))
        if not white and len(spots) > whites and rng.random() < 0.2:
            x, y, other = spots[int(rng.integers(whites, len(spots)))]
            angle, closeness = rng.uniform(0, 2 * np.pi), rng.uniform(0.74, 0.9)
            x, y = x + closeness * (radius + other) * np.cos(angle), y + closeness * (radius + other) * np.sin(angle)
        else:
            angle, closeness = rng.uniform(0, 2 * np.pi), 0.96
            distance = (field_radius - radius if white else field_radius + radius) * np.sqrt(rng.random())
            x, y = centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)
        allowed = (spots[:, 2] + radius) * (closeness - 1e-6)
        allowed[:whites] = (spots[:whites, 2] + radius) * 1.02  # nothing hides a leukocyte
        if (np.hypot(spots[:, 0] - x, spots[:, 1] - y) < allowed).any():
            continue
        spots = np.vstack([spots, [x, y, radius]])
        elongation = 0.03 if white else style.elongation
        shapes.append((random_shape(rng, x, y, radius, 0.02, elongation), white))
        visible = np.hypot(x - centre[0], y - centre[1]) + radius < field_radius and radius < y < height - radius
        inside += int(visible and not white)
        if inside >= wanted:
            break
    return shapes


def _add_debris(
    canvas: Canvas, rng: np.random.Generator, style: Style, scale: float, centre: np.ndarray, field_radius: float
) -> None:
    """Add platelets and specks of dye: not annotated, and tempting to take for parasites."""
    for count, low, high, strength in ((int(rng.poisson(5)), 14, 24, 0.5), (int(rng.poisson(8)), 3, 6, 0.4)):
        for _ in range(count):
            angle, distance = rng.uniform(0, 2 * np.pi), field_radius * np.sqrt(rng.random())
            x, y = centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)
            spot = random_shape(rng, x, y, scale * rng.uniform(low, high), 0.06, 0.1)
            canvas.add(spot, style.chromatin * strength * np.asarray([0.5, 0.7, 0.8]), softness=max(0.6, 6 * scale))


def _photograph(
    canvas: Canvas, rng: np.random.Generator, style: Style, centre: np.ndarray, field_radius: float, scale: float
) -> np.ndarray:
    """Light the canvas from below: uneven ground, falling light, the dark rim of the eyepiece, focus and sensor noise."""
    import cv2

    height, width = canvas.density.shape[:2]
    x = (np.arange(width, dtype=np.float32) + 0.5 - centre[0])[None]
    y = (np.arange(height, dtype=np.float32) + 0.5 - centre[1])[:, None]
    distance = np.sqrt(x * x + y * y) / np.float32(field_radius)
    tilt = rng.normal(0, 0.03, 2) / field_radius
    light = 1.03 - np.float32(rng.uniform(0.04, 0.12)) * distance**2 + np.float32(tilt[0]) * x + np.float32(tilt[1]) * y
    ground = cv2.resize(rng.normal(1, 0.012, (9, 16, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(
        rng.normal(1, 0.012, (height // 4 + 1, width // 4 + 1)).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_LINEAR,
    )
    picture = np.exp(-canvas.density)
    picture *= style.background.astype(np.float32)
    picture *= ground
    picture *= (light * grain)[..., None]
    edge = (distance - 1) * np.float32(field_radius / max(0.8, 8 * scale))
    # The rim bends blue light least, which leaves a thin bluish seam.
    for channel, shift in enumerate((0.5, 0.2, -0.4)):
        picture[..., channel] *= 1 / (1 + np.exp(np.clip(2 * (edge + np.float32(shift)), -30, 30)))
    focus = max(0.35, scale * float(rng.uniform(1.5, 3.5)))
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), focus), np.float32)
    noise = np.empty((height, width, 3), np.float32)
    rng.standard_normal(dtype=np.float32, out=noise)
    picture += noise * np.float32(rng.uniform(0.8, 2.0)) * (picture > 8)
    return np.clip(picture + 1.0, 0, 255).astype(np.uint8)


def generate_single_cell(style: Style, rng: np.random.Generator, infected: bool) -> np.ndarray:
    """Generate one red cell at native scale on black, as the published crops are: about 150 x 150 px, uint8 RGB."""
    radius = style.radius * float(rng.normal(1, 0.05))
    shape = random_shape(rng, 0.0, 0.0, radius, 0.02, style.elongation)
    outline = shape.outline(64)
    low, high = outline.min(axis=0) - 3, outline.max(axis=0) + 3
    shape = Shape(float(-low[0]), float(-low[1]), shape.radius, shape.amplitudes, shape.phases)
    width, height = (int(side) for side in np.ceil(high - low))
    canvas = Canvas(height, width)
    add_red_cell(canvas, rng, style, shape, infected)
    patch = canvas.cover(shape, 0.5)
    assert patch is not None
    picture = _photograph(canvas, rng, style, np.asarray([shape.x, shape.y]), 4.0 * radius, 1.0)
    inside = np.zeros((height, width), bool)
    inside[patch[0]] = patch[1] > 0.5
    return picture * inside[..., None].astype(np.uint8)
