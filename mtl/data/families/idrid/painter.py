"""Generates retinas as a fundus camera sees them: vessels, optic disc, fovea and the lesions of diabetes.

Everything is measured in pixels of a photograph 4288 wide and scaled to the requested width. As on the smears, what is dark
adds optical density to a canvas; what is brighter than the ground (disc, exudates) takes density away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtl.data.families.malaria.painter import Canvas, random_shape

WIDTH, HEIGHT = 4288, 2848
FIELD_RADIUS = 1708.0
DISC_RADIUS = 262.0
STAINS = {  # optical density of red, green, blue
    "MA": np.asarray([0.45, 1.0, 0.8]),
    "HE": np.asarray([0.4, 1.0, 0.8]),
    "EX": np.asarray([-0.35, -0.8, -0.7]),
    "SE": np.asarray([-0.1, -0.42, -0.8]),
    "OD": np.asarray([-0.24, -0.62, -0.95]),
}
VESSEL = np.asarray([0.28, 0.7, 0.5])
FOVEA = np.asarray([0.3, 0.5, 0.35])
# Fewest and most lesions by grade of retinopathy.
COUNTS = {"MA": ((0, 0), (2, 5), (4, 9), (8, 16), (8, 16)), "HE": ((0, 0), (0, 0), (2, 5), (6, 12), (6, 10))}


@dataclass(frozen=True)
class Retina:
    """One photograph: [H, W, 3] uint8, the masks [H, W] bool of what is there by lesion code, and two points (x, y)."""

    image: np.ndarray
    masks: dict[str, np.ndarray]
    disc: tuple[float, float]
    fovea: tuple[float, float]


def generate_ground(rng: np.random.Generator) -> np.ndarray:
    """Generate the [3] colour of a person's fundus."""
    return np.asarray([198.0, 106.0, 40.0]) * np.exp(rng.normal(0, 0.08) + rng.normal(0, [0.02, 0.05, 0.1]))


def generate_retina(
    rng: np.random.Generator, width: int, ground: np.ndarray, *, grade: int, edema: int, soft: bool, left: bool
) -> Retina:
    """Generate one photograph.

    Args:
        rng: Decides everything that the other arguments do not.
        width: Of the image in pixels; the height follows from the native 4288 x 2848.
        ground: From `generate_ground`.
        grade: Retinopathy 0 to 4: decides how many dark lesions there are.
        edema: 0: no hard exudates, 1: some, but none within a disc diameter of the fovea, 2: some there.
        soft: Whether there are soft exudates.
        left: Whether it is a left eye, with the disc on the left.
    """
    scale = width / WIDTH
    height = max(1, round(width * HEIGHT / WIDTH))
    side = -1 if left else 1
    centre = np.asarray([0.4625 * WIDTH + rng.normal(0, 15), 0.5 * HEIGHT])
    fovea = centre + np.asarray([-150 * side, 0]) + np.clip(rng.normal(0, 60, 2), -120, 120)
    disc = fovea + np.asarray([side * rng.uniform(1180, 1290), rng.uniform(-160, 0)])
    canvas = Canvas(height, width)
    lesions = _Lesions(canvas, rng, scale, disc, centre)
    lesions.add("OD", disc, DISC_RADIUS * rng.uniform(0.93, 1.07), softness=14, wobble=0.01)
    x, y = (fovea * scale).tolist()
    canvas.add(random_shape(rng, x, y, 170 * scale), FOVEA, softness=200 * scale)
    canvas.density += _vessels(rng, disc, side, scale, (height, width))[..., None] * VESSEL.astype(np.float32)
    for _ in range(int(rng.integers(1, 4)) if soft else 0):
        lesions.add("SE", lesions.anywhere(), rng.uniform(70, 130), softness=30, wobble=0.08)
    for code, low, high in (("HE", 35, 90), ("MA", 14, 24)):
        for _ in range(int(rng.integers(COUNTS[code][grade][0], COUNTS[code][grade][1] + 1))):
            lesions.add(code, lesions.anywhere(), rng.uniform(low, high), wobble=0.12 if code == "HE" else 0.02)
    if grade == 4:  # a bleeding in front of the retina
        lesions.add("HE", lesions.anywhere(), rng.uniform(170, 260), softness=14, wobble=0.1)
    if edema:
        _hard_exudates(lesions, rng, fovea, edema)
    image = _photograph(canvas, rng, ground, centre * scale, FIELD_RADIUS * scale, scale)
    # What the border of the field hides is in no mask.
    shown = _distance(centre * scale, (height, width)) < FIELD_RADIUS * scale
    masks = {code: mask & shown for code, mask in lesions.masks.items()}
    return Retina(
        image,
        {code: mask for code, mask in masks.items() if mask.any()},
        (float(disc[0] * scale), float(disc[1] * scale)),
        (float(fovea[0] * scale), float(fovea[1] * scale)),
    )


class _Lesions:
    """Adds lesions to a canvas and remembers which pixels they cover. Positions and radii are in reference pixels."""

    def __init__(self, canvas: Canvas, rng: np.random.Generator, scale: float, disc: np.ndarray, centre: np.ndarray) -> None:
        self.canvas, self.rng, self.scale, self.disc, self.centre = canvas, rng, scale, disc, centre
        self.masks: dict[str, np.ndarray] = {}

    def add(self, code: str, place: np.ndarray, radius: float, softness: float = 6.0, wobble: float = 0.05) -> None:
        """Generate one lesion; it is visible and covers at least one pixel however small the picture is."""
        x, y = place * self.scale
        shape = random_shape(self.rng, float(x), float(y), max(0.8, radius * self.scale), wobble, wobble)
        softness = max(0.7, softness * self.scale)
        self.canvas.add(shape, STAINS[code] * self.rng.uniform(0.85, 1.1), softness)
        mask = self.masks.setdefault(code, np.zeros(self.canvas.density.shape[:2], bool))
        patch = self.canvas.cover(shape, softness)
        if patch is not None:
            mask[patch[0]] |= patch[1] > 0.5
            mask[min(int(y), mask.shape[0] - 1), min(int(x), mask.shape[1] - 1)] = True

    def anywhere(self, allowed: Callable[[np.ndarray], bool] = lambda place: True) -> np.ndarray:
        """Generate a place in the field, beside the optic disc."""
        place = self.centre
        for _ in range(100):
            angle, distance = self.rng.uniform(0, 2 * np.pi), 0.88 * FIELD_RADIUS * np.sqrt(self.rng.random())
            place = self.centre + distance * np.asarray([np.cos(angle), np.sin(angle)])
            free = np.hypot(*(place - self.disc)) > 1.6 * DISC_RADIUS
            if free and 100 < place[1] < HEIGHT - 100 and allowed(place):
                break
        return place


def _hard_exudates(lesions: _Lesions, rng: np.random.Generator, fovea: np.ndarray, edema: int) -> None:
    """Strew clusters of bright spots; those of grade 1 stay more than a disc diameter away from the fovea."""
    limit = 2 * DISC_RADIUS

    def far(place: np.ndarray) -> bool:
        return float(np.hypot(*(place - fovea))) > limit + 80

    clusters = [lesions.anywhere(far) for _ in range(int(rng.integers(1, 3)))]
    if edema == 2:
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(120, 0.7 * limit)
        clusters.append(fovea + distance * np.asarray([np.cos(angle), np.sin(angle)]))
    for cluster in clusters:
        for number in range(int(rng.integers(5, 12))):
            place = cluster + rng.normal(0, 90, 2) * (number > 0)
            if number == 0 or edema == 2 or far(place):
                lesions.add("EX", place, rng.uniform(18, 55), wobble=0.1)


def _vessels(rng: np.random.Generator, disc: np.ndarray, side: int, scale: float, size: tuple[int, int]) -> np.ndarray:
    """Return [H, W] float32 in [0, 1]: arcades that leave the disc, bend around the fovea and branch."""
    import cv2

    canvas = np.zeros(size, np.uint8)
    # (start, heading, bend per step, width, steps, generation); towards the fovea is -side.
    open_ends = []
    for vertical in (-1.0, 1.0):
        for towards, bend in ((-side, 0.045), (side, 0.03)):
            for _ in range(2):
                heading = np.arctan2(vertical, 0.35 * towards) + rng.normal(0, 0.25)
                turn = -vertical * towards * bend * rng.uniform(0.7, 1.3)
                open_ends.append((disc + rng.normal(0, 40, 2), heading, turn, rng.uniform(34, 60), 42, 0))
    while open_ends:
        place, heading, turn, caliber, steps, generation = open_ends.pop()
        for _ in range(steps):
            heading += turn + rng.normal(0, 0.09)
            after = place + 62 * np.asarray([np.cos(heading), np.sin(heading)])
            caliber *= 0.975
            thickness = max(1, round(caliber * scale))
            ends = [tuple(round(float(value) * scale * 16) for value in point) for point in (place, after)]
            shade = int(255 * min(1.0, caliber * scale / thickness))
            cv2.line(canvas, ends[0], ends[1], shade, thickness, cv2.LINE_AA, 4)
            place = after
            if generation < 2 and rng.random() < 0.07:
                fork = heading + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
                open_ends.append((place, fork, -0.3 * turn, 0.65 * caliber, int(rng.integers(10, 26)), generation + 1))
    return canvas.astype(np.float32) / 255


def _distance(centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return [H, W] distances of the pixel centres."""
    x = np.arange(size[1], dtype=np.float32) + np.float32(0.5 - centre[0])
    y = np.arange(size[0], dtype=np.float32) + np.float32(0.5 - centre[1])
    return np.sqrt(x[None] ** 2 + y[:, None] ** 2)


def _photograph(
    canvas: Canvas, rng: np.random.Generator, ground: np.ndarray, centre: np.ndarray, radius: float, scale: float
) -> np.ndarray:
    """Light the canvas: uneven choroid, falling light, the black border of the field, focus and sensor noise."""
    import cv2

    height, width = size = canvas.density.shape[:2]
    distance = _distance(centre, (height, width)) / np.float32(radius)
    texture = np.ones(size, np.float32)
    for rows, strength in ((5, 0.05), (14, 0.04), (28, 0.03)):
        coarse = rng.normal(0, strength, (rows, rows * 3 // 2)).astype(np.float32)
        texture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    light = texture * (1.04 - np.float32(rng.uniform(0.15, 0.3)) * distance**2)
    picture = np.exp(-canvas.density) * ground.astype(np.float32)
    picture *= light[..., None]
    picture *= (1 / (1 + np.exp(np.clip((distance - 1) * np.float32(2 * radius / max(0.7, 6 * scale)), -30, 30))))[..., None]
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.35, 3.0 * scale)), np.float32)
    noise = np.empty((height, width, 3), np.float32)
    rng.standard_normal(dtype=np.float32, out=noise)
    picture += noise * np.float32(rng.uniform(0.6, 1.6))
    return np.clip(picture + 2.0, 0, 255).astype(np.uint8)
