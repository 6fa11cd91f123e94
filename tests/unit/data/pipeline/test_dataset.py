from __future__ import annotations

import numpy as np
import pytest
import torch
from data_fakes import CLASSES, Bordered, FakeFamily

from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.core.types import REGION, Record, Sample
from mtl.data.pipeline.cache import prepare
from mtl.data.pipeline.collate import Collate
from mtl.data.pipeline.dataset import SampleDataset
from mtl.data.pipeline.sampling import SampledItem
from mtl.data.pipeline.transforms import Transform
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing

AUGMENT = {
    "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5,
    "affine": {"probability": 1.0, "scale": [0.9, 1.1], "translate": 0.05, "rotate": 20, "shear": 5},
}  # fmt: skip


def make(family, preprocessing, augment=False, **options) -> SampleDataset:
    transform = Transform(AUGMENT, preprocessing.geometry.size, preprocessing.geometry.fill) if augment else None
    return SampleDataset(family, family.records(), family.specs(), preprocessing, transform, **options)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a is b is None or a == b if not isinstance(a, np.ndarray) else np.array_equal(a, b)


def test_item_holds_every_task_and_tells_absent_from_empty(family, stretch):
    dataset = make(family, stretch)
    even, odd = dataset[0], dataset[1]
    assert even["image"].shape == (3, 64, 64) and even["image"].dtype == np.float32
    assert even["present"] == dict.fromkeys(family.specs(), True)
    assert odd["present"] == {
        "detection": True, "heatmap": True, "cells": True, "tissue": False, "grade": False, "load": False,
    }  # fmt: skip
    assert odd["targets"]["tissue"] is None and odd["targets"]["grade"] is None
    assert even["meta"].sample_id == "s00" and even["meta"].window.original_size == (96, 160)


def test_augmentation_brings_in_no_object_without_its_pixels(family):
    """Shrinking a tile shows fill around it; cells of the neighbouring tiles must not be drawn there."""
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 1.0, 32, fill=200), mean=(0, 0, 0), std=(1, 1, 1))
    transform = Transform({"affine": {"probability": 1.0, "scale": [0.5, 0.5]}}, (64, 64), fill=200)
    dataset = SampleDataset(family, family.records(), family.specs(), preprocessing, transform)
    boxes = 0
    for index in range(len(dataset)):
        target = dataset[index]["targets"]
        assert (target["detection"]["boxes"] >= 15.9).all() and (target["detection"]["boxes"] <= 48.1).all()
        assert not target["cells"][0, :15].any() and not target["cells"][0, :, 49:].any()
        assert (target["heatmap"]["points"] >= 15.9).all() and (target["heatmap"]["points"] <= 48.1).all()
        boxes += len(target["detection"]["boxes"])
    assert boxes > 30


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tiles"])
def test_targets_lie_on_their_pixels(family, mode, augment):
    """Discs are dark on light ground: boxes, points and masks must find them in the picture."""
    preprocessing = Preprocessing(Geometry(mode, (96, 96), 1.0, 32, fill=200), mean=(0, 0, 0), std=(1, 1, 1))
    dataset = make(family, preprocessing, augment, random_offset=augment)
    checked = 0
    for index in range(len(dataset)):
        item = dataset[index]
        dark = item["image"][0] < 0.55  # disc 90, ground 200
        cells = item["targets"]["cells"][0].astype(bool)
        if cells.sum() > 60:
            assert (dark & cells).sum() / (dark | cells).sum() > 0.7
        for x, y in item["targets"]["detection"]["points"]:
            if 1 < x < 95 and 1 < y < 95:
                checked += 1
                assert dark[int(y), int(x)]
        boxes = item["targets"]["detection"]["boxes"]
        assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert checked >= 20


def test_items_depend_on_seed_epoch_position_and_index_only(family, tiles):
    first, second = make(family, tiles, True, random_offset=True), make(family, tiles, True, random_offset=True)
    _ = first[3], first[4]  # what was read before must not matter
    a, b = first[SampledItem(2, 5, 7)], second[SampledItem(2, 5, 7)]
    assert same(a["image"], b["image"]) and same(a["targets"], b["targets"]) and a["meta"] == b["meta"]
    for other in (SampledItem(3, 5, 7), SampledItem(2, 6, 7)):
        assert not same(a["image"], second[other]["image"])
    assert not same(a["image"], make(family, tiles, True, random_offset=True, seed=1)[SampledItem(2, 5, 7)]["image"])
    second.set_epoch(2)
    assert same(second[7]["image"], first[SampledItem(2, 7, 7)]["image"])


def test_random_offset_moves_tiles_between_epochs(family, tiles):
    dataset = make(family, tiles, random_offset=True)
    offsets = {dataset[SampledItem(epoch, 0, 3)]["meta"].window.offset for epoch in range(10)}
    assert len(offsets) > 5
    fixed = make(family, tiles)
    assert len({fixed[SampledItem(epoch, 0, 3)]["meta"].window.offset for epoch in range(10)}) == 1


def test_cached_and_uncached_items_are_equal(family, tmp_path):
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 1.0, 32), {"clip_limit": 2.0, "tiles": 4})
    cache = prepare(family, family.records(), preprocessing, tmp_path / "cache", progress=False)
    cached, uncached = make(family, preprocessing, True, cache=cache), make(family, preprocessing, True)
    family.decoded.clear()
    for index in (0, 5, 20):
        a, b = cached[index], uncached[index]
        assert same(a["image"], b["image"]) and same(a["targets"], b["targets"])
    assert family.decoded == ["s00", "s02"]  # by the uncached one


def test_neighbouring_tiles_decode_their_image_once(family, tiles):
    dataset = make(family, tiles)
    family.decoded.clear()
    for index in range(len(dataset)):
        dataset[index]
    assert len(family.decoded) == len(family.records())


def test_truth_covers_the_whole_image_in_the_working_raster(family):
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 0.5, 32))
    dataset = make(family, preprocessing)
    for record in family.records():
        truth = dataset.truth(record.sample_id)
        points = np.asarray(family.points(int(record.sample_id[1:])))
        assert (truth.sample_id, truth.group) == (record.sample_id, record.group)
        np.testing.assert_allclose(truth.tasks["detection"]["points"], points / 2, atol=1e-4)
        assert truth.tasks["detection"]["ids"].tolist() == list(range(len(points)))
        assert truth.tasks["cells"]["mask"].shape == (1, 48, 80)
        assert ("tissue" in truth.tasks) == (int(record.sample_id[1:]) % 2 == 0) == ("load" in truth.tasks)
    even = dataset.truth("s02").tasks
    assert even["tissue"]["mask"].shape == (48, 80) and even["tissue"]["mask"][:, :40].all()
    assert even["grade"]["label"] == 1 and even["load"]["value"] == np.float32(0.2)


def test_windows_together_hold_every_object_of_the_truth(family, tiles):
    dataset = make(family, tiles)
    seen: dict[str, set[int]] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        seen.setdefault(item["meta"].sample_id, set()).update(item["targets"]["detection"]["ids"].tolist())
    for sample_id, ids in seen.items():
        assert ids == set(dataset.truth(sample_id).tasks["detection"]["ids"].tolist())


def test_padding_of_multiclass_masks_is_ignored_by_loss(family):
    dataset = make(family, Preprocessing(Geometry("letterbox", (64, 64))))
    tissue = dataset[0]["targets"]["tissue"]
    assert (tissue[38:] == 255).all() and (tissue[:38, :32] == 1).all() and (tissue[:38, 32:] == 0).all()


def test_class_presence_is_per_window(family, tiles, stretch):
    whole = make(family, stretch).class_presence(["detection"])
    assert whole == [record.class_counts for record in family.records()]
    dataset = make(family, tiles)
    presence = dataset.class_presence(["detection"])
    assert len(presence) == len(dataset) and any(not entry for entry in presence)
    for index in (0, 9, 30):
        detection = dataset[index]["targets"]["detection"]
        inside = ((detection["points"] >= 0) & (detection["points"] < 64)).all(1)
        counts = {CLASSES[k]: int((detection["labels"][inside] == k).sum()) for k in (0, 1)}
        assert presence[index] == {name: count for name, count in counts.items() if count}


def test_size_that_contradicts_the_annotation_is_an_error(family, stretch):
    dataset = make(family, stretch)
    other = type(family)(family.root, size=(50, 50))
    dataset.family = other
    other.read_image = lambda record: np.zeros((50, 50, 3), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="50 x 50 pixels, but its annotation says 160 x 96"):
        dataset[1]


def test_collate_follows_the_contract(family, stretch):
    dataset = make(family, stretch)
    specs = family.specs()
    batch = Collate(specs, list(specs))([dataset[i] for i in range(4)])
    assert batch.images.shape == (4, 3, 64, 64) and batch.images.dtype == torch.float32 and len(batch) == 4
    assert all(tensor.dtype == torch.bool and tensor.shape == (4,) for tensor in batch.present.values())
    rows = batch.targets["detection"]
    assert len(rows) == 4 and all(set(row) == {"boxes", "labels", "points", "ids"} for row in rows)
    assert all(row["boxes"].dtype == torch.float32 and row["labels"].dtype == row["ids"].dtype == torch.int64 for row in rows)
    assert batch.targets["cells"].shape == (4, 1, 64, 64) and batch.targets["cells"].dtype == torch.float32
    assert batch.targets["tissue"].shape == (4, 64, 64) and batch.targets["tissue"].dtype == torch.int64
    assert (batch.targets["tissue"][1] == 255).all() and batch.present["tissue"].tolist() == [True, False, True, False]
    assert batch.targets["grade"].tolist() == [0, 0, 1, 0] and batch.targets["grade"].dtype == torch.int64
    assert batch.targets["load"].tolist() == [0.0, 0.0, pytest.approx(0.2), 0.0]
    assert [meta.sample_id for meta in batch.meta] == ["s00", "s01", "s02", "s03"]


def test_collate_of_absent_objects():
    specs = {"detection": FakeFamily.specs(None)["detection"]}
    item = {
        "image": np.zeros((3, 8, 8), np.float32),
        "targets": {"detection": None},
        "present": {"detection": False},
        "meta": 0,
    }
    batch = Collate(specs, ["detection"])([item])
    assert batch.targets["detection"][0]["boxes"].shape == (0, 4) and batch.targets["detection"][0]["points"].shape == (0, 2)


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tiles"])
@pytest.mark.parametrize("augment", [False, True])
def test_targets_follow_their_pixels_when_the_border_is_cut_off(mode, augment):
    geometry = Geometry(mode, (64, 96), scale=0.6, overlap=32)
    preprocessing = Preprocessing(geometry, None, (0, 0, 0), (1, 1, 1), crop_border={"threshold": 0.06, "margin": 0.0})
    dataset = make(Bordered(), preprocessing, augment, random_offset=augment)
    assert dataset.windows[0][0].content == Bordered.picture
    seen = 0
    for number in range(len(dataset)):
        item = dataset[SampledItem(1, number, number)]
        white = item["image"][0] > 0.7
        for task in ("mask", "drawn"):
            marked = item["targets"][task][0] > 0
            assert (white & ~marked).sum() + (marked & ~white).sum() <= 0.35 * max(white.sum(), 20)
        for x, y in item["targets"]["peak"]["points"]:
            seen += 1
            assert white[int(y), int(x)]
    assert seen


def test_truth_in_the_original_raster():
    preprocessing = Preprocessing(Geometry("letterbox", (64, 96)), crop_border={"threshold": 0.06, "margin": 0.0})
    dataset = make(Bordered(), preprocessing)
    working, native = dataset.truth("b0"), dataset.truth("b0", native=True)
    left, top, right, bottom = Bordered.mark
    for task in ("mask", "drawn"):
        assert working.tasks[task]["mask"].shape[1:] == working.window.working_size
        found = np.argwhere(native.tasks[task]["mask"][0])
        assert native.tasks[task]["mask"].shape[1:] == Bordered.size
        assert found.min(0).tolist() == [top, left] and found.max(0).tolist() == [bottom - 1, right - 1]
    np.testing.assert_array_equal(native.tasks["peak"]["points"], working.tasks["peak"]["points"])
    assert native.window.content == Bordered.picture


def test_masks_are_decoded_once_while_there_is_room(monkeypatch):
    import mtl.data.pipeline.dataset as module

    family, calls = Bordered(), []
    original = family.read_labels
    monkeypatch.setattr(family, "read_labels", lambda record: calls.append(record) or original(record))
    dataset = make(family, Preprocessing(Geometry("stretch", (64, 96))))
    first, *_ = (dataset[0] for _ in range(3))
    assert len(calls) == 1
    monkeypatch.setattr(module, "MASK_BYTES_KEPT", 10)
    small = make(family, Preprocessing(Geometry("stretch", (64, 96))))
    again, *_ = (small[0] for _ in range(3))
    assert len(calls) == 4 and np.array_equal(first["targets"]["mask"], again["targets"]["mask"])


# -- points ------------------------------------------------------------------------------------------------------------


class Pointed(FakeFamily):
    """The discs as points to find; in the first half of the images they were looked for on the left side only."""

    def specs(self) -> dict[str, TaskSpec]:
        return {"cells": TaskSpec("cells", "points", CLASSES, members=(("infected",), ("healthy",)))}

    def read_labels(self, record: Record) -> Sample:
        sample = super().read_labels(record)
        if int(record.sample_id[1:]) < 6:
            sample.masks[REGION] = (np.arange(self.size[1]) < 80).astype(np.uint8)[None].repeat(self.size[0], axis=0)
        return sample


@pytest.fixture
def pointed(tmp_path) -> Pointed:
    (tmp_path / "points").mkdir()
    return Pointed(tmp_path / "points").generate()


def test_points_are_kept_by_their_centres(pointed, tiles):
    """A cell belongs to every window that holds its point, however much of its box that shows."""
    dataset = make(pointed, tiles)
    cut = 0
    for index in range(len(dataset)):
        item = dataset[index]
        target, window = item["targets"]["cells"], item["meta"].window
        points = np.asarray(pointed.points(int(item["meta"].sample_id[1:])), np.float32)
        mine = window.working_to_network(window.original_to_working(points))
        inside = ((mine >= 0) & (mine < 64)).all(axis=1)
        assert target["ids"].tolist() == np.flatnonzero(inside).tolist()
        np.testing.assert_allclose(target["points"], mine[inside], atol=1e-4)
        boxes = target["boxes"]
        assert (boxes >= 0).all() and (boxes <= 64).all() and boxes.shape == (inside.sum(), 4)
        np.testing.assert_allclose(boxes, np.clip(np.hstack([mine[inside] - 6, mine[inside] + 6]), 0, 64), atol=1e-3)
        cut += int((boxes[:, 2:] - boxes[:, :2] < 11.9).any(axis=1).sum())
    assert cut > 5


STEPS = {
    "nothing": {},
    "horizontal_flip": {"horizontal_flip": 1.0},
    "vertical_flip": {"vertical_flip": 1.0},
    "rotate90": {"rotate90": 1.0},
    "affine": AUGMENT["affine"],
    "colours": {
        "stain_jitter": {"probability": 1.0, "strength": 0.1},
        "color_jitter": {"probability": 1.0, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.01},
        "blur": {"probability": 1.0, "kernel": [3, 3]},
        "noise": {"probability": 1.0, "std": [0.01, 0.02]},
    },
    "all": AUGMENT,
}


@pytest.mark.parametrize("name", STEPS)
def test_points_move_with_their_pixels(pointed, name):
    """Every point lies on a dark disc, and what is dark away from the border lies around a point."""
    config = {"affine": STEPS[name]} if name == "affine" else STEPS[name]
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 1.0, 32, fill=200), mean=(0, 0, 0), std=(1, 1, 1))
    transform = Transform(config, (64, 64), fill=200) if config else None
    dataset = SampleDataset(pointed, pointed.records(), pointed.specs(), preprocessing, transform, random_offset=True)
    seen = 0
    for index in range(len(dataset)):
        item = dataset[SampledItem(1, index, index)]
        dark, target = item["image"][2] < 0.65, item["targets"]["cells"]  # blue: disc 140, ground 200
        points, boxes = target["points"], target["boxes"]
        assert (points >= 0).all() and (points < 64).all() and len(boxes) == len(points)
        for (x, y), box in zip(points, boxes, strict=True):
            seen += 1
            assert dark[int(y), int(x)]
            assert box[0] - 1e-3 <= x <= box[2] + 1e-3 and box[1] - 1e-3 <= y <= box[3] + 1e-3
        rows, columns = np.nonzero(dark[8:56, 8:56])
        if len(points) and len(rows) and name != "colours":  # which make other things dark
            away = np.hypot(columns[:, None] + 8.5 - points[:, 0], rows[:, None] + 8.5 - points[:, 1]).min(axis=1)
            assert np.percentile(away, 90) < 9
    assert seen > 40


def test_no_point_without_its_pixels(pointed):
    """Shrinking a tile shows fill around it; points of the neighbouring tiles must not land there."""
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 1.0, 32, fill=200), mean=(0, 0, 0), std=(1, 1, 1))
    transform = Transform({"affine": {"probability": 1.0, "scale": [0.5, 0.5]}}, (64, 64), fill=200)
    dataset = SampleDataset(pointed, pointed.records(), pointed.specs(), preprocessing, transform)
    plain = SampleDataset(pointed, pointed.records(), pointed.specs(), preprocessing)
    for index in range(len(dataset)):
        points = dataset[index]["targets"]["cells"]["points"]
        assert (points >= 15.9).all() and (points <= 48.1).all()
        assert dataset[index]["targets"]["cells"]["ids"].tolist() == plain[index]["targets"]["cells"]["ids"].tolist()


def test_truth_of_points_has_the_region(pointed):
    preprocessing = Preprocessing(Geometry("tiles", (64, 64), 0.5, 32))
    dataset = make(pointed, preprocessing)
    for record in pointed.records():
        for native in (False, True):
            truth = dataset.truth(record.sample_id, native=native).tasks["cells"]
            points = np.asarray(pointed.points(int(record.sample_id[1:])))
            np.testing.assert_allclose(truth["points"], points / 2, atol=1e-4)
            assert truth["ids"].tolist() == list(range(len(points))) and truth["labels"].tolist() == [0] + [1] * (
                len(points) - 1
            )
            assert truth["region"].shape == (48, 80) and truth["region"].dtype == bool
            assert truth["region"][:, :40].all()
            assert truth["region"][:, 40:].any() == (int(record.sample_id[1:]) >= 6)


def test_points_are_collated_like_boxes(pointed, tiles):
    dataset, specs = make(pointed, tiles), pointed.specs()
    batch = Collate(specs, list(specs))([dataset[index] for index in range(4)])
    assert len(batch.targets["cells"]) == 4 and batch.present["cells"].all()
    assert all(set(row) >= {"boxes", "labels", "points", "ids"} for row in batch.targets["cells"])
    assert all(row["points"].dtype == torch.float32 and row["points"].shape[1:] == (2,) for row in batch.targets["cells"])


def test_points_say_where_nobody_looked(pointed, tiles):
    """The region moves with the pixels; what lies beyond the picture shows nothing, so that it counts."""
    for augmentation in (None, {"horizontal_flip": 1.0}):
        transform = None if augmentation is None else Transform(augmentation, (64, 64))
        specs = pointed.specs()
        dataset = SampleDataset(pointed, pointed.records(), specs, tiles, transform)
        batch = Collate(specs, list(specs))([dataset[index] for index in range(len(dataset))])
        seen = 0
        for row, meta in zip(batch.targets["cells"], batch.meta, strict=True):
            if "region" not in row:
                continue
            expected = np.ones((64, 64), bool)
            part = dataset.truth(meta.sample_id).tasks["cells"]["region"]
            x, y = map(int, meta.window.offset)
            height, width = meta.window.valid
            expected[:height, :width] = part[y : y + height, x : x + width]
            expected = expected if augmentation is None else expected[:, ::-1]
            assert row["region"].dtype == torch.bool
            np.testing.assert_array_equal(row["region"].numpy(), expected)
            seen += not expected.all()
        assert seen > 0
