"""Segmentation and heatmaps: hand-computed cases, the empty rules, and equality with direct pixel counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.heatmap import HeatmapMetric
from mtl.metrics.matching import match_points
from mtl.metrics.segmentation import CURVE_GRID, MASK_GRID, SegmentationMetric

CELL = TaskSpec("mask", "segmentation", ("cell",))
PEAKS = TaskSpec("heatmap", "heatmap", ("Infected",))


def fill(metric: Any, images: list[tuple[dict[str, Any], dict[str, Any]]], scale: tuple[float, float] = (1, 1)) -> Any:
    for index, (prediction, truth) in enumerate(images):
        metric.add([{"sample_id": f"{index:03d}", "group": "g", "source": "s"} | metric.reduce(prediction, truth, scale)])
    return metric


def masks(*values: list[float]) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, :]


def test_dice_per_image_and_pooled_by_hand() -> None:
    images = [
        ({"probabilities": masks([0.9, 0.9, 0.1, 0.1])}, {"mask": masks([1, 0, 0, 0]).astype(np.uint8)}),
        ({"probabilities": masks([0.9, 0.9, 0.9, 0.9])}, {"mask": masks([1, 1, 1, 1]).astype(np.uint8)}),
    ]
    values = fill(SegmentationMetric(CELL), images).compute({"cell": 0.5})
    assert values["dice_per_image"] == pytest.approx((2 / 3 + 1) / 2) and values["iou_per_image"] == pytest.approx(0.75)
    assert values["dice_pooled"] == pytest.approx(10 / 11) and values["iou_pooled"] == pytest.approx(5 / 6)
    assert list(values) == list(rules_named("segmentation").metric_class.names)


def test_empty_mask_rule() -> None:
    empty, full = masks([0, 0]).astype(np.uint8), masks([1, 1]).astype(np.uint8)
    silent, loud = {"probabilities": masks([0.1, 0.1])}, {"probabilities": masks([0.9, 0.1])}

    def dice(prediction: dict[str, Any], mask: np.ndarray) -> float:
        return fill(SegmentationMetric(CELL), [(prediction, {"mask": mask})]).compute({"cell": 0.5})["dice_per_image"]

    assert dice(silent, empty) == 1.0 and dice(loud, empty) == 0.0 and dice(silent, full) == 0.0
    details = fill(SegmentationMetric(CELL), [(silent, {"mask": empty}), (silent, {"mask": full})]).details({"cell": 0.5})
    assert details["per_class"]["cell"]["dice_per_image"] == 0.5 and details["per_class"]["cell"]["dice_nonempty"] == 0.0


def test_counts_at_every_threshold_equal_hard_masks(generator: np.random.Generator) -> None:
    """Probabilities that lie exactly on a threshold count as foreground, as in `probabilities >= threshold`."""
    spec = TaskSpec("mask", "segmentation", ("a", "b"))
    images = []
    for _ in range(3):
        probabilities = np.round(generator.random((2, 16, 20)) * 20).astype(np.float32) / np.float32(20)
        images.append(({"probabilities": probabilities}, {"mask": (generator.random((2, 16, 20)) < 0.4).astype(np.uint8)}))
    metric = fill(SegmentationMetric(spec), images)
    for threshold in MASK_GRID:
        dice = []
        for prediction, truth in images:
            hard, mask = prediction["probabilities"] >= threshold, truth["mask"] > 0
            dice.append([2 * (h & m).sum() / max(h.sum() + m.sum(), 1) for h, m in zip(hard, mask, strict=True)])
        expected = float(np.mean(dice))
        assert metric.compute({"a": threshold, "b": threshold})["dice_per_image"] == pytest.approx(expected, abs=1e-12)


def test_threshold_per_class_is_found() -> None:
    """The first class needs a low threshold, the second a high one; a class that never occurs keeps the default."""
    spec = TaskSpec("mask", "segmentation", ("low", "high", "never"))
    probabilities = np.concatenate([masks([0.32, 0.28, 0.1]), masks([0.9, 0.7, 0.7]), masks([0.6, 0.1, 0.1])])
    mask = np.concatenate([masks([1, 0, 0]), masks([1, 0, 0]), masks([0, 0, 0])]).astype(np.uint8)
    metric = fill(SegmentationMetric(spec), [({"probabilities": probabilities}, {"mask": mask})])
    chosen = metric.choose_thresholds()
    assert chosen == {"low": 0.3, "high": 0.75, "never": 0.5}
    # `never` is predicted in an empty image: 0 in the mean per image, absent from the pooled mean.
    values = metric.compute(chosen)
    assert values["dice_per_image"] == pytest.approx(2 / 3) and values["dice_pooled"] == 1.0


def test_multiclass_confusion_skips_ignored_pixels() -> None:
    spec = TaskSpec("tissue", "segmentation", ("a", "b", "c"), multilabel=False, ignore_index=255)
    winner = np.array([[0, 1, 2, 2]])
    probabilities = np.eye(3, dtype=np.float32)[winner].transpose(2, 0, 1)
    metric = fill(
        SegmentationMetric(spec), [({"probabilities": probabilities}, {"mask": np.array([[0, 1, 1, 255]], np.uint8)})]
    )
    assert metric.default_thresholds == metric.choose_thresholds() == {}
    confusion = metric.details({})["curves"]["confusion"]["counts"]
    assert confusion == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    values = metric.compute({})
    assert list(values) == list(rules_named("segmentation").metric_class.names) and np.isnan(values["aupr"])
    assert values["precision_pooled"] == pytest.approx(1.0) and values["recall_pooled"] == pytest.approx((1 + 1 / 2) / 2)
    assert values["dice_pooled"] == pytest.approx((1 + 2 / 3) / 2)
    # `c` is predicted on the ignored pixel and once by mistake, which costs `b` its recall; it has no Dice of its own.
    assert values["dice_per_image"] == pytest.approx((1 + 2 / 3) / 2)


def test_tissue_by_class_equals_a_naive_count(generator: np.random.Generator) -> None:
    """Each class against the rest, per region and pooled; ignored pixels count nowhere, not even as false positives."""
    spec = TaskSpec("tissue", "segmentation", ("tumor", "stroma", "other", "never"), multilabel=False, ignore_index=255)
    images = []
    for shape in ((12, 9), (7, 16), (10, 10)):
        probabilities = generator.dirichlet([1, 1, 1, 0.2], shape).transpose(2, 0, 1).astype(np.float32)
        mask = generator.choice([0, 1, 2, 255], shape, p=[0.3, 0.2, 0.2, 0.3]).astype(np.uint8)
        images.append((probabilities, mask))
    images[1][1][images[1][1] == 1] = 2  # a region without stroma
    metric = fill(SegmentationMetric(spec), [({"probabilities": guess}, {"mask": mask}) for guess, mask in images])
    rows, values = metric.details({})["per_class"], metric.compute({})
    for index, name in enumerate(("tumor", "stroma", "other")):
        counts = []
        for guess, mask in images:
            hits = predicted = truth = 0
            for y, x in np.ndindex(mask.shape):
                if mask[y, x] != 255:
                    mine, annotated = int(guess[:, y, x].argmax()) == index, mask[y, x] == index
                    hits, predicted, truth = hits + (mine and annotated), predicted + mine, truth + annotated
            counts.append((hits, predicted, truth))
        per_region = [2 * h / (p + t) if p + t else 1.0 for h, p, t in counts]
        total = np.sum(counts, axis=0)
        assert rows[name]["dice_per_image"] == pytest.approx(np.mean(per_region))
        annotated_in = [dice for dice, c in zip(per_region, counts, strict=True) if c[2]]
        assert rows[name]["dice_nonempty"] == pytest.approx(np.mean(annotated_in))
        assert rows[name]["dice_pooled"] == pytest.approx(2 * total[0] / (total[1] + total[2]))
        assert rows[name]["n"] == sum(c[2] > 0 for c in counts)
    assert rows["stroma"]["n"] == 2 and rows["never"]["n"] == 0
    assert all(np.isnan(value) for key, value in rows["never"].items() if key != "n")
    assert values["dice_per_image"] == pytest.approx(np.mean([rows[name]["dice_per_image"] for name in spec.classes[:3]]))
    evaluator = Evaluator({"tissue": spec})
    evaluator.extend({"samples": metric.records, "tasks": {"tissue": metric.records}})
    notes = evaluator.summary({"tissue": {}}, bootstrap=0)["notes"]
    assert "Task `tissue`: no example of never in this split, so no mean contains it." in notes


def test_ignored_pixels_change_nothing(generator: np.random.Generator) -> None:
    spec = TaskSpec("tissue", "segmentation", ("a", "b"), multilabel=False)
    probabilities = generator.dirichlet([1, 1], (8, 8)).transpose(2, 0, 1).astype(np.float32)
    mask = generator.integers(0, 2, (8, 8)).astype(np.uint8)
    mask[:, 5:] = 255
    whole = fill(SegmentationMetric(spec), [({"probabilities": probabilities}, {"mask": mask})]).compute({})
    cut = {"probabilities": probabilities[:, :, :5]}, {"mask": mask[:, :5]}
    assert str(whole) == str(fill(SegmentationMetric(spec), [cut]).compute({}))


def test_mask_weights_equal_repeated_images(generator: np.random.Generator) -> None:
    images = [
        ({"probabilities": generator.random((1, 9, 9)).astype(np.float32)}, {"mask": generator.integers(0, 2, (1, 9, 9))})
        for _ in range(3)
    ]
    weighted = fill(SegmentationMetric(CELL), images).compute({"cell": 0.35}, np.array([0, 1, 2]))
    repeated = fill(SegmentationMetric(CELL), [images[1], images[2], images[2]]).compute({"cell": 0.35})
    assert weighted == pytest.approx(repeated)


def area_by_hand(probabilities: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """All pixels in one list, 33 thresholds from 1 to 0, one rectangle per step of recall."""
    scores, truth = (np.concatenate([array.ravel() for array in some]) for some in (probabilities, masks))
    area, before = 0.0, 0.0
    for step in range(32, -1, -1):
        chosen = scores >= step / 32
        recall = (chosen & truth).sum() / truth.sum()
        area += (recall - before) * ((chosen & truth).sum() / chosen.sum() if chosen.any() else 0.0)
        before = recall
    return float(area)


def lesions(generator: np.random.Generator, count: int = 4) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rare specks that a noisy map finds half of, in probabilities that also hit the thresholds exactly."""
    images = []
    for _ in range(count):
        mask = generator.random((2, 24, 31)) < [[[0.05]], [[0.3]]]
        noise = generator.random((2, 24, 31)) ** 3
        probabilities = np.where(mask & (generator.random(mask.shape) < 0.6), 1 - noise * 0.6, noise)
        probabilities = np.where(generator.random(mask.shape) < 0.5, np.floor(probabilities * 32) / 32, probabilities)
        images.append(({"probabilities": probabilities.astype(np.float32)}, {"mask": mask.astype(np.uint8)}))
    return images


def test_area_equals_all_pixels_in_one_list(generator: np.random.Generator) -> None:
    spec = TaskSpec("mask", "segmentation", ("a", "b"))
    images = lesions(generator)
    metric = fill(SegmentationMetric(spec), images)
    areas = [area_by_hand([p["probabilities"][k] for p, _ in images], [t["mask"][k] > 0 for _, t in images]) for k in range(2)]
    thresholds = {"a": 0.4, "b": 0.7}
    assert metric.compute(thresholds)["aupr"] == pytest.approx(np.mean(areas), abs=1e-12)
    table = metric.details(thresholds)["per_class"]
    assert [table[name]["aupr"] for name in "ab"] == pytest.approx(areas, abs=1e-12)
    assert 0.1 < areas[0] < areas[1] < 1
    curve = metric.details(thresholds)["curves"]["precision_recall"]["a"]
    assert curve["threshold"][0] == 1.0 and curve["threshold"][-1] == 0.0 and len(curve["recall"]) == 33
    assert curve["recall"][-1] == 1.0 and curve["precision"][-1] == pytest.approx(np.mean([t["mask"][0] for _, t in images]))


def test_area_never_flatters() -> None:
    """One step from nothing to everything is a rectangle under the last precision, not a triangle."""
    probabilities, mask = masks([0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0]), masks([1, 0, 0, 0, 1, 0, 0, 0]).astype(np.uint8)
    metric = fill(SegmentationMetric(CELL), [({"probabilities": probabilities}, {"mask": mask})])
    # Recall 1/2 at precision 1/4, then all of the rest at the share of annotated pixels, 1/4.
    assert metric.compute({"cell": 0.5})["aupr"] == pytest.approx(0.25)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_area_of_a_constant_map_is_the_prevalence(constant: float, generator: np.random.Generator) -> None:
    mask = (generator.random((1, 20, 20)) < 0.1).astype(np.uint8)
    metric = fill(SegmentationMetric(CELL), [({"probabilities": np.full((1, 20, 20), constant, np.float32)}, {"mask": mask})])
    assert metric.compute({"cell": 0.5})["aupr"] == pytest.approx(mask.mean())


def test_pooled_counts_equal_hard_masks_of_all_images(generator: np.random.Generator) -> None:
    spec = TaskSpec("mask", "segmentation", ("a", "b"))
    images, thresholds = lesions(generator), {"a": 0.45, "b": 0.6}
    expected: dict[str, list[float]] = {"dice_pooled": [], "iou_pooled": [], "precision_pooled": [], "recall_pooled": []}
    for index, threshold in enumerate(thresholds.values()):
        hard = np.stack([p["probabilities"][index] for p, _ in images]) >= np.float32(threshold)
        mask = np.stack([t["mask"][index] for _, t in images]) > 0
        hits = (hard & mask).sum()
        expected["dice_pooled"].append(2 * hits / (hard.sum() + mask.sum()))
        expected["iou_pooled"].append(hits / (hard | mask).sum())
        expected["precision_pooled"].append(hits / hard.sum())
        expected["recall_pooled"].append(hits / mask.sum())
    metric = fill(SegmentationMetric(spec), images)
    values = metric.compute(thresholds)
    for name, by_class in expected.items():
        assert values[name] == pytest.approx(np.mean(by_class), abs=1e-12), name
    table = metric.details(thresholds)["per_class"]
    assert [table[name]["precision"] for name in "ab"] == pytest.approx(expected["precision_pooled"])
    assert [table[name]["recall"] for name in "ab"] == pytest.approx(expected["recall_pooled"])


def test_classes_that_do_not_occur_are_in_no_pooled_mean() -> None:
    spec = TaskSpec("mask", "segmentation", ("here", "nowhere"))
    probabilities = np.concatenate([masks([0.9, 0.1]), masks([0.9, 0.1])])
    mask = np.concatenate([masks([1, 0]), masks([0, 0])]).astype(np.uint8)
    metric = fill(SegmentationMetric(spec), [({"probabilities": probabilities}, {"mask": mask})])
    values = metric.compute(metric.default_thresholds)
    assert values["precision_pooled"] == values["recall_pooled"] == values["aupr"] == 1.0
    table = metric.details(metric.default_thresholds)
    assert np.isnan(table["per_class"]["nowhere"]["aupr"]) and "nowhere" not in table["curves"]["precision_recall"]
    # Nothing found although there is something: precision 0, not undefined.
    silent = fill(SegmentationMetric(CELL), [({"probabilities": masks([0.1, 0.1])}, {"mask": masks([1, 0])})])
    assert silent.compute({"cell": 0.5})["precision_pooled"] == 0.0


def test_records_stay_small(generator: np.random.Generator) -> None:
    record = SegmentationMetric(CELL).reduce(
        {"probabilities": generator.random((1, 300, 400)).astype(np.float32)}, {"mask": np.ones((1, 300, 400))}, (1, 1)
    )
    assert sum(np.asarray(value).size for value in record.values()) < 150
    assert record["curve_predicted"].shape == (1, len(CURVE_GRID)) and record["curve_predicted"][0, -1] < 300 * 400


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        SegmentationMetric(CELL).reduce({"probabilities": np.zeros((1, 4, 4))}, {"mask": np.zeros((1, 4, 5))}, (1, 1))


# -- heatmaps ----------------------------------------------------------------------------------------------------------


def peaks(heatmap: np.ndarray, points: Any = (), scores: Any = ()) -> dict[str, Any]:
    return {
        "heatmap": heatmap.astype(np.float32), "points": np.asarray(points, np.float32).reshape(-1, 2),
        "scores": np.asarray(scores, np.float32), "labels": np.zeros(len(scores), np.int64),
        "stride": np.float32(8), "sigma": np.float32(1),
    }  # fmt: skip


def points(*values: tuple[float, float]) -> dict[str, Any]:
    return {"points": np.asarray(values, np.float32).reshape(-1, 2), "labels": np.zeros(len(values), np.int64)}


def drawn(truth: dict[str, Any], size: tuple[int, int] = (16, 20)) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from mtl.core.heatmap import render_heatmap

    return render_heatmap(torch.tensor(truth["points"]), torch.tensor(truth["labels"]), 1, size, 8.0, 1.0).numpy()


def test_perfect_heatmap() -> None:
    truth = points((20, 30), (100, 90))
    values = fill(HeatmapMetric(PEAKS), [(peaks(drawn(truth), truth["points"], [0.9, 0.8]), truth)]).compute({"score": 0.5})
    assert values["mse"] == values["mae"] == 0.0
    assert values["pearson"] == pytest.approx(1.0) and values["peak_f1"] == 1.0
    assert set(values) == set(rules_named("heatmap").metric_class.names)


def test_map_errors_equal_numpy_and_scipy_over_pooled_pixels(generator: np.random.Generator) -> None:
    truths = [points((20, 30)), points(), points((60, 60), (90, 20))]
    maps = [generator.random((1, 16, 20)).astype(np.float32) for _ in truths]
    metric = fill(HeatmapMetric(PEAKS), [(peaks(m), t) for m, t in zip(maps, truths, strict=True)])
    x = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    y = np.concatenate([drawn(t).ravel() for t in truths]).astype(np.float64)
    values = metric.compute({"score": 0.5})
    assert values["mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-9)
    assert values["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-9)
    assert values["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], rel=1e-9)
    weighted = metric.compute({"score": 0.5}, np.array([2, 1, 0]))["pearson"]
    order = np.concatenate([np.arange(320), np.arange(320), np.arange(320, 640)])
    assert weighted == pytest.approx(stats.pearsonr(x[order], y[order])[0], rel=1e-9)


def test_constant_map_has_no_correlation() -> None:
    values = fill(HeatmapMetric(PEAKS), [(peaks(np.zeros((1, 16, 20))), points((20, 30)))]).compute({"score": 0.5})
    assert np.isnan(values["pearson"]) and values["peak_f1"] == values["peak_precision"] == values["peak_recall"] == 0.0


def test_images_without_points_keep_the_numbers_defined() -> None:
    zero = np.zeros((1, 16, 20))
    quiet, loud = (peaks(zero), points()), (peaks(zero, [(9, 9)], [0.9]), points())
    hit = (peaks(zero, [(20, 30)], [0.9]), points((20, 30)))
    metric = fill(HeatmapMetric(PEAKS), [quiet, hit])
    assert metric.compute({"score": 0.5})["peak_f1"] == 1.0
    values = fill(HeatmapMetric(PEAKS), [loud, hit]).compute({"score": 0.5})
    assert values["peak_precision"] == 0.5 and values["peak_recall"] == 1.0
    only_healthy = fill(HeatmapMetric(PEAKS), [quiet])
    assert np.isnan(only_healthy.compute({"score": 0.5})["peak_f1"]) and only_healthy.choose_thresholds() == {"score": 0.5}


def test_hit_radius_is_in_reference_pixels_along_each_axis() -> None:
    """A stretched working raster: 0.1 in x, 0.2 in y; 72 reference pixels are 7.2 and 14.4 working pixels."""
    zero, truth = np.zeros((1, 16, 20)), points((40, 40))

    def recall(x: float, y: float) -> float:
        metric = fill(HeatmapMetric(PEAKS), [(peaks(zero, [(x, y)], [0.9]), truth)], scale=(0.1, 0.2))
        return metric.compute({"score": 0.5})["peak_recall"]

    assert recall(47.1, 40) == 1 and recall(47.3, 40) == 0
    assert recall(40, 54.3) == 1 and recall(40, 54.5) == 0


def test_peaks_match_one_to_one_in_score_order() -> None:
    targets = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert match_points(np.array([[1.0, 0], [2.0, 0], [3.0, 0]]), targets, 5).tolist() == [1, 0, 0]
    assert match_points(np.array([[1.0, 0], [2.0, 0]]), targets, 8).tolist() == [1, 1]
    zero = np.zeros((1, 16, 20))
    metric = fill(HeatmapMetric(PEAKS, hit_radius=5), [(peaks(zero, [(20, 30), (21, 30)], [0.3, 0.9]), points((20, 30)))])
    assert metric.choose_thresholds()["score"] > 0.3
    assert metric.compute(metric.choose_thresholds())["peak_f1"] == 1.0
