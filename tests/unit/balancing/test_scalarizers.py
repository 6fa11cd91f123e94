"""Balancers: the formula, absent tasks, caps, state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtl.balancing.base import Step
from mtl.core.registry import BALANCERS

TASKS = ["detection", "heatmap"]


def losses(first: float = 2.0, second: float = 3.0) -> dict[str, torch.Tensor]:
    return {"detection": torch.tensor(first, requires_grad=True), "heatmap": torch.tensor(second, requires_grad=True)}


def everyone(value: bool = True) -> dict[str, bool]:
    return dict.fromkeys(TASKS, value)


def test_static_weights_are_applied_and_default_to_one() -> None:
    balancer = BALANCERS.build({"name": "static", "weights": {"heatmap": 0.5, "not_active": 9.0}}, TASKS)
    assert balancer(Step(losses(), everyone())).item() == pytest.approx(2.0 + 1.5)
    assert balancer.weights() == {"detection": 1.0, "heatmap": 0.5}


def test_uncertainty_follows_the_formula() -> None:
    balancer = BALANCERS.build({"name": "uncertainty", "init": {"detection": -2.5}, "default_init": -1.0}, TASKS)
    expected = 0.5 * math.exp(2.5) * 2.0 - 1.25 + 0.5 * math.exp(1.0) * 3.0 - 0.5
    assert balancer(Step(losses(), everyone())).item() == pytest.approx(expected, rel=1e-6)
    assert balancer.weights()["detection"] == pytest.approx(0.5 * math.exp(2.5), rel=1e-6)
    assert sum(p.numel() for p in balancer.parameters()) == 2


def test_the_sums_are_exact() -> None:
    """To the last bit, so that a run can be repeated: the order of operations is part of the formula."""
    values = losses(0.1, 0.7)
    static = BALANCERS.build({"name": "static", "weights": {"detection": 0.3}}, TASKS)
    assert static(Step(values, everyone())).item() == (values["detection"] * 0.3 + values["heatmap"] * 1.0).item()
    learned = BALANCERS.build({"name": "uncertainty", "init": {"heatmap": 0.3}}, TASKS)
    terms = [0.5 * torch.exp(-s) * values[task] + 0.5 * s for task, s in learned.log_variance.items()]
    assert learned(Step(values, everyone())).item() == (terms[0] + terms[1]).item()


def test_uncertainty_settles_at_the_log_of_the_loss() -> None:
    # d/ds = 0  <=>  s = log L
    balancer = BALANCERS.build({"name": "uncertainty"}, TASKS)
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        balancer(Step(losses(), everyone())).backward()
        optimizer.step()
    assert balancer.log_variance["detection"].item() == pytest.approx(math.log(2.0), abs=1e-3)
    assert balancer.log_variance["heatmap"].item() == pytest.approx(math.log(3.0), abs=1e-3)


@pytest.mark.parametrize("name", ["static", "uncertainty"])
def test_absent_task_counts_nothing_but_stays_in_the_graph(name: str) -> None:
    balancer, values = BALANCERS.build({"name": name}, TASKS), losses()
    total = balancer(Step(values, {"detection": True, "heatmap": False}))
    alone = BALANCERS.build({"name": name}, ["detection"])(Step({"detection": values["detection"]}, {"detection": True}))
    assert total.item() == pytest.approx(alone.item())
    total.backward()
    assert values["heatmap"].grad is not None and values["heatmap"].grad.item() == 0.0
    for task, s in getattr(balancer, "log_variance", {}).items():
        assert s.grad is not None and (s.grad.item() == 0.0) == (task == "heatmap")


def test_nobody_present_gives_zero_with_a_graph() -> None:
    total = BALANCERS.build({"name": "uncertainty"}, TASKS)(Step(losses(), everyone(False)))
    assert total.item() == 0.0
    total.backward()


def test_loss_above_the_cap_counts_as_the_cap_and_has_no_gradient() -> None:
    balancer = BALANCERS.build({"name": "uncertainty", "loss_cap": 10.0, "default_init": 0.0}, TASKS)
    values = losses(first=50.0)
    total = balancer(Step(values, everyone()))
    assert total.item() == pytest.approx(0.5 * 10.0 + 0.5 * 3.0)
    total.backward()
    assert values["detection"].grad.item() == 0.0 and values["heatmap"].grad.item() == pytest.approx(0.5)
    assert balancer.log_variance["detection"].grad.item() == pytest.approx(0.5 - 5.0)


def test_log_variance_is_clamped() -> None:
    balancer = BALANCERS.build({"name": "uncertainty", "clamp": 2.0, "default_init": -40.0}, ["detection"])
    total = balancer(Step({"detection": torch.tensor(1.0)}, {"detection": True}))
    assert total.item() == pytest.approx(0.5 * math.exp(2.0) - 1.0, rel=1e-6)


def test_state_resumes() -> None:
    first, second = (BALANCERS.build({"name": "uncertainty"}, TASKS) for _ in range(2))
    with torch.no_grad():
        first.log_variance["heatmap"].fill_(0.7)
    second.load_state_dict(first.state_dict())
    assert second.weights() == first.weights()


def test_balancers_are_modules_with_the_default_weights_of_their_yaml() -> None:
    assert {"static", "uncertainty"} <= set(BALANCERS.names())
    assert isinstance(BALANCERS.build({"name": "static"}, TASKS), nn.Module)
