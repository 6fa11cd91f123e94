"""The evaluator over all kinds of task: absence, repetition, ranks, order, summary."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mtl.core.raster import resize_map
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.kinds.base import rules_named
from mtl.metrics.evaluator import Evaluator

SPECS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy", "WBC")),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy")),
    "mask": TaskSpec("mask", "segmentation", ("cell",)),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    "points": TaskSpec("points", "points", ("lymphocyte",)),
    "grade": TaskSpec("grade", "classification", ("a", "b")),
    "value": TaskSpec("value", "regression", ()),
}


def image(build: Any, seed: int, absent: tuple[str, ...] = ()) -> tuple[ImageResult, ImageResult]:
    generator = np.random.default_rng(seed)
    found, annotated = build["detections"](generator, 12)
    point = generator.uniform(0, 64, (2, 2)).astype(np.float32)
    predicted = {
        "detection": found,
        "roi": {"probabilities": generator.dirichlet([1, 1], 5), "ids": np.arange(5)},
        "mask": {"probabilities": generator.random((1, 16, 16)).astype(np.float32)},
        "heatmap": {"heatmap": generator.random((1, 8, 8)).astype(np.float32), "points": point + 4, "scores": [0.9, 0.4],
                    "labels": [0, 0], "stride": 8.0, "sigma": 1.0},
        "points": {"points": point + 2, "scores": [0.8, 0.3], "labels": [0, 0], "radius": 6.0},
        "grade": {"probabilities": generator.dirichlet([1, 1])},
        "value": {"value": generator.random()},
    }  # fmt: skip
    truth = {
        "detection": annotated,
        "roi": {"labels": generator.integers(0, 2, 5), "ids": np.arange(5)},
        "mask": {"mask": (generator.random((1, 16, 16)) < 0.5).astype(np.uint8)},
        "heatmap": {"points": point, "labels": [0, 0]},
        "points": {"points": point, "labels": [0, 0], "region": np.ones((64, 64), bool)},
        "grade": {"label": generator.integers(0, 2)},
        "value": {"value": generator.random()},
    }
    name, group, source = f"image{seed:02d}", f"patient{seed // 2}", "left" if seed % 2 else "right"
    kept = {task: entry for task, entry in truth.items() if task not in absent}
    return build["result"](name, group, source, **predicted), build["result"](name, group, source, **kept)


def filled(build: Any, seeds: Any, absent: dict[int, tuple[str, ...]] | None = None, **options: Any) -> Evaluator:
    evaluator = Evaluator(SPECS, **options)
    for seed in seeds:
        evaluator.update(*image(build, seed, (absent or {}).get(seed, ())))
    return evaluator


def test_every_kind_logs_what_it_promises(build: Any) -> None:
    evaluator = filled(build, range(8))
    thresholds = evaluator.thresholds()
    assert thresholds.keys() == SPECS.keys() and thresholds["mask"].keys() == {"cell"}
    for task, values in evaluator.compute(thresholds).items():
        assert set(rules_named(SPECS[task].kind).metric_class.names) <= set(values)
        assert all(isinstance(value, float) for value in values.values())
    assert evaluator.compute(evaluator.default_thresholds()).keys() == SPECS.keys()


def test_no_images_give_nan_not_errors() -> None:
    evaluator = Evaluator(SPECS)
    values = evaluator.compute(evaluator.thresholds())
    assert all(np.isnan(value) for metrics in values.values() for value in metrics.values())
    assert np.isnan(evaluator.score(values, {})) and evaluator.left_out(values) == list(SPECS)
    evaluator.summary(evaluator.thresholds(), bootstrap=5)
    evaluator.curves(evaluator.thresholds())


def test_absent_is_not_empty(build: Any) -> None:
    """An image without a label for a task changes nothing in that task."""
    some = filled(build, range(6), absent={5: ("detection", "heatmap", "mask")})
    thresholds = some.default_thresholds()
    five = filled(build, range(5))
    for task in ("detection", "heatmap", "mask"):
        assert some.compute(thresholds)[task] == five.compute(thresholds)[task]
    assert some.compute(thresholds)["roi"] != five.compute(thresholds)["roi"]
    assert some.summary(thresholds, bootstrap=0)["tasks"]["detection"]["n"] == 5


def test_labelled_task_without_prediction_is_refused(build: Any) -> None:
    prediction, truth = image(build, 0)
    del prediction.tasks["roi"]
    evaluator = Evaluator(SPECS)
    with pytest.raises(ValueError, match="`roi` but no prediction"):
        evaluator.update(prediction, truth)
    assert evaluator.records()["samples"] == [] and not evaluator.metrics["detection"].records


def test_repeated_samples_count_once(build: Any) -> None:
    once, twice = filled(build, range(4)), filled(build, [0, 1, 1, 2, 3, 0])
    thresholds = once.thresholds()
    assert once.compute(thresholds) == twice.compute(thresholds)


def test_ranks_and_order_do_not_matter(build: Any) -> None:
    """Two ranks with an overlapping (padded) sample give exactly the numbers of one process."""
    alone = filled(build, range(6))
    first, second = filled(build, [4, 0, 2]), filled(build, [5, 3, 1, 0])
    gathered = [pickle.loads(pickle.dumps(rank.records())) for rank in (first, second)]
    for rank in (first, second):
        for records in gathered:
            rank.extend(records)
        assert rank.thresholds() == alone.thresholds()
        assert rank.compute(rank.thresholds()) == alone.compute(alone.thresholds())
    first.reset()
    assert np.isnan(first.compute(first.thresholds())["detection"]["map50"])


def test_score_leaves_undefined_tasks_out_and_says_so(build: Any) -> None:
    evaluator = Evaluator(SPECS, score_weights={"detection": 3.0})
    values = {"detection": {"map50": 0.5}, "mask": {"dice_per_image": 0.9}, "roi": {"f1_macro": float("nan")}}
    assert evaluator.score(values, {}) == pytest.approx((3 * 0.5 + 0.9) / 4)
    assert evaluator.left_out(values) == ["roi"]


def classified(counts: dict[str, tuple[int, int]], weighting: str, primary: str = "") -> tuple[Evaluator, float, float]:
    """By class, how many images there are and how many of these are right; the others are taken for the next class."""
    names = tuple(counts)
    evaluator = Evaluator({"kind": TaskSpec("kind", "classification", names, primary=primary)}, class_weighting=weighting)
    records = []
    for label, (count, right) in enumerate(counts.values()):
        for number in range(count):
            said = label if number < right else (label + 1) % len(names)
            records.append({"sample_id": f"{label}{number:03d}", "group": "g", "source": "s", "label": np.int64(label),
                            "probabilities": np.eye(len(names))[said]})  # fmt: skip
    evaluator.extend({"samples": records, "tasks": {"kind": records}})
    values = evaluator.compute(evaluator.default_thresholds())
    return evaluator, values["kind"][evaluator.specs["kind"].primary_metric], evaluator.score(values, {"kind": {}})


def test_classes_can_weigh_by_what_is_known_of_them() -> None:
    """Recalls 0.9 of 90, 0.5 of 30 and 0 of 2 images weigh 90/100, 30/40 and 2/12."""
    counts = {"common": (90, 81), "some": (30, 15), "rare": (2, 0), "absent": (0, 0)}
    _, plain, score = classified(counts, "equal", "balanced_accuracy")
    assert plain == score == pytest.approx((0.9 + 0.5 + 0.0) / 3)
    evaluator, plain, score = classified(counts, "known", "balanced_accuracy")
    assert plain == pytest.approx((0.9 + 0.5 + 0.0) / 3)  # the metric keeps its name and its value
    assert score == pytest.approx((0.9 * 0.9 + 0.75 * 0.5 + 0.0) / (0.9 + 0.75 + 2 / 12))
    assert any("class_weighting=known" in note for note in evaluator.summary({"kind": {}}, 0)["notes"])
    assert evaluator.empty().class_weighting == "known"
    _, plain, score = classified(counts, "known", "accuracy")
    assert plain == score == pytest.approx(96 / 122)  # no mean over classes


@pytest.mark.parametrize("counts", [{"a": (20, 9), "b": (20, 15), "c": (20, 3)}, {"a": (0, 0), "b": (0, 0)}])
def test_classes_that_are_known_alike_weigh_alike(counts: dict[str, tuple[int, int]]) -> None:
    _, plain, score = classified(counts, "known")
    assert score == pytest.approx(plain, nan_ok=True)


def test_every_mean_over_classes_can_be_taken_from_its_table(build: Any) -> None:
    evaluator = filled(build, range(6))
    thresholds = evaluator.thresholds()
    values = evaluator.compute(thresholds)
    for task, metric in evaluator.metrics.items():
        rows = metric.details(thresholds[task])["per_class"]
        for name, column in metric.class_means.items():
            if name in values[task]:
                known = [row[column] for row in rows.values() if row[metric.examples] and not np.isnan(row[column])]
                assert np.mean(known) == pytest.approx(values[task][name]), (task, name)


def test_primary_where_lower_is_better_still_rises() -> None:
    evaluator = Evaluator({"value": TaskSpec("value", "regression", (), primary="mae")})
    assert evaluator.score({"value": {"mae": 0.1}}, {}) > evaluator.score({"value": {"mae": 0.5}}, {})


def test_summary_has_the_documented_form(build: Any) -> None:
    evaluator = filled(build, range(12))
    thresholds = evaluator.thresholds()
    first, again = (evaluator.summary(thresholds, bootstrap=40, seed=3) for _ in range(2))
    assert first == again
    assert first != evaluator.summary(thresholds, bootstrap=40, seed=4)
    json.dumps(first, allow_nan=False)
    assert first["n_samples"] == 12 and first["n_groups"] == 6
    detection = first["tasks"]["detection"]
    assert detection["map50"] == evaluator.compute(thresholds)["detection"]["map50"]
    low, high = detection["ci95"]["map50"]
    assert low <= detection["map50"] <= high
    assert detection["per_class"]["WBC"].keys() >= {"ap50", "precision", "recall", "f1", "count_mae"}
    left = filled(build, range(1, 12, 2)).compute(thresholds)["detection"]
    assert detection["per_source"]["left"]["map50"] == pytest.approx(left["map50"])
    assert any("6 groups" in note for note in first["notes"])
    json.dumps(evaluator.curves(thresholds), allow_nan=False)


def test_primary_metric_comes_first(build: Any) -> None:
    specs = {"grade": TaskSpec("grade", "classification", ("a", "b"), primary="quadratic_kappa", ordinal=True)}
    evaluator = Evaluator(specs)
    for seed in range(4):
        prediction, truth = image(build, seed)
        evaluator.update(prediction, truth)
    grade = evaluator.summary(evaluator.thresholds(), bootstrap=5)["tasks"]["grade"]
    assert list(grade)[:3] == ["n", "quadratic_kappa", "f1_macro"] and next(iter(grade["ci95"])) == "quadratic_kappa"


def test_tasks_with_few_groups_are_named(build: Any) -> None:
    """Six patients, but masks of two and boxes of one."""
    absent = dict.fromkeys(range(4, 12), ("mask", "detection")) | {2: ("detection",), 3: ("detection",)}
    evaluator = filled(build, range(12), absent)
    summary = evaluator.summary(evaluator.default_thresholds(), bootstrap=30)
    assert evaluator.labelled_groups("mask") == 2 and evaluator.labelled_groups("grade") == 6
    assert "Intervals of mask rest on 2 groups (patient) only and are rough." in summary["notes"]
    assert "All labels of detection belong to one patient: no interval can be given." in summary["notes"]
    assert summary["tasks"]["detection"]["ci95"]["map50"] is None and summary["tasks"]["mask"]["ci95"]["aupr"] is not None
    assert not any("grade" in note for note in summary["notes"])


CONTENT = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (20, 30), (32, 32), (20, 30), (50, 70), content=(4, 6, 64, 46))


def test_masks_are_compared_where_it_is_declared() -> None:
    """Probabilities are enlarged, put behind the border that was cut off, and cut at the threshold there."""
    generator = np.random.default_rng(0)
    probabilities = generator.random((1, 20, 30)).astype(np.float32)
    mask = (generator.random((1, 50, 70)) < 0.4).astype(np.uint8)
    evaluator = Evaluator({"mask": SPECS["mask"]}, native=True)
    prediction = ImageResult("i", "p", "s", CONTENT, {"mask": {"probabilities": probabilities}})
    evaluator.update(prediction, ImageResult("i", "p", "s", CONTENT, {"mask": {"mask": mask}}))
    hard = np.zeros((50, 70), bool)
    hard[6:46, 4:64] = resize_map(probabilities[0], (40, 60)) >= np.float32(0.6)
    values = evaluator.compute({"mask": {"cell": 0.6}})["mask"]
    assert values["dice_pooled"] == pytest.approx(2 * (hard & (mask[0] > 0)).sum() / (hard.sum() + mask.sum()))
    assert (
        evaluator.metrics["mask"].records[0]["pixels"] == 50 * 70 and prediction.tasks["mask"]["probabilities"].shape[1] == 20
    )
    assert evaluator.empty().native and evaluator.summary({"mask": {"cell": 0.6}}, 0)["resolution"] == "native"
    working = Evaluator({"mask": SPECS["mask"]})
    with pytest.raises(ValueError, match="expected"):
        working.update(prediction, ImageResult("i", "p", "s", CONTENT, {"mask": {"mask": mask}}))
    assert working.summary({"mask": {"cell": 0.6}}, 0)["resolution"] == "working"


def test_single_task_evaluators_join_to_one(build: Any) -> None:
    pairs = [image(build, seed) for seed in range(6)]
    parts = []
    for task in ("detection", "mask"):
        parts.append(Evaluator({task: SPECS[task]}, hit_radius=5.0, group_by="field"))
        for prediction, truth in pairs[:4] if task == "detection" else pairs[2:]:
            parts[-1].update(prediction, truth)
    study = {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, {"detection": SPECS["detection"]})}
    whole = Evaluator.joined(parts, study)
    thresholds = whole.default_thresholds()
    assert list(whole.specs) == ["detection", "mask"] and (whole.hit_radius, whole.group_by) == (5.0, "field")
    for part in parts:
        for task, values in part.compute(thresholds).items():
            assert whole.compute(thresholds)[task] == values
    assert "mae_field" in whole.compute(thresholds)["parasitemia"] and whole.names == ["detection", "mask", "parasitemia"]
    assert whole.groups == ["patient0", "patient1", "patient2"] and len(whole.records()["samples"]) == 6


def test_single_group_has_no_interval(build: Any) -> None:
    summary = filled(build, [0, 1]).summary(Evaluator(SPECS).default_thresholds(), bootstrap=20)
    assert set(summary["tasks"]["detection"]["ci95"].values()) == {None}
    assert any("no interval" in note for note in summary["notes"])


def test_image_scores_rank_a_perfect_image_first(build: Any) -> None:
    evaluator = Evaluator({"mask": SPECS["mask"]})
    for name, probability in (("bad", 0.1), ("good", 0.9)):
        guess = {"probabilities": np.full((1, 4, 4), probability, np.float32)}
        mask = {"mask": np.ones((1, 4, 4), np.uint8)}
        evaluator.update(build["result"](name, mask=guess), build["result"](name, mask=mask))
    assert evaluator.image_scores({"mask": {"cell": 0.5}}) == {"bad": 0.0, "good": 1.0}


def test_image_scores_of_classes_are_the_probability_of_the_right_one(build: Any) -> None:
    """Accuracy of one image is 0 or 1, kappa of one image is undefined; a confident error is worse than a near miss."""
    spec = TaskSpec("grade", "classification", ("a", "b"), primary="quadratic_kappa", ordinal=True)
    evaluator = Evaluator({"grade": spec})
    for name, right in (("near", 0.45), ("far", 0.05), ("hit", 0.8)):
        guess = {"probabilities": np.array([right, 1 - right])}
        evaluator.update(build["result"](name, grade=guess), build["result"](name, grade={"label": 0}))
    assert evaluator.image_scores({"grade": {}}) == pytest.approx({"far": 0.05, "hit": 0.8, "near": 0.45})
    assert evaluator.image_scores({"grade": {}}, {"far"}) == pytest.approx({"far": 0.05})


def test_import_stays_light() -> None:
    code = "import sys, mtl.metrics.evaluator, mtl.metrics.parasitemia, mtl.metrics.statistics, mtl.metrics.task_mean; "
    code += "print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
