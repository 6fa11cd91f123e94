from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing, equalise

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


GREY = {"method": "zscore", "limit": 4.0}


def slice_of(channels: int) -> np.ndarray:
    """Grey values in a unit of their own inside a disc: [80, 80, channels] float32."""
    rows, columns = np.indices((80, 80))
    inside = (rows - 40) ** 2 + (columns - 40) ** 2 < 30**2
    image = np.random.default_rng(0).normal(900, 100, (80, 80, channels)) * inside[..., None]
    return image.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_network_gets_z_back(channels):
    encoder = {"mean": [0.4] * channels, "std": [0.2] * channels}
    preprocessing = Preprocessing.from_config(GEOMETRY, {"foreground": GREY}, encoder)
    image = slice_of(channels)
    working = preprocessing.working(image)
    assert working.shape == (64, 64, channels) and working.dtype == np.float16
    network = preprocessing.normalize(preprocessing.crop(working, preprocessing.windows((80, 80))[0]))
    assert network.shape == (channels, 64, 64) and network.dtype == np.float32
    same_size = Preprocessing.from_config({"mode": "stretch", "size": [96, 96]}, {"foreground": GREY}, encoder)
    z = same_size.normalize(np.asarray(same_size.standardised(image)))
    for channel in range(channels):
        values = image[..., channel][image[..., channel] > 0]
        np.testing.assert_allclose(
            z[channel][image[..., channel] > 0], np.clip((values - values.mean()) / values.std(), -4, 4), atol=0.01
        )
    assert (z[:, 0, 0] == -4).all() and preprocessing.mean == (0.5,) * channels
    by_percentile = Preprocessing.from_config(GEOMETRY, {"foreground": {"method": "percentile", "limit": 4.0}}, encoder)
    assert by_percentile.std == (0.25,) * channels
    assert Preprocessing.from_config(GEOMETRY, {"foreground": GREY, "mean": [0.1], "std": [1.0]}, encoder).mean == (0.1,)


def test_foreground_is_stored_and_keys_the_cache():
    preprocessing = Preprocessing.from_config(GEOMETRY, {"foreground": GREY}, ENCODER)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    other = Preprocessing.from_config(GEOMETRY, {"foreground": {"method": "zscore", "limit": 3.0}}, ENCODER)
    plain = Preprocessing.from_config(GEOMETRY, {}, ENCODER)
    assert len({str(some.raster_key()) for some in (preprocessing, other, plain)}) == 3
    for wrong in ({"method": "minmax"}, {"method": "zscore", "limit": 0}):
        with pytest.raises(ConfigError, match="foreground"):
            Preprocessing.from_config(GEOMETRY, {"foreground": wrong}, ENCODER)
    with pytest.raises(ConfigError, match="clahe=null"):
        Preprocessing.from_config(GEOMETRY, {"foreground": GREY, "clahe": {"clip_limit": 2.0, "tiles": 4}}, ENCODER)


@pytest.mark.parametrize("fill", [128, [0, 255], -1])
def test_padding_lies_in_the_unit_interval_of_a_foreground(fill):
    geometry = {**GEOMETRY, "fill": fill}
    with pytest.raises(ConfigError, match=r"`data\.geometry\.fill` is .*; expected 0 to 1"):
        Preprocessing.from_config(geometry, {"foreground": GREY}, ENCODER)
    assert Preprocessing.from_config(geometry, {}, ENCODER).geometry.fill == (tuple(fill) if isinstance(fill, list) else fill)
    assert Preprocessing.from_config({**GEOMETRY, "fill": 1}, {"foreground": GREY}, ENCODER).geometry.fill == 1


def test_pictures_for_figures_are_rgb_whatever_the_channels():
    plain = Preprocessing.from_config(GEOMETRY, {}, ENCODER)
    colours = noisy()
    assert plain.picture(colours) is colours and plain.display(colours) is colours
    for channels in (1, 2, 3, 4):
        grey = Preprocessing.from_config(GEOMETRY, {"foreground": GREY}, {"mean": [0] * channels, "std": [1] * channels})
        image = slice_of(channels)
        image[..., : channels - 1] = 0  # only the last modality exists
        picture = grey.picture(image)
        assert picture.shape == (80, 80, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture[..., 0], picture[..., 2])
        assert picture.max() > 150 and not picture[0, 0].any()
        raster = grey.working(image)
        shown = grey.denormalize(grey.normalize(grey.crop(raster, grey.windows((80, 80))[0])))
        np.testing.assert_array_equal(shown, grey.display(raster))
    assert plain.picture(slice_of(1)).max() == 255  # float in a unit of its own, nothing known about it
