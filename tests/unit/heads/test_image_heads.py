"""Heads of numbers and of independent classes: units, statistics, absent and unknown labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec

NUMBER = TaskSpec("age", "regression", (), unit="years")
FINDINGS = TaskSpec("findings", "multilabel_classification", ("a", "b", "c"))
SIZE = (64, 96)


def build(name: str, spec: TaskSpec, loss: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    return HEADS.build({"name": name, "loss": {"name": loss}, **keys}, spec, (4, 8), (8, 16)).eval()


def maps(rows: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, c, 4 * f, 6 * f, generator=generator) for c, f in ((4, 2), (8, 1)))


def test_values_come_back_in_their_unit() -> None:
    head = build("regressor", NUMBER, "l2")
    output = head(maps(), SIZE)
    raw = torch.stack([row["value"] for row in head.decode(output)])
    torch.testing.assert_close(raw, output["outputs"][:, 0].detach())
    head.observe_targets([torch.tensor(30.0), 50.0, float("nan"), 70.0])
    assert head.target_mean == 50 and head.target_std.item() == pytest.approx((800 / 3) ** 0.5)
    torch.testing.assert_close(torch.stack([row["value"] for row in head.decode(output)]), raw * head.target_std + 50)
    # The loss is one of standardised values, so that the unit does not decide on its size.
    target = torch.tensor([30.0, 40.0, 70.0])
    expected = ((raw - (target - 50) / head.target_std) ** 2).mean()
    torch.testing.assert_close(head.loss(output, target)["value"], expected)
    in_days = build("regressor", NUMBER, "l2")
    in_days.observe_targets([365.0 * value for value in (30.0, 50.0, 70.0)])
    torch.testing.assert_close(in_days.loss(output, 365 * target)["value"], expected)


def test_statistics_travel_with_the_weights() -> None:
    head, other = build("regressor", NUMBER, "gaussian"), build("regressor", NUMBER, "gaussian", hidden=[])
    head.observe_targets([1.0, 3.0])
    other.load_state_dict(head.state_dict())
    assert other.target_mean == 2 and other.target_std == 1
    found = other.decode(other(maps(), SIZE))
    assert all(set(row) == {"value", "spread"} and row["spread"] > 0 and row["value"].shape == () for row in found)
    other.observe_targets([200.0, 400.0])
    assert other.decode(other(maps(), SIZE))[0]["spread"].item() == pytest.approx(100 * found[0]["spread"].item())


@pytest.mark.parametrize(("targets", "mean"), [([], 0.0), ([float("nan")], 0.0), ([7.0], 7.0), ([0.1] * 5, 0.1)])
def test_targets_without_spread_leave_the_scale_alone(targets: list[float], mean: float) -> None:
    head = build("regressor", NUMBER, "huber")
    head.observe_targets(targets)
    assert head.target_std == 1 and head.target_mean.item() == pytest.approx(mean)


def test_only_heads_that_say_so_look_at_targets() -> None:
    assert build("regressor", NUMBER, "l1").looks_at_targets
    head = build("multilabel_classifier", FINDINGS, "bce_multilabel")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.observe_targets([torch.ones(3)])
    assert not head.looks_at_targets and all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_a_mixture_shows_targets_to_all_its_experts() -> None:
    expert = {"name": "regressor", "loss": {"name": "l2"}}
    head: Any = HEADS.build({"name": "mixture", "expert": expert}, NUMBER, (4, 8), (8, 16)).eval()
    assert head.looks_at_targets and head.kind == "regression"
    head.observe_targets([10.0, 30.0])
    assert [float(inner.target_mean) for inner in head.experts] == [20.0] * 3
    assert torch.stack([row["value"] for row in head.decode(head(maps(), SIZE))]).mean() > 10


def test_a_regressor_learns_a_number_far_from_zero() -> None:
    torch.manual_seed(0)
    head = build("regressor", NUMBER, "l2", dropout=0.0)
    features, target = torch.randn(32, 8, 2, 2), torch.randn(32)
    target = 5000 + 200 * (features.mean((2, 3)) @ torch.linspace(-1, 1, 8)) + target
    head.observe_targets(target.tolist())
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head((features,), SIZE), target)["value"].backward()
        optimizer.step()
    predicted = torch.stack([row["value"] for row in head.decode(head((features,), SIZE))])
    assert (predicted - target).abs().max() < 10


def test_classes_are_independent_and_may_be_unknown() -> None:
    head = build("multilabel_classifier", FINDINGS, "bce_multilabel")
    output = head(maps(), SIZE)
    found = torch.stack([row["probabilities"] for row in head.decode(output)])
    torch.testing.assert_close(found, output["logits"].detach().sigmoid())
    # Of the other rows nothing is known although they count as labelled.
    target = torch.tensor([[1.0, 0.0, torch.nan], [torch.nan] * 3, [torch.nan] * 3])
    value = head.loss(output, target)["class"]
    torch.testing.assert_close(value, -(found[0, 0].log() + (1 - found[0, 1]).log()) / 2)
