"""Files written by prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Window
from mtl.inference.images import find_images
from mtl.inference.outputs import PredictionWriter, map_images
from mtl.inference.predictor import Prediction, Predictor
from mtl.inference.result_names import output_names


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_writes_every_file_for_every_image(make_model, field, study, tmp_path: Path) -> None:
    image, _, labels = field
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(np.zeros_like(image)).save(folder / "empty.png")
    model, paths, output = make_model(), find_images(folder), tmp_path / "out"
    with PredictionWriter(output, paths, model.specs, study=study) as writer:
        for outcome in Predictor(model, device="cpu", study=study).predict_paths(paths):
            writer.write(outcome)
        assert not (output / "predictions.csv").exists()
    assert sorted(path.name for path in output.iterdir()) == [
        ".mtl-predictions", "a.json", "a_heatmap.png", "a_overlay.png", "a_segmentation.png", "a_segmentation_confidence.png",
        "empty.json", "empty_heatmap.png", "empty_overlay.png", "empty_segmentation.png", "empty_segmentation_confidence.png",
        "predictions.csv",
    ]  # fmt: skip
    rows = rows_of(output / "predictions.csv")
    first = [row for row in rows if row["image"].endswith("a.png")]
    cells = [row for row in first if row["task"] == "detection"]
    assert len(cells) == 24 and sum(row["class"] == "Infected" for row in cells) == (labels == 0).sum() == 7
    assert all(row["n_Infected"] == "7" and float(row["parasitemia"]) == pytest.approx(29.1667) for row in first)
    assert all(row["roi_class_name"] == row["class"] and float(row["x_max"]) > float(row["x_min"]) for row in cells)
    assert sum(row["task"] == "heatmap" and row["x"] != "" for row in first) == 7
    (nothing,) = [row for row in rows if row["image"].endswith("empty.png")]
    assert nothing["n_Healthy"] == "0" and nothing["object"] == "" and nothing["parasitemia"] == ""
    content = json.loads((output / "a.json").read_text())
    assert content["image"].endswith("a.png") and len(content["tasks"]["detection"]["objects"]) == 24
    entry = content["tasks"]["segmentation"]
    assert set(entry) == {"kind", "cell_area_ratio", "mask", "confidence_map"}
    mask = cv2.imread(str(output / entry["mask"]), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (400, 600) and set(np.unique(mask)) == {0, 255}
    assert (mask > 0).mean() == pytest.approx(entry["cell_area_ratio"], abs=1e-6)
    assert all(float(row["segmentation_cell_area_ratio"]) == entry["cell_area_ratio"] for row in first)
    sure = cv2.imread(str(output / entry["confidence_map"]), cv2.IMREAD_UNCHANGED)
    assert sure.shape == (400, 600) and sure.dtype == np.uint16 and sure.max() == round(0.9 * 65535) and sure[5, 5] == 0
    assert content["tasks"]["heatmap"]["heatmap"] == "a_heatmap.png"
    heat = cv2.imread(str(output / "a_heatmap.png"), cv2.IMREAD_UNCHANGED)
    assert heat.shape == (400, 600) and heat.dtype == np.uint16 and heat[40, 40] > 60000 and heat[5, 5] == 0


def test_overlay_shows_class_colours_and_has_a_heat_panel(make_model, field, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(field[0]).save(path)
    model = make_model()
    with PredictionWriter(tmp_path / "out", [path], model.specs, masks=False) as writer:
        writer.write(next(Predictor(model, device="cpu").predict_paths([path])))
    picture = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))
    assert picture.shape[1] > 2 * 600 and picture.shape[0] > 400
    for colour in model.specs["detection"].colours:
        assert (picture[:400, :600] == colour).all(axis=2).sum() > 100
    assert not (tmp_path / "out" / "a_segmentation.png").exists()


def test_maps_of_a_picture_with_a_cut_border_have_its_size() -> None:
    window = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (50, 100), (64, 128), (50, 100), (200, 400), content=(100, 50, 300, 150))
    specs = {
        "mask": TaskSpec("mask", "segmentation", ("cell",)),
        "peaks": TaskSpec("peaks", "heatmap", ("Infected",)),
    }
    heat = {"heatmap": np.ones((1, 13, 25), np.float32), "stride": np.array(4.0), "points": np.zeros((0, 2)),
            "scores": np.zeros(0), "labels": np.zeros(0, int)}  # fmt: skip
    tasks = {"mask": {"probabilities": np.ones((1, 50, 100), np.float32)}, "peaks": heat}
    found = {key: pixels for _, key, _, pixels in map_images(Prediction(window, specs, {}, tasks))}
    assert {pixels.shape for pixels in found.values()} == {(200, 400)}
    inside = np.zeros((200, 400), bool)
    inside[50:150, 100:300] = True
    np.testing.assert_array_equal(found["mask"] == 255, inside)
    for key in ("heatmap", "confidence_map"):
        np.testing.assert_array_equal(found[key] == 65535, inside)
        assert not found[key][~inside].any()


def test_rows_of_finished_images_survive_an_error(make_model, field, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(field[0]).save(path)
    model = make_model(tasks=("detection",))
    with pytest.raises(KeyboardInterrupt), PredictionWriter(tmp_path / "out", [path], model.specs) as writer:
        writer.write(next(Predictor(model, device="cpu").predict_paths([path])))
        raise KeyboardInterrupt
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 24
    assert not [entry for entry in (tmp_path / "out").iterdir() if entry.name.endswith(".partial")]


def test_equal_stems_get_different_names() -> None:
    def names(*paths: str) -> list[str]:
        found = output_names(Path(path) for path in paths)
        assert len({name.lower() for name in found.values()}) == len(paths)
        return [found[Path(path)] for path in paths]

    assert names("x/a.png", "x/b.png") == ["a", "b"]
    assert names("x/a.png", "x/a.jpg") == ["a_png", "a_jpg"]
    assert names("p1/Img/a.png", "p2/Img/a.png") == ["p1__Img__a", "p2__Img__a"]
    assert names("/d/x/a.png", "/d/y/a.png", "/d/y/b.png") == ["x__a", "y__a", "b"]
    names("x/A.png", "y/a.png", "z/x__A.png", "a_png.jpg")
    assert names("x/a.nii.gz", "x/a.png", "x/b.nii") == ["a_nii.gz", "a_png", "b"]
    names("a/b__c.png", "a__b/c.png", "b/a/b__c.png", "q/c.png")


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "sub/deep/c.tif", "notes.txt", ".hidden/d.png", "sub/._e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["b.png", "sub/a.JPG", "sub/deep/c.tif"]
    assert [path.name for path in find_images(f"{tmp_path}/*.png")] == ["b.png"]
    assert [path.name for path in find_images(f"{tmp_path}/**/*.tif")] == ["c.tif"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "void").mkdir()
    for source, words in (
        (tmp_path / "void", "holds no image"),
        (f"{tmp_path}/*.bmp", "matches no image"),
        ("no/where", "does not exist"),
    ):
        with pytest.raises(DataError, match=words):
            find_images(source)


def test_file_names_cannot_act_as_spreadsheet_formulas(make_model, field, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("=HYPERLINK(1).png")
    Image.fromarray(field[0]).save(path)
    model = make_model(tasks=("grade",))
    with PredictionWriter("out", [path], model.specs) as writer:
        writer.write(next(Predictor(model, device="cpu").predict_paths([path])))
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    assert row["image"].startswith("'=") and row["grade_class_name"] == "some" and row["grade_p_none"] == "0.25"
