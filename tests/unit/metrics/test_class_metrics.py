"""Confusion metrics, area under the curve, decision threshold: against torchmetrics, scipy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid

from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.metrics.binary import BinaryScores
from mtl.metrics.classification import ClassificationMetric, RoiClassificationMetric, quadratic_kappa

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
    assert tuple(values) == spec.metrics == (*rules_named("classification").metric_class.names, "sensitivity", "specificity")
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
    assert set(values) == set(rules_named("classification").metric_class.names)
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
    assert BinaryScores(scores, positive).auroc(np.ones(50)) == pytest.approx(expected)
    weights = generator.integers(0, 4, 50)
    again = BinaryScores(np.repeat(scores, weights), np.repeat(positive, weights)).auroc(np.ones(weights.sum()))
    assert BinaryScores(scores, positive).auroc(weights) == pytest.approx(again)


def test_area_is_undefined_with_one_class() -> None:
    images = [({"probabilities": [0.6, 0.4]}, {"label": 0}), ({"probabilities": [0.9, 0.1]}, {"label": 0})]
    values = fill(ClassificationMetric(TaskSpec("grade", "classification", ("a", "b"))), images).compute({})
    assert np.isnan(values["auroc"]) and values["accuracy"] == 1.0


PRESENCE = TaskSpec("presence", "classification", ("no", "yes"))


def two_classes(scores: Any, labels: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [({"probabilities": [1 - s, s]}, {"label": label}) for s, label in zip(scores, labels, strict=True)]


def test_threshold_recovers_what_the_most_probable_class_gives_up() -> None:
    """Scores that rank well, but all lie above one half: the most probable class has specificity 0."""
    metric = fill(ClassificationMetric(PRESENCE), two_classes([0.97, 0.96, 0.95, 0.9, 0.8, 0.7], [1, 1, 0, 1, 0, 0]))
    assert metric.default_thresholds == {"yes": 0.5} and metric.compute({"yes": 0.5}) == pytest.approx(metric.compute({}))
    assert metric.compute({})["specificity"] == 0.0 and metric.compute({})["balanced_accuracy"] == 0.5
    chosen = metric.choose_thresholds()
    # From 0.81 to 0.9 and from 0.951 to 0.96 balanced accuracy is 5/6: the value nearest to one half is taken.
    assert chosen == {"yes": 0.81}
    values = metric.compute(chosen)
    assert values["sensitivity"] == 1.0 and values["specificity"] == pytest.approx(2 / 3)
    assert values["auroc"] == metric.compute({})["auroc"] == pytest.approx(8 / 9)
    assert metric.confusion_matrix(chosen, metric.image_weights(None))[:, :2].tolist() == [[2, 1], [0, 3]]


def test_threshold_is_found_between_steps_of_the_grid(generator: np.random.Generator) -> None:
    labels = generator.integers(0, 2, 40)
    scores = 1e-6 * (1 + labels + 0.5 * generator.random(40))
    metric = fill(ClassificationMetric(PRESENCE), two_classes(scores, labels))
    chosen = metric.choose_thresholds()
    assert 1.5e-6 < chosen["yes"] < 2e-6 and metric.compute(chosen)["balanced_accuracy"] == 1.0
    # Against every threshold that could matter.
    noisy = generator.random(40) * 0.004
    metric = fill(ClassificationMetric(PRESENCE), two_classes(noisy, labels))
    best = max(metric.compute({"yes": float(s)})["balanced_accuracy"] for s in noisy)
    assert metric.compute(metric.choose_thresholds())["balanced_accuracy"] == pytest.approx(best)


def test_threshold_stays_where_nothing_can_choose_it() -> None:
    assert fill(ClassificationMetric(PRESENCE), two_classes([0.2, 0.3], [1, 1])).choose_thresholds() == {"yes": 0.5}
    assert ClassificationMetric(PRESENCE).choose_thresholds() == {"yes": 0.5}
    assert np.isnan(list(ClassificationMetric(PRESENCE).compute({}).values())).all()


@pytest.mark.parametrize(
    "spec", [TaskSpec("grade", "classification", ("low", "high"), ordinal=True), TaskSpec("kind", "classification", CLASSES)]
)
def test_grades_and_several_classes_take_the_most_probable(spec: TaskSpec) -> None:
    count = len(spec.classes)
    images = [({"probabilities": np.eye(count)[0]}, {"label": 0}), ({"probabilities": np.eye(count)[0]}, {"label": 1})]
    metric = fill(ClassificationMetric(spec), images)
    assert metric.choose_thresholds() == metric.default_thresholds == {}
    assert metric.compute({spec.classes[1]: 0.0}) == pytest.approx(metric.compute({}), nan_ok=True)


def test_roc_of_each_class_with_the_operating_point(generator: np.random.Generator) -> None:
    labels = generator.integers(0, 2, 60)
    metric = fill(ClassificationMetric(PRESENCE), two_classes((generator.random(60) + labels).round(1) / 2, labels))
    chosen = metric.choose_thresholds()
    curves = metric.details(chosen)["curves"]["roc"]
    assert list(curves) == ["yes"]
    x, y = np.array(curves["yes"]["false_positive_rate"]), np.array(curves["yes"]["true_positive_rate"])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1) and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    assert trapezoid(y, x) == pytest.approx(metric.compute(chosen)["auroc"]) == pytest.approx(curves["yes"]["auroc"])
    point, values = curves["yes"]["operating_point"], metric.compute(chosen)
    assert point["threshold"] == chosen["yes"] and point["true_positive_rate"] == values["sensitivity"]
    assert point["false_positive_rate"] == pytest.approx(1 - values["specificity"])
    grades = fill(ClassificationMetric(GRADES), graded(generator)).details({})
    assert list(grades["curves"]["roc"]) == list(GRADES.classes)
    row = grades["curves"]["roc"]["mild"]
    assert "threshold" not in row["operating_point"] and row["auroc"] == grades["per_class"]["mild"]["auroc"]
    assert row["operating_point"]["true_positive_rate"] == grades["per_class"]["mild"]["recall"]


def roi_images(
    generator: np.random.Generator, classes: int, images: int = 6
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    made = []
    for _ in range(images):
        count = int(generator.integers(0, 9))
        labels, ids = generator.integers(0, classes, count), generator.permutation(count)
        probabilities = generator.dirichlet(np.ones(classes), count) * 0.5 + 0.5 * np.eye(classes)[labels]
        order = generator.permutation(count)
        made.append(({"probabilities": probabilities[order], "ids": ids[order]}, {"labels": labels, "ids": ids}))
    return made


def test_area_of_objects_equals_torchmetrics_over_all_images(generator: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_auroc

    images = roi_images(generator, 3)
    metric = fill(RoiClassificationMetric(TaskSpec("roi", "roi_classification", CLASSES)), images)
    values = metric.compute({})
    assert tuple(values) == rules_named("roi_classification").metric_class.names
    scores = np.concatenate([p["probabilities"][np.argsort(p["ids"])] for p, _ in images])
    labels = np.concatenate([t["labels"][np.argsort(t["ids"])] for _, t in images])
    expected = multiclass_auroc(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), 3, average="macro")
    assert values["auroc"] == pytest.approx(float(expected), abs=1e-6)
    # Weights count images, with all their objects.
    weights = generator.integers(0, 3, len(images))
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    again = fill(RoiClassificationMetric(metric.spec), repeated)
    assert metric.compute({}, weights) == pytest.approx(again.compute({}))
    assert list(metric.details({})["curves"]["roc"]) == list(CLASSES) and metric.notes() == []


def test_two_classes_of_objects_have_no_threshold(generator: np.random.Generator) -> None:
    spec = TaskSpec("roi", "roi_classification", CLASSES[:2])
    images = roi_images(generator, 2)
    for prediction, _ in images:
        p = prediction["probabilities"]
        p[:, 1] = 0.6 + p[:, 1] * 0.4
        p[:, 0] = 1 - p[:, 1]
    metric = fill(RoiClassificationMetric(spec), images)
    # They are counted: one of the highest balanced accuracy would claim too many of a rare class.
    assert metric.choose_thresholds() == metric.default_thresholds == {}
    assert metric.compute({"Healthy": 0.9})["balanced_accuracy"] == metric.compute({})["balanced_accuracy"] == 0.5
    assert set(metric.details({})["curves"]["roc"]) == set(CLASSES[:2])
    assert tuple(metric.compute({})) == spec.metrics == rules_named("roi_classification").metric_class.names


def test_objects_without_a_prediction_are_named() -> None:
    prediction = {"probabilities": np.eye(3)[[0, 1]], "ids": np.array([1, 3])}
    truth = {"labels": np.array([0, 0, 1]), "ids": np.array([1, 2, 3])}
    metric = fill(RoiClassificationMetric(TaskSpec("roi", "roi_classification", CLASSES)), [(prediction, truth)])
    assert metric.compute({})["auroc"] == 1.0 and metric.compute({})["accuracy"] == pytest.approx(2 / 3)
    assert metric.notes() == ["1 annotated objects got no prediction: they count as errors, but are in no AUROC."]
