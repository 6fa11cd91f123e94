from __future__ import annotations

import cv2
import numpy as np
import pytest

from mtl.imaging.content import content_box
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing


def fundus(size=(200, 400), centre=(180, 100), radius=120) -> np.ndarray:
    """A bright disc that the camera cuts at the top and bottom, on a noisy black ground."""
    image = np.random.default_rng(0).integers(0, 6, (*size, 3)).astype(np.uint8)
    cv2.circle(image, centre, radius, (200, 110, 40), -1)
    image[5:12, 380:390] = 255  # a label burnt into the border
    return image


def test_the_border_is_found_and_small_marks_are_not_picture():
    left, top, right, bottom = content_box(fundus())
    assert (top, bottom) == (0, 200) and abs(left - 60) <= 3 and abs(right - 301) <= 3
    large = cv2.resize(fundus(), (1600, 800), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(np.asarray(content_box(large)) / 4, (left, top, right, bottom), atol=3)
    wider = content_box(fundus(), margin=0.1)
    assert wider[0] < left - 15 and wider[2] > right + 15


@pytest.mark.parametrize("image", [np.zeros((50, 60, 3), np.uint8), np.full((50, 60, 3), 90, np.uint8)])
def test_an_image_without_border_stays_whole(image):
    assert content_box(image) == (0, 0, 60, 50)


@pytest.mark.parametrize("crop", [None, {"threshold": 0.06, "margin": 0.0}])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_what_lies_outside_the_circle_is_filled(mode, crop):
    preprocessing = Preprocessing(Geometry(mode, (96, 128), fill=9), crop_border=crop, circle=True)
    image = fundus()
    raster, window = preprocessing.working(image), preprocessing.windows((200, 400), content=preprocessing.content(image))[0]
    assert raster.shape[:2] == window.working_size
    y, x = np.mgrid[: raster.shape[0], : raster.shape[1]] + 0.5
    points = window.working_to_original(np.stack([x, y], -1))
    distance = np.linalg.norm(points - (180.5, 100), axis=-1)
    assert (raster[distance > 127] == 9).all() and (raster[distance < 112][:, 0] > 150).all()


def test_settings_travel_with_the_checkpoint_and_key_the_cache():
    settings = {"crop": {"threshold": 0.1, "margin": 0.02}, "circle": True}
    preprocessing = Preprocessing.from_config({"mode": "stretch", "size": [64, 64]}, settings)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    keys = [
        Preprocessing.from_config({"mode": "stretch", "size": [64, 64]}, {**settings, **change}).raster_key()
        for change in ({}, {"crop": None}, {"circle": False}, {"crop": {"threshold": 0.2, "margin": 0.02}})
    ]
    assert len({str(key) for key in keys}) == 4
