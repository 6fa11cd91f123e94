"""Distances of surfaces: against all pairs of surface pixels, the empty rules, and the packing of masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mtl.metrics.surface import diagonal, hd95, pack, step_vectors, surface, unpack


def surface_by_hand(mask: np.ndarray) -> np.ndarray:
    """[n, axes] pixels of the mask with a neighbour along an axis that is outside of it or of the raster."""
    found = []
    for place in map(tuple, np.argwhere(mask)):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(place)
                break
    return np.array(found, float)


def hd95_by_hand(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...] | np.ndarray) -> float:
    steps = np.diag(spacing) if np.ndim(spacing) == 1 else np.asarray(spacing)
    first, second = surface_by_hand(predicted) @ steps, surface_by_hand(truth) @ steps
    pairs = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return float(np.percentile(np.concatenate([pairs.min(1), pairs.min(0)]), 95))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((17, 13), (1.0, 1.0)), ((17, 13), (0.4, 2.5)), ((6, 9, 8), (1.0, 1.0, 1.0)), ((6, 9, 8), (5.0, 0.7, 1.3)),
     ((1, 9, 8), (5.0, 1.0, 2.0))],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_it_equals_all_pairs(
    shape: tuple[int, ...], spacing: tuple[float, ...], share: float, generator: np.random.Generator
) -> None:
    for _ in range(4):
        predicted, truth = generator.random(shape) < share, generator.random(shape) < share / 2
        predicted.flat[generator.integers(predicted.size)] = truth.flat[generator.integers(truth.size)] = True
        assert hd95(predicted, truth, spacing) == pytest.approx(hd95_by_hand(predicted, truth, spacing), abs=1e-9)
        assert hd95(truth, predicted, spacing) == pytest.approx(hd95(predicted, truth, spacing))


def test_solid_bodies_by_hand() -> None:
    """A square moved by three rows of 2 mm: its upper and lower edges lie 6 mm apart."""
    truth, predicted = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[4:10, 4:10] = predicted[7:13, 4:10] = True
    assert surface(truth).sum() == 20
    assert hd95(predicted, truth, (2.0, 1.0)) == pytest.approx(hd95_by_hand(predicted, truth, (2.0, 1.0)))
    assert hd95(truth, truth, (2.0, 1.0)) == 0.0
    # Three pixels along the columns are nearer than along the rows.
    assert hd95(predicted.T, truth.T, (2.0, 1.0)) < hd95(predicted, truth, (2.0, 1.0))


@pytest.mark.parametrize("angle", [25.0, -25.0, 60.0])
def test_axes_need_not_be_at_right_angles(angle: float, generator: np.random.Generator) -> None:
    """Slices of 6 mm that lean towards the rows: what lies a slice above is farther than 6 mm."""
    tangent = np.tan(np.deg2rad(angle))
    lean = np.array([[6.0, 6 * tangent, 0], [0, 1.5, 0], [0, 0, 0.5]])  # slice, row, column in millimetres
    lengths = np.linalg.norm(lean, axis=1)
    cosines = [lean[a] @ lean[b] / lengths[a] / lengths[b] for a, b in ((0, 1), (0, 2), (1, 2))]
    steps = step_vectors(lengths, cosines)
    np.testing.assert_allclose(steps @ steps.T, lean @ lean.T, atol=1e-9)
    assert abs(np.linalg.det(steps)) == pytest.approx(6 * 1.5 * 0.5)
    for _ in range(3):
        predicted, truth = generator.random((2, 5, 9, 8)) < 0.1
        assert hd95(predicted, truth, steps) == pytest.approx(hd95_by_hand(predicted, truth, lean), abs=1e-9)
        assert hd95(predicted[0], truth[0], steps[1:]) == pytest.approx(hd95_by_hand(predicted[0], truth[0], (1.5, 0.5)))
    one, other = np.zeros((5, 9, 8), bool), np.zeros((5, 9, 8), bool)
    one[0, 4, 4] = other[1, 4, 4] = True
    assert hd95(one, other, steps) == pytest.approx(6 / np.cos(np.deg2rad(angle)))
    corner = np.abs(np.array([5 * 6, 5 * 6 * abs(tangent) + 9 * 1.5, 8 * 0.5]))
    assert diagonal((5, 9, 8), steps) == pytest.approx(np.linalg.norm(corner))
    np.testing.assert_array_equal(step_vectors((3.0, 2.0, 1.0)), np.diag([3.0, 2.0, 1.0]))


def test_empty_masks() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert np.isnan(hd95(empty, empty, (1, 1)))
    assert hd95(empty, full, (2.0, 2.0)) == hd95(full, empty, (2.0, 2.0)) == diagonal((3, 4), (2.0, 2.0)) == 10.0


def test_masks_are_packed_small(generator: np.random.Generator) -> None:
    noise, blob = generator.random((37, 51)) < 0.5, np.zeros((240, 240), bool)
    blob[60:120, 70:150] = True
    for mask in (noise, blob):
        np.testing.assert_array_equal(unpack(pack(mask), mask.shape), mask)
    assert len(pack(blob)) < 400
