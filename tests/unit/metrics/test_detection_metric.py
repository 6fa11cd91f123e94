"""Detection numbers against torchmetrics, and the properties that thresholds and bootstrap rely on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.metrics.base import nearest_best
from mtl.metrics.detection import DetectionMetric
from mtl.metrics.matching import IOU_THRESHOLDS, RECALLS, box_iou, match_boxes

SPEC = TaskSpec("detection", "detection", ("a", "b", "c"))


def metric_of(images: list[tuple[dict[str, Any], dict[str, Any]]], spec: TaskSpec = SPEC) -> DetectionMetric:
    metric = DetectionMetric(spec)
    for index, (prediction, truth) in enumerate(images):
        metric.add([{"sample_id": f"{index:03d}", "group": "g", "source": "s"} | metric.reduce(prediction, truth, (1, 1))])
    return metric


def none(count: int = 0) -> dict[str, Any]:
    return {
        "boxes": np.zeros((count, 4), np.float32),
        "labels": np.zeros(count, np.int64),
        "scores": np.zeros(count, np.float32),
    }


def reference_map(images: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("faster_coco_eval")
    from torchmetrics.detection import MeanAveragePrecision

    judge = MeanAveragePrecision(
        iou_thresholds=IOU_THRESHOLDS.tolist(), rec_thresholds=RECALLS.tolist(), max_detection_thresholds=[1, 10, 5000],
        class_metrics=True, backend="faster_coco_eval",
    )  # fmt: skip
    judge.warn_on_many_detections = False
    for prediction, truth in images:
        guess = {key: torch.as_tensor(prediction[key]) for key in ("boxes", "scores", "labels")}
        judge.update([guess], [{key: torch.as_tensor(truth[key]) for key in ("boxes", "labels")}])
    return judge.compute()


@pytest.mark.parametrize("counts", [(30, 12, 0, 45), (150, 200), (1, 2, 3)])
def test_average_precision_equals_torchmetrics(counts: tuple[int, ...], generator: np.random.Generator, build: Any) -> None:
    images = [build["detections"](generator, count) for count in counts]
    ours, theirs = metric_of(images).compute({"score": 0.5}), reference_map(images)
    for mine, name in (("map50", "map_50"), ("map75", "map_75")):
        assert ours[mine] == pytest.approx(float(theirs[name]), abs=1e-6)
    per_class = metric_of(images).details({"score": 0.5})["per_class"]
    for label, value in zip(theirs["classes"].tolist(), theirs["map_per_class"].tolist(), strict=True):
        if value >= 0:
            assert per_class[SPEC.classes[label]]["ap"] == pytest.approx(value, abs=1e-6)
    # torchmetrics gives -1 for `map` with a custom list of detection limits, so the mean is taken over its classes.
    known = [value for value in theirs["map_per_class"].tolist() if value >= 0]
    assert ours["map"] == pytest.approx(float(np.mean(known)), abs=1e-6)


def test_tied_scores_and_duplicates_equal_torchmetrics(generator: np.random.Generator, build: Any) -> None:
    images = []
    for count in (25, 40):
        prediction, truth = build["detections"](generator, count)
        prediction["scores"] = np.round(prediction["scores"], 1).astype(np.float32)
        repeated = {key: np.concatenate([value, value[: count // 2]]) for key, value in prediction.items()}
        images.append((repeated, truth))
    ours, theirs = metric_of(images).compute({"score": 0.5}), reference_map(images)
    assert ours["map50"] == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert ours["map75"] == pytest.approx(float(theirs["map_75"]), abs=1e-6)


def test_three_hundred_perfect_boxes_score_one(build: Any, generator: np.random.Generator) -> None:
    boxes, labels = build["random_boxes"](generator, 300, 4000), np.arange(300) % 3
    prediction = {"boxes": boxes, "labels": labels, "scores": generator.uniform(0.5, 1, 300).astype(np.float32)}
    values = metric_of([(prediction, {"boxes": boxes, "labels": labels})] * 2).compute({"score": 0.5})
    assert values["map"] == values["map50"] == values["map75"] == values["f1_macro"] == 1.0
    assert values["count_mae"] == 0.0


def test_classes_without_annotations_are_left_out(build: Any, generator: np.random.Generator) -> None:
    boxes = build["random_boxes"](generator, 4)
    prediction = {"boxes": boxes, "labels": np.array([0, 0, 2, 2]), "scores": np.full(4, 0.9, np.float32)}
    metric = metric_of([(prediction, {"boxes": boxes[:2], "labels": np.array([0, 0])})])
    values = metric.compute({"score": 0.5})
    assert values["map50"] == values["f1_macro"] == 1.0
    assert values["precision_pooled"] == 0.5 and values["recall_pooled"] == 1.0 and values["count_mae"] == 2.0
    assert np.isnan(metric.details({"score": 0.5})["per_class"]["c"]["ap"])


def test_empty_cases() -> None:
    nothing_at_all = metric_of([(none(), none())])
    assert set(nothing_at_all.compute({"score": 0.5})) >= set(rules_named("detection").metric_class.names)
    assert np.isnan(nothing_at_all.compute({"score": 0.5})["map50"])
    assert nothing_at_all.choose_thresholds() == {"score": 0.5}
    assert np.isnan(metric_of([]).compute({"score": 0.5})["map50"])
    metric_of([]).details({"score": 0.5})
    truth = {"boxes": np.array([[0, 0, 9, 9]], np.float32), "labels": np.array([0])}
    missed = metric_of([(none(), truth)]).compute({"score": 0.5})
    assert missed["map50"] == missed["f1_macro"] == missed["precision_pooled"] == missed["recall_pooled"] == 0.0
    assert missed["count_mae"] == 1.0


def test_greedy_flags_do_not_depend_on_what_scores_lower(generator: np.random.Generator, build: Any) -> None:
    truth = build["random_boxes"](generator, 40, 120)
    found = np.repeat(truth, 3, axis=0) + generator.normal(0, 3, (120, 4)).astype(np.float32)
    found = found[generator.permutation(120)]
    full = match_boxes(box_iou(found, truth))
    assert 0 < (full & 1).sum() < 120
    for kept in (1, 17, 60, 119):
        np.testing.assert_array_equal(full[:kept], match_boxes(box_iou(found[:kept], truth)))


def test_counts_at_a_threshold_equal_matching_of_the_kept_boxes(generator: np.random.Generator, build: Any) -> None:
    images = [build["detections"](generator, 60) for _ in range(3)]
    metric = metric_of(images)
    for threshold in (0.05, 0.33, 0.7):
        kept = []
        for prediction, truth in images:
            keep = prediction["scores"] >= np.float32(threshold)
            kept.append(({key: value[keep] for key, value in prediction.items()}, truth))
        alone, whole = metric_of(kept).compute({"score": 0.0}), metric.compute({"score": threshold})
        for name in ("f1_macro", "f1_pooled", "precision_pooled", "recall_pooled", "count_mae"):
            assert whole[name] == pytest.approx(alone[name], abs=1e-12)


def test_weights_equal_repeated_images(generator: np.random.Generator, build: Any) -> None:
    images = [build["detections"](generator, count) for count in (20, 5, 33)]
    weighted = metric_of(images).compute({"score": 0.4}, np.array([2, 0, 3]))
    repeated = metric_of([images[0]] * 2 + [images[2]] * 3).compute({"score": 0.4})
    for name, value in repeated.items():
        assert weighted[name] == pytest.approx(value, abs=1e-12), name


def test_chosen_threshold_is_the_best_of_the_curve(generator: np.random.Generator, build: Any) -> None:
    metric = metric_of([build["detections"](generator, 80) for _ in range(4)])
    chosen = metric.choose_thresholds()["score"]
    best = max(metric.compute({"score": round(step / 100, 2)})["f1_macro"] for step in range(1, 100))
    assert metric.compute({"score": chosen})["f1_macro"] == pytest.approx(best, abs=1e-12)
    curve = metric.details({"score": chosen})["curves"]["f1"]
    assert max(curve["macro"]) == pytest.approx(best, abs=1e-12)


def test_plateau_takes_the_value_next_to_one_half() -> None:
    assert nearest_best([1, 1, 1, 0], [0.1, 0.3, 0.6, 0.7]) == 0.6
    assert nearest_best([0, 2, 2, 0], [0.2, 0.4, 0.6, 0.7]) == 0.4
    assert nearest_best([np.nan, np.nan], [0.1, 0.9]) == 0.5


def test_macro_is_not_pooled() -> None:
    """Ninety-nine found cells of a common class and one missed of a rare class: pooled is near 1, macro is one half."""
    step = np.arange(100, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate([step, step, step + 10, step + 10], axis=1)
    labels = np.array([0] * 99 + [1])
    prediction = {"boxes": boxes[:99], "labels": labels[:99], "scores": np.full(99, 0.9, np.float32)}
    values = metric_of([(prediction, {"boxes": boxes, "labels": labels})]).compute({"score": 0.5})
    assert values["f1_macro"] == 0.5 and values["f1_pooled"] > 0.99


def test_dense_images_are_fast(generator: np.random.Generator, build: Any) -> None:
    prediction, truth = build["detections"](generator, 300)
    metric = DetectionMetric(SPEC)
    metric.reduce(prediction, truth, (1, 1))
    best = min(_timed(lambda: metric.reduce(prediction, truth, (1, 1))) for _ in range(5))
    assert best < 0.1, f"{best * 1000:.1f} ms for 300 annotations and 600 detections"


def _timed(function: Any) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
