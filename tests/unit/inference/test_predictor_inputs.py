"""Whatever form an image is given in, the prediction is that of its file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from grey_tools import BrightModel, head
from PIL import Image
from slide_tools import generate, make_predictor, save

from mtl.core.errors import ConfigError, DataError
from mtl.inference.prediction import Prediction
from mtl.inference.predictor import Predictor


def same(first: Any, second: Any) -> bool:
    """Whether two predictions hold equal values."""
    assert isinstance(first, Prediction) and isinstance(second, Prediction)
    for task, arrays in first.tasks.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, second.tasks[task][key])
    return first.to_json() == second.to_json()


@pytest.fixture
def files(field, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, image in zip(paths, (field[0], field[0][::-1].copy()), strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_paths_pictures_arrays_and_lists_say_the_same(make_model, files: list[Path]) -> None:
    predictor = Predictor(make_model(), device="cpu", pixel_scale=lambda size, name: 2.0 if name == "b" else 1.0)
    of_files = [outcome.prediction for outcome in predictor.predict_paths(files)]
    assert of_files[0] is not None and of_files[1] is not None and of_files[1].window.pixel_scale == 2.0
    with Image.open(files[0]) as opened:
        given: list[Any] = [files[0], str(files[0]), opened.copy(), np.asarray(opened)]
    for item in given:
        assert same(predictor.predict(item), of_files[0])
    several = predictor.predict([files[1], given[2], given[3], str(files[1])])
    for found, expected in zip(several, [of_files[1], of_files[0], of_files[0], of_files[1]], strict=True):
        assert same(found, expected)
    assert predictor.predict([]) == [] and isinstance(predictor.predict((files[0],)), list)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("grey", [False, True])
def test_pictures_of_every_mode_are_read_as_their_files(mode: str, grey: bool, make_model, field, tmp_path: Path) -> None:
    alpha = np.full(field[0].shape[:2], 90, np.uint8)
    picture = Image.fromarray(np.dstack([field[0], alpha])).convert("RGBA" if mode[-1] == "A" else "RGB").convert(mode)
    picture.save(tmp_path / "a.png")
    predictor = Predictor(BrightModel(), device="cpu", modalities=("flair",)) if grey else Predictor(make_model(), device="cpu")
    assert same(predictor.predict(picture), predictor.predict(tmp_path / "a.png"))


def test_what_is_none_of_these_is_refused(make_model, field, files: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(make_model(), device="cpu")
    cv2.imwrite(str(tmp_path / "deep.png"), field[0].astype(np.uint16) * 16)
    (tmp_path / "text.png").write_text("nothing")
    first = Image.fromarray(field[0])
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[first])
    first.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    first.convert("CMYK").save(tmp_path / "inks.jpg")
    for item, words in (
        (3, r"Expected the path of an image.*found int"),
        (tmp_path, r"is a folder of \d images, not a case\. Give a list"),
        (tmp_path / "text.png", r"text\.png: cannot be decoded"),
        (tmp_path / "nowhere.png", "does not exist"),
        (Image.open(tmp_path / "deep.png"), r"more than 8 bits per colour channel \(16\)"),
        (Image.open(io.BytesIO((tmp_path / "deep.png").read_bytes())), "opened from memory, has more than 8 bits"),
        (Image.open(tmp_path / "cut.jpg"), "cannot be decoded"),
        (Image.open(tmp_path / "pages.tif"), "holds 2 pages"),
        (Image.open(tmp_path / "inks.jpg"), "printing inks"),
        (Image.new("LAB", (9, 9)), "colours of LAB"),
        (Image.fromarray(np.zeros((9, 9), np.uint16)), "more than 8 bits per channel"),
        ([files[0], np.zeros((4, 4, 4, 3), np.uint8)], "Expected an image array"),
    ):
        with pytest.raises(DataError, match=words):
            predictor.predict(item)
    slide = save(tmp_path / "slides" / "a.tif", generate(80, 80))
    with pytest.raises(DataError, match=r"a\.tif: is a slide.*Use `mtl predict checkpoint=\.\.\. source=.*a\.tif output="):
        make_predictor().predict(slide)


def test_settings_hold_for_one_call(make_model, study, files: list[Path]) -> None:
    predictor = Predictor(make_model(), device="cpu", study=study, thresholds={"detection": {"score": 0.2}})
    whole = predictor.predict(files[0])
    strict = predictor.predict(files[0], thresholds={"detection": 0.999, "segmentation": {"cell": 0.95}})
    assert len(whole.objects("detection")["boxes"]) == 24 and len(strict.objects("detection")["boxes"]) == 0
    assert whole.mask("segmentation").any() and not strict.mask("segmentation").any()
    assert predictor.thresholds == {"detection": {"score": 0.2}}
    few = predictor.predict(files[0], tasks=["segmentation", "grade"])
    assert set(few.tasks) == {"segmentation", "grade"} and few.study == {} and few.counts == {}
    np.testing.assert_array_equal(few.mask("segmentation"), whole.mask("segmentation"))
    withheld = predictor.predict(files[0], when={"grade": {"none": 0.5}})
    assert withheld.segmentation == {"withheld": "grade: none 0.25, below 0.5"} and whole.segmentation["mask"].any()
    assert whole.classification["probability_list"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"thresholds": {"detektion": 0.3}}, "Unknown task `detektion`.*Did you mean `detection`"),
        ({"thresholds": {"detection": 1.5}}, r"`thresholds\.detection` is 1\.5; expected a number from 0 to 1"),
        ({"thresholds": {"detection": float("nan")}}, "is nan; expected a number from 0 to 1"),
        ({"thresholds": {"detection": True}}, "is True; expected"),
        ({"thresholds": {"grade": {"none": 0.3}}}, r"Unknown threshold `none` in `thresholds\.grade`. Expected one of: some"),
        ({"tasks": ["roi"]}, "looks at the boxes of `detection`, but not `detection`. Add it"),
        ({"tasks": []}, "`tasks` is empty"),
        ({"thresholds": 0.3}, r"`thresholds` is 0.3; expected numbers by task"),
        ({"tasks": ["nothing"]}, "Unknown task `nothing`"),
        (
            {"when": {"segmentation": 0.3}},
            "Unknown task that states a class of an image `segmentation`.*Expected one of: grade",
        ),
        ({"when": {"grade": {"many": 0.3}}}, r"Unknown class `many` in `when\.grade`"),
        ({"when": {"grade": -1}}, r"`when\.grade` is -1; expected"),
        ({"when": {"grade": 0.3}, "tasks": ["grade", "detection"]}, "none of the tasks has any: detection, grade"),
    ],
)
def test_settings_that_fit_no_task_are_refused(settings: dict[str, Any], words: str, make_model) -> None:
    with pytest.raises(ConfigError, match=words):
        Predictor(make_model(), device="cpu").adjusted(**settings)


def test_grey_values_of_a_file_and_of_its_array_are_one(tmp_path: Path) -> None:
    grey = (255 * head((90, 80), (30, 20, 50, 40))).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    predictor = Predictor(BrightModel(), device="cpu", modalities=("flair",))
    assert same(predictor.predict(tmp_path / "a.png"), predictor.predict(grey))
