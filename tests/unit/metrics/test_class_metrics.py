"""Confusion metrics, area under the curve, regression: against torchmetrics, scipy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mtl.core.task import KIND_METRICS, TaskSpec
from mtl.metrics.classification import (
    ClassificationMetric,
    RegressionMetric,
    RoiClassificationMetric,
    area_under_roc,
    quadratic_kappa,
)

CLASSES = ("Infected", "Healthy", "WBC")


def fill(metric: Any, images: list[tuple[dict[str, Any], dict[str, Any]]]) -> Any:
    for index, (prediction, truth) in enumerate(images):
        metric.add([{"sample_id": f"{index:03d}", "group": "g", "source": "s"} | metric.reduce(prediction, truth, (1, 1))])
    return metric


def test_roi_numbers_by_hand_and_joined_by_id() -> None:
    prediction = {"probabilities": np.eye(3)[[1, 0, 1, 1]], "ids": np.array([30, 10, 20, 40])}
    truth = {"labels": np.array([0, 0, 1, 1]), "ids": np.array([10, 20, 30, 40])}
    metric = fill(RoiClassificationMetric(TaskSpec("roi", "roi_classification", CLASSES)), [(prediction, truth)])
    values = metric.compute({})
    # Infected: 1 of 2 found, no false alarm. Healthy: 2 of 2 found, one false alarm. WBC does not occur.
    assert values["accuracy"] == 0.75 and values["balanced_accuracy"] == 0.75
    assert values["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metric.details({})["per_class"]["Healthy"]["precision"] == pytest.approx(2 / 3)
    assert metric.details({})["curves"]["confusion"]["counts"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_object_without_prediction_is_an_error_not_a_gap() -> None:
    prediction = {"probabilities": np.eye(3)[[0]], "ids": np.array([1])}
    truth = {"labels": np.array([0, 0]), "ids": np.array([1, 2])}
    metric = fill(RoiClassificationMetric(TaskSpec("roi", "roi_classification", CLASSES)), [(prediction, truth)])
    assert metric.compute({})["accuracy"] == 0.5
    assert metric.details({})["curves"]["confusion"]["predicted"][-1] == "no prediction"


def test_two_classes_have_sensitivity_and_specificity() -> None:
    spec = TaskSpec("presence", "classification", ("no", "yes"))
    scores, labels = [0.9, 0.2, 0.7, 0.4, 0.8], [1, 1, 0, 0, 1]
    images = [({"probabilities": [1 - s, s]}, {"label": label}) for s, label in zip(scores, labels, strict=True)]
    metric = fill(ClassificationMetric(spec), images)
    values = metric.compute({})
    assert tuple(values) == spec.metrics == (*KIND_METRICS["classification"], "sensitivity", "specificity")
    assert values["sensitivity"] == pytest.approx(2 / 3) and values["specificity"] == 0.5
    table = metric.details({})["per_class"]
    assert values["sensitivity"] == table["yes"]["recall"] and values["specificity"] == table["no"]["recall"]
    # Not defined where the class does not occur, even if it is predicted.
    healthy = metric.compute({}, np.array([0, 0, 1, 1, 0]))
    assert np.isnan(healthy["sensitivity"]) and healthy["specificity"] == 0.5
    assert "sensitivity" not in fill(ClassificationMetric(TaskSpec("grade", "classification", CLASSES)), []).compute({})


def test_image_classes_equal_torchmetrics(generator: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc, multiclass_f1_score

    probabilities = generator.dirichlet([1, 1, 1], 60).round(2)
    labels = np.where(generator.random(60) < 0.6, probabilities.argmax(1), generator.integers(0, 3, 60))
    images = [({"probabilities": p}, {"label": label}) for p, label in zip(probabilities, labels, strict=True)]
    metric = fill(ClassificationMetric(TaskSpec("grade", "classification", CLASSES)), images)
    values = metric.compute({})
    assert set(values) == set(KIND_METRICS["classification"])
    inputs = torch.tensor(probabilities, dtype=torch.float64), torch.tensor(labels)
    winner = inputs[0].argmax(1), inputs[1]
    assert values["f1_macro"] == pytest.approx(float(multiclass_f1_score(*winner, 3, average="macro")), abs=1e-6)
    assert values["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(*winner, 3, average="macro")), abs=1e-6)
    assert values["accuracy"] == pytest.approx(float((winner[0] == winner[1]).float().mean()), abs=1e-6)
    assert values["auroc"] == pytest.approx(float(multiclass_auroc(*inputs, 3, average="macro")), abs=1e-6)


GRADES = TaskSpec("grade", "classification", ("none", "mild", "moderate", "severe", "proliferative"), ordinal=True)


def graded(generator: np.random.Generator, count: int = 80) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    labels = generator.integers(0, 5, count)
    near = np.clip(labels + generator.integers(-1, 2, count), 0, 4)
    return [({"probabilities": np.eye(5)[n] * 0.9 + 0.02}, {"label": label}) for n, label in zip(near, labels, strict=True)]


def test_weighted_kappa_equals_torchmetrics(generator: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics import CohenKappa

    images = graded(generator)
    values = fill(ClassificationMetric(GRADES), images).compute({})
    assert list(values) == list(GRADES.metrics) and list(values)[-1] == "quadratic_kappa"
    pair = (torch.tensor([p["probabilities"].argmax() for p, _ in images]), torch.tensor([int(t["label"]) for _, t in images]))
    expected = float(CohenKappa("multiclass", num_classes=5, weights="quadratic")(*pair))
    assert values["quadratic_kappa"] == pytest.approx(expected, abs=1e-6) and 0.5 < expected < 1


def test_weighted_kappa_counts_images_as_often_as_they_weigh(generator: np.random.Generator) -> None:
    images, weights = graded(generator, 20), generator.integers(0, 3, 20)
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    weighted = fill(ClassificationMetric(GRADES), images).compute({}, weights)
    assert weighted == pytest.approx(fill(ClassificationMetric(GRADES), repeated).compute({}))


def test_weighted_kappa_by_hand() -> None:
    assert quadratic_kappa(np.diag([3.0, 4, 5])) == 1.0
    assert quadratic_kappa(np.array([[2.0, 2], [2, 2]])) == 0.0
    assert quadratic_kappa(np.array([[0.0, 5], [5, 0]])) == -1.0
    # A far error costs more than a near one.
    near, far = np.array([[4.0, 1, 0], [0, 5, 0], [0, 0, 5]]), np.array([[4.0, 0, 1], [0, 5, 0], [0, 0, 5]])
    assert quadratic_kappa(far) < quadratic_kappa(near) < 1
    # One grade only on both sides, nothing counted, one class.
    for matrix in (np.array([[7.0, 0], [0, 0]]), np.zeros((2, 2)), np.ones((1, 1))):
        assert np.isnan(quadratic_kappa(matrix))
    # Always the same answer is chance.
    assert quadratic_kappa(np.array([[0.0, 3, 0], [0, 4, 0], [0, 2, 0]])) == 0.0


def test_kappa_needs_ordered_classes(generator: np.random.Generator) -> None:
    unordered = TaskSpec("grade", "classification", GRADES.classes)
    assert "quadratic_kappa" not in fill(ClassificationMetric(unordered), graded(generator, 10)).compute({})
    nothing = ClassificationMetric(GRADES).compute({})
    assert list(nothing) == list(GRADES.metrics) and all(np.isnan(value) for value in nothing.values())


def test_area_equals_mann_whitney_and_respects_weights(generator: np.random.Generator) -> None:
    scores, positive = generator.random(50).round(1), generator.random(50) < 0.4
    expected = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert area_under_roc(scores, positive, np.ones(50)) == pytest.approx(expected)
    weights = generator.integers(0, 4, 50)
    again = area_under_roc(np.repeat(scores, weights), np.repeat(positive, weights), np.ones(weights.sum()))
    assert area_under_roc(scores, positive, weights) == pytest.approx(again)


def test_area_is_undefined_with_one_class() -> None:
    images = [({"probabilities": [0.6, 0.4]}, {"label": 0}), ({"probabilities": [0.9, 0.1]}, {"label": 0})]
    values = fill(ClassificationMetric(TaskSpec("grade", "classification", ("a", "b"))), images).compute({})
    assert np.isnan(values["auroc"]) and values["accuracy"] == 1.0


def test_regression_equals_scipy(generator: np.random.Generator) -> None:
    predicted, true = generator.random(20), generator.random(20)
    images = [({"value": p}, {"value": t}) for p, t in zip(predicted, true, strict=True)]
    values = fill(RegressionMetric(TaskSpec("value", "regression", ())), images).compute({})
    assert values["pearson"] == pytest.approx(stats.pearsonr(predicted, true)[0])
    assert values["mae"] == pytest.approx(np.abs(predicted - true).mean())
    assert values["rmse"] == pytest.approx(np.sqrt(((predicted - true) ** 2).mean()))


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.1, 0.1, 0.1, 0.1]])
def test_correlation_needs_three_values_that_differ(values: list[float]) -> None:
    images = [({"value": value}, {"value": index}) for index, value in enumerate(values)]
    assert np.isnan(fill(RegressionMetric(TaskSpec("value", "regression", ())), images).compute({})["pearson"])
