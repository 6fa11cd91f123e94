"""Generates skin lesions as a dermoscope sees them: nevi, melanomas, seborrheic keratoses on skin of several tones and types.

Everything is measured in widths of the picture. As on the smears, what is dark adds optical density to a canvas, and what is
bright takes density away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtl.data.families.malaria.painter import Canvas, Shape, random_shape

DIAGNOSES = ("nevus", "melanoma", "seborrheic_keratosis")
SKIN_TYPES = ("normal", "dry", "oily")
TONES = 6  # Fitzpatrick 1, the lightest, to 6
LIGHTEST, DARKEST = np.asarray([236.0, 198.0, 178.0]), np.asarray([118.0, 78.0, 60.0])
# Optical density of red, green, blue.
BROWN = np.asarray([0.35, 0.75, 0.95])
BLACK = np.asarray([1.1, 1.25, 1.1])
RED = np.asarray([0.1, 0.6, 0.5])
TAN = np.asarray([0.2, 0.38, 0.55])
WHITE = np.asarray([-0.3, -0.35, -0.45])


@dataclass(frozen=True)
class Spot:
    """One stained area of a lesion, relative to its centre: place as (distance, angle), curve and stain."""

    distance: float
    angle: float
    shape: Shape
    stain: np.ndarray
    softness: float
    counts: bool = True  # as part of the mask; what only structures the inside does not


@dataclass(frozen=True)
class Lesion:
    """A lesion without the picture: the first spot is its body."""

    diagnosis: str
    spots: list[Spot]


def generate_lesion(rng: np.random.Generator, diagnosis: str) -> Lesion:
    """Generate a lesion whose class shows: nevi are round and of one colour, melanomas ragged and of many, keratoses dotted."""
    radius = rng.uniform(0.16, 0.26)
    if diagnosis == "nevus":
        body = Spot(0, 0, random_shape(rng, 0, 0, radius * 0.85, 0.01, 0.05), BROWN * rng.uniform(0.8, 1.2), 0.03)
        return Lesion(diagnosis, [body, _inside(rng, radius * 0.3, 0.2, BROWN * 0.3, 0.05)])
    if diagnosis == "melanoma":
        body = Spot(0, 0, random_shape(rng, 0, 0, radius, 0.25, 0.3), BROWN * rng.uniform(0.9, 1.3), 0.008)
        patches = [_inside(rng, radius, rng.uniform(0.3, 0.5), stain, 0.02) for stain in (BLACK, BLACK * 0.7, RED)]
        edge = Spot(radius * 0.95, rng.uniform(0, 6.28), random_shape(rng, 0, 0, radius * 0.35, 0.1, 0.2), BLACK * 0.8, 0.01)
        return Lesion(diagnosis, [body, edge, *patches])
    body = Spot(0, 0, random_shape(rng, 0, 0, radius, 0.04, 0.15), TAN * rng.uniform(0.9, 1.2), 0.006)
    dots = [_inside(rng, radius, 0.09, (WHITE, BROWN)[number % 2], 0.006) for number in range(int(rng.integers(16, 26)))]
    return Lesion(diagnosis, [body, *dots])


def _inside(rng: np.random.Generator, radius: float, share: float, stain: np.ndarray, softness: float) -> Spot:
    """Place a spot of a share of the lesion's radius somewhere inside it."""
    distance = radius * (0.85 - share) * np.sqrt(rng.random())
    shape = random_shape(rng, 0, 0, radius * share, 0.1, 0.15)
    return Spot(float(distance), rng.uniform(0, 2 * np.pi), shape, stain, softness, counts=False)


def photograph(
    rng: np.random.Generator, lesion: Lesion, width: int, tone: int, skin_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """Take a picture of a lesion.

    Args:
        rng: Decides place, turn, magnification and light.
        lesion: From `generate_lesion`.
        width: Of the picture in pixels; the height is three quarters of it.
        tone: Of the skin, 1 to 6.
        skin_type: One of `SKIN_TYPES`: dry skin has pale flakes, oily skin glints.

    Returns:
        [H, W, 3] uint8 and the mask [H, W] bool.
    """
    height = max(1, round(0.75 * width))
    canvas = Canvas(height, width)
    centre = np.asarray([width, height]) * (0.5 + rng.uniform(-0.08, 0.08, 2))
    scale, turn = width * rng.uniform(0.85, 1.15), rng.uniform(0, 2 * np.pi)
    mask = np.zeros((height, width), bool)
    for spot in lesion.spots:
        heading = spot.angle + turn
        x, y = centre + scale * spot.distance * np.asarray([np.cos(heading), np.sin(heading)])
        orders = np.arange(2, 2 + len(spot.shape.phases))
        radius, phases = max(0.7, spot.shape.radius * scale), spot.shape.phases - orders * turn
        shape = Shape(float(x), float(y), radius, spot.shape.amplitudes, phases)
        softness = max(0.6, spot.softness * scale)
        canvas.add(shape, spot.stain, softness)
        patch = canvas.cover(shape, softness) if spot.counts else None
        if patch is not None:
            mask[patch[0]] |= patch[1] > 0.5
    _structure(canvas, rng, skin_type)
    return _expose(canvas, rng, tone), mask


def _structure(canvas: Canvas, rng: np.random.Generator, skin_type: str) -> None:
    """Add hairs, and what tells dry from oily skin."""
    height, width = canvas.density.shape[:2]
    marks = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(0, 5))):
        start, heading = rng.random(2) * [width, height], rng.uniform(0, 2 * np.pi)
        end = start + rng.uniform(0.15, 0.4) * width * np.asarray([np.cos(heading), np.sin(heading)])
        _line(marks, start, end, 1.0, max(1, width // 250))
    if skin_type == "dry":
        for _ in range(60):
            start = rng.random(2) * [width, height]
            end = start + rng.normal(0, 0.02, 2) * width
            _line(marks, start, end, -0.35, max(1, width // 120))
    canvas.density += marks[..., None] * np.float32(0.7)
    for _ in range(int(rng.integers(5, 9)) if skin_type == "oily" else 0):
        x, y = rng.random(2) * [width, height]
        canvas.add(random_shape(rng, x, y, rng.uniform(0.015, 0.04) * width), WHITE * 2.5, softness=max(0.6, 0.008 * width))


def _line(marks: np.ndarray, start: np.ndarray, end: np.ndarray, value: float, thickness: int) -> None:
    import cv2

    ends = [[int(value) for value in point] for point in (start, end)]
    cv2.line(marks, ends[0], ends[1], value, thickness, cv2.LINE_AA)


def _expose(canvas: Canvas, rng: np.random.Generator, tone: int) -> np.ndarray:
    """Light the canvas: the ground of a tone, uneven light, the dark rim of some dermoscopes, focus and noise."""
    import cv2

    height, width = canvas.density.shape[:2]
    share = (tone - 1) / (TONES - 1)
    ground = (LIGHTEST * (1 - share) + DARKEST * share) * rng.uniform(0.93, 1.05, 3)
    coarse = 1 + rng.normal(0, 0.03, (9, 12)).astype(np.float32)
    picture = np.exp(-canvas.density) * ground.astype(np.float32)
    picture *= cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    if rng.random() < 0.4:
        x, y = np.arange(width, dtype=np.float32) + 0.5 - width / 2, np.arange(height, dtype=np.float32) + 0.5 - height / 2
        distance = np.sqrt(x[None] ** 2 + y[:, None] ** 2) / np.float32(width)
        picture *= (1 / (1 + np.exp((distance - np.float32(rng.uniform(0.5, 0.58))) * 60)))[..., None]
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.4, 0.002 * width)), np.float32)
    picture += rng.normal(0, rng.uniform(1, 2.5), picture.shape).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)
