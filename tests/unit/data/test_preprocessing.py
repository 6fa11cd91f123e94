from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.data.geometry import Geometry
from mtl.data.preprocessing import Preprocessing, equalise

GEOMETRY = {"mode": "stretch", "size": [64, 64]}
ENCODER = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25]}


def noisy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 140, (64, 64, 3)).astype(np.uint8)


def test_normalisation_is_that_of_the_encoder_unless_set():
    from_encoder = Preprocessing.from_config(GEOMETRY, {"clahe": None, "mean": None, "std": None}, ENCODER)
    assert from_encoder.mean == (0.5, 0.4, 0.3)
    assert Preprocessing.from_config(GEOMETRY, {"mean": [0, 0, 0], "std": [1, 1, 1]}, ENCODER).std == (1.0, 1.0, 1.0)
    image = noisy()
    expected = np.moveaxis((image / 255.0 - ENCODER["mean"]) / ENCODER["std"], -1, 0)
    output = from_encoder.normalize(image)
    assert output.dtype == np.float32 and output.flags.c_contiguous
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_array_equal(from_encoder.denormalize(output), image)


def test_float_images_are_in_their_own_unit():
    preprocessing = Preprocessing(Geometry(), mean=(100.0,), std=(10.0,))
    np.testing.assert_allclose(preprocessing.normalize(np.full((4, 4, 1), 120.0, np.float32)), 2.0)


def test_clahe_changes_lightness_only():
    image = noisy()
    equalised = equalise(image, 2.5, 4)
    before, after = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(int), cv2.cvtColor(equalised, cv2.COLOR_RGB2LAB).astype(int)
    assert np.abs(before[..., 0] - after[..., 0]).mean() > 5
    # The way back through 8-bit RGB may clip a saturated colour, hence the median.
    assert np.median(np.abs(before[..., 1:] - after[..., 1:])) <= 1
    with_clahe = Preprocessing.from_config(GEOMETRY, {"clahe": {"clip_limit": 2.5, "tiles": 4}}, ENCODER)
    np.testing.assert_array_equal(with_clahe.working(image), equalised)
    other = Preprocessing.from_config(GEOMETRY, {"clahe": {"clip_limit": 9.0, "tiles": 2}}, ENCODER)
    assert (other.working(image) != equalised).any()


def test_round_trip_through_json():
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), overlap=32), {"clip_limit": 2, "tiles": 8}, (0.1,), (0.2,))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_raster_key_follows_pixels_only():
    base = Preprocessing(Geometry("tiles", (64, 64), overlap=32))
    same = Preprocessing(Geometry("tiles", (128, 128), overlap=64, fill=9), mean=(0, 0, 0), std=(1, 1, 1))
    assert base.raster_key() == same.raster_key()
    assert base.raster_key() != Preprocessing(Geometry("tiles", (64, 64), scale=0.5, overlap=32)).raster_key()
    assert base.raster_key() != Preprocessing(base.geometry, {"clip_limit": 2.0, "tiles": 8}).raster_key()


def test_wrong_values():
    with pytest.raises(ConfigError, match="mean"):
        Preprocessing(Geometry(), mean=(0.5,), std=(0.0,))
    with pytest.raises(ConfigError, match="clahe"):
        Preprocessing(Geometry(), {"clip_limit": 0, "tiles": 8})
    with pytest.raises(ConfigError, match="1 channels"):
        Preprocessing(Geometry()).normalize(np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(ConfigError, match="clahe=null"):
        equalise(np.zeros((8, 8, 3), np.float32), 2.0, 2)
