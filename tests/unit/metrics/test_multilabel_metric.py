"""Independent classes of an image, some unknown: against torchmetrics, and by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mtl.core.files import plain
from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.multilabel import MultilabelMetric

SPEC = TaskSpec("findings", "multilabel_classification", ("a", "b", "c"))


def fill(metric: MultilabelMetric, probabilities: Any, truth: Any) -> MultilabelMetric:
    for index, (row, known) in enumerate(zip(probabilities, truth, strict=True)):
        about = {"sample_id": f"{index:03d}", "group": "g", "source": "s"}
        metric.add([about | metric.reduce({"probabilities": np.asarray(row)}, {"labels": np.asarray(known)}, (1, 1))])
    return metric


@pytest.fixture
def drawn(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = (generator.random((50, 3)) < 0.4).astype(float)
    return (generator.random((50, 3)) * 0.7 + 0.3 * truth).round(2), truth


def test_equals_torchmetrics(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import (
        multilabel_auroc,
        multilabel_average_precision,
        multilabel_exact_match,
        multilabel_f1_score,
    )

    probabilities, truth = drawn
    metric = fill(MultilabelMetric(SPEC), probabilities, truth)
    values = metric.compute(metric.default_thresholds)
    assert tuple(values) == SPEC.metrics == rules_named("multilabel_classification").metric_class.names
    assert SPEC.primary_metric == "ap_macro"
    pair = torch.tensor(probabilities), torch.tensor(truth, dtype=torch.int64)
    assert values["ap_macro"] == pytest.approx(float(multilabel_average_precision(*pair, 3)), abs=1e-6)
    assert values["auroc_macro"] == pytest.approx(float(multilabel_auroc(*pair, 3)), abs=1e-6)
    # torchmetrics counts a probability of exactly the threshold as negative.
    above = (pair[0] >= 0.5).double(), pair[1]
    assert values["f1_macro"] == pytest.approx(float(multilabel_f1_score(*above, 3)), abs=1e-6)
    assert values["f1_micro"] == pytest.approx(float(multilabel_f1_score(*above, 3, average="micro")), abs=1e-6)
    assert values["exact_match"] == pytest.approx(float(multilabel_exact_match(*above, 3)), abs=1e-6)


def test_unknown_entries_count_nowhere(drawn: tuple[np.ndarray, np.ndarray], generator: np.random.Generator) -> None:
    probabilities, truth = drawn
    hidden = generator.random(truth.shape) < 0.3
    partly = np.where(hidden, np.nan, truth)
    metric = fill(MultilabelMetric(SPEC), probabilities, partly)
    before = metric.compute(metric.choose_thresholds())
    # Whatever is predicted where nothing is known.
    other = fill(MultilabelMetric(SPEC), np.where(hidden, generator.random(truth.shape), probabilities), partly)
    assert other.choose_thresholds() == metric.choose_thresholds()
    assert other.compute(other.choose_thresholds()) == pytest.approx(before)
    # Class by class, as if the others did not exist.
    alone = MultilabelMetric(TaskSpec("one", "multilabel_classification", ("a",)))
    fill(alone, probabilities[~hidden[:, 0], :1], truth[~hidden[:, 0], :1])
    row = metric.details(metric.choose_thresholds())["per_class"]["a"]
    assert row["n"] == (~hidden[:, 0]).sum() and row["positives"] == truth[~hidden[:, 0], 0].sum()
    values = alone.compute(alone.choose_thresholds())
    assert (row["ap"], row["auroc"], row["f1"]) == pytest.approx(
        (values["ap_macro"], values["auroc_macro"], values["f1_macro"])
    )
    assert metric.notes() == [f"{hidden.sum()} of 150 entries (image and class) are not known and count nowhere."]


def test_weights_count_images_as_often_as_they_say(
    drawn: tuple[np.ndarray, np.ndarray], generator: np.random.Generator
) -> None:
    probabilities, truth = drawn
    truth = np.where(generator.random(truth.shape) < 0.2, np.nan, truth)
    weights = generator.integers(0, 3, 50)
    metric = fill(MultilabelMetric(SPEC), probabilities, truth)
    again = fill(MultilabelMetric(SPEC), np.repeat(probabilities, weights, 0), np.repeat(truth, weights, 0))
    assert metric.compute({"a": 0.4}, weights) == pytest.approx(again.compute({"a": 0.4}))


def test_thresholds_have_the_highest_f1_and_stay_near_one_half() -> None:
    probabilities = [[0.02, 0.9, 0.5], [0.01, 0.8, 0.5], [0.004, 0.2, 0.5], [0.002, 0.1, 0.5]]
    truth = [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    metric = fill(MultilabelMetric(SPEC), probabilities, truth)
    chosen = metric.choose_thresholds()
    # Between the steps of the grid; on a plateau; nothing to find.
    assert chosen == {"a": pytest.approx(0.003), "b": 0.5, "c": 0.5}
    assert metric.compute(chosen)["f1_macro"] == 1.0 and metric.compute({})["f1_macro"] == 0.5
    assert metric.compute(chosen)["exact_match"] == 0.0  # c is predicted everywhere
    assert metric.compute(chosen | {"c": 0.6})["exact_match"] == 1.0


def test_a_class_without_positives_is_in_no_mean() -> None:
    metric = fill(MultilabelMetric(SPEC), [[0.9, 0.3, 0.1], [0.2, 0.6, 0.1]], [[1, 0, np.nan], [0, 0, np.nan]])
    values = metric.compute({})
    assert values["ap_macro"] == values["auroc_macro"] == values["f1_macro"] == 1.0 and values["f1_micro"] == pytest.approx(
        2 / 3
    )
    found = metric.details({})
    assert np.isnan(found["per_class"]["b"]["ap"]) and found["per_class"]["c"]["n"] == 0
    assert list(found["curves"]["roc"]) == ["a", "b", "c"] and list(found["curves"]["precision_recall"]) == ["a"]
    assert metric.notes()[0] == "no positive example of b in this split, so no mean contains it."
    json.dumps(plain(found), allow_nan=False)


def test_nothing_known_gives_nan_and_defaults() -> None:
    empty = MultilabelMetric(SPEC)
    assert all(np.isnan(value) for value in empty.compute({}).values()) and empty.details({})["per_class"] == {}
    assert empty.choose_thresholds() == empty.default_thresholds == dict.fromkeys("abc", 0.5)
    unknown = fill(MultilabelMetric(SPEC), [[0.1, 0.2, 0.3]], [[np.nan] * 3])
    assert all(np.isnan(value) for value in unknown.compute({}).values())
    assert unknown.choose_thresholds() == empty.default_thresholds


def test_an_evaluator_scores_such_a_task(drawn: tuple[np.ndarray, np.ndarray], build: dict[str, Any]) -> None:
    evaluator = Evaluator({"findings": SPEC})
    for index, (row, truth) in enumerate(zip(*drawn, strict=True)):
        name, group = f"{index:02d}", f"p{index % 12}"
        evaluator.update(
            build["result"](name, group, findings={"probabilities": row}),
            build["result"](name, group, findings={"labels": truth}),
        )
    scores = evaluator.image_scores(evaluator.thresholds(), {"07"})
    assert scores == pytest.approx({"07": np.where(drawn[1][7] == 1, drawn[0][7], 1 - drawn[0][7]).mean()})
    summary = evaluator.summary(evaluator.thresholds(), 50)
    entry = summary["tasks"]["findings"]
    low, high = entry["ci95"]["ap_macro"]
    assert (
        low <= entry["ap_macro"] <= high
        and summary["score"] == entry["ap_macro"]
        and set(entry["per_class"]) == {"a", "b", "c"}
    )
    json.dumps(evaluator.curves(evaluator.thresholds()), allow_nan=False)
