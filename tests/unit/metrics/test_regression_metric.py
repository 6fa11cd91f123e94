"""Numbers per image: correlation, errors, R2, agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mtl.core.task import TaskSpec, higher_is_better
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.regression import RegressionMetric, determination


def fill(metric: Any, images: list[tuple[dict[str, Any], dict[str, Any]]]) -> Any:
    for index, (prediction, truth) in enumerate(images):
        metric.add([{"sample_id": f"{index:03d}", "group": "g", "source": "s"} | metric.reduce(prediction, truth, (1, 1))])
    return metric


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


def test_determination_equals_sklearn_and_its_edges(generator: np.random.Generator) -> None:
    from torchmetrics.functional import r2_score

    torch = pytest.importorskip("torch")
    predicted, true = generator.random(30), generator.random(30)
    images = [({"value": p}, {"value": t}) for p, t in zip(predicted, true, strict=True)]
    metric = fill(RegressionMetric(TaskSpec("value", "regression", (), unit="%")), images)
    values = metric.compute({})
    assert tuple(values) == metric.spec.metrics == ("pearson", "mae", "rmse", "r2")
    assert values["r2"] == pytest.approx(float(r2_score(torch.tensor(predicted), torch.tensor(true))), abs=1e-6)
    weights = generator.integers(0, 3, 30)
    again = fill(RegressionMetric(metric.spec), [i for i, w in zip(images, weights, strict=True) for _ in range(w)])
    assert metric.compute({}, weights) == pytest.approx(again.compute({}))
    one = np.ones(3)
    assert determination(np.full(3, 2.0), np.array([1.0, 2.0, 3.0]), one) == 0.0
    assert np.isnan(determination(np.array([1.0, 2, 3]), np.full(3, 2.0), one))
    assert np.isnan(determination(np.zeros(3), np.arange(3.0), np.zeros(3)))
    assert all(np.isnan(value) for value in RegressionMetric(metric.spec).compute({}).values())


def test_details_hold_pairs_names_and_unit() -> None:
    spec = TaskSpec("value", "regression", (), unit="%")
    metric = fill(RegressionMetric(spec), [({"value": 3.0, "spread": 0.5}, {"value": 1.0}), ({"value": 2.0}, {"value": 2.0})])
    curves = metric.details({})["curves"]
    assert curves["sign"] == "%" and curves["agreement"]["image"]["bias"] == 1.0
    assert curves["agreement"]["image"]["names"] == ["000", "001"]
    assert metric.records[0]["spread"] == 0.5 and "spread" not in metric.records[1]


def test_a_negative_primary_counts_as_zero_in_the_score() -> None:
    specs = {"value": TaskSpec("value", "regression", (), primary="r2"), "other": TaskSpec("other", "regression", ())}
    evaluator = Evaluator(specs)
    values = {"value": {"r2": -40.0}, "other": {"pearson": 0.8}}
    assert evaluator.primary_values(values, {}) == {"value": 0.0, "other": 0.8} and evaluator.score(
        values, {}
    ) == pytest.approx(0.4)
    assert evaluator.left_out({"value": {"r2": float("nan")}, "other": {"pearson": 0.8}}) == ["value"]
    assert higher_is_better("val/value/r2") and not higher_is_better("rmse")


def test_images_are_ranked_by_their_error(build: dict[str, Any]) -> None:
    evaluator = Evaluator({"value": TaskSpec("value", "regression", (), unit="%")})
    for name, predicted in (("near", 4.5), ("far", 8.0), ("hit", 4.0)):
        evaluator.update(build["result"](name, value={"value": predicted}), build["result"](name, value={"value": 4.0}))
    assert evaluator.image_scores({"value": {}}) == pytest.approx({"far": 0.2, "hit": 1.0, "near": 1 / 1.5})
