from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.imaging.geometry import Geometry

TILES = Geometry("tiles", (64, 96), scale=0.5, overlap=32)


def test_working_sizes():
    assert Geometry("stretch", (64, 96)).working_size((300, 1000)) == (64, 96)
    assert Geometry("letterbox", (64, 96)).working_size((300, 1000)) == (29, 96)
    assert TILES.working_size((300, 1000)) == (150, 500)
    # A half-size copy of the same smear ends at the same working size.
    assert TILES.working_size((150, 500), pixel_scale=0.5) == (150, 500)


@pytest.mark.parametrize("original", [(300, 1000), (128, 192), (129, 193), (40, 60), (700, 100)])
def test_tiles_cover_the_image_on_a_regular_grid(original):
    windows = TILES.windows(original)
    covered = np.zeros(windows[0].working_size, np.uint8)
    for number, window in enumerate(windows):
        assert (window.index, window.count) == (number, len(windows))
        x, y = (int(v) for v in window.offset)
        assert y % TILES.step[0] == 0 and x % TILES.step[1] == 0
        assert min(window.valid) > 0 and window.valid[0] <= 64 and window.valid[1] <= 96
        covered[y : y + window.valid[0], x : x + window.valid[1]] += 1
    assert covered.min() == 1
    # No window repeats what its neighbours show already.
    assert all(w.offset[0] == 0 or w.valid[1] > TILES.overlap for w in windows)
    assert all(w.offset[1] == 0 or w.valid[0] > TILES.overlap for w in windows)


def test_an_image_smaller_than_a_tile_is_one_padded_tile():
    (window,) = TILES.windows((40, 60))
    assert window.valid == (20, 30) and window.size == (64, 96)
    cut = Geometry("tiles", (64, 96), 0.5, 32, fill=(1, 2, 3)).crop(np.full((20, 30, 3), 9, np.uint8), window)
    assert cut.shape == (64, 96, 3) and (cut[:20, :30] == 9).all()
    assert (cut[20:] == [1, 2, 3]).all() and (cut[:, 30:] == [1, 2, 3]).all()


@pytest.mark.parametrize(
    "geometry", [Geometry("stretch", (64, 96)), Geometry("letterbox", (64, 96)), TILES], ids=lambda g: g.mode
)
@pytest.mark.parametrize("point", [(30.5, 90.5), (250.5, 150.5), (395.5, 20.5)])
def test_a_pixel_arrives_where_the_window_says(geometry, point):
    image = np.zeros((200, 400, 3), np.float32)
    cv2.circle(image, (int(point[0]), int(point[1])), 4, (255, 255, 255), -1)
    working = geometry.to_working(image)
    seen = 0
    for window in geometry.windows((200, 400)):
        x, y = window.working_to_network(window.original_to_working(np.asarray(point)))
        cut = geometry.crop(working, window)[..., 0]
        if 4 < x < window.valid[1] - 4 and 4 < y < window.valid[0] - 4:
            seen += 1
            rows, columns = np.indices(cut.shape) + 0.5
            assert np.hypot((columns * cut).sum() / cut.sum() - x, (rows * cut).sum() / cut.sum() - y) < 0.3
            back = window.working_to_original(window.network_to_working(np.asarray([x, y])))
            np.testing.assert_allclose(back, point, atol=1e-3)
    assert seen or point[0] > 390


def test_jitter_stays_inside_and_depends_on_the_generator_only():
    windows = TILES.windows((300, 1000))
    moved = [TILES.jitter(w, np.random.default_rng(k)) for k in range(20) for w in windows]
    again = [TILES.jitter(w, np.random.default_rng(k)) for k in range(20) for w in windows]
    assert moved == again
    assert len({w.offset for w in moved}) > 100
    assert all(w.valid == (64, 96) and 0 <= w.offset[0] <= 500 - 96 and 0 <= w.offset[1] <= 150 - 64 for w in moved)
    (small,) = TILES.windows((40, 60))
    assert TILES.jitter(small, np.random.default_rng(0)) == small


def test_masks_keep_their_values():
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 7
    window = TILES.windows((100, 100))[0]
    resized = TILES.mask_to_working(mask, window)
    assert set(np.unique(resized)) == {0, 7} and (resized[:, 25:] == 7).all() and (resized[:, :25] == 0).all()
    assert TILES.mask_to_working(np.zeros((100, 100, 1), np.uint8), window).shape == (50, 50, 1)


def test_small_lesions_survive_shrinking():
    mask = np.zeros((100, 100), np.uint8)
    mask[10, 10] = mask[40:42, 60:62] = 1  # one pixel of a 2 x 2 cell, not the one that stands for it, and a whole cell
    window = TILES.windows((100, 100))[0]
    resized = TILES.mask_to_working(mask, window)
    assert resized[5, 5] == 1 and resized[20, 30] == 1 and resized.sum() == 2
    # Of classes, 1 is no more than 0: the nearest pixel counts.
    assert np.argwhere(TILES.mask_to_working(mask, window, classes=True)).tolist() == [[20, 30]]
    # More than one value is no mark but a class, whether or not the caller knows.
    assert np.unique(TILES.mask_to_working(mask * np.uint8(2), window)).tolist() == [0, 2]


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tiles"])
def test_a_window_can_show_a_part_of_the_image(mode):
    geometry = Geometry(mode, (64, 96), scale=0.5, overlap=32)
    image = np.zeros((200, 400, 3), np.uint8)
    image[80:84, 300:304] = 255
    box = (100, 40, 380, 190)
    windows = geometry.windows((200, 400), content=box)
    working = geometry.to_working(windows[0].cut(image))
    assert working.shape[:2] == windows[0].working_size
    (x, y) = windows[0].original_to_working(np.asarray((302.0, 82.0)))
    assert working[int(y), int(x), 0] > 100
    np.testing.assert_allclose(windows[0].working_to_original(np.asarray((x, y))), (302, 82), atol=1e-3)
    np.testing.assert_allclose(windows[0].working_to_original(np.zeros(2)), box[:2])
    mask = geometry.mask_to_working((image[..., 0] > 0).astype(np.uint8), windows[0])
    assert mask.shape == windows[0].working_size and mask[int(y), int(x)] == 1


def test_to_dict_round_trip_is_plain():
    geometry = Geometry("letterbox", (64, 96), fill=[1, 2, 3])
    values = geometry.to_dict()
    assert Geometry.from_dict(values) == geometry and type(values["size"]) is list and type(values["fill"]) is list
    assert Geometry.from_dict({"mode": "letterbox"}) == Geometry("letterbox")


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"mode": "tile"}, "data.geometry.mode"),
        ({"size": (100, 512)}, "data.geometry.size"),
        ({"mode": "tiles", "overlap": 50}, "size - overlap"),
        ({"mode": "tiles", "overlap": 512}, "data.geometry.overlap"),
        ({"mode": "tiles", "scale": 0.0}, "data.geometry.scale"),
        ({"min_visible": 2.0}, "data.geometry.min_visible"),
    ],
)
def test_wrong_values_name_their_key(values, path):
    with pytest.raises(ConfigError, match=path):
        Geometry(**values)


def test_planning_rooms_do_without_torch():
    rooms = [
        "imaging.geometry",
        "imaging.outlines",
        "kinds.detection",
        "imaging.preprocessing",
        *(f"data.pipeline.{name}" for name in ("splits", "cache")),
    ]
    code = f"import sys, {', '.join(f'mtl.{room}' for room in rooms)}\n"
    code += "assert not {'torch', 'albumentations', 'pytorch_lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
