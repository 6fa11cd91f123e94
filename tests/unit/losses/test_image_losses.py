"""Losses of numbers and of independent classes: against formulas written another way, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import build_loss
from mtl.losses.regression import LOG_VARIANCE_LIMIT

NUMBER = TaskSpec("age", "regression", (), unit="years")
FINDINGS = TaskSpec("findings", "multilabel_classification", ("a", "b", "c"))
NUMBERS = ("l1", "l2", "huber", "gaussian")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_losses_of_numbers_by_hand() -> None:
    prediction, target = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1.5, 5.0, -1.0])
    assert build_loss({"name": "l1"}, NUMBER)(prediction, target).item() == pytest.approx(3.5 / 3)
    assert build_loss({"name": "l2"}, NUMBER)(prediction, target).item() == pytest.approx(9.25 / 3)
    assert build_loss({"name": "huber"}, NUMBER)(prediction, target).item() == pytest.approx((0.125 + 2.5) / 3)
    wide = build_loss({"name": "huber", "delta": 10.0}, NUMBER)
    assert wide(prediction, target).item() == pytest.approx(9.25 / 6)


def test_gaussian_is_the_likelihood_of_a_normal_distribution() -> None:
    loss, outputs, target = build_loss({"name": "gaussian"}, NUMBER), torch.randn(7, 2), torch.randn(7)
    spread = loss.spread(outputs)
    assert loss.outputs(1) == 2 and spread.shape == (7,)
    expected = -torch.distributions.Normal(outputs[:, 0], spread).log_prob(target).mean()
    torch.testing.assert_close(loss(outputs, target), expected)
    torch.testing.assert_close(spread, (outputs[:, 1] / 2).exp(), rtol=1e-2, atol=0)
    # Fitting both parameters to data gives its mean and its standard deviation.
    values = 2.0 + 0.5 * torch.randn(400)
    free = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=50)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(free.expand(400, 2), values)
        value.backward()
        return value

    optimizer.step(step)
    assert loss.value(free).item() == pytest.approx(values.mean().item(), abs=1e-3)
    assert loss.spread(free).item() == pytest.approx(values.std(correction=0).item(), abs=1e-3)


def test_gaussian_stays_finite_and_can_come_back() -> None:
    loss = build_loss({"name": "gaussian"}, NUMBER)
    for log_variance in (-6e4, -20.0, 20.0, 6e4):
        outputs = torch.tensor([[300.0, log_variance]], requires_grad=True)
        value = loss(outputs, torch.tensor([0.0]))
        value.backward()
        assert value.isfinite() and outputs.grad is not None and outputs.grad.isfinite().all()
        assert abs(math.log(loss.spread(outputs).item() ** 2)) <= LOG_VARIANCE_LIMIT + 1e-3
        if abs(log_variance) < 1e3:
            assert outputs.grad[0, 1] != 0


@pytest.mark.parametrize("name", NUMBERS)
def test_losses_of_numbers_refuse_to_broadcast(name: str) -> None:
    loss = build_loss({"name": name}, NUMBER)
    size = loss.outputs(1)
    assert loss(torch.zeros(3, size), torch.ones(3)).isfinite()
    for prediction, target in (((3, size), (3, 1)), ((3,), (3,)), ((3, 3 - size), (3,)), ((1, size), (3,))):
        with pytest.raises(ValueError, match="takes"):
            loss(torch.zeros(prediction), torch.zeros(target))


def test_unknown_entries_do_not_count() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, torch.nan], [torch.nan] * 3, [1.0, torch.nan, 0.0], [1.0, 1.0, 0.0]])
    value = build_loss({"name": "bce_multilabel"}, FINDINGS)(logits, target)
    p, terms = logits.detach().double().sigmoid(), []
    for row in range(4):
        for column in range(3):
            if not target[row, column].isnan():
                truth = p[row, column] if target[row, column] == 1 else 1 - p[row, column]
                terms.append(-math.log(truth))
    assert len(terms) == 7
    by_row, rows = iter(terms), []
    for row in target:  # an image counts once, however many of its classes are known
        some = [next(by_row) for _ in range(int((~row.isnan()).sum()))]
        rows += [sum(some) / len(some)] if some else []
    assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    value.backward()
    assert logits.grad is not None and ((logits.grad == 0) == target.isnan()).all()


def test_weight_of_positives_and_focus() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [torch.nan, 1.0, 0.0], [0.0, 0.0, 1.0]])
    known = ~target.isnan()
    truth = target.nan_to_num()
    p = torch.where(truth > 0, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.where(truth > 0, torch.tensor([4.0, 1.0, 0.5]), torch.ones(3))
    terms = torch.where(known, weight * (1 - p) ** 2 * -p.log(), 0.0)
    expected = (terms.sum(dim=1) / known.sum(dim=1)).mean()
    by_name = {"c": 0.5, "a": 4, "b": 1, "other": 7}
    for weights in ([4.0, 1.0, 0.5], by_name):
        loss = build_loss({"name": "bce_multilabel", "positive_weight": weights, "gamma": 2.0}, FINDINGS)
        torch.testing.assert_close(loss(logits, target), expected)
        assert loss.state_dict() == {}
    assert torch.equal(loss.probabilities(logits), logits.sigmoid())


def test_nothing_known_is_zero_attached_to_the_graph() -> None:
    logits = torch.full((2, 3), 6e4, requires_grad=True)
    for keys in ({}, {"gamma": 0.5}, {"positive_weight": [1, 2, 3]}):
        loss = build_loss({"name": "bce_multilabel", **keys}, FINDINGS)
        value = loss(logits, torch.full((2, 3), torch.nan))
        assert value == 0
        value.backward()
        assert loss(logits, torch.zeros(2, 3)).isfinite()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_mistakes_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"does not fit a regression task.*gaussian, huber, l1, l2"):
        build_loss({"name": "mse"}, NUMBER)
    with pytest.raises(ConfigError, match=r"does not fit a multilabel_classification task.*bce_multilabel"):
        build_loss({"name": "focal"}, FINDINGS)
    with pytest.raises(ConfigError, match="positive_weight of `findings`: expected 3 weights"):
        build_loss({"name": "bce_multilabel", "positive_weight": [1, 2]}, FINDINGS)
    with pytest.raises(ConfigError, match="positive_weight must be positive"):
        build_loss({"name": "bce_multilabel", "positive_weight": [1, 2, 0]}, FINDINGS)
    with pytest.raises(ConfigError, match="gamma"):
        LOSSES.build({"name": "bce_multilabel", "gamma": -1.0}, FINDINGS)
    with pytest.raises(ConfigError, match="delta"):
        LOSSES.build({"name": "huber", "delta": 0.0}, NUMBER)
    with pytest.raises(ValueError, match="equal shapes"):
        build_loss({"name": "bce_multilabel"}, FINDINGS)(torch.zeros(2, 3), torch.zeros(2, 1))
