"""Parasitemia by hand: images, patients, missing cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.metrics.base import bland_altman
from mtl.metrics.evaluator import Evaluator

SPECS = {"detection": TaskSpec("detection", "detection", ("Infected", "Healthy", "WBC"))}


def evaluator_of(build: Any, rows: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]], unit: str = "patient") -> Evaluator:
    """Rows of (image, patient, predicted counts, annotated counts), counts in class order."""
    evaluator = Evaluator(SPECS, {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)}, unit=unit)
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
    assert "mae_field" in evaluator_of(build, ROWS, unit="field").compute(THRESHOLDS)["parasitemia"]


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
