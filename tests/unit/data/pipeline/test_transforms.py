from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from data_fakes import make_objects

from mtl.core.errors import ConfigError
from mtl.data.pipeline.transforms import Transform
from mtl.imaging.outlines import fill_outlines

SQUARE, WIDE = (96, 96), (96, 160)
POINTS = [(30.5, 40.5), (60.5, 25.5), (50.25, 66.75)]
GEOMETRIC = {
    "horizontal_flip": {"horizontal_flip": 1.0},
    "vertical_flip": {"vertical_flip": 1.0},
    "rotate90": {"rotate90": 1.0},
    "rotation": {"affine": {"probability": 1.0, "rotate": 40}},
    "scale": {"affine": {"probability": 1.0, "scale": [0.7, 1.3]}},
    "shear": {"affine": {"probability": 1.0, "shear": 12}},
    "translate": {"affine": {"probability": 1.0, "translate": 0.1}},
    "all": {
        "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5,
        "affine": {"probability": 0.8, "scale": [0.8, 1.2], "rotate": 30, "shear": 8, "translate": 0.05},
    },
}  # fmt: skip
PHOTOMETRIC = {
    "color_jitter": {"color_jitter": {"probability": 1.0, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}},
    "stain_jitter": {"stain_jitter": {"probability": 1.0, "strength": 0.3}},
    "blur": {"blur": {"probability": 1.0, "kernel": [3, 7]}},
    "noise": {"noise": {"probability": 1.0, "std": [0.02, 0.05]}},
}


def spot(point: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Draw a Gaussian blob centred on a continuous point."""
    rows, columns = np.indices(size) + 0.5
    blob = np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / (2 * 1.5**2)) * 250
    return np.repeat(np.rint(blob).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image.astype(np.float64).reshape(*image.shape[:2], -1)[..., 0]
    rows, columns = np.indices(weights.shape) + 0.5
    return np.asarray([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("size", [SQUARE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_points_follow_their_pixels(name, size):
    transform = Transform(GEOMETRIC[name], size)
    moved_at_all = 0
    for seed in range(12):
        for point in POINTS:
            image, objects, masks = transform(spot(point, size), make_objects([point]), {"m": spot(point, size)[..., 0]}, seed)
            assert image.shape == (*size, 3) and masks["m"].shape == size
            if not (8 < objects.points[0, 0] < size[1] - 8 and 8 < objects.points[0, 1] < size[0] - 8):
                continue
            assert np.hypot(*(centroid(image) - objects.points[0])) < 0.25
            assert np.hypot(*(centroid(masks["m"]) - objects.points[0])) < 0.5
            moved_at_all += np.hypot(*(objects.points[0] - point)) > 1
    assert moved_at_all > 5


@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip", "rotate90"])
def test_a_single_pixel_lands_exactly(name):
    transform = Transform(GEOMETRIC[name], SQUARE)
    for seed in range(4):
        image = np.zeros((*SQUARE, 3), np.uint8)
        image[40, 30] = 255
        image, objects, _ = transform(image, make_objects([(30.5, 40.5)]), {}, seed)
        (row,), (column,) = np.nonzero(image[..., 0])
        np.testing.assert_allclose(objects.points[0], [column + 0.5, row + 0.5], atol=1e-4)


@pytest.mark.parametrize("shape", [(*SQUARE, 3), (*SQUARE, 1), (*SQUARE, 4)])
def test_quarter_turns_take_every_channel_along(shape):
    """Of colours and of grey values; as many quarters as the outlines make."""
    rgb = shape[2] == 3
    image = np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)
    given = image if rgb else image.astype(np.float32) / 255
    transform, seen = Transform({"rotate90": 1.0}, SQUARE, rgb=rgb), set()
    for seed in range(16):
        turned, objects, masks = transform(given, make_objects([(10.5, 20.5)]), {"m": image[..., 0]}, seed)
        quarters = [(10.5, 20.5), (20.5, 85.5), (85.5, 75.5), (75.5, 10.5)].index(tuple(objects.points[0]))
        seen.add(quarters)
        np.testing.assert_array_equal(turned, np.rot90(given, quarters))
        np.testing.assert_array_equal(masks["m"], np.rot90(image[..., 0], quarters))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_drawn_masks_and_outlines_agree_with_the_picture(name):
    """A mask drawn from moved outlines covers what the moved picture shows."""
    objects = make_objects([(48, 48), (30, 60)], radius=12.0)
    image = np.repeat((fill_outlines(objects.outlines, SQUARE) * 255).astype(np.uint8)[..., None], 3, axis=2)
    objects.mask_outlines = [outline.copy() for outline in objects.outlines]
    transform = Transform(GEOMETRIC[name], SQUARE)
    for seed in range(5):
        picture, moved, masks = transform(image, objects, {"cells": image[..., :1] // 255}, seed)
        drawn = fill_outlines(moved.outlines, SQUARE)
        seen = picture[..., 0] > 127
        assert (drawn & seen).sum() / (drawn | seen).sum() > 0.93
        assert (fill_outlines(moved.mask_outlines, SQUARE) == drawn).all()
        assert masks["cells"].shape == (*SQUARE, 1)
        assert ((masks["cells"][..., 0] > 0) & seen).sum() / ((masks["cells"][..., 0] > 0) | seen).sum() > 0.93


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_steps_change_values_and_leave_positions(name):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(80, 220, (*SQUARE, 3)).astype(np.uint8), (5, 5), 0)
    transform = Transform(PHOTOMETRIC[name], SQUARE)
    objects = make_objects(POINTS)
    changed, moved, masks = transform(image, objects, {"m": image[..., 0]}, 1)
    assert changed.dtype == np.uint8 and 0.3 < np.abs(changed.astype(int) - image).mean() < 60
    np.testing.assert_allclose(moved.points, objects.points, atol=1e-4)
    np.testing.assert_array_equal(masks["m"], image[..., 0])
    other, _, _ = transform(image, objects, {}, 2)
    assert (other != changed).any()


def test_stain_jitter_without_strength_changes_nothing_visible():
    image = np.random.default_rng(0).integers(1, 256, (*SQUARE, 3)).astype(np.uint8)
    same, _, _ = Transform({"stain_jitter": {"probability": 1.0, "strength": 0.0}}, SQUARE)(image, None, {}, 0)
    assert np.abs(same.astype(int) - image).max() <= 1


def test_same_seed_same_result_across_objects_and_processes():
    image = np.random.default_rng(0).integers(0, 256, (*SQUARE, 3)).astype(np.uint8)
    config = {**GEOMETRIC["all"], **{name: entry for some in PHOTOMETRIC.values() for name, entry in some.items()}}
    first, second = Transform(config, SQUARE), Transform(config, SQUARE)
    for seed in (3, 4):
        first(image, None, {}, 99)  # what was drawn before must not matter
        a, objects_a, _ = first(image, make_objects(POINTS), {}, seed)
        b, objects_b, _ = second(image, make_objects(POINTS), {}, seed)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(objects_a.points, objects_b.points)
    # The number of key points must not shift the random stream either.
    np.testing.assert_array_equal(first(image, None, {}, 3)[0], first(image, make_objects(POINTS), {}, 3)[0])
    code = (
        "import numpy as np, zlib, ast, sys\nfrom mtl.data.pipeline.transforms import Transform\n"
        "image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)\n"
        "print(zlib.crc32(Transform(ast.literal_eval(sys.argv[1]), (96, 96))(image, None, {}, 3)[0].tobytes()))"
    )
    import zlib

    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    there = subprocess.run(
        [sys.executable, "-c", code, repr(config)], check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert int(there) == zlib.crc32(first(image, None, {}, 3)[0].tobytes())


def test_steps_are_independent_of_each_other():
    """Both flips at probability .5 give four equally likely pictures, not two."""
    transform = Transform({"horizontal_flip": 0.5, "vertical_flip": 0.5}, SQUARE)
    seen = np.zeros((2, 2), int)
    for seed in range(200):
        _, objects, _ = transform(np.zeros((*SQUARE, 3), np.uint8), make_objects([(10.5, 20.5)]), {}, seed)
        seen[int(objects.points[0, 0] > 48), int(objects.points[0, 1] > 48)] += 1
    assert seen.min() > 25


def test_objects_outside_the_frame_are_moved_not_lost():
    transform = Transform({"affine": {"probability": 1.0, "rotate": 45, "translate": 0.3}}, SQUARE)
    for seed in range(10):
        _, objects, _ = transform(np.zeros((*SQUARE, 3), np.uint8), make_objects([(5, 5), (-20, 100), (90, 90)]), {}, seed)
        assert len(objects) == 3 and objects.ids.tolist() == [0, 1, 2]


def test_no_objects_and_absent_objects():
    transform = Transform(GEOMETRIC["all"], SQUARE)
    image = np.zeros((*SQUARE, 3), np.uint8)
    assert transform(image, None, {}, 0)[1] is None
    assert len(transform(image, make_objects([]), {}, 0)[1]) == 0
    np.testing.assert_array_equal(Transform(None, SQUARE)(image + 7, None, {}, 0)[0], image + 7)


def test_fill_colour_enters_the_frame():
    transform = Transform({"affine": {"probability": 1.0, "scale": [0.5, 0.5]}}, SQUARE, fill=(10, 20, 30))
    image, _, masks = transform(np.full((*SQUARE, 3), 200, np.uint8), None, {"m": np.ones(SQUARE, np.uint8)}, 0)
    assert image[2, 2].tolist() == [10, 20, 30] and masks["m"][2, 2] == 0 and masks["m"][48, 48] == 1


@pytest.mark.parametrize(
    ("step", "key", "value"),
    [
        ("color_jitter", "brightness", 0.9), ("color_jitter", "contrast", 0.9), ("color_jitter", "saturation", 0.9),
        ("color_jitter", "hue", 0.4), ("color_jitter", "probability", 0.0), ("stain_jitter", "strength", 0.1),
        ("blur", "kernel", [9, 9]), ("noise", "std", [0.2, 0.2]),
    ],
)  # fmt: skip
def test_every_photometric_key_does_something(step, key, value):
    image = np.random.default_rng(0).integers(0, 256, (*SQUARE, 3)).astype(np.uint8)
    config = dict(PHOTOMETRIC[step][step])
    before = Transform({step: config}, SQUARE)(image, None, {}, 5)[0]
    assert (Transform({step: {**config, key: value}}, SQUARE)(image, None, {}, 5)[0] != before).any()


def test_masks_with_and_without_channels_move_alike():
    """Several tasks bring masks of several forms, and more channels than OpenCV takes at once."""
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 2, (*WIDE, 6)).astype(np.uint8)
    masks = {"all": stack, "second": np.ascontiguousarray(stack[..., 1]), "last": stack[..., 5:]}
    for seed in range(6):
        _, _, moved = Transform(GEOMETRIC["all"], WIDE)(np.zeros((*WIDE, 3), np.uint8), None, masks, seed)
        assert {name: mask.shape for name, mask in moved.items()} == {name: mask.shape for name, mask in masks.items()}
        np.testing.assert_array_equal(moved["all"][..., 1], moved["second"])
        np.testing.assert_array_equal(moved["all"][..., 5:], moved["last"])
        assert (moved["all"] != stack).any()


# -- grey values -------------------------------------------------------------------------------------------------------

GREY = {
    "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5,
    "affine": {"probability": 0.8, "scale": [0.9, 1.1], "rotate": 20, "translate": 0.05},
    "intensity_jitter": {"probability": 0.8, "contrast": 0.2, "brightness": 0.1},
    "blur": {"probability": 0.5, "kernel": [3, 5]}, "noise": {"probability": 0.5, "std": [0.01, 0.03]},
}  # fmt: skip


def brain(channels: int, seed: int = 0) -> np.ndarray:
    """Grey values in [0, 1] inside a disc, 0 outside; [96, 96, channels] float32."""
    rows, columns = np.indices(SQUARE)
    inside = (rows - 50) ** 2 + (columns - 44) ** 2 < 30**2
    values = np.random.default_rng(seed).uniform(0.2, 0.8, (*SQUARE, channels))
    return (values * inside[..., None]).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_values_of_any_number_of_channels(channels):
    transform = Transform(GREY, SQUARE, rgb=False)
    image = brain(channels)
    for seed in range(10):
        moved, _, masks = transform(image, None, {"m": (image[..., 0] > 0).astype(np.uint8)}, seed)
        assert moved.shape == image.shape and moved.dtype == np.float32
        assert moved.min() >= 0 and moved.max() <= 1
        # Every channel moves as the mask does.
        for channel in range(channels):
            assert np.mean((moved[..., channel] > 0.12) != (masks["m"] > 0)) < 0.05


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_points_follow_their_pixels_in_float_images(name, channels):
    transform = Transform(GEOMETRIC[name], SQUARE, rgb=False)
    for seed in range(6):
        picture = np.repeat(spot(POINTS[0], SQUARE)[..., :1], channels, axis=2).astype(np.float32) / 255
        image, objects, _ = transform(picture, make_objects([POINTS[0]]), {}, seed)
        if (np.abs(objects.points[0] - 48) < 38).all():
            for channel in range(channels):
                np.testing.assert_allclose(centroid(image[..., channel]), objects.points[0], atol=0.25)


def test_intensity_jitter_leaves_the_background_and_changes_each_channel_by_itself():
    transform = Transform({"intensity_jitter": {"probability": 1.0, "contrast": 0.2, "brightness": 0.1}}, SQUARE, rgb=False)
    image = brain(3)
    factors = set()
    for seed in range(8):
        moved = transform(image, None, {}, seed)[0]
        assert not moved[image == 0].any()
        for channel in range(3):
            before, after = image[..., channel][image[..., channel] > 0], moved[..., channel][image[..., channel] > 0]
            assert abs(after.mean() - before.mean()) <= 0.1 + 1e-3  # contrast turns around the mean
            factor = after.std() / before.std()
            assert 0.79 < factor < 1.21
            factors.add(round(float(factor), 3))
    assert len(factors) > 20
    assert np.array_equal(transform(image, None, {}, 3)[0], transform(image, None, {}, 3)[0])
    grey = (image * 255).astype(np.uint8)
    assert (
        Transform({"intensity_jitter": {"probability": 1.0, "contrast": 0.2}}, SQUARE)(grey, None, {}, 0)[0].dtype == np.uint8
    )


def test_channel_dropout_never_takes_the_last_channel_that_holds_something():
    image = brain(4)
    image[..., [0, 2]] = 0
    kept = []
    for seed in range(60):
        dropped = Transform({"channel_dropout": 0.7}, SQUARE, rgb=False)(image, None, {}, seed)[0]
        kept.append(tuple(channel for channel in range(4) if dropped[..., channel].any()))
        np.testing.assert_array_equal(dropped[..., list(kept[-1])], image[..., list(kept[-1])])
    assert set(kept) == {(1,), (3,), (1, 3)}
    always = Transform({"channel_dropout": 1.0}, SQUARE, rgb=False)
    assert all(always(brain(1), None, {}, seed)[0].any() for seed in range(5))
    assert not always(np.zeros((*SQUARE, 2), np.float32), None, {}, 0)[0].any()


def test_missing_modalities_stay_blank():
    image = brain(3)
    image[..., 1] = 0
    transform = Transform({**GREY, "noise": {"probability": 1.0, "std": [0.1, 0.2]}}, SQUARE, fill=0.5, rgb=False)
    for seed in range(4):
        moved = transform(image, None, {}, seed)[0]
        assert not moved[..., 1].any() and moved[..., 0].any()


@pytest.mark.parametrize("step", ["color_jitter", "stain_jitter"])
def test_colour_steps_are_refused_where_there_is_no_colour(step):
    with pytest.raises(ConfigError, match=rf"data\.augmentation\.{step}\.probability=0"):
        Transform({step: {"probability": 0.1}}, SQUARE, rgb=False)
    Transform({step: {"probability": 0.0}}, SQUARE, rgb=False)


def test_values_in_another_unit_are_refused():
    with pytest.raises(ConfigError, match=r"values up to 800; augmentation expects \[0, 1\]"):
        Transform(GREY, SQUARE, rgb=False)(brain(1) * 0 + 800, None, {}, 0)
