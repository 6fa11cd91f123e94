"""Generates brains slice by slice as four MR sequences see them, with ventricles, folds and a tumour in three parts.

Coordinates are those of the brain: x to the patient's left, y to the back, z to the top, each from -1 to 1; what is beyond 1 is
skull and scalp. Slices of one head share its folds and its tumour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Brightness of cerebrospinal fluid, grey and white matter, oedema, necrosis and enhancing tumour.
CSF, GREY, WHITE, OEDEMA, NECROSIS, ENHANCING = range(1, 7)
SEQUENCES = {
    "flair": (0.0, 0.14, 0.50, 0.40, 0.95, 0.42, 0.80),
    "t1": (0.0, 0.18, 0.48, 0.68, 0.40, 0.26, 0.46),
    "t1ce": (0.0, 0.18, 0.46, 0.62, 0.38, 0.22, 1.00),
    "t2": (0.0, 1.00, 0.60, 0.44, 0.88, 0.80, 0.66),
}
LABELS = np.zeros(7, np.uint8)
LABELS[[OEDEMA, NECROSIS, ENHANCING]] = 2, 1, 4  # as BraTS has them
PARTS = ((1.0, OEDEMA), (0.62, ENHANCING), (0.4, NECROSIS))  # radius in radii of the tumour, from the outside
FOLDS = (7, 26, 26)  # random values per head along z, y, x, from which folds are interpolated
SKULL, SCALP = (0.06, 0.12), (0.75, 0.22)  # brightness, distance of the outer edge from the brain


@dataclass(frozen=True)
class Head:
    """What makes a head its own: half axes (x, y), folds [z, y, x], size of the ventricles, tumour (x, y, z) and its radius."""

    axes: tuple[float, float]
    folds: np.ndarray
    ventricles: float
    tumor: tuple[float, float, float]
    radius: float


def generate_head(rng: np.random.Generator) -> Head:
    """Generate a head; its tumour lies off the middle and reaches neither the top nor the bottom."""
    angle = rng.uniform(0, 2 * np.pi)
    return Head(
        axes=(rng.uniform(0.52, 0.57), rng.uniform(0.64, 0.7)),
        folds=rng.normal(size=FOLDS).astype(np.float32),
        ventricles=rng.uniform(0.7, 1.3),
        tumor=(0.42 * np.cos(angle), 0.42 * np.sin(angle), rng.uniform(-0.3, 0.3)),
        radius=rng.uniform(0.4, 0.52),
    )


def tissue_of(head: Head, x: np.ndarray, y: np.ndarray, z: float, tumor: bool) -> np.ndarray:
    """Return what is where in the plane z: [H, W] uint8, 0 outside the brain, else `CSF` to `ENHANCING`."""
    folds = _folds(head, x, y, z)
    radius = _radius(x, y, z) * (1 + 0.03 * folds)
    tissue = np.where(radius + 0.22 * folds < 0.72, WHITE, GREY).astype(np.uint8)
    tissue[(radius > 0.78) & (folds > 0.9)] = CSF
    if abs(z) < 0.45:
        wide = head.ventricles * np.sqrt(1 - (z / 0.45) ** 2)
        horns = ((np.abs(x) - 0.14) / (0.1 * wide)) ** 2 + ((y + 0.05) / (0.34 * wide)) ** 2
        tissue[horns < 1 + 0.3 * folds] = CSF
    if tumor:
        centre = head.tumor
        distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) / head.radius
        for share, part in PARTS:
            tissue[distance * (1 + 0.06 * folds) < share] = part
    tissue[radius >= 1] = 0
    return tissue


def paint(rng: np.random.Generator, head: Head, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, sequence: str) -> np.ndarray:
    """Give tissue the brightness of a sequence, with noise: [H, W] float32 of about 0 to 1, exactly 0 outside the brain."""
    import cv2

    clean = np.asarray(SEQUENCES[sequence], np.float32)[tissue]
    drift = 1 + 0.08 * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y)
    noisy = cv2.GaussianBlur(clean, (0, 0), 0.6) * drift + rng.normal(0, 0.02, tissue.shape)
    return np.where(tissue > 0, np.maximum(noisy, 0.02), 0).astype(np.float32)


def add_skull(rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Generate skull and scalp around a painted brain [H, W], with noise in the air."""
    beyond = _radius(x, y, z) - 1
    for brightness, edge in (SCALP, SKULL):
        ring = (picture == 0) & (beyond < edge)
        picture = (
            np.where(ring & (beyond >= 0), brightness, picture) if brightness > 0.5 else np.where(ring, brightness, picture)
        )
    return np.abs(picture + rng.normal(0, 0.012, picture.shape)).astype(np.float32)


def _radius(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Distance from the middle axis in units of the brain's outline at this height."""
    return np.sqrt(x**2 + y**2) / np.sqrt(1 - z**2)


def _folds(head: Head, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Interpolate the head's random values: [H, W], standard deviation about 1."""
    import cv2

    height = (z + 1) / 2 * (FOLDS[0] - 1)
    below = min(int(height), FOLDS[0] - 2)
    plane = head.folds[below] * (1 - (height - below)) + head.folds[below + 1] * (height - below)
    columns, rows = ((axis + 1.3) / 2.6 * (count - 1) for axis, count in ((x, FOLDS[2]), (y, FOLDS[1])))
    maps = np.broadcast_arrays(columns.astype(np.float32), rows.astype(np.float32))
    return 1.5 * cv2.remap(plane, maps[0].copy(), maps[1].copy(), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
