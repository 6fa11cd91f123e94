"""Areas, curves and thresholds of a yes-or-no question, and the rule that turns probabilities into classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid

from mtl.core.decision import positive_class, predicted_classes, predicted_labels
from mtl.core.task import TaskSpec
from mtl.metrics.binary import CURVE_POINTS, BinaryScores, balanced_accuracy, f1_score


def test_average_precision_by_hand() -> None:
    # From the top: hit, miss, hit and miss at one score, hit.
    scores = BinaryScores(np.array([0.9, 0.8, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0, 1], bool))
    assert scores.average_precision() == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert scores.precision_recall() == {
        "recall": pytest.approx([1 / 3, 1 / 3, 2 / 3, 1.0]), "precision": pytest.approx([1.0, 0.5, 0.5, 0.6])
    }  # fmt: skip
    assert scores.average_precision(np.array([1, 0, 1, 0, 1])) == 1.0
    assert np.isnan(BinaryScores(np.array([0.3]), np.array([False])).average_precision())


def test_roc_keeps_corners_only_and_never_more_than_fit_a_figure(generator: np.random.Generator) -> None:
    perfect = BinaryScores(np.linspace(0, 1, 50), np.arange(50) >= 30).roc()
    assert (perfect["false_positive_rate"], perfect["true_positive_rate"]) == ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    assert np.isnan(perfect["threshold"][0]) and perfect["threshold"][1:] == pytest.approx([30 / 49, 0.0])
    labels = generator.random(20000) < 0.5
    scores = BinaryScores(generator.random(20000) + 0.3 * labels, labels)
    curve = scores.roc()
    assert len(curve["threshold"]) == CURVE_POINTS and curve["true_positive_rate"][-1] == 1.0
    area = trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
    assert area == pytest.approx(scores.auroc(), abs=1e-3)
    assert BinaryScores(np.zeros(0), np.zeros(0, bool)).precision_recall() == {"recall": [], "precision": []}


def test_best_threshold_beats_every_other(generator: np.random.Generator) -> None:
    for _ in range(20):
        scores, positive = generator.random(25) ** 6, generator.random(25) < 0.4
        ranked = BinaryScores(scores, positive)
        for measure in (balanced_accuracy, f1_score):

            def value(threshold: float, measure=measure, scores=scores, positive=positive) -> float:  # type: ignore[no-untyped-def]
                claimed = scores >= threshold
                counts = (claimed & positive).sum(), (claimed & ~positive).sum()
                return float(measure(*counts, positive.sum(), (~positive).sum()))

            chosen = ranked.best_threshold(measure)
            assert value(chosen) == pytest.approx(max(map(value, [*scores, 0.0, 1.0])))
            assert chosen == BinaryScores(scores[::-1], positive[::-1]).best_threshold(measure)


def test_rules_of_decision() -> None:
    two, three = TaskSpec("t", "classification", ("no", "yes")), TaskSpec("t", "classification", ("a", "b", "c"))
    grades = TaskSpec("t", "classification", ("low", "high"), ordinal=True)
    assert [positive_class(spec) for spec in (two, three, grades)] == ["yes", "", ""]
    assert positive_class(TaskSpec("t", "segmentation", ("a", "b"))) == ""
    assert positive_class(TaskSpec("t", "roi_classification", ("no", "yes"))) == ""  # objects are counted
    infected = TaskSpec("t", "classification", ("infected", "healthy"), unremarkable=("healthy",))
    assert positive_class(infected) == "infected"
    rows = np.array([[0.3, 0.7], [0.5, 0.5], [0.7, 0.3]])
    assert predicted_classes(rows, infected, {}).tolist() == [1, 0, 0]
    assert predicted_classes(rows, infected, {"infected": 0.2}).tolist() == [0, 0, 0]
    assert predicted_classes(rows, two, {}).tolist() == [1, 1, 0]
    assert predicted_classes(rows, two, {"yes": 0.71}).tolist() == [0, 0, 0]
    assert predicted_classes(rows, grades, {"high": 0.1}).tolist() == [1, 0, 0]
    assert predicted_classes(np.array([0.2, 0.5, 0.3]), three, {}) == 1
    assert predicted_labels(np.array([0.5, 0.4, 0.9]), three, {"c": 0.95, "b": 0.3}).tolist() == [True, True, False]
