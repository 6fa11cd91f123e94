"""Stitching: windows joined equal the whole image, and nothing on a border is lost or counted twice."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from mtl.core.task import TaskSpec
from mtl.core.types import SampleMeta, Window
from mtl.imaging.geometry import Geometry
from mtl.stitching.stitcher import Stitcher
from mtl.stitching.territories import owners

SPECS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy")),
    "mask": TaskSpec("mask", "segmentation", ("cell",)),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy")),
    "grade": TaskSpec("grade", "classification", ("a", "b")),
    "value": TaskSpec("value", "regression", ()),
}
TILES = Geometry(mode="tiles", size=(128, 128), scale=1.0, overlap=32)
STRIDE = 4
Arrays = dict[str, np.ndarray]


def stitch(windows: list[Window], predictions: list[dict[str, Arrays]], shuffle: bool = True) -> dict[str, Arrays]:
    stitcher, order = Stitcher(SPECS), list(range(len(windows)))
    if shuffle:
        random.Random(0).shuffle(order)
    for index in order:
        assert stitcher.pop_complete() == []
        stitcher.add(SampleMeta("a", "g", "s", windows[index]), predictions[index])
    (result,) = stitcher.pop_complete()
    assert stitcher.pending == [] and stitcher.pop_complete() == []
    return result.tasks


def local_network(world: dict[str, np.ndarray], window: Window, jitter: float = 0.0, seed: int = 0) -> dict[str, Arrays]:
    """Report what lies in a window: every box whose centre is inside, cut at the window's edges, and the maps."""
    rng = np.random.default_rng(seed + window.index)
    boxes = window.working_to_network(world["boxes"].reshape(-1, 2, 2)).reshape(-1, 4)
    boxes = boxes + rng.uniform(-jitter, jitter, boxes.shape).astype(np.float32)
    height, width = window.valid
    cut = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    seen = ((cut[:, 2:] - cut[:, :2]) > 2).all(axis=1)
    full = ((cut[:, 2:] - cut[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1))[seen]
    points = (boxes[:, :2] + boxes[:, 2:])[seen] / 2
    inside = ((points >= 0) & (points < [width, height])).all(axis=1)
    x, y = int(window.offset[0]), int(window.offset[1])
    maps = {}
    for name, stride in (("mask", 1), ("heatmap", STRIDE)):
        padded = np.full((1, window.size[0] // stride, window.size[1] // stride), 0.9, np.float32)  # noise on the padding
        content = world[name][:, y // stride : (y + height) // stride, x // stride : (x + width) // stride]
        padded[:, : content.shape[1], : content.shape[2]] = content
        maps[name] = padded
    scores = (world["scores"][seen] * full).astype(np.float32)
    return {
        "detection": {"boxes": cut[seen], "scores": scores, "labels": world["labels"][seen], "ids": np.flatnonzero(seen)},
        "mask": {"probabilities": maps["mask"]},
        "heatmap": {
            "heatmap": maps["heatmap"], "points": points[inside], "scores": scores[inside],
            "labels": np.zeros(inside.sum(), np.int64), "stride": np.float32(STRIDE), "sigma": np.float32(1.0),
        },
        "roi": {
            "ids": np.flatnonzero(seen), "boxes": cut[seen],
            "probabilities": np.stack([full, 1 - full], 1).astype(np.float32),
        },
        "grade": {"probabilities": np.array([window.index, 1.0], np.float32)},
        "value": {"value": np.array(float(window.index))},
    }  # fmt: skip


def make_world(height: int, width: int, cell: float = 20.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    # A grid of cells in which many lie on the borders between windows.
    centres = np.stack(np.meshgrid(np.arange(12, width - 8, 24.0), np.arange(12, height - 8, 24.0)), -1).reshape(-1, 2)
    boxes = np.concatenate([centres - cell / 2, centres + cell / 2], 1).astype(np.float32)
    return {
        "boxes": boxes, "labels": rng.integers(0, 2, len(boxes)),
        "scores": rng.uniform(0.5, 0.99, len(boxes)).astype(np.float32),
        "mask": rng.random((1, height, width), np.float32),
        "heatmap": rng.random((1, height // STRIDE, width // STRIDE), np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("size", [(320, 416), (128, 300), (100, 120), (321, 223)])
def test_stitched_equals_whole_image_for_a_local_network(size: tuple[int, int]) -> None:
    height, width = size[0] // STRIDE * STRIDE, size[1] // STRIDE * STRIDE
    world, windows = make_world(height, width), TILES.windows((height, width))
    tasks = stitch(windows, [local_network(world, window) for window in windows])
    np.testing.assert_allclose(tasks["mask"]["probabilities"], world["mask"], atol=1e-6)
    np.testing.assert_allclose(tasks["heatmap"]["heatmap"], world["heatmap"], atol=1e-6)
    detection = tasks["detection"]
    order = np.argsort(detection["ids"])
    np.testing.assert_array_equal(detection["ids"][order], np.arange(len(world["boxes"])))
    np.testing.assert_allclose(detection["boxes"][order], world["boxes"], atol=1e-4)
    np.testing.assert_allclose(detection["scores"][order], world["scores"], atol=1e-6)
    np.testing.assert_array_equal(detection["labels"][order], world["labels"])
    assert len(tasks["heatmap"]["points"]) == len(world["boxes"])
    np.testing.assert_array_equal(tasks["roi"]["ids"], np.arange(len(world["boxes"])))
    np.testing.assert_allclose(tasks["roi"]["probabilities"][:, 0], 1.0, atol=1e-5)  # the uncut view of each cell


@pytest.mark.parametrize("seed", range(5))
def test_windows_that_disagree_by_pixels_lose_and_double_nothing(seed: int) -> None:
    world, windows = make_world(320, 416), TILES.windows((320, 416))
    tasks = stitch(windows, [local_network(world, window, jitter=2.0, seed=100 * seed) for window in windows])
    assert sorted(tasks["detection"]["ids"]) == list(range(len(world["boxes"])))
    assert len(tasks["heatmap"]["points"]) == len(world["boxes"])


def one_box(x: float, y: float, label: int, score: float) -> dict[str, Arrays]:
    boxes = np.array([[x - 10, y - 10, x + 10, y + 10]], np.float32)
    return {"detection": {"boxes": boxes, "scores": np.array([score], np.float32), "labels": np.array([label])}}


def test_one_cell_that_two_windows_name_differently_counts_once() -> None:
    windows = TILES.windows((128, 224))
    assert [window.offset[0] for window in windows] == [0.0, 96.0]
    tasks = stitch(windows, [one_box(111, 60, 0, 0.6), one_box(113 - 96, 60, 1, 0.8)])
    assert tasks["detection"]["labels"].tolist() == [1]


def test_a_window_does_not_speak_for_its_neighbours_territory() -> None:
    windows = TILES.windows((128, 224))
    nothing = {
        "detection": {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, int)}
    }
    assert len(stitch(windows, [one_box(122, 60, 0, 0.9), nothing])["detection"]["boxes"]) == 0
    assert len(stitch(windows, [one_box(108, 60, 0, 0.9), nothing])["detection"]["boxes"]) == 1


def test_a_cell_that_each_window_places_beyond_the_border_is_kept_once() -> None:
    windows = TILES.windows((128, 224))
    assert len(stitch(windows, [one_box(113, 60, 0, 0.6), one_box(111 - 96, 60, 0, 0.7)])["detection"]["boxes"]) == 1


def test_maps_fade_linearly_from_one_window_to_the_next() -> None:
    windows = TILES.windows((128, 224))
    maps = [{"mask": {"probabilities": np.full((1, 128, 128), value, np.float32)}} for value in (0.0, 1.0)]
    row = stitch(windows, maps)["mask"]["probabilities"][0, 60]
    assert (row[:96] == 0).all() and row[128:] == pytest.approx(1.0)
    np.testing.assert_allclose(row[96:128], (np.arange(32) + 0.5) / 32, atol=1e-6)


def test_two_hypotheses_of_one_window_both_stay() -> None:
    windows = TILES.windows((128, 224))
    first, second = one_box(60, 60, 0, 0.9)["detection"], one_box(60, 60, 1, 0.3)["detection"]
    both = {key: np.concatenate([first[key], second[key]]) for key in first}
    nothing = {key: value[:0] for key, value in both.items()}
    assert stitch(windows, [{"detection": both}, {"detection": nothing}])["detection"]["labels"].tolist() == [0, 1]


def test_territories_meet_on_the_middle_line() -> None:
    windows = TILES.windows((224, 224))
    points = np.array([[111.9, 20], [112.1, 20], [20, 111.9], [20, 112.1], [111.9, 112.1], [112.1, 112.1], [0, 0], [224, 224]])
    assert owners(points, windows).tolist() == [0, 1, 0, 2, 2, 3, 0, 3]


def test_single_window_passes_through_without_its_padding() -> None:
    (window,) = Geometry(mode="letterbox", size=(128, 128)).windows((200, 400))
    assert window.valid == (64, 128)
    world = make_world(64, 128)
    prediction = local_network(world, window)
    stray = one_box(60, 70, 0, 0.99)["detection"]  # mostly on the padding
    edge = one_box(124, 30, 1, 0.2)["detection"]  # reaches over the edge
    extra = {"ids": np.array([98]), **stray}, {"ids": np.array([99]), **edge}
    prediction["detection"] = {
        key: np.concatenate([value, *[more[key] for more in extra]]) for key, value in prediction["detection"].items()
    }
    tasks = stitch([window], [prediction])
    assert tasks["mask"]["probabilities"].shape == (1, 64, 128) and tasks["heatmap"]["heatmap"].shape == (1, 16, 32)
    np.testing.assert_array_equal(tasks["mask"]["probabilities"], world["mask"])
    np.testing.assert_array_equal(tasks["heatmap"]["heatmap"], world["heatmap"])
    assert 98 not in tasks["detection"]["ids"]
    np.testing.assert_allclose(tasks["detection"]["boxes"][tasks["detection"]["ids"] == 99], [[114, 20, 128, 40]])
    assert (np.diff(tasks["detection"]["scores"]) <= 0).all()
    assert float(tasks["heatmap"]["stride"]) == STRIDE


def test_padding_on_the_left_that_is_no_multiple_of_the_stride() -> None:
    (window,) = Geometry(mode="letterbox", size=(64, 64)).windows((40, 40))
    window = dataclasses.replace(window, pad=(6.0, 8.0), valid=(32, 32), working_size=(32, 32))
    ramp = np.tile(np.arange(16, dtype=np.float32) * STRIDE + STRIDE / 2, (1, 16, 1))  # x of the cell centre, network pixels
    heatmap = {
        "heatmap": ramp, "points": np.array([[6.0, 8.0], [2.0, 3.0]], np.float32), "scores": np.ones(2, np.float32),
        "labels": np.zeros(2, np.int64), "stride": np.array(STRIDE), "sigma": np.array(1.0),
    }  # fmt: skip
    result = stitch([window], [{"heatmap": heatmap}])["heatmap"]
    np.testing.assert_allclose(result["heatmap"][0, 0], np.arange(8) * STRIDE + STRIDE / 2 + 6.0, atol=1e-4)
    np.testing.assert_allclose(result["points"], [[0.0, 0.0]])


def test_image_level_values_are_means_and_images_do_not_mix() -> None:
    windows = TILES.windows((128, 224))
    world = make_world(128, 224)
    stitcher = Stitcher(SPECS)
    for name in ("a", "b"):
        stitcher.add(SampleMeta(name, "g", "s", windows[0]), local_network(world, windows[0]))
    assert sorted(stitcher.pending) == ["a", "b"]
    stitcher.add(SampleMeta("b", "g", "s", windows[1]), local_network(world, windows[1]))
    (result,) = stitcher.pop_complete()
    assert result.sample_id == "b" and result.window.working_size == (128, 224) and stitcher.pending == ["a"]
    np.testing.assert_allclose(result.tasks["grade"]["probabilities"], [0.5, 1.0])
    assert result.tasks["value"]["value"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="twice"):
        stitcher.add(SampleMeta("a", "g", "s", windows[0]), {})


def test_a_dense_full_size_field_is_fast() -> None:
    import time

    geometry = Geometry(mode="tiles", size=(512, 512), scale=0.5, overlap=64)
    windows = geometry.windows((2988, 5312))
    rng = np.random.default_rng(0)
    stitcher, start = Stitcher(SPECS), time.perf_counter()
    for window in windows:
        corner = rng.uniform(0, 470, (300, 2)).astype(np.float32)
        boxes = np.concatenate([corner, corner + 40], 1)
        prediction = {"boxes": boxes, "scores": rng.random(300, np.float32), "labels": rng.integers(0, 3, 300)}
        masks = {"probabilities": np.zeros((1, 512, 512), np.float32)}
        stitcher.add(SampleMeta("a", "g", "s", window), {"detection": prediction, "mask": masks})
    assert len(stitcher.pop_complete()) == 1 and time.perf_counter() - start < 3.0
