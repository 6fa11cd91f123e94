"""Distance between the surfaces of two hard masks: the 95th percentile of the Hausdorff distance."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import product

import numpy as np

Steps = Sequence[float] | np.ndarray


def step_vectors(spacing: Steps, skew: Steps | None = None) -> np.ndarray:
    """Return [3, 3] vectors from a voxel to the next along each axis; only their lengths and angles mean anything.

    Args:
        spacing: [3] their lengths.
        skew: [3] cosines of the angles between the first two, the first and the last, the last two; None where all are right.
    """
    lengths = np.asarray(spacing, np.float64)
    if skew is None:
        return np.diag(lengths)
    first, second, third = skew
    cosines = np.array([[1, first, second], [first, 1, third], [second, third, 1]], np.float64)
    return np.linalg.cholesky(cosines * np.outer(lengths, lengths))


def hd95(predicted: np.ndarray, truth: np.ndarray, spacing: Steps) -> float:
    """Return the 95th percentile of the distances from each surface to the other, both directions in one list (as medpy).

    The surface is what an erosion by one pixel (neighbours share an edge or a face) removes; beyond the raster is background.

    Args:
        predicted: [...] bool, an image or a volume.
        truth: The same shape.
        spacing: Distance of neighbouring pixels along each axis, or the vectors to them ([axes, n], as `step_vectors`); the
            result has their unit.

    Returns:
        The distance; the diagonal of the raster where one mask is empty, NaN where both are.
    """
    if not predicted.any() or not truth.any():
        return diagonal(truth.shape, spacing) if predicted.any() or truth.any() else float("nan")
    # Nothing outside the common box of both masks is nearer than something inside.
    where = np.nonzero(predicted | truth)
    box = tuple(slice(index.min(), index.max() + 1) for index in where)
    first, second = surface(predicted[box]), surface(truth[box])
    steps = _vectors(spacing)
    distances = [_distances(first, second, steps), _distances(second, first, steps)]
    return float(np.percentile(np.concatenate(distances), 95))


def surface(mask: np.ndarray) -> np.ndarray:
    """[...] bool: the pixels of a mask with a neighbour outside of it."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def diagonal(shape: tuple[int, ...], spacing: Steps) -> float:
    """Return the length of the longest diagonal of a raster; `spacing` as in `hd95`."""
    edges = np.asarray(shape, np.float64)[:, None] * _vectors(spacing)
    return max(float(np.linalg.norm(np.asarray(signs) @ edges)) for signs in product((1, -1), repeat=len(edges)))


def pack(mask: np.ndarray) -> bytes:
    """Pack a bool mask; a few hundred bytes for a blob in a slice."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask that `pack` took."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _vectors(spacing: Steps) -> np.ndarray:
    steps = np.asarray(spacing, np.float64)
    return np.diag(steps) if steps.ndim == 1 else steps


def _distances(points: np.ndarray, targets: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest target, both marked in [...] bool, in the order of the raster."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    angles = steps @ steps.T
    if np.allclose(angles, np.diag(np.diagonal(angles)), rtol=0, atol=1e-12 * angles.max()):
        distances: np.ndarray = distance_transform_edt(~targets, sampling=np.sqrt(np.diagonal(angles)))[points]
    else:  # the transform knows right angles only
        tree = KDTree(np.argwhere(targets) @ steps, balanced_tree=False, compact_nodes=False)
        distances = tree.query(np.argwhere(points) @ steps)[0]
    return distances
