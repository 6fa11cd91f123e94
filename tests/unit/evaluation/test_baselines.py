"""Baselines by hand, and through the same evaluator as the model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Record, Window
from mtl.evaluation.baselines import baseline_summary, count_training, source_notes
from mtl.evaluation.chosen import ChosenSplit
from mtl.evaluation.results import training_statistics
from mtl.kinds.base import TrainingStatistics
from mtl.metrics.base import StudyMetric
from mtl.metrics.evaluator import Evaluator

SPECS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy"), members=(("Infected",), ("Healthy",))),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy"), members=(("Infected",), ("Healthy",))),
    "mask": TaskSpec("mask", "segmentation", ("cell",)),
    "tissue": TaskSpec("tissue", "segmentation", ("x", "y"), multilabel=False),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    "grade": TaskSpec("grade", "classification", ("a", "b")),
    "value": TaskSpec("value", "regression", ()),
}
TRAINING = [
    Record("t1", "p", "s", "x", annotation="y", class_counts={"Infected": 1, "Healthy": 9, "a": 1}),
    Record("t2", "p", "s", "x", annotation="y", class_counts={"Infected": 3, "Healthy": 7, "a": 1}),
    Record("t3", "p", "s", "x", annotation="y", class_counts={"b": 1}),
    Record("unlabelled", "p", "s", "x"),
]

# (infected, healthy) cells of the scored images.
COUNTS = [(2, 8), (0, 12), (5, 5)]


def image(index: int, infected: int, healthy: int) -> tuple[ImageResult, ImageResult]:
    generator = np.random.default_rng(index)
    labels = np.repeat([0, 1], [infected, healthy])
    boxes = np.concatenate([generator.uniform(0, 50, (len(labels), 2)), np.full((len(labels), 2), 60.0)], axis=1)
    mask = (generator.random((1, 10, 10)) < 0.7).astype(np.uint8)
    predicted: dict[str, Any] = {
        "detection": {"boxes": boxes, "labels": labels, "scores": np.full(len(labels), 0.9, np.float32)},
        "roi": {"probabilities": np.eye(2)[labels], "ids": np.arange(len(labels))},
        "mask": {"probabilities": mask.astype(np.float32)},
        "tissue": {"probabilities": np.concatenate([1.0 - mask, mask])},
        "heatmap": {"heatmap": generator.random((1, 8, 8)), "points": np.zeros((0, 2)), "scores": np.zeros(0),
                    "labels": np.zeros(0, np.int64), "stride": 8.0, "sigma": 1.0},
        "grade": {"probabilities": np.array([0.2, 0.8])},
        "value": {"value": np.array(1.0)},
    }  # fmt: skip
    truth: dict[str, Any] = {
        "detection": {"boxes": boxes, "labels": labels},
        "roi": {"labels": labels, "ids": np.arange(len(labels))},
        "mask": {"mask": mask},
        "tissue": {"mask": mask[0]},
        "heatmap": {"points": np.array([[20.0, 30.0]], np.float32), "labels": np.zeros(1, np.int64)},
        "grade": {"label": np.array(index % 2)},
        "value": {"value": np.array(float(index))},
    }
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (64, 64), (64, 64), (64, 64), (64, 64))
    return tuple(ImageResult(f"i{index}", f"p{index}", "s", window, tasks) for tasks in (predicted, truth))  # type: ignore


def study() -> dict[str, StudyMetric]:
    return {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)}


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    filled = Evaluator(SPECS, study())
    for index, counts in enumerate(COUNTS):
        filled.update(*image(index, *counts))
    return filled


@pytest.fixture(scope="module")
def found(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    statistics = count_training(SPECS, TRAINING, means={"value": 2.0}, study=study())
    return baseline_summary(evaluator, statistics)


def test_training_statistics() -> None:
    statistics = count_training(SPECS, TRAINING, study=study())
    assert statistics.class_counts["detection"] == [4, 16] and statistics.images["detection"] == 3
    assert statistics.class_counts["grade"] == [2, 1]
    assert statistics.means["parasitemia"] == pytest.approx(20.0)


@pytest.mark.parametrize(("trained", "counted"), [(True, [1, 0]), (False, [2, 1])])
def test_baselines_take_what_is_left_of_training_only_where_all_of_it_is_there(trained: bool, counted: list[int]) -> None:
    left: Any = SimpleNamespace(training_records=TRAINING[:1], records=TRAINING)
    evaluator = Evaluator({"grade": SPECS["grade"]})
    statistics = training_statistics(left, evaluator, ChosenSplit("test", trained=trained))
    assert statistics.class_counts["grade"] == counted


def test_empty_detector_with_mean_counts(found: dict[str, dict[str, Any]]) -> None:
    metrics = found["detection"]["metrics"]
    assert metrics["map50"] == metrics["f1_macro"] == metrics["recall_pooled"] == 0.0
    expected = 20 / 3
    assert metrics["count_mae"] == pytest.approx(np.mean([abs(n - expected) for n in (10, 12, 10)]))
    assert "training mean" in found["detection"]["name"]


def test_what_the_index_does_not_tell_is_not_zero(evaluator: Evaluator) -> None:
    """A family may leave numbers out of its records; any network beats a mean of 0."""
    found = baseline_summary(evaluator, count_training(SPECS, TRAINING, study=study()))["value"]["metrics"]
    assert np.isnan(list(found.values())).all()


def test_majority_class_of_training(found: dict[str, dict[str, Any]]) -> None:
    assert found["roi"]["name"] == "always Healthy"
    assert found["roi"]["metrics"]["accuracy"] == pytest.approx(25 / 32)
    assert found["roi"]["metrics"]["balanced_accuracy"] == 0.5
    assert found["grade"]["name"] == "always a"
    assert found["grade"]["metrics"]["auroc"] == 0.5


def test_better_constant_mask_is_named(evaluator: Evaluator, found: dict[str, dict[str, Any]]) -> None:
    shares = [image(index, *counts)[1].tasks["mask"]["mask"].mean() for index, counts in enumerate(COUNTS)]
    assert found["mask"]["name"] == "all foreground"
    assert found["mask"]["metrics"]["dice_per_image"] == pytest.approx(np.mean([2 * s / (s + 1) for s in shares]))
    assert found["tissue"]["name"] == "y everywhere"


def test_area_of_a_constant_mask_is_the_share_of_annotated_pixels(found: dict[str, dict[str, Any]]) -> None:
    """Whether all background or all foreground is named: a map without insight has one precision."""
    masks = np.stack([image(index, *counts)[1].tasks["mask"]["mask"] for index, counts in enumerate(COUNTS)])
    assert found["mask"]["metrics"]["aupr"] == pytest.approx(masks.mean())
    assert found["mask"]["metrics"]["recall_pooled"] == 1.0
    assert found["mask"]["metrics"]["precision_pooled"] == pytest.approx(masks.mean())
    assert np.isnan(found["tissue"]["metrics"]["aupr"]) and np.isfinite(found["tissue"]["metrics"]["precision_pooled"])
    spec = {"mask": SPECS["mask"]}
    rare = Evaluator(spec)
    mask = np.zeros((1, 10, 10), np.uint8)
    mask[0, 0, :5] = 1
    blank = mask * 0
    for name, truth in (("i0", mask), ("i1", blank), ("i2", blank)):
        window = image(0, 1, 1)[0].window
        pair = ({"mask": {"probabilities": truth.astype(np.float32)}}, {"mask": {"mask": truth}})
        rare.update(*(ImageResult(name, "p", "s", window, tasks) for tasks in pair))  # type: ignore
    silent = baseline_summary(rare, TrainingStatistics())["mask"]
    assert silent["name"] == "all background" and silent["metrics"]["dice_per_image"] == pytest.approx(2 / 3)
    assert silent["metrics"]["aupr"] == pytest.approx(5 / 300) and silent["metrics"]["recall_pooled"] == 0.0


def test_graded_constant_agrees_as_chance_does() -> None:
    spec = TaskSpec("grade", "classification", ("a", "b", "c"), ordinal=True)
    evaluator = Evaluator({"grade": spec})
    window = image(0, 1, 1)[0].window
    for index, label in enumerate((0, 1, 2, 2)):
        pair = ({"grade": {"probabilities": np.eye(3)[label]}}, {"grade": {"label": np.array(label)}})
        evaluator.update(*(ImageResult(f"i{index}", f"p{index}", "s", window, tasks) for tasks in pair))  # type: ignore
    metrics = baseline_summary(evaluator, TrainingStatistics({"grade": [1, 3, 2]}))["grade"]["metrics"]
    assert metrics["quadratic_kappa"] == 0.0 and metrics["accuracy"] == 0.25


def test_mean_over_tasks_has_the_mean_of_their_baselines() -> None:
    specs = {name: TaskSpec(name, "segmentation", (name,)) for name in ("few", "many")}
    study = {"both": STUDY_METRICS.build({"name": "task_mean", "tasks": ["few", "many"]}, specs)}
    evaluator, generator = Evaluator(specs, study), np.random.default_rng(0)
    window = image(0, 1, 1)[0].window
    for index in range(3):
        masks = {"few": generator.random((1, 8, 8)) < 0.1, "many": generator.random((1, 8, 8)) < 0.8}
        guess = {task: {"probabilities": mask.astype(np.float32)} for task, mask in masks.items()}
        truth = {task: {"mask": mask.astype(np.uint8)} for task, mask in masks.items()}
        evaluator.update(*(ImageResult(f"i{index}", f"p{index}", "s", window, tasks) for tasks in (guess, truth)))  # type: ignore
    found = baseline_summary(evaluator, TrainingStatistics())
    assert found["both"]["name"] == "mean of the tasks' baselines"
    assert found["both"]["metrics"].keys() == evaluator.compute(evaluator.default_thresholds())["both"].keys()
    for name, value in found["both"]["metrics"].items():
        assert value == pytest.approx((found["few"]["metrics"][name] + found["many"]["metrics"][name]) / 2)


def test_each_task_counts_the_images_that_are_labelled_for_it() -> None:
    """One set has grades, another masks: images without a grade are no examples of the first class."""
    specs = {
        "grade": TaskSpec("grade", "classification", ("none", "some"), label="class:grade"),
        "mask": TaskSpec("mask", "segmentation", ("speck",), label="mask:specks"),
        "detection": SPECS["detection"],
    }
    records = [
        Record("g1", "p", "graded", "x", class_counts={"some": 1}, labels=("class:grade",)),
        Record("g2", "p", "graded", "x", class_counts={"none": 1}, labels=("class:grade",)),
        Record("m1", "p", "masks", "x", class_counts={"speck": 1}, labels=("mask:specks",)),
        Record("m2", "p", "masks", "x", labels=("mask:specks",)),  # known to hold none
        Record("n", "p", "none", "x", labels=()),
        *TRAINING,
    ]
    statistics = count_training(specs, records)
    # Records that do not say which labels they know count everywhere, unless they hold nothing at all.
    assert statistics.images == {"grade": 2 + 3, "mask": 2 + 3, "detection": 3}
    assert statistics.class_counts["grade"] == [1, 1] and statistics.class_counts["mask"] == [1]


def test_zero_map_equals_scoring_a_zero_map(evaluator: Evaluator, found: dict[str, dict[str, Any]]) -> None:
    direct = Evaluator({"heatmap": SPECS["heatmap"]})
    for index, counts in enumerate(COUNTS):
        prediction, truth = image(index, *counts)
        prediction.tasks["heatmap"]["heatmap"] = np.zeros((1, 8, 8))
        direct.update(prediction, truth)
    assert found["heatmap"]["metrics"] == pytest.approx(direct.compute({"heatmap": {"score": 0.5}})["heatmap"], nan_ok=True)


def test_constants(found: dict[str, dict[str, Any]]) -> None:
    assert found["value"]["metrics"]["mae"] == pytest.approx(np.mean([2, 1, 0]))
    assert found["parasitemia"]["metrics"]["mae_patient"] == pytest.approx(np.mean([0, 20, 30]))
    assert np.isnan(found["parasitemia"]["metrics"]["pearson_image"])


def test_scoring_a_baseline_leaves_the_model_alone(evaluator: Evaluator) -> None:
    before = evaluator.compute(evaluator.default_thresholds())
    baseline_summary(evaluator, TrainingStatistics())
    assert str(evaluator.compute(evaluator.default_thresholds())) == str(before)
    assert before["detection"]["map50"] == 1.0


# -- points ------------------------------------------------------------------------------------------------------------

CELLS = TaskSpec("cells", "points", ("lymphocyte",), members=(("lymphocyte",),))


def regions(count: int = 8, cells: int = 40) -> Evaluator:
    """Regions of 120 x 120 um whose cells nobody found; a third of each was not looked at."""
    evaluator, generator = Evaluator({"cells": CELLS}, hit_radius=4.0), np.random.default_rng(0)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (240, 240), (240, 240), (240, 240), (240, 240), pixel_scale=2.0)
    region = np.ones((240, 240), bool)
    region[160:] = False
    for index in range(count):
        points = generator.uniform(0, 1, (cells, 2)) * (240, 160)
        truth = {"points": points, "labels": np.zeros(cells, np.int64), "region": region}
        guess = {"points": np.zeros((0, 2)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
        evaluator.update(*(ImageResult(f"i{index}", f"p{index}", "s", window, {"cells": part}) for part in (guess, truth)))
    return evaluator


def labelled(count: int, size: tuple[int, int] | None = (480, 480), **more: Any) -> Record:
    """A training image of 240 x 240 um."""
    return Record(
        "t", "p", "s", "x", size=size, pixel_scale=2.0, class_counts={"lymphocyte": count}, labels=("objects",), **more
    )


def test_density_of_the_training_images() -> None:
    records = [labelled(10), labelled(30), labelled(0), labelled(99, training=False), replace(labelled(7), labels=())]
    statistics = count_training({"cells": CELLS}, records)
    assert statistics.densities == {"cells": [pytest.approx(40 / (3 * 0.24**2))]}
    assert count_training({"cells": CELLS}, [labelled(10, size=None)]).densities == {}


def test_lattice_finds_what_chance_finds() -> None:
    """Through the same matching: a point is a hit where a cell, or several, lie within 4 um."""
    evaluator = regions(40)
    statistics = count_training({"cells": CELLS}, [labelled(150)])
    (density,) = statistics.densities["cells"]
    found = baseline_summary(evaluator, statistics)["cells"]
    assert found["name"] == "a lattice of 2,604 points per mm2, as in training" and round(density) == 2604
    metrics = found["metrics"]
    assert metrics["precision"] == pytest.approx(1 - np.exp(-40 / 0.0096 * np.pi * 4**2 * 1e-6), rel=0.12)
    assert metrics["recall"] == pytest.approx(metrics["precision"] * density * 0.0096 / 40, rel=0.15)
    assert metrics["count_mae"] == pytest.approx(40 - density * 0.0096, abs=0.5)
    assert 0 < metrics["sensitivity_at_300"] < 0.05 and metrics["froc"] > 0
    assert found == baseline_summary(evaluator, statistics)["cells"]


def test_without_a_density_nothing_is_found() -> None:
    found = baseline_summary(regions(), TrainingStatistics())["cells"]
    assert found["name"] == "nothing found" and found["metrics"]["froc"] == found["metrics"]["recall"] == 0.0
    assert found["metrics"]["count_mae"] == 40


def test_training_denser_than_the_lattice_can_be() -> None:
    statistics = count_training({"cells": CELLS}, [labelled(1000)])
    assert baseline_summary(regions(2), statistics)["cells"]["name"] == "a lattice of 5,000 points per mm2"


# -- what the source gives away ----------------------------------------------------------------------------------------

PRESENCE = TaskSpec("presence", "classification", ("no", "yes"), label="class:presence")


def pictures(*counts: tuple[str, int, int]) -> list[Record]:
    """Training images by (source, without, with)."""
    return [
        Record(f"{source}{label}{index}", "p", source, "x", class_counts={label: 1}, labels=("class:presence",))
        for source, without, positive in counts
        for label, number in (("no", without), ("yes", positive))
        for index in range(number)
    ]


def scored(*images: tuple[str, int, float]) -> Evaluator:
    """Test images by (source, label, predicted probability of the second class)."""
    evaluator, window = Evaluator({"presence": PRESENCE}), image(0, 1, 1)[0].window
    for index, (source, label, score) in enumerate(images):
        pair = ({"probabilities": np.array([1 - score, score])}, {"label": np.array(label)})
        evaluator.update(*(ImageResult(f"i{index}", f"p{index}", source, window, {"presence": part}) for part in pair))  # type: ignore
    return evaluator


def from_source(evaluator: Evaluator, records: list[Record]) -> dict[str, dict[str, Any]]:
    return baseline_summary(evaluator, count_training(evaluator.specs, records))


def test_source_that_gives_the_label_away() -> None:
    evaluator = scored(("scans", 1, 0.9), ("scans", 1, 0.3), ("web", 0, 0.1), ("web", 0, 0.2))
    found = from_source(evaluator, pictures(("scans", 0, 9), ("web", 7, 0)))
    entry = found["presence"]["from_source"]
    assert entry["metrics"] == dict.fromkeys(PRESENCE.metrics, 1.0) and "scans yes, web no" in entry["name"]
    (note,) = source_notes(evaluator.summary(evaluator.default_thresholds(), 0)["tasks"], found)
    assert "accuracy 0.750 against 1.000" in note and "sensitivity" not in note
    # The AUROC of the model is 1 as well: no better than the source.
    assert "auroc 1.000 against 1.000" in note


def test_source_by_hand_where_it_says_little() -> None:
    """Shares 0.6 and 0.3 of `yes`: the first source is guessed yes, the second no; a source unknown to training gets all."""
    images = [("scans", 1, 0.9), ("scans", 0, 0.1), ("scans", 0, 0.2), ("web", 1, 0.8), ("web", 0, 0.3), ("new", 0, 0.1)]
    evaluator = scored(*images)
    found = from_source(evaluator, pictures(("scans", 4, 6), ("web", 7, 3)))
    metrics = found["presence"]["from_source"]["metrics"]
    assert metrics["accuracy"] == pytest.approx(3 / 6)  # scans 1 of 3, web 1 of 2, new (45 % yes): 1 of 1
    assert metrics["sensitivity"] == 0.5 and metrics["specificity"] == 0.5
    shares, labels = np.array([0.6, 0.6, 0.6, 0.3, 0.3, 0.45]), np.array([label for _, label, _ in images])
    wins = [(p > n) + (p == n) / 2 for p in shares[labels == 1] for n in shares[labels == 0]]
    assert metrics["auroc"] == pytest.approx(np.mean(wins))
    assert found["presence"]["from_source"]["per_source"]["scans"]["accuracy"] == pytest.approx(1 / 3)
    assert source_notes(evaluator.summary(evaluator.default_thresholds(), 0)["tasks"], found) == []


def test_one_source_gives_nothing_away() -> None:
    evaluator = scored(("scans", 1, 0.9), ("scans", 0, 0.3))
    found = from_source(evaluator, pictures(("scans", 4, 6)))
    assert "from_source" not in found["presence"] and source_notes({}, found) == []


def test_images_for_evaluation_only_are_no_training() -> None:
    records = pictures(("scans", 1, 1))
    records += [replace(record, training=False) for record in pictures(("web", 5, 5))]
    statistics = count_training({"presence": PRESENCE}, records)
    assert statistics.class_counts["presence"] == [1, 1] and statistics.images["presence"] == 2
    assert list(statistics.by_source["presence"]) == ["scans"]


def test_volumes_without_a_prediction(case_study: Any) -> None:
    """All background has no volume, and lies one diagonal away from what is annotated."""
    study = case_study()
    found = baseline_summary(study, TrainingStatistics())["tumor"]
    metrics, metric = found["metrics"], study.metrics["tumor"]
    assert found["name"] == "all background" and metrics.keys() == metric.compute(study.default_thresholds()["tumor"]).keys()
    assert metrics["dice_per_case"] == metrics["dice_nonempty"] == 0.0
    volumes = [
        row["volume_annotated_mm3"] for case in metric.case_table({"core": 0.5, "edema": 0.5}).values() for row in case.values()
    ]
    assert metrics["mae_volume_mm3"] == pytest.approx(np.mean(volumes))
    assert metrics["hd95_per_image"] == pytest.approx(np.hypot(48, 48))
    assert metrics["hd95_per_case"] == pytest.approx(np.sqrt(48**2 + 48**2 + 15**2))


def test_grades_and_numbers_that_only_the_index_knows() -> None:
    specs = {
        "severity": TaskSpec("severity", "classification", ("low", "high"), label="class:severity", ordinal=True),
        "load": TaskSpec("load", "regression", (), label="class:load"),
    }
    records = [
        Record(
            f"t{grade}{load}",
            "p",
            f"s{grade:.0f}",
            "x",
            labels=("class:severity", "class:load"),
            values={"severity": grade, "load": load},
        )
        for grade, load in ((1.0, 10.0), (1.0, 20.0), (0.0, 3.0))
    ]
    unknown = Record("u", "p", "s0", "x", labels=("objects",), values={})
    statistics = count_training(specs, [*records, unknown])
    assert statistics.class_counts["severity"] == [1.0, 2.0] and statistics.images == {"severity": 3, "load": 3}
    assert statistics.by_source["severity"] == {"s0": [1.0, 0.0], "s1": [0.0, 2.0]}
    assert statistics.means == {"load": 11.0}
    assert count_training(specs, records, means={"load": 5.0}).means == {"load": 5.0}
