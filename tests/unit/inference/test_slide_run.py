"""What is left on disk for a slide, and when it is left alone."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from slide_tools import generate, make_predictor, save

from mtl.config.verbs import SlideConfig
from mtl.core.errors import DataError
from mtl.core.registry import STUDY_METRICS
from mtl.core.types import ImageResult, Window
from mtl.imaging.stain import restain
from mtl.inference.outputs import csv_columns, slide_row
from mtl.inference.predictor import Predictor
from mtl.inference.slides.outputs import density_of, draw_overview, tiles_of, write_mask, write_points
from mtl.inference.slides.run import SlidePredictor, legend_lines
from mtl.inference.slides.tumor_bulk import tumor_bulk
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.til import TilScore, til_score

SIZE = (200, 260)
FILES = ["detected-lymphocytes.json", "overview.png", "til-score.json", "tissue.tif"]


def run(predictor: Predictor | None = None, /, *, checkpoint: str = "abc", masks: bool = True, overviews: bool = True,
        **settings: Any) -> SlidePredictor:  # fmt: skip
    settings = {"min_saturation": None, **settings}
    return SlidePredictor(predictor or make_predictor(), SlideConfig(**settings), checkpoint, masks, overviews)


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return save(tmp_path / "slides" / "a.tif", generate(*SIZE))


def test_everything_is_written_and_agrees(stored: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "out" / "a", []
    outcome = run().predict(stored, out, lambda done, total: steps.append((done, total)))
    assert outcome.error is None and sorted(path.name for path in out.iterdir()) == FILES
    assert steps[-1] == (200, 200) and [done for done, _ in steps] == sorted(done for done, _ in steps)
    expected = make_predictor().predict(generate(*SIZE), 2.0)
    with tifffile.TiffFile(out / "tissue.tif") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled and page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE and page.dtype == np.uint8
        assert page.get_resolution("CENTIMETER") == pytest.approx((20_000, 20_000))
        assert json.loads(page.description) == {"no tissue": 0, "tumor": 1, "stroma": 2, "other": 3}
        np.testing.assert_array_equal(page.asarray(), expected.mask("tissue") + 1)
    cells, found = content(out / "detected-lymphocytes.json"), expected.tasks["cells"]
    assert cells["type"] == "Multiple points" and cells["version"] == {"major": 1, "minor": 0}
    assert len(cells["points"]) == len(found["points"]) > expected.counts["lymphocyte"] > 5  # those below the threshold too
    for entry, point, score in zip(cells["points"], found["points"], found["scores"], strict=True):
        assert entry["point"] == pytest.approx([*(point * 0.5 / 1000), 0.5], abs=1e-6)
        assert set(entry) == {"point", "probability"} and entry["probability"] == pytest.approx(score, abs=1e-6)
    summary = content(out / "til-score.json")
    stroma = (expected.mask("tissue") == 1).sum() * 0.25
    assert summary["cells"] == expected.counts["lymphocyte"] and summary["stroma_area_um2"] == pytest.approx(stroma)
    assert summary["til_score"] == pytest.approx(til_score(summary["cells"], stroma, 8.0)) and summary["til_score"] > 0
    assert summary["checkpoint"] == "abc" and summary["thresholds"]["cells"] == {"score": 0.7}
    assert summary["spacing_um"] == pytest.approx([0.5, 0.5]) and summary["tumor_bulk"] is False
    assert cv2.imread(str(out / "overview.png")).shape[1] == 3 * 260 + 16


def test_the_true_spacing_counts_and_small_differences_resize_nothing(tmp_path: Path) -> None:
    image = generate(200, 300)
    exact = run().predict(save(tmp_path / "a.tif", image), tmp_path / "a").summary
    near = run().predict(save(tmp_path / "b.tif", image, spacing=0.504), tmp_path / "b").summary
    assert near["stroma_area_um2"] / exact["stroma_area_um2"] == pytest.approx((0.504 / 0.5) ** 2)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a/tissue.tif"), tifffile.imread(tmp_path / "b/tissue.tif"))
    far = run().predict(save(tmp_path / "c.tif", image, spacing=0.25), tmp_path / "c").summary
    assert tifffile.imread(tmp_path / "c/tissue.tif").shape == (100, 150)
    assert far["mask_spacing_um"] == pytest.approx([0.5, 0.5])
    assert far["stroma_area_um2"] / exact["stroma_area_um2"] == pytest.approx(0.25, rel=0.1)
    point = content(tmp_path / "c/detected-lymphocytes.json")["points"][0]["point"]
    assert 0 <= point[0] <= 300 * 0.25e-3 and 0 <= point[1] <= 200 * 0.25e-3


def test_a_spacing_that_nobody_knows_must_be_given(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", generate(100, 100), spacing=None)
    outcome = run().predict(path, tmp_path / "out")
    assert (
        str(outcome.error) == f"{path}: does not say how many microns a pixel measures. Set slide.spacing=<microns per pixel>."
    )
    assert run(spacing=0.5).predict(path, tmp_path / "out").summary["spacing_um"] == [0.5, 0.5]
    options = {"tile": (64, 64), "resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "b.tif", generate(100, 100), **options)
    assert "0.5 x 0.25 microns; expected squares" in str(run().predict(tmp_path / "b.tif", tmp_path / "out").error)


def test_a_spacing_far_from_that_of_the_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", generate(64, 64), spacing=3.0)
    assert "a pixel measures 3 microns, and this network looks at 0.5" in str(run().predict(path, tmp_path / "out").error)
    assert "a pixel measures 50 microns" in str(run(spacing=50.0).predict(path, tmp_path / "out").error)
    assert run(spacing=2.0).predict(path, tmp_path / "out").error is None


@pytest.mark.parametrize("height", [512, 1024, 511])
def test_heights_that_fill_the_tiles_of_the_mask_are_no_exception(tmp_path: Path, height: int) -> None:
    image = generate(height, 64)
    outcome = run(overviews=False).predict(save(tmp_path / "a.tif", image), tmp_path / "out")
    assert outcome.error is None and len(content(tmp_path / "out" / FILES[0])["points"]) > 5
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "tissue.tif").shape, image.shape[:2])


def test_a_disk_that_refuses_is_an_outcome(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in str(run().predict(stored, tmp_path / "file").error)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_png", "write_json", "outputs.clear", "outputs.write_points"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mtl.inference.slides.run.{name}", full)
            said = str(run().predict(stored, tmp_path / "out").error)
        assert said.startswith(f"{stored}: ") and "cannot be written" in said and "No space left on device" in said
    with pytest.raises(DataError, match="is no folder; expected one with <slide>"):
        run(tissue_masks=str(tmp_path / "nowhere"))


def test_masks_and_colour_say_where_tissue_is(stored: Path, tmp_path: Path) -> None:
    marked = np.zeros((50, 65), np.uint8)
    marked[:, :20] = 1
    save(tmp_path / "masks" / "a_tissue.tif", marked)
    folder = str(tmp_path / "masks")
    summary = run(tissue_masks=folder).predict(stored, tmp_path / "one").summary
    mask = tifffile.imread(tmp_path / "one" / "tissue.tif")
    assert (mask[:, :80] > 0).all() and not mask[:, 80:].any()
    assert summary["windows_with_tissue"] < summary["windows"] / 2
    by_colour = run(min_saturation=0.05).predict(stored, tmp_path / "two").summary
    assert by_colour["windows_with_tissue"] < by_colour["windows"]
    mask = tifffile.imread(tmp_path / "two" / "tissue.tif")
    assert (mask[:, :160] > 0).all() and not mask[:, 230:].any()
    other = save(tmp_path / "slides" / "b.tif", generate(100, 100))
    assert "holds no `b_tissue.tif`" in str(run(tissue_masks=folder).predict(other, tmp_path / "three").error)


def test_without_one_of_the_tasks(stored: Path, tmp_path: Path) -> None:
    summary = run(make_predictor(tasks=("tissue",))).predict(stored, tmp_path / "mask").summary
    assert summary["til_score"] is None and summary["cells"] is None and summary["areas_um2"]["stroma"] > 0
    assert sorted(path.name for path in (tmp_path / "mask").iterdir()) == FILES[1:]
    summary = run(make_predictor(tasks=("cells",))).predict(stored, tmp_path / "cells").summary
    assert summary["til_score"] is None and summary["cells"] > 5 and summary["stroma_area_um2"] is None
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == FILES[:3]
    predictor = make_predictor()
    predictor.specs["tissue"] = replace(predictor.specs["tissue"], classes=("tumor", "fibres", "other"))
    summary = run(predictor).predict(stored, tmp_path / "no_stroma").summary
    assert summary["til_score"] is None and summary["cells"] > 5
    assert summary["note"].endswith("no class `stroma`; set slide.stroma to one of tumor, fibres, other")
    summary = run(predictor, stroma="fibres").predict(stored, tmp_path / "no_stroma").summary
    assert summary["til_score"] > 0 and summary["note"] is None
    run(masks=False, overviews=False).predict(stored, tmp_path / "few")
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == [FILES[0], FILES[2]]


def test_a_slide_of_glass(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.full((150, 150, 3), 243, np.uint8))
    outcome = run(min_saturation=0.05).predict(path, tmp_path / "out")
    assert outcome.summary["cells"] == 0 and outcome.summary["windows_with_tissue"] == 0
    assert outcome.summary["til_score"] is None and outcome.summary["note"] == "no TIL score: no stroma"
    assert content(tmp_path / "out" / FILES[0])["points"] == []


def test_stain_is_measured_once_and_applied_to_every_window(stored: Path, tmp_path: Path) -> None:
    predictor = make_predictor()
    predictor.model.preprocessing = replace(predictor.model.preprocessing, stain={"method": "reinhard", "density": 0.15})
    assert run(predictor).predict(stored, tmp_path / "out").error is None
    preprocessing, image = predictor.model.preprocessing, generate(*SIZE)
    normal = restain(image, preprocessing.stain_of(image))  # the overview is the slide itself
    expected = make_predictor().predict(normal, 2.0).mask("tissue")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "tissue.tif") - 1, expected)
    assert (make_predictor().predict(image, 2.0).mask("tissue") != expected).any()


# -- done before -------------------------------------------------------------------------------------------------------


def test_a_finished_slide_is_left_alone_until_something_changes(tmp_path: Path) -> None:
    stored, out = save(tmp_path / "slide.tif", generate(100, 130)), tmp_path / "out"
    first = run().predict(stored, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    predictor = make_predictor()
    again = run(predictor).predict(stored, out)
    assert again.skipped and not first.skipped and again.summary == first.summary and predictor.model.seen == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    for changed in (run(checkpoint="other"), run(tumor_bulk=True), run(spacing=0.25), run(overviews=False), run()):
        assert not changed.predict(stored, out).skipped and changed.predict(stored, out).skipped
    assert sorted(path.name for path in out.iterdir()) == FILES
    os.utime(stored, (1, 1))
    assert not run().predict(stored, out).skipped
    (out / "tissue.tif").unlink()
    assert not run().predict(stored, out).skipped
    (out / "til-score.json").write_text("{")
    assert not run().predict(stored, out).skipped


def test_an_interrupted_slide_starts_again_and_leaves_nothing_half(stored: Path, tmp_path: Path) -> None:
    out, predictor = tmp_path / "out", make_predictor(batch_size=1)
    decode = predictor.model.decode

    def stop(outputs: Any, boxes: Any = None) -> Any:
        if predictor.model.seen > 10:
            raise KeyboardInterrupt
        return decode(outputs, boxes)

    predictor.model.decode = stop
    with pytest.raises(KeyboardInterrupt):
        run(predictor).predict(stored, out)
    assert list(out.iterdir()) == []
    (out / ".tissue.tif.1.partial").write_text("killed")
    (out / "overview.png").write_text("of other settings")
    assert not run().predict(stored, out).skipped
    assert sorted(path.name for path in out.iterdir()) == FILES and (out / "overview.png").stat().st_size > 1000


def test_a_damaged_slide_is_an_outcome_and_leaves_nothing(stored: Path, tmp_path: Path) -> None:
    pixels = stored.read_bytes()
    at = len(pixels) // 2
    stored.write_bytes(pixels[:at] + b"\0" * 4000 + pixels[at + 4000 :])
    outcome = run(overviews=False).predict(stored, tmp_path / "out")
    assert "cannot be read as a slide" in str(outcome.error) and list((tmp_path / "out").iterdir()) == []
    assert "cannot be read" in str(run().predict(tmp_path / "nowhere.tif", tmp_path / "out").error)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(512, 512), (1025, 600), (10, 2000)])
def test_bands_of_any_height_become_tiles(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 4, size, np.uint8)
    cuts = [0, 1, 200, 201, 900, 10_000]
    bands = [mask[a:b] for a, b in pairwise(cuts)]
    assert all(tile.shape == (512, 512) for tile in tiles_of(bands, size))
    write_mask(tmp_path / "mask.tif", size, bands, (0.5, 0.25), {"no tissue": 0})
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.tif"), mask)

    def broken():
        yield mask[:5]
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        write_mask(tmp_path / "other.tif", size, broken(), (0.5, 0.5), {})
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


def test_points_of_several_classes_carry_names(tmp_path: Path) -> None:
    write_points(tmp_path / "a.json", np.array([[10.0, 20.0]]), np.array([0.5]), (0.5, 0.25), ["plasma"])
    entry = {"name": "plasma", "point": [0.005, 0.005, 0.5], "probability": 0.5}
    assert content(tmp_path / "a.json")["points"] == [entry]


def test_the_bulk_joins_near_nests_and_leaves_out_small_ones() -> None:
    tumor = np.zeros((200, 300), bool)
    tumor[40:60, 40:60] = tumor[40:60, 90:110] = True  # 30 pixels apart
    tumor[150:170, 240:270] = True  # far away, large enough
    tumor[180:183, 20:23] = True  # far away, small
    bulk = tumor_bulk(tumor, um=10.0)  # a disc of 50 pixels
    assert bulk[50, 75] and bulk[tumor & (np.arange(200)[:, None] < 180)].all()
    assert not bulk[180:183, 20:23].any() and not bulk[100, 150] and bulk[160, 255]
    assert not tumor_bulk(tumor, um=25.0)[50, 75]  # a disc of 20 pixels does not bridge the gap
    assert not tumor_bulk(np.zeros((5, 5), bool), 10.0).any()
    edge = np.zeros((50, 50), bool)
    edge[:, :4] = True
    assert (tumor_bulk(edge, 10.0) == edge).all()


def test_only_what_lies_in_the_bulk_counts(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.inference.slides.tumor_bulk.CLOSING_UM", 5.0)  # the slide is 130 microns wide
    plain = run().predict(stored, tmp_path / "plain").summary
    bulk = run(tumor_bulk=True).predict(stored, tmp_path / "bulk").summary
    mask = tifffile.imread(tmp_path / "bulk" / "tissue.tif")
    inside = tumor_bulk(mask == 1, 0.5)
    x, y = (
        np.array([e["point"][:2] for e in content(tmp_path / "bulk" / FILES[0])["points"] if e["probability"] >= 0.7]).T * 2000
    )
    assert bulk["cells"] == inside[y.astype(int), x.astype(int)].sum() < plain["cells"]
    assert bulk["stroma_area_um2"] == pytest.approx((inside & (mask == 2)).sum() * 0.25) and bulk["stroma_area_um2"] > 0
    assert bulk["bulk_area_um2"] == pytest.approx(inside.sum() * 0.25)
    assert bulk["til_score"] == pytest.approx(til_score(bulk["cells"], bulk["stroma_area_um2"], 8.0))
    rows = [slide_row(stored, summary) for summary in (plain, bulk)]
    assert "cells_in_bulk" not in rows[0] and rows[1]["cells_in_bulk"] == bulk["cells"]
    assert rows[0]["n_lymphocyte"] == rows[1]["n_lymphocyte"] == plain["cells"]
    for row in rows:
        assert row["tissue_stroma_area_ratio"] == pytest.approx((mask == 2).mean(), abs=1e-5)
    assert set(rows[1]) <= set(csv_columns(run().predictor.specs, slides=True))


def test_density_and_overview() -> None:
    density = density_of(np.tile([600.0, 1000.0], (40, 1)), (2000.0, 4000.0))  # 40 cells at one place of 8 mm2
    assert density.shape == (80, 160) and density.mean() * 8 == pytest.approx(40, rel=1e-3)
    assert np.unravel_index(density.argmax(), density.shape) == (40, 24)
    picture = np.full((100, 200, 3), 200, np.uint8)
    share = np.zeros((100, 200))
    share[:, 100:] = 1
    drawn = draw_overview(picture, [("tumor", share)], density, share > 0, ["TIL score 5.0 %"], {"tumor": (213, 94, 0)})
    assert drawn.shape[1] == 616 and len(drawn) > 100
    plain, tissue, cells = (drawn[:100, at : at + 200].astype(int) for at in (0, 208, 416))
    assert (plain[50, 10:90] == 200).all() and np.ptp(tissue[50, 10]) == 0 and tissue[50, 150, 0] > tissue[50, 150, 2] + 80
    assert np.ptp(cells[50, 30]) > 50 and np.ptp(cells[5, 90]) == 0
    assert draw_overview(picture, [], None, None, [], {}).shape[1] == 200
    half = np.arange(200) < np.full((100, 1), 30)  # the cells lie at its edge
    glass = draw_overview(picture, [], density, None, [], {}, tissue=half)[:100, 208:408].astype(int)
    assert np.ptp(glass[50, 28]) > 50 and not np.ptp(glass[:, 31:], axis=2).any()  # as dense as it is, glass stays grey
    facts = {"til_score": math.nan, "cells": 3, "stroma_area_um2": 2e6, "tumor_bulk": True}
    assert legend_lines(facts, None)[0] == "TIL score: no stroma in the bulk" and math.isnan(til_score(3, 0.0, 8.0))
    assert legend_lines({**facts, "tumor_bulk": False}, None)[0] == "TIL score: no stroma"


@pytest.mark.parametrize("tasks", [("tissue", "cells"), ("cells",)])
@pytest.mark.parametrize("saturation", [0.05, None])
def test_no_density_on_glass(tasks: tuple[str, ...], saturation: float | None, stored: Path, tmp_path: Path) -> None:
    run(make_predictor(tasks=tasks), min_saturation=saturation).predict(stored, tmp_path / "out")
    drawn = cv2.imread(str(tmp_path / "out" / "overview.png"))[: SIZE[0], 268 * len(tasks) : 268 * len(tasks) + SIZE[1]]
    colourful = np.ptp(drawn.astype(int), axis=2) > 8
    assert colourful[:, :150].mean() > 0.5 and not colourful[:, 230:].any()  # glass begins at 208 on average


def test_other_thresholds_start_again(stored: Path, tmp_path: Path) -> None:
    few = run(make_predictor(), overviews=False).predict(stored, tmp_path / "out")
    many = run(make_predictor().adjusted({"cells": 0.2}), overviews=False).predict(stored, tmp_path / "out")
    assert not many.skipped and many.summary["cells"] > few.summary["cells"]


def test_the_score_has_the_settings_of_the_run(stored: Path, tmp_path: Path) -> None:
    """The same object scores a slide and, in `metrics.json`, the regions of a slide."""

    def metric(**keys: Any) -> TilScore:
        return STUDY_METRICS.build({"name": "til_score", **keys}, make_predictor().specs)  # type: ignore[no-any-return]

    scores = {}
    for diameter in (8.0, 16.0):
        predictor = make_predictor(study={"til_score": metric(cell_diameter=diameter)})
        summary = run(predictor).predict(stored, tmp_path / str(diameter)).summary
        scores[diameter] = summary["til_score"]
        side = diameter**2
        assert scores[diameter] == pytest.approx(100 * summary["cells"] * side / summary["stroma_area_um2"])
        scored = regions_as_annotated(predictor.study, summary["cells"], summary["stroma_area_um2"])
        assert scored == pytest.approx(summary["til_score"])
    assert scores[16.0] == pytest.approx(4 * scores[8.0]) and scores[8.0] > 0
    other = make_predictor(study={"til_score": metric(stroma="tumor")})
    summary = run(other).predict(stored, tmp_path / "tumor").summary
    assert summary["settings"]["stroma"] == "tumor" and summary["stroma_area_um2"] == summary["areas_um2"]["tumor"]
    given = run(other, stroma="stroma").predict(stored, tmp_path / "given").summary
    assert given["stroma_area_um2"] == given["areas_um2"]["stroma"] and given["til_score"] == pytest.approx(scores[8.0])


def regions_as_annotated(study: Any, cells: int, area: float) -> float:
    """Return the true score that an evaluation gives a slide whose region has so many cells and microns of stroma."""
    evaluator = Evaluator(make_predictor().specs, study, group_by="slide")
    scale = (1_000 / area) ** 0.5  # working pixels per micron, so that 1000 of them are stroma
    window = Window(0, 1, (scale, scale), (0, 0), (0, 0), (50, 50), (50, 50), (50, 50), (50, 50))
    mask = np.zeros((50, 50), np.uint8)
    mask[:20] = 1
    points, labels = np.random.default_rng(0).uniform(0, 50, (cells, 2)), np.zeros(cells, np.int64)
    truth: Any = {"cells": {"points": points, "labels": labels, "region": mask >= 0}, "tissue": {"mask": mask}}
    guess: Any = {
        "cells": {"points": points, "labels": labels, "scores": np.ones(cells, np.float32)},
        "tissue": {"probabilities": np.eye(3, dtype=np.float32)[mask].transpose(2, 0, 1)},
    }
    evaluator.update(*(ImageResult("region", "slide", "s", window, tasks) for tasks in (guess, truth)))
    (score,) = evaluator.curves(evaluator.default_thresholds())["til_score"]["agreement"]["slide"]["true"]
    return float(score)


def test_a_run_without_a_metric_for_slides_has_no_score(stored: Path, tmp_path: Path) -> None:
    """Cells and tissue are found all the same, and nobody guesses which of it is the stroma."""
    summary = run(make_predictor(study={})).predict(stored, tmp_path / "out").summary
    assert summary["til_score"] is None and summary["stroma_area_um2"] is None and summary["cells"] > 5
    assert summary["areas_um2"]["stroma"] > 0 and summary["settings"]["cells"] == "cells"
    assert summary["note"] == "no TIL score: the run has no study metric that scores slides (study_metrics)"
    given = run(make_predictor(study={}), stroma="stroma").predict(stored, tmp_path / "given").summary
    assert given["til_score"] is None and given["stroma_area_um2"] > 0 and given["note"] == summary["note"]
