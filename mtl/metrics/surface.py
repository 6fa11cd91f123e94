"""Distance between the surfaces of two hard masks: the 95th percentile of the Hausdorff distance."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

Steps = Sequence[float] | np.ndarray


def hd95(predicted: np.ndarray, truth: np.ndarray, spacing: Steps) -> float:
    """Return the 95th percentile of the distances from each surface to the other, both directions in one list (as medpy).

    The surface is what an erosion by one pixel (neighbours share an edge or a face) removes; beyond the raster is background.

    Args:
        predicted: [...] bool, an image or a volume.
        truth: The same shape.
        spacing: Distance of neighbouring pixels along each axis; the result has its unit.

    Returns:
        The distance; the diagonal of the raster where one mask is empty, NaN where both are.
    """
    if not predicted.any() or not truth.any():
        return diagonal(truth.shape, spacing) if predicted.any() or truth.any() else float("nan")
    # Nothing outside the common box of both masks is nearer than something inside.
    where = np.nonzero(predicted | truth)
    box = tuple(slice(index.min(), index.max() + 1) for index in where)
    first, second = surface(predicted[box]), surface(truth[box])
    distances = [_distance_to(second, spacing)[first], _distance_to(first, spacing)[second]]
    return float(np.percentile(np.concatenate(distances), 95))


def surface(mask: np.ndarray) -> np.ndarray:
    """[...] bool: the pixels of a mask with a neighbour outside of it."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def diagonal(shape: tuple[int, ...], spacing: Steps) -> float:
    """Return the length of the diagonal of a raster."""
    return float(np.linalg.norm(np.asarray(shape, np.float64) * np.asarray(spacing, np.float64)))


def pack(mask: np.ndarray) -> bytes:
    """Pack a bool mask; a few hundred bytes for a blob in a slice."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask that `pack` took."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _distance_to(points: np.ndarray, spacing: Steps) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    distances: np.ndarray = distance_transform_edt(~points, sampling=spacing)
    return distances
