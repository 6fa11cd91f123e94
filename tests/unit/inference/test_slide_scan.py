"""One pass over a slide: the same as predicting the region as an image, in a band of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slide_tools import CELLS, TILES, TISSUE, generate, make_predictor, save

from mtl.config.verbs import SlideConfig
from mtl.core.errors import ConfigError
from mtl.core.types import SampleMeta
from mtl.data.formats.slides import open_slide
from mtl.imaging.geometry import Geometry
from mtl.inference.predictor import Predictor
from mtl.inference.slides.raster import Resized, Tissue, array_reader
from mtl.inference.slides.scan import Scan, scan_tasks, surrounded
from mtl.stitching.blending import BlendedMaps
from mtl.stitching.stitcher import Stitcher

TASKS = ("cells", "tissue")


def scan(
    path: Path, predictor: Predictor, spacing: float = 0.5, tissue: np.ndarray | None = None, tasks: tuple = TASKS
) -> tuple[Scan, np.ndarray]:
    with open_slide(path) as slide:
        size = predictor.model.preprocessing.geometry.working_size(slide.size, 1 / spacing)
        where = None if tissue is None else Tissue(tissue.shape, array_reader(tissue), size)
        done = Scan(predictor, Resized(slide, size), 1 / spacing, where, *tasks)
        return done, np.concatenate(list(done.bands()))


@pytest.mark.parametrize("size", [(200, 290), (64, 64), (40, 230), (97, 64)])
@pytest.mark.parametrize("overlap", [32, 0])
def test_a_slide_is_predicted_like_the_image_that_it_shows(tmp_path: Path, size: tuple[int, int], overlap: int) -> None:
    image, predictor = generate(*size), make_predictor(replace(TILES, overlap=overlap))
    found, mask = scan(save(tmp_path / "slide.tif", image), predictor)
    expected = predictor.predict(image, 2.0)
    np.testing.assert_array_equal(mask - 1, expected.mask("tissue"))
    for key in ("points", "scores", "labels"):
        np.testing.assert_array_equal(found.points[key], expected.tasks["cells"][key])
    assert len(found.points["points"]) > (5 if size[0] * size[1] > 20_000 else 0) or size == (64, 64)
    assert found.looked_at == found.window.count


@pytest.mark.parametrize("spacing", [0.25, 0.31, 0.8])
def test_other_spacings_are_brought_to_that_of_the_network(tmp_path: Path, spacing: float) -> None:
    image, predictor = generate(*((260, 330) if spacing < 0.5 else (150, 200))), make_predictor()
    found, mask = scan(save(tmp_path / "slide.tif", image, spacing), predictor, spacing)
    expected = predictor.predict(image, 1 / spacing)
    classes = expected.tasks["tissue"]["probabilities"].argmax(axis=0)
    assert mask.shape == classes.shape == expected.window.working_size
    # A grey level of rounding apart, except for halves, which cost nothing.
    assert (mask - 1 == classes).mean() > (0.999 if spacing != 0.25 else 0.9999999)
    mine, theirs = found.points["points"], expected.tasks["cells"]["points"]
    assert len(mine) == len(theirs) > 10
    distance = np.linalg.norm(mine[:, None] - theirs[None], axis=2).min(axis=1)
    assert (distance == 0).mean() >= (0.9 if spacing != 0.25 else 1) and distance.max() <= 1 / found.window.scale[0] + 1e-3


def test_away_from_borders_it_equals_one_pass_over_everything(tmp_path: Path) -> None:
    image, predictor = generate(224, 288), make_predictor()
    found, mask = scan(save(tmp_path / "slide.tif", image), predictor)
    whole = make_predictor(Geometry(mode="tiles", size=(224, 288), scale=2.0, overlap=32)).predict(image, 2.0)
    assert whole.window.count == 1
    borders = np.zeros(image.shape[:2], bool)
    for line in {*range(0, 224, 32), *range(0, 288, 32)}:  # every 32 pixels a window begins or ends
        borders[max(line - 3, 0) : line + 3] = True
        borders[:, max(line - 3, 0) : line + 3] = True
    same = mask - 1 == whole.mask("tissue")
    assert same[~borders].all() and same.mean() > 0.995
    theirs = whole.tasks["cells"]
    assert {tuple(p) for p in found.points["points"].tolist()} == {tuple(p) for p in theirs["points"].tolist()}
    order, other = (np.lexsort(points.T) for points in (found.points["points"], theirs["points"]))
    np.testing.assert_allclose(found.points["scores"][order], theirs["scores"][other], atol=1e-5)


def test_glass_is_not_looked_at_and_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []
    read = Resized.read
    monkeypatch.setattr(Resized, "read", lambda self, *rectangle: reads.append(rectangle) or read(self, *rectangle))
    image, predictor = generate(256, 320), make_predictor()
    tissue = np.zeros((64, 80), np.uint8)
    tissue[10:40, 5:30] = 1
    found, mask = scan(save(tmp_path / "slide.tif", image), predictor, tissue=tissue)
    inside = np.kron(tissue, np.ones((4, 4))) > 0
    assert 0 < found.looked_at < found.window.count / 2 and predictor.model.seen == found.looked_at
    assert len(reads) == len(set(reads)) == found.looked_at  # no pixel of the others is decoded
    assert (mask[inside] > 0).all() and not mask[~inside].any()
    whole, _ = scan(tmp_path / "slide.tif", make_predictor())
    x, y = whole.points["points"].T.astype(int)
    expected = {tuple(p) for p in whole.points["points"][inside[y, x]].tolist()}
    assert {tuple(p) for p in found.points["points"].tolist()} == expected and expected
    empty, mask = scan(tmp_path / "slide.tif", predictor, tissue=np.zeros((8, 10), np.uint8))
    assert empty.looked_at == 0 and mask.shape == (256, 320) and not mask.any() and empty.points["points"].shape == (0, 2)


def test_areas_are_counted_in_squares_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.inference.slides.raster.OVERVIEW", 50)
    found, mask = scan(save(tmp_path / "slide.tif", generate(150, 230)), make_predictor())
    assert found.grid == (33, 50)
    for index, area in enumerate(found.areas):
        assert area.sum() == (mask == index + 1).sum()
        assert area[:11].sum() == pytest.approx((mask[:50] == index + 1).sum(), rel=0.01)
    rows, columns = found.square_of(np.array([[0.0, 0.0], [230.0, 150.0], [115.0, 75.0]], np.float32))
    assert rows.tolist() == [0, 32, 16] and columns.tolist() == [0, 49, 25]


def test_one_task_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "slide.tif", generate(150, 230))
    both, mask = scan(path, make_predictor())
    cells, nothing = scan(path, make_predictor(tasks=("cells",)), tasks=("cells", None))
    np.testing.assert_array_equal(cells.points["points"], both.points["points"])
    assert nothing.shape == (150, 230) and not nothing.any() and cells.areas.shape[0] == 0
    tissue, alone = scan(path, make_predictor(tasks=("tissue",)), tasks=(None, "tissue"))
    np.testing.assert_array_equal(alone, mask)
    assert len(tissue.points["points"]) == 0


def test_a_single_mask_uses_its_threshold(tmp_path: Path) -> None:
    image = generate(100, 130)
    predictor = make_predictor(thresholds={"tissue": {"tumor": 0.9}})
    predictor.specs["tissue"] = replace(TISSUE, classes=("tumor",), multilabel=True)
    _, mask = scan(save(tmp_path / "slide.tif", image), predictor)
    expected = predictor.predict(image, 2.0).tasks["tissue"]["probabilities"][0] >= np.float32(0.9)
    np.testing.assert_array_equal(mask, expected.astype(np.uint8))
    assert 0 < mask.mean() < 1


def test_rows_are_passed_on_as_soon_as_they_are_finished(tmp_path: Path) -> None:
    path, predictor = save(tmp_path / "slide.tif", generate(640, 64)), make_predictor(batch_size=1)
    with open_slide(path) as slide:
        bands, seen = Scan(predictor, Resized(slide, slide.size), 2.0, None, *TASKS).bands(), []
        for band in bands:
            seen.append((len(band), predictor.model.seen))
    assert [rows for rows, _ in seen[:3]] == [32, 32, 32] and sum(rows for rows, _ in seen) == 640
    assert [windows for _, windows in seen[:3]] == [2, 3, 4]  # of 19


def test_a_band_of_maps_gives_what_all_maps_give() -> None:
    rng, windows = np.random.default_rng(0), list(TILES.windows((200, 150), 2.0))
    whole, band, rows = BlendedMaps(), BlendedMaps(rows=64), []
    for window in windows:
        values = rng.random((2, 64, 64), np.float32)
        while band.top < window.offset[1]:
            rows.append(band.pop(min(64, int(window.offset[1]) - band.top))[0])
        for maps in (whole, band):
            maps.add(window, values)
    rows.append(band.pop(200 - band.top)[0])
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), whole.result())


def test_points_of_neighbours_within_the_radius_are_one_whatever_their_class() -> None:
    windows = Geometry(mode="tiles", size=(128, 128), scale=1.0, overlap=32).windows((128, 224))
    specs = {"cells": replace(CELLS, classes=("lymphocyte", "plasma"))}

    def stitched(*places: tuple[float, float, int, float]) -> dict[str, np.ndarray]:
        stitcher = Stitcher(specs)
        for window in windows:
            mine = [p for p in places if p[0] == window.index]
            points = np.array([[x - window.offset[0], 60] for _, x, _, _ in mine], np.float32).reshape(-1, 2)
            rows = {"scores": np.array([s for *_, s in mine], np.float32), "labels": np.array([k for *_, k, _ in mine], int)}
            arrays = {"cells": {"points": points, **rows, "radius": np.array(8.0, np.float32)}}
            stitcher.add(SampleMeta("a", "", "", window), arrays)
        return stitcher.pop_complete()[0].tasks["cells"]

    # The territories meet at x = 112; a point may lie half a radius beyond.
    assert stitched((0, 110, 0, 0.6), (1, 114, 1, 0.8))["labels"].tolist() == [1]
    assert stitched((0, 108, 0, 0.6), (1, 118, 1, 0.8))["scores"] == pytest.approx([0.8, 0.6])
    assert len(stitched((0, 108, 0, 0.6), (0, 109, 1, 0.8))["points"]) == 2  # of one window: the head's business
    assert len(stitched((0, 118, 0, 0.9))["points"]) == 0 and len(stitched((0, 115, 0, 0.9))["points"]) == 1
    assert float(stitched((0, 20, 0, 0.9))["radius"]) == 8.0


def test_rows_with_their_neighbours() -> None:
    rows = [[0, 1], [2], [3], [4]]
    assert list(surrounded(rows, 1)) == [([0, 1], [0, 1, 2]), ([2], [0, 1, 2, 3]), ([3], [2, 3, 4]), ([4], [3, 4])]
    assert list(surrounded([], 2)) == []


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"microns": False}, {}, "not trained at a fixed number of pixels per micron"),
        ({"geometry": Geometry(mode="letterbox", size=(64, 64))}, {}, "data.geometry.mode=tiles"),
        ({"clahe": {}}, {}, "data.preprocessing.clahe, which looks at a whole image"),
        ({}, {"cells": "a", "tissue": "b"}, "a task `a` that finds points nor a task `b` with a mask; it has tissue, cells"),
        ({}, {"cells": "tissue", "tissue": "cells"}, "neither a task"),
        ({"multilabel": True}, {}, "independent masks"),
        ({}, {"tumor_bulk": True, "tumor": "cancer"}, "needs the class `cancer`"),
        ({}, {"stroma": "cartilage"}, "`slide.stroma=cartilage` is no class of the task `tissue`; it has tumor, stroma, other"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_networks_that_cannot_be_used_are_refused(changes: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    predictor = make_predictor(changes.get("geometry", TILES), microns=changes.get("microns", True))
    model = predictor.model
    if "clahe" in changes:
        model.preprocessing = replace(model.preprocessing, clahe=changes["clahe"])
    if "multilabel" in changes:
        predictor.specs["tissue"] = replace(TISSUE, multilabel=True)
    with pytest.raises(ConfigError, match=words):
        scan_tasks(predictor, SlideConfig(**settings))


def test_tasks_that_a_network_lacks_are_left_out() -> None:
    assert scan_tasks(make_predictor(), SlideConfig()) == ("cells", "tissue")
    assert scan_tasks(make_predictor(tasks=("tissue",)), SlideConfig()) == (None, "tissue")
    assert scan_tasks(make_predictor(), SlideConfig(tissue="none")) == ("cells", None)
