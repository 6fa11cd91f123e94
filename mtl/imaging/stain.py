"""Stains of tissue in optical density: how to tell haematoxylin and eosin apart, and to make all slides look like one.

Light that passes two layers is absorbed twice, so stains add up in optical density (minus the logarithm of the transmitted
share). Normalisation has two steps: `estimate` looks at an image (or once at windows spread over a slide) and returns plain
numbers, `restain` brings any part of it to a fixed reference. What carries no stain stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.errors import ConfigError

METHODS = ("macenko", "reinhard")
Estimate = dict[str, Any]

# Stain vectors of haematoxylin, eosin and the residual (Ruifrok and Johnston 2001), one per row, in optical density.
STAINS = np.asarray([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float64)
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
OPTICAL_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)

# What images become. Haematoxylin and eosin and their 99th percentiles in the reference of Macenko's method; mean and deviation
# of the breast slide TCGA-A2-A3XS, to which Amgad et al. (2019, doi 10.1093/bioinformatics/btz083) normalise, in l alpha beta.
REFERENCE_STAINS = np.asarray([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], np.float64)
REFERENCE_MAXIMA = np.asarray([1.9705, 1.0308], np.float64)
REFERENCE_MEAN = np.asarray([8.74108109, -0.12440419, 0.0444982], np.float64)
REFERENCE_STD = np.asarray([0.6135447, 0.10989545, 0.0286032], np.float64)

# RGB to the responses of the three kinds of cones, and their logarithms to l alpha beta (Ruderman et al. 1998).
CONES = np.asarray([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]], np.float64)
OPPONENTS = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.asarray([[1, 1, 1], [1, 1, -2], [1, -1, 0]], np.float64)

LOOKED_AT = 2**18  # pixels of an image, evenly spread
LEAST_SHARE = 0.005  # of the pixels that must carry stain: with fewer there is nothing to normalise
EXTREMES = (1.0, 99.0)  # percentiles that count as smallest and largest angle and amount
LEAST_AMOUNT = 0.05  # of a stain at its 99th percentile, in optical density; below, one of the two is missing


def estimate(image: np.ndarray, method: str = "macenko", density: float = 0.15) -> Estimate:
    """Describe the staining of an image by a few numbers.

    `macenko` finds the two stains as the extreme directions in the plane that holds most of the optical density (Macenko et al.
    2009, doi 10.1109/ISBI.2009.5193250), `reinhard` the mean and deviation of the colours in a space in which they hardly
    depend on each other (Reinhard et al. 2001, doi 10.1109/38.946629). Only pixels that carry stain count.

    Args:
        image: [H, W, 3] uint8 RGB, any part or scale of the slide.
        method: `macenko` or `reinhard`.
        density: Mean optical density of the three colours above which a pixel counts as stained.

    Returns:
        Plain lists, which JSON can hold: `stains` [2][3] (unit vectors, haematoxylin first) and `maxima` [2]; or `mean` [3],
        `std` [3] and `density`. Empty where there is next to no stain: such an image stays as it is.

    Raises:
        ConfigError: The image is not RGB of 8 bits.
    """
    _check(image)
    pixels = image.reshape(-1, 3)
    pixels = pixels[:: max(1, len(pixels) // LOOKED_AT)]
    values = OPTICAL_DENSITY[pixels].astype(np.float64)
    stained = values.mean(axis=1) > density
    if stained.sum() < max(LEAST_SHARE * len(pixels), 16):
        return {}
    if method == "macenko":
        return _stains_of(values[stained])
    colours = _opponents(pixels[stained])
    std = colours.std(axis=0)
    if not (std > 1e-6).all():
        return {}
    return {"mean": colours.mean(axis=0).tolist(), "std": std.tolist(), "density": float(density)}


def restain(image: np.ndarray, estimate: Estimate) -> np.ndarray:
    """Bring an image to the reference staining.

    Args:
        image: [H, W, 3] uint8 RGB.
        estimate: Result of `estimate`, of this image or of the slide that it is a part of.

    Returns:
        [H, W, 3] uint8; white stays white, and with an empty estimate everything stays.

    Raises:
        ConfigError: The image is not RGB of 8 bits.
    """
    _check(image)
    if not estimate:
        return image
    if "stains" in estimate:
        stains, maxima = np.asarray(estimate["stains"], np.float64), np.asarray(estimate["maxima"], np.float64)
        reference = REFERENCE_STAINS / np.linalg.norm(REFERENCE_STAINS, axis=1, keepdims=True)
        return mix(image, reference.T @ np.diag(REFERENCE_MAXIMA / maxima) @ np.linalg.pinv(stains.T))
    return _recolour(image, estimate)


def mix(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map the optical densities of an image [H, W, 3] uint8 by a matrix [3, 3], or [3, 4] with a shift."""
    import cv2

    density = cv2.transform(cv2.LUT(image, OPTICAL_DENSITY), matrix.astype(np.float32))
    return np.clip(np.rint(cv2.exp(-density) * 255.0), 0, 255).astype(np.uint8)


def _stains_of(values: np.ndarray) -> Estimate:
    """Find two stains and their amounts in optical densities [N, 3]."""
    _, vectors = np.linalg.eigh(np.cov(values.T))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)  # densities are positive
    projected = values @ plane
    angles = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), EXTREMES)
    stains = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    alike = stains @ STAINS[:2].T
    if alike[0, 0] + alike[1, 1] < alike[0, 1] + alike[1, 0]:
        stains = stains[::-1]
    try:
        amounts = values @ np.linalg.pinv(stains)
    except np.linalg.LinAlgError:
        return {}
    maxima = np.percentile(amounts, EXTREMES[1], axis=0)
    # A single stain: both directions are the same, and amounts along them are arbitrary.
    apart = np.linalg.norm(stains[0] - stains[1])
    if not (np.isfinite(maxima).all() and maxima.min() > LEAST_AMOUNT and apart > 0.05):
        return {}
    return {"stains": stains.tolist(), "maxima": maxima.tolist()}


def _opponents(pixels: np.ndarray) -> np.ndarray:
    """Turn RGB [..., 3] uint8 into l alpha beta, [..., 3] float64."""
    cones = np.maximum(pixels, 1).astype(np.float64) @ CONES.T
    return np.log(cones) @ OPPONENTS.T


def _recolour(image: np.ndarray, estimate: Estimate) -> np.ndarray:
    """Give the colours the mean and deviation of the reference, as far as a pixel carries stain."""
    output = np.empty_like(image)
    factor = REFERENCE_STD / np.asarray(estimate["std"])
    for row in range(0, len(image), 256):  # the space takes eight bytes per value
        part = image[row : row + 256]
        colours = (_opponents(part) - np.asarray(estimate["mean"])) * factor + REFERENCE_MEAN
        moved = np.exp(colours @ np.linalg.inv(OPPONENTS).T) @ np.linalg.inv(CONES).T
        # Without this the glass would take on a colour.
        share = np.clip(OPTICAL_DENSITY[part].mean(axis=2, keepdims=True) / estimate["density"], 0.0, 1.0)
        output[row : row + 256] = np.clip(np.rint(part + share * (np.clip(moved, 0, 255) - part)), 0, 255)
    return output


def _check(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ConfigError(
            f"`data.preprocessing.stain` needs RGB images of 8 bits; found {image.shape[2:]} channels of {image.dtype}. Set "
            "data.preprocessing.stain=null."
        )
