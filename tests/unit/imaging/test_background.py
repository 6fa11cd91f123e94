"""Background is whatever value it has: one at the border, or noisy air."""

from __future__ import annotations

import numpy as np
import pytest

from mtl.imaging.background import above_air, background_value, not_background
from mtl.imaging.intensity import brain_mask, standardise


def brain(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A volume of 8 slices, the outer ones empty, and where its brain is."""
    slices, rows, columns = np.indices((8, 90, 80))
    inside = (rows - 45) ** 2 + (columns - 40) ** 2 < 32**2
    inside &= (slices > 1) & (slices < 7)
    return np.where(inside, np.random.default_rng(seed).normal(500, 60, inside.shape), 0).astype(np.float32), inside


@pytest.mark.parametrize("value", [0.0, -1024.0, 120.0, -3.5])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_one_value_of_any_size_is_background_to_the_last_voxel(value: float, dtype: type) -> None:
    volume, inside = brain()
    moved = np.where(inside, volume, value).astype(dtype)
    assert background_value(moved) == dtype(value)
    np.testing.assert_array_equal(not_background(moved), inside)
    np.testing.assert_array_equal(brain_mask(moved[4]), inside[4])
    # The network sees the same, whatever the value.
    expected = standardise(volume[4][..., None].astype(dtype), inside[4], "zscore", 4.0)
    found = standardise(moved[4][..., None], brain_mask(moved[4]), "zscore", 4.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, -1024.0, 300.0])
@pytest.mark.parametrize("decimals", [0, 3])
def test_noisy_air_is_background(offset: float, decimals: int) -> None:
    volume, inside = brain()
    noise = np.abs(np.random.default_rng(1).normal(0, 5, volume.shape))
    noisy = np.round(np.where(inside, volume, noise) + offset, decimals).astype(np.float32)
    assert background_value(noisy) is None
    shown = not_background(noisy)
    assert np.count_nonzero(shown ^ inside) < 0.02 * np.count_nonzero(inside)
    assert not shown[:2].any() and not shown[7].any()


def test_air_is_the_most_frequent_dark_value_or_that_of_the_edge() -> None:
    # Roots of 0.04, 0.16 and 1 are levels 51, 102 and 255; halfway from the air to Otsu's threshold (102) is 76.5 or 102.
    grey = np.full((10, 10), 0.16, np.float32)
    grey[0], grey[4, 2:8] = 0.04, 1.0
    edge = np.zeros(grey.shape, bool)
    edge[0] = True
    np.testing.assert_array_equal(above_air(grey), grey == 1)  # 0.16 is the most frequent
    np.testing.assert_array_equal(above_air(grey, edge=edge), grey > 0.04)
    np.testing.assert_array_equal(above_air(grey, possible=edge), grey > 0.04)
    np.testing.assert_array_equal(above_air(np.stack([grey, grey]), edge=np.stack([edge, edge])), np.stack([grey, grey]) > 0.04)


def test_nothing_shows_nothing() -> None:
    for value in (0, -1024, 7):
        assert not not_background(np.full((4, 9, 9), value, np.int16)).any()


def test_a_white_frame_is_no_background() -> None:
    volume, inside = brain()
    framed = volume[4].copy()
    framed[:3], framed[-3:], framed[:, :3], framed[:, -3:] = 900, 900, 900, 900
    assert np.count_nonzero(brain_mask(framed) ^ inside[4]) < 0.05 * np.count_nonzero(inside[4])
