"""Parasitemia by hand: images, patients, missing cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl.core.decision import box_probabilities
from mtl.core.errors import ConfigError, DataError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.metrics.base import bland_altman
from mtl.metrics.evaluator import Evaluator

SPECS = {"detection": TaskSpec("detection", "detection", ("Infected", "Healthy", "WBC"))}


def evaluator_of(
    build: Any, rows: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]], group_by: str = "patient"
) -> Evaluator:
    """Rows of (image, patient, predicted counts, annotated counts), counts in class order."""
    evaluator = Evaluator(SPECS, {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)}, group_by=group_by)
    for name, group, predicted, annotated in rows:
        guess, truth = np.repeat([0, 1, 2], predicted), np.repeat([0, 1, 2], annotated)
        noise = [0]  # one detection below the threshold must not count
        prediction = {
            "boxes": np.zeros((len(guess) + 1, 4)), "labels": np.concatenate([guess, noise]),
            "scores": np.concatenate([np.full(len(guess), 0.9), [0.2]]).astype(np.float32),
        }  # fmt: skip
        labelled = {"boxes": np.zeros((len(truth), 4)), "labels": truth}
        evaluator.update(build["result"](name, group, detection=prediction), build["result"](name, group, detection=labelled))
    return evaluator


ROWS = [
    ("a", "p1", (1, 9, 4), (2, 8, 0)),  # 10 % against 20 %
    ("b", "p1", (0, 30, 0), (0, 30, 0)),  # 0 % against 0 %
    ("c", "p2", (5, 5, 0), (5, 5, 0)),  # 50 % against 50 %
    ("d", "p3", (0, 0, 1), (1, 3, 0)),  # nothing detected: 0 % against 25 %
    ("e", "p4", (2, 2, 0), (0, 0, 3)),  # no annotated red cell: left out
]
THRESHOLDS = {"detection": {"score": 0.5}}


def test_per_image_and_per_patient(build: Any) -> None:
    evaluator = evaluator_of(build, ROWS)
    values = evaluator.compute(THRESHOLDS)["parasitemia"]
    assert values["mae_image"] == pytest.approx((10 + 0 + 0 + 25) / 4)
    # p1 pools its images: 1 of 40 against 2 of 40.
    assert values["mae_patient"] == pytest.approx((2.5 + 0 + 25) / 3)
    assert values["pearson_image"] == pytest.approx(np.corrcoef([10, 0, 50, 0], [20, 0, 50, 25])[0, 1])
    assert values["images_without_cells"] == 1
    details = evaluator.curves(THRESHOLDS)["parasitemia"]
    assert details["without_truth"] == {"image": 1, "patient": 1}
    assert details["agreement"]["patient"]["names"] == ["p1", "p2", "p3"]
    notes = evaluator.summary(THRESHOLDS, bootstrap=0)["notes"]
    assert any("no red cell was detected" in note for note in notes)


def test_weights_equal_repeated_patients(build: Any) -> None:
    evaluator = evaluator_of(build, ROWS)
    step = evaluator.compute_by_group(THRESHOLDS, ["p1", "p2", "p3", "p4"])
    weighted = step(np.array([2, 1, 0, 1]))["parasitemia"]
    assert weighted["mae_image"] == pytest.approx((10 + 0 + 10 + 0 + 0) / 5)
    assert weighted["mae_patient"] == pytest.approx((2.5 + 2.5 + 0) / 3)
    assert weighted["images_without_cells"] == 0


def test_unit_of_the_groups_is_in_the_name(build: Any) -> None:
    assert "mae_field" in evaluator_of(build, ROWS, group_by="field").compute(THRESHOLDS)["parasitemia"]


def test_correlation_is_undefined_below_three(build: Any) -> None:
    values = evaluator_of(build, ROWS[:3]).compute(THRESHOLDS)["parasitemia"]
    assert np.isfinite(values["pearson_image"]) and np.isnan(values["pearson_patient"])


def test_both_classes_are_needed() -> None:
    one = {"detection": TaskSpec("detection", "detection", ("Infected",))}
    with pytest.raises(ConfigError, match="Healthy missing"):
        STUDY_METRICS.build({"name": "parasitemia"}, one)
    with pytest.raises(ConfigError, match="needs a detection task named `cells`"):
        STUDY_METRICS.build({"name": "parasitemia", "task": "cells"}, SPECS)


def test_limits_of_agreement() -> None:
    found = bland_altman(np.array([1.0, 3.0, 5.0]), np.array([1.0, 1.0, 1.0]))
    assert found["bias"] == 2.0 and found["limits"] == pytest.approx([2 - 1.96 * 2, 2 + 1.96 * 2])
    assert found["mean"] == [1.0, 2.0, 3.0]


ROI = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy")),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy")),
}


def decided(build: Any, *rows: tuple[list[float], list[float]], carried: bool = True) -> Evaluator:
    """An image and patient per row of (scores, probabilities of Healthy); the detector says Infected of every box.

    Of the annotated cells one in four is infected.
    """
    study = {"parasitemia": STUDY_METRICS.build({"name": "parasitemia", "classes_from": "roi"}, ROI)}
    evaluator = Evaluator(ROI, study)
    for number, (scores, healthy) in enumerate(rows):
        values = np.array(healthy, np.float32)
        found = {"boxes": np.zeros((len(scores), 4)), "labels": np.zeros(len(scores), int), "scores": np.array(scores)}
        if carried:
            found[box_probabilities("roi")] = np.stack([1 - values, values], axis=1)
        labelled = {"boxes": np.zeros((4, 4)), "labels": np.array([0, 1, 1, 1])}
        truth = {"labels": labelled["labels"], "ids": np.arange(4)}
        said = {"probabilities": np.full((4, 2), 0.5, np.float32), "ids": np.arange(4)}
        evaluator.update(
            build["result"](f"i{number}", f"p{number}", detection=found, roi=said),
            build["result"](f"i{number}", f"p{number}", detection=labelled, roi=truth),
        )
    return evaluator


def test_a_task_that_classifies_boxes_decides_their_class(build: Any) -> None:
    """Scores come in any order, and what another task says of a box stays with it."""
    evaluator = decided(build, ([0.2, 0.9, 0.6, 0.8], [0.9, 0.1, 0.6, 0.9]), ([], []))
    default = {"detection": {"score": 0.5}, "roi": {}}
    pairs = evaluator.curves(default)["parasitemia"]["agreement"]["image"]
    assert pairs["predicted"] == pytest.approx([100 / 3, 0.0]) and pairs["true"] == [25.0, 25.0]
    lower = {"detection": {"score": 0.1}, "roi": {}}
    assert evaluator.curves(lower)["parasitemia"]["agreement"]["image"]["predicted"] == pytest.approx([25.0, 0.0])
    weighted = evaluator.compute_by_group(default, ["p0", "p1"])(np.array([3, 1]))["parasitemia"]
    assert weighted["mae_image"] == pytest.approx((3 * (100 / 3 - 25) + 25) / 4)
    notes = evaluator.summary(default, bootstrap=0)["notes"]
    assert "parasitemia: the class of each detected cell is that of task `roi`." in notes


def test_records_made_without_the_deciding_task_are_refused(build: Any) -> None:
    evaluator = decided(build, ([0.9], [0.9]), carried=False)
    with pytest.raises(DataError, match=r"lack `probabilities_of_roi`.*Evaluate the run again"):
        evaluator.compute(evaluator.default_thresholds())


def test_the_value_of_an_image() -> None:
    metric = STUDY_METRICS.build({"name": "parasitemia"}, SPECS)
    found = {"labels": np.array([0, 1, 1, 2, 1]), "scores": np.array([0.9, 0.8, 0.7, 0.9, 0.4], np.float32)}
    assert metric.value({"detection": found}, {}) == pytest.approx(100 / 3)
    assert metric.value({"detection": found}, {"detection": {"score": 0.4}}) == pytest.approx(25.0)
    assert metric.value({"detection": {"labels": found["labels"]}}, {}) == pytest.approx(25.0)  # an annotation
    assert metric.value({"detection": {"labels": np.array([2, 2])}}, {}) is None and metric.value({}, {}) is None
    other = STUDY_METRICS.build({"name": "parasitemia", "infected": "WBC"}, SPECS)
    assert other.value({"detection": found}, {}) == pytest.approx(100 / 3)
    decided = STUDY_METRICS.build({"name": "parasitemia", "classes_from": "roi"}, ROI)
    assert decided.value({"detection": found}, {}) is None  # nobody decided


def test_training_value_adds_the_members_of_a_class() -> None:
    spec = TaskSpec("detection", "detection", ("Infected", "Healthy"), members=(("ring", "schizont"), ("red",)))
    metric = STUDY_METRICS.build({"name": "parasitemia"}, {"detection": spec})
    records = [
        Record("a", "p", "s", "x", class_counts={"ring": 1, "schizont": 1, "red": 2}),
        Record("b", "p", "s", "x", class_counts={"white": 3}),
        Record("c", "p", "s", "x", class_counts={"ring": 5}, labels=("mask:cell",)),  # not labelled for the task
    ]
    assert metric.training_value(records, lambda chosen: iter(())) == 50.0
    assert np.isnan(metric.training_value(records[1:], lambda chosen: iter(())))


@pytest.mark.parametrize(
    ("specs", "keys", "words"),
    [
        (ROI, {"classes_from": "roy"}, "Unknown task that classifies boxes `roy`.*Did you mean `roi`"),
        (ROI, {"classes_from": "detection"}, "Expected one of: roi"),
        (SPECS, {"classes_from": "roi"}, "Expected one of: none"),
        ({**ROI, "roi": TaskSpec("roi", "roi_classification", ("a", "b"))}, {"classes_from": "roi"}, "tells a, b apart"),
        (
            {"first": TaskSpec("first", "detection", ("x",)), **ROI},
            {"classes_from": "roi"},
            "looks at the boxes of `first`, not of `detection`",
        ),
    ],
)
def test_a_task_that_cannot_decide_is_refused(specs: dict[str, TaskSpec], keys: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        STUDY_METRICS.build({"name": "parasitemia", **keys}, specs)
