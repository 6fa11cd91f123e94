"""Networks for MR slices take pictures of any kind as grey values; predictions lie where the picture has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from grey_tools import LETTERBOX, STRETCH, BrightModel, head
from PIL import Image

from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.data.formats.images import grey_channels, grey_values, read_grey
from mtl.imaging.geometry import Geometry
from mtl.inference.outputs import PredictionWriter
from mtl.inference.prediction import Prediction
from mtl.inference.predictor import Predictor

SQUARE = (40, 60, 80, 90)  # top, left, bottom, right


def predictor(**settings: Any) -> Predictor:
    return Predictor(BrightModel(**settings), device="cpu", modalities=("flair",))


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("geometry", [STRETCH, LETTERBOX], ids=["stretch", "letterbox"])
def test_the_mask_has_the_size_of_the_picture_and_lies_on_the_bright_square(geometry: Geometry, foreground: bool) -> None:
    image = head((120, 150), SQUARE)
    prediction = predictor(geometry=geometry, foreground=foreground).predict(image)
    found = prediction.segmentation
    assert found is not None and set(found) == {"mask", "confidence_map", "whole_tumor_area_ratio"}
    mask, confidence = found["mask"], found["confidence_map"]
    assert mask.shape == confidence.shape == (120, 150) and mask.dtype == np.uint8 and confidence.dtype == np.float32
    assert confidence.min() >= 0 and confidence.max() <= 1
    if foreground:  # everything near the brain's mean is at a half
        mask = (confidence > 0.8).astype(np.uint8)
    rows, columns = np.nonzero(mask)
    edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    assert np.abs(np.subtract(edges, SQUARE)).max() <= 2
    assert found["whole_tumor_area_ratio"] == pytest.approx(found["mask"].mean(), abs=1e-7)


def test_the_area_counts_the_whole_picture_and_not_what_the_network_saw() -> None:
    image = head((100, 200), (0, 0, 50, 100), level=0.0)  # an eighth, and a quarter of the left half
    found = predictor(geometry=LETTERBOX).predict(image).segmentation
    assert found is not None and found["whole_tumor_area_ratio"] == pytest.approx(0.25, abs=0.01)


def test_classes_come_with_id_name_and_confidence() -> None:
    prediction = predictor().predict(head((64, 64), (20, 20, 40, 40)))
    entry = prediction.classification
    assert entry is not None and entry["predicted_class_id"] == 1 and entry["class_name"] == "tumor"
    assert entry["confidence"] == entry["probabilities"]["tumor"] == pytest.approx(0.8)
    assert sum(entry["probabilities"].values()) == pytest.approx(1.0)
    assert prediction.to_json()["tasks"]["presence"] == {
        "kind": "classification", "predicted_class_id": 1, "class_name": "tumor", "confidence": 0.8,
        "probabilities": {"no_tumor": 0.2, "tumor": 0.8}, "probability_list": [0.2, 0.8],
    }  # fmt: skip


def test_several_tasks_of_a_kind_go_by_name_and_none_is_none() -> None:
    several = predictor(tasks=("whole_tumor", "tumor_regions")).predict(head((64, 64), (20, 20, 40, 40)))
    found = several.segmentation
    assert found is not None and set(found) == {"whole_tumor", "tumor_regions"} and several.classification is None
    regions = found["tumor_regions"]
    assert regions["mask"].shape == regions["confidence_map"].shape == (3, 64, 64)
    assert regions["tumor_core_area_ratio"] == pytest.approx(regions["mask"][1].mean(), abs=1e-7)


def test_exclusive_classes_give_the_confidence_of_the_predicted_one() -> None:
    window = predictor().predict(head((64, 64), (20, 20, 40, 40))).window
    spec = TaskSpec("tissue", "segmentation", ("background", "tumour"), multilabel=False)
    probabilities = np.stack([np.full((64, 64), 0.7), np.full((64, 64), 0.3)]).astype(np.float32)
    probabilities[:, :16] = probabilities[::-1, :16]
    found = Prediction(window, {"tissue": spec}, {}, {"tissue": {"probabilities": probabilities}}).segmentation
    assert found is not None and found["mask"].shape == (64, 64) and found["tumour_area_ratio"] == pytest.approx(0.25)
    np.testing.assert_allclose(found["confidence_map"], 0.7, atol=1e-6)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "palette", "deep png", "deep tif"])
def test_every_kind_of_picture_becomes_the_same_grey(kind: str, tmp_path: Path) -> None:
    grey = (255 * head((90, 80), (30, 20, 50, 40))).astype(np.uint8)
    path, factor = tmp_path / ("picture.tif" if kind == "deep tif" else "picture.png"), 1
    picture = Image.fromarray(grey)
    if kind == "rgb":
        picture = picture.convert("RGB")
    elif kind == "rgba":
        picture = picture.convert("RGBA")
    elif kind == "palette":
        picture = picture.convert("P")
    if kind.startswith("deep"):
        factor = 200
        cv2.imwrite(str(path), grey.astype(np.uint16) * factor)
    else:
        picture.save(path)
    np.testing.assert_array_equal(read_grey(path), grey.astype(np.float32) * factor)
    model = predictor(foreground=True)
    (outcome,) = model.predict_paths([path])
    assert outcome.prediction is not None and outcome.image is not None and outcome.image.dtype == np.float32
    # What the head is standardised by does not depend on the unit.
    direct = model.predict(grey).confidence_map("whole_tumor")
    np.testing.assert_allclose(outcome.prediction.confidence_map("whole_tumor"), direct, atol=1e-5)


def test_colours_become_their_luma_and_hidden_pixels_black() -> None:
    rgba = np.zeros((1, 4, 4), np.uint8)
    rgba[0] = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 51]]
    np.testing.assert_allclose(grey_values(rgba), [[76, 150, 29, 51]])
    np.testing.assert_allclose(grey_values(rgba[..., :3]), [[76, 150, 29, 255]])
    for wrong in (rgba.astype(np.float32), np.zeros((2, 2, 2), np.uint8), np.full((2, 2), np.nan), np.zeros((0, 3))):
        with pytest.raises(DataError, match="grey values"):
            grey_values(wrong)


def test_a_picture_of_unknown_modality_fills_all_channels_or_its_own() -> None:
    grey = head((64, 64), (20, 20, 40, 40))
    names = ("flair", "t1", "t2")
    assert (grey_channels(grey, names) == grey[..., None]).all()
    one = grey_channels(grey, names, "t2")
    assert (one[..., 2] == grey).all() and not one[..., :2].any()
    for modality, filled in (("repeat", 3), ("t2", 1)):
        model = BrightModel(channels=3)
        found = Predictor(model, device="cpu", modalities=names, picture_modality=modality).predict(grey)
        assert sum(bool(channel.any()) for channel in model.seen[0][0]) == filled
        assert found.mask("whole_tumor").any()


def test_a_stack_of_modalities_is_taken_as_it_is() -> None:
    stack = np.zeros((64, 64, 3), np.float32)
    stack[10:20, 30:40, 2] = 1.0
    model = BrightModel(channels=3)
    mask = Predictor(model, device="cpu", modalities=("flair", "t1", "t2")).predict(stack).mask("whole_tumor")
    assert mask.sum() == 100 and mask[0, 10:20, 30:40].all() and not model.seen[0][0, :2].any()


def test_who_standardises_a_foreground_takes_grey_and_who_is_told_colour_does_not() -> None:
    assert Predictor(BrightModel(foreground=True), device="cpu").modalities == ("grey",)
    assert Predictor(BrightModel(), device="cpu").modalities == ()
    with pytest.raises(DataError, match="uint8"):
        Predictor(BrightModel(foreground=True), device="cpu", modalities=()).predict(head((64, 64), SQUARE))


def test_files_beside_the_json_are_named_in_it(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), (head((90, 80), (30, 20, 50, 40)) * 60000).astype(np.uint16))
    model = predictor(foreground=True, tasks=("tumor_regions",))
    with PredictionWriter(tmp_path / "out", [tmp_path / "deep.png"], model.specs) as writer:
        writer.write(next(model.predict_paths([tmp_path / "deep.png"])))
    entry = json.loads((tmp_path / "out" / "deep.json").read_text())["tasks"]["tumor_regions"]
    assert entry["mask"]["tumor_core"] == "deep_tumor_regions_tumor_core.png"
    for name, file in entry["confidence_map"].items():
        sure = cv2.imread(str(tmp_path / "out" / file), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(tmp_path / "out" / entry["mask"][name]), cv2.IMREAD_UNCHANGED)
        assert sure.dtype == np.uint16 and sure.shape == mask.shape == (90, 80)
        np.testing.assert_array_equal(mask > 0, sure >= round(0.5 * 65535))
        assert entry[f"{name}_area_ratio"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    overlay = cv2.imread(str(tmp_path / "out" / "deep_overlay.png"))
    assert overlay.shape[1] == 80 and 60 < overlay[45:50, 45:60].mean() < 130  # grey, not black or white
