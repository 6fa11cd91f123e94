"""Where the head is, whether or not the skull is shown, and grey values that compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtl.imaging.intensity import brain_mask, standardise

SIZE = (120, 100)


def disc(centre: tuple[float, float], radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.indices(size) + 0.5
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def stripped(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A skull-stripped slice with a dark ventricle (down to 0) and a dark necrosis, and its brain."""
    brain = disc((60, 50), 38)
    image = np.where(brain, np.random.default_rng(seed).normal(500, 60, SIZE), 0)
    image[disc((60, 50), 8)] = 0
    image[disc((45, 30), 7)] = 12
    return np.maximum(image, 0).astype(np.float32), brain


def with_skull(noise: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """A whole head: scalp, dark skull, brain with a very bright tumour, in noisy air."""
    head = disc((60, 50), 44)
    image = np.where(head, 230.0, 0.0)
    image[disc((60, 50), 41)] = 15
    image[disc((60, 50), 37)] = 70
    image[disc((50, 40), 9)] = 255
    return np.abs(image + np.random.default_rng(1).normal(0, noise, SIZE)).astype(np.float32), head


def test_skull_stripped_slices_keep_everything_down_to_the_last_pixel() -> None:
    image, brain = stripped()
    np.testing.assert_array_equal(brain_mask(image), brain)
    # Grey values have no unit, and other channels may be blank or show the same place otherwise.
    np.testing.assert_array_equal(brain_mask(image * 0.003), brain)
    np.testing.assert_array_equal(brain_mask(np.stack([np.zeros(SIZE), image, image[::-1, ::-1][::-1, ::-1] * 7], 2)), brain)


def test_lobes_that_do_not_touch_are_both_brain_but_a_caption_is_not() -> None:
    image = np.zeros(SIZE, np.float32)
    lobes = disc((60, 25), 16) | disc((60, 75), 14)
    image[lobes] = 300
    np.testing.assert_array_equal(brain_mask(image), lobes)
    image[4:8, 4:20] = 300
    np.testing.assert_array_equal(brain_mask(image), lobes)


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_a_head_with_skull_is_found_whole(noise: float) -> None:
    image, head = with_skull(noise)
    mask = brain_mask(image)
    assert np.count_nonzero(mask ^ head) < 0.09 * np.count_nonzero(head)  # two pixels of its outline
    assert mask[disc((60, 50), 40)].all()  # the dark skull and the brain, darker than scalp and tumour


def test_frames_and_margins_are_no_head() -> None:
    image, head = with_skull()
    framed = image.copy()
    framed[:3], framed[-3:], framed[:, :3], framed[:, -3:] = 255, 255, 255, 255
    assert np.count_nonzero(brain_mask(framed) ^ head) < 0.08 * np.count_nonzero(head)
    grey = image + 25  # air that is not black
    assert np.count_nonzero(brain_mask(grey) ^ head) < 0.08 * np.count_nonzero(head)


def test_nothing_is_nothing() -> None:
    assert not brain_mask(np.zeros(SIZE, np.float32)).any()
    assert not brain_mask(np.zeros((*SIZE, 4), np.float32)).any()
    speck = np.zeros(SIZE, np.float32)
    speck[3, 3] = 900
    assert not brain_mask(speck).any()
    assert not standardise(speck[..., None], brain_mask(speck), "zscore", 4.0).any()


def test_standardised_values_are_z_and_do_not_depend_on_the_unit() -> None:
    image, brain = stripped()
    channels = np.stack([image, 40 + 3 * image, np.zeros(SIZE, np.float32)], axis=2)
    unit = standardise(channels, brain, "zscore", 4.0)
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    assert not unit[~brain].any() and not unit[..., 2].any()  # background and missing modality
    z = (image[brain] - image[brain].mean()) / image[brain].std()
    np.testing.assert_allclose(unit[..., 0][brain], np.clip(0.5 + z / 8, 0, 1), atol=1e-5)
    np.testing.assert_allclose(unit[..., 1], unit[..., 0], atol=1e-5)
    tight = standardise(channels, brain, "zscore", 0.5)
    np.testing.assert_allclose(tight[..., 0][brain], np.clip(0.5 + z, 0, 1), atol=1e-5)
    by_percentile = standardise(channels, brain, "percentile", 4.0)[..., 0]
    low, high = np.percentile(image[brain], (1, 99))
    np.testing.assert_allclose(by_percentile[brain], np.clip((image[brain] - low) / (high - low), 0, 1), atol=1e-5)


def test_both_real_sources(real_data: Path) -> None:
    """On volumes the mask is what is not 0, holes filled; on pictures it is neither empty nor, but for some, everything."""
    from mtl.data.families.brain.family import Brain

    if not (real_data / "brain_brats").is_dir() or not (real_data / "brain_kaggle").is_dir():
        pytest.skip("no brain images here")
    family = Brain()
    records = family.records()
    slices = [record for record in records if record.source == "brats"][::9]
    for record in slices:
        image = family.read_image(record)[..., 0]
        mask = brain_mask(image)
        assert np.count_nonzero((image > 0) & ~mask) < 0.002 * mask.sum()
        assert np.count_nonzero(mask) < 1.04 * np.count_nonzero(image)
    pictures = [record for record in records if record.source == "kaggle"][::5]
    shares = np.asarray([brain_mask(family.read_image(record)).mean() for record in pictures])
    assert shares.min() > 0.25 and np.mean(shares > 0.95) < 0.05
