"""Prediction comes back in the coordinates of the image, whatever the geometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from mtl.core.errors import DataError
from mtl.core.registry import STUDY_METRICS
from mtl.imaging.geometry import Geometry
from mtl.inference.outputs import csv_columns
from mtl.inference.pictures import layers_of
from mtl.inference.predictor import Predictor

GEOMETRIES = {
    "tiles": Geometry(mode="tiles", size=(128, 128), scale=0.5, overlap=32),
    "letterbox": Geometry(mode="letterbox", size=(288, 288)),
    "stretch": Geometry(mode="stretch", size=(256, 320)),
}


def by_place(boxes: np.ndarray) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.lexsort((np.round(centres[:, 0] / 20), np.round(centres[:, 1] / 20)))


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_objects_and_maps_return_to_the_original_image(geometry: str, make_model, field, study) -> None:
    image, boxes, labels = field
    prediction = Predictor(make_model(GEOMETRIES[geometry]), device="cpu", study=study).predict(image)
    found = prediction.tasks["detection"]
    order = by_place(found["boxes"])
    np.testing.assert_allclose(found["boxes"][order], boxes, atol=2.5)
    np.testing.assert_array_equal(found["labels"][order], labels)
    assert prediction.size == (400, 600) and prediction.counts == {"Infected": 7, "Healthy": 17}
    assert prediction.study["parasitemia"] == pytest.approx(100 * 7 / 24)
    mask = prediction.mask("segmentation")
    assert mask.shape == (1, 400, 600) and set(np.unique(mask)) == {0, 1}
    truth = image.max(axis=2) > 0
    assert 2 * (mask[0] & truth).sum() / (mask[0].sum() + truth.sum()) > 0.93
    np.testing.assert_array_equal(prediction.tasks["roi"]["probabilities"].argmax(1), found["labels"])
    points = prediction.objects("heatmap")["points"]
    infected = (boxes[labels == 0, :2] + boxes[labels == 0, 2:]) / 2
    assert len(points) == len(infected)
    assert np.linalg.norm(points[:, None] - infected[None], axis=2).min(axis=1).max() < 3


def test_tiles_follow_the_pixel_scale(make_model, field, tmp_path: Path) -> None:
    image, boxes, _ = field
    seen = []

    def rule(size: tuple[int, int], name: str) -> float:
        seen.append((size, name))
        return 2.0

    model = make_model(GEOMETRIES["tiles"])
    half = Predictor(model, device="cpu", pixel_scale=rule).predict(image)
    assert seen == [((400, 600), "")] and half.window.working_size == (100, 150)
    np.testing.assert_allclose(half.tasks["detection"]["boxes"][by_place(half.tasks["detection"]["boxes"])], boxes, atol=5)
    assert Predictor(model, device="cpu", pixel_scale=rule).predict(image, pixel_scale=1.0).window.working_size == (200, 300)
    with pytest.raises(DataError, match="pixel_scale"):
        Predictor(model, device="cpu", pixel_scale=0.0).predict(image)
    Image.fromarray(image).save(tmp_path / "a.b_[1, 2, 3, 4].png")
    (outcome,) = Predictor(model, device="cpu", pixel_scale=rule).predict_paths([tmp_path / "a.b_[1, 2, 3, 4].png"])
    assert seen[1:] == [((400, 600), "a.b_[1, 2, 3, 4]")]
    assert outcome.prediction is not None and outcome.prediction.window.working_size == (100, 150)


def test_stored_thresholds_decide(make_model, field, study) -> None:
    image = field[0]
    scores = Predictor(make_model(), device="cpu").predict(image).tasks["detection"]["scores"]
    low, high = (
        Predictor(
            make_model(), device="cpu", thresholds={"detection": {"score": t}, "segmentation": {"cell": s}}, study=study
        ).predict(image)
        for t, s in ((0.0, 0.5), (float(scores.max()) + 0.001, 0.95))
    )
    assert sum(low.counts.values()) == 24 and sum(high.counts.values()) == 0
    assert high.study["parasitemia"] is None and high.to_json()["parasitemia"] is None
    assert low.mask("segmentation").any() and not high.mask("segmentation").any()
    assert low.to_json()["thresholds"]["detection"] == {"score": 0.0}


def test_json_is_plain_and_complete(make_model, field) -> None:
    content = json.loads(json.dumps(Predictor(make_model(), device="cpu").predict(field[0]).to_json(), allow_nan=False))
    objects = content["tasks"]["detection"]["objects"]
    assert len(objects) == 24 and content["counts"] == {"Infected": 7, "Healthy": 17}
    assert {entry["class"] for entry in objects} == {"Infected", "Healthy"} and len(objects[0]["box"]) == 4
    assert all(entry["roi"]["class_name"] == entry["class"] for entry in objects)
    assert len(content["tasks"]["heatmap"]["points"]) == 7
    assert content["tasks"]["grade"] == {
        "kind": "classification", "predicted_class_id": 1, "class_name": "some", "confidence": 0.75,
        "probabilities": {"none": 0.25, "some": 0.75}, "probability_list": [0.25, 0.75],
    }  # fmt: skip
    entry = content["tasks"]["segmentation"]
    assert set(entry) == {"kind", "cell_area_ratio"} and 0.1 < entry["cell_area_ratio"] < 0.2


def test_empty_image_and_tasks_without_detection(make_model, study) -> None:
    black = np.zeros((130, 140, 3), np.uint8)
    prediction = Predictor(make_model(), device="cpu", study=study).predict(black)
    assert prediction.counts == {"Infected": 0, "Healthy": 0} and prediction.study == {"parasitemia": None}
    assert prediction.tasks["roi"]["probabilities"].shape == (0, 2)
    alone = Predictor(make_model(tasks=("segmentation",)), device="cpu").predict(black)
    assert set(alone.tasks) == {"segmentation"} and alone.counts == {} and alone.study == {}


def test_images_share_batches_and_stay_apart(make_model, field) -> None:
    image, model = field[0], make_model(GEOMETRIES["stretch"])
    flipped = np.ascontiguousarray(image[:, ::-1])
    predictor = Predictor(model, device="cpu", batch_size=4)
    together = list(predictor.predict_batch([image, flipped, image, flipped, image]))
    assert model.batches == [4, 1]
    for got, single in zip(together, [image, flipped, image, flipped, image], strict=True):
        expected = predictor.predict(single).tasks["detection"]["boxes"]
        np.testing.assert_array_equal(got.tasks["detection"]["boxes"], expected)


def test_network_runs_in_eval_mode_without_gradients(make_model, field) -> None:
    model = make_model().train()
    Predictor(model, device="cpu").predict(field[0])
    assert not model.training


def test_wrong_arrays_are_refused_in_words(make_model) -> None:
    predictor = Predictor(make_model(), device="cpu")
    for image in (np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(DataError, match="Expected an image array"):
            predictor.predict(image)
    assert predictor.predict(np.zeros((70, 80), np.uint8)).size == (70, 80)


def test_files_come_in_order_and_a_broken_one_is_reported(make_model, field, tmp_path: Path) -> None:
    image = field[0]
    paths = [tmp_path / f"{name}.png" for name in "abcdef"]
    for path in paths:
        Image.fromarray(image).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[5].write_text("no image")
    turned = Image.Exif()
    turned[274] = 8
    Image.fromarray(image).save(paths[2], exif=turned)
    outcomes = list(Predictor(make_model(GEOMETRIES["stretch"]), device="cpu", batch_size=3).predict_paths(paths))
    assert [outcome.path for outcome in outcomes] == paths
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True, True, False]
    assert isinstance(outcomes[1].error, DataError) and paths[1].name in str(outcomes[1].error)
    assert all(o.prediction.size == (400, 600) and o.image.shape == (400, 600, 3) for o in outcomes if o.prediction)


def test_stopping_early_leaves_no_thread(make_model, field, tmp_path: Path) -> None:
    import threading

    for name in "abcd":
        Image.fromarray(field[0]).save(tmp_path / f"{name}.png")
    stream = Predictor(make_model(GEOMETRIES["stretch"]), device="cpu", batch_size=1).predict_paths(sorted(tmp_path.iterdir()))
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_another_task_decides_the_classes_that_count(make_model, field, study) -> None:
    """The picture, the file and the value follow the deciding task; each object also keeps the class of the detector."""
    model = make_model()
    original = model.row

    def contrary(image: Tensor) -> dict[str, dict[str, Tensor]]:
        rows = original(image)
        rows["roi"]["probabilities"] = rows["roi"]["probabilities"].flip(1)
        return rows

    model.row = contrary
    decided = {"by_roi": STUDY_METRICS.build({"name": "parasitemia", "classes_from": "roi"}, model.specs)}
    prediction = Predictor(model, device="cpu", study=decided).predict(field[0])
    assert prediction.counts == {"Infected": 17, "Healthy": 7}
    assert prediction.study == {"by_roi": pytest.approx(100 * 17 / 24)}
    content = prediction.to_json()
    objects = content["tasks"]["detection"]["objects"]
    assert content["by_roi"] == prediction.study["by_roi"] and content["counts"] == prediction.counts
    assert sum(entry["class"] == "Infected" for entry in objects) == 17
    assert sum(entry["detector_class"] == "Infected" for entry in objects) == 7
    assert sum(entry["roi"]["class_name"] == "Infected" for entry in objects) == 17
    shown = layers_of(prediction.tasks, model.specs, prediction.size, {}, prediction.window, decided)
    assert [text for _, text in shown.legend][:3] == ["Infected 17", "Healthy 7", "by_roi 70.8 %"]
    both = Predictor(model, device="cpu", study={**study, **decided}).predict(field[0])
    assert both.study == {"parasitemia": pytest.approx(100 * 7 / 24), "by_roi": pytest.approx(100 * 17 / 24)}
    assert both.counts == {"Infected": 17, "Healthy": 7}
    both_shown = layers_of(both.tasks, model.specs, both.size, {}, both.window, both.study_metrics)
    assert {"parasitemia 29.2 %", "by_roi 70.8 %"} <= {text for _, text in both_shown.legend}


def test_a_run_without_study_metrics_says_nothing(make_model, field) -> None:
    prediction = Predictor(make_model(), device="cpu").predict(field[0])
    assert prediction.study == {} and "parasitemia" not in prediction.to_json()
    assert "parasitemia" not in csv_columns(prediction.specs)
