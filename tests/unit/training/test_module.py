"""What the module does with losses, step by step."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl.balancing.base import Balancer
from mtl.balancing.gradients import MultipleGradientDescent
from mtl.balancing.scalarizers import StaticWeights, UncertaintyWeights
from mtl.core.errors import TrainingError
from mtl.training.loss_terms import LossTerms
from mtl.training.module import MultiTaskModule, _undivided

TASKS = ["a", "b", "c"]


def balanced(balancer: Balancer, **losses: float) -> float:
    """Return `val/loss` of mean losses."""
    module: Any = SimpleNamespace(device=torch.device("cpu"), balancer=balancer.eval())
    return MultiTaskModule._balanced(module, losses)


def test_the_loss_of_validation_is_balanced_like_that_of_training():
    static = StaticWeights(TASKS, weights={"a": 2.0, "b": 0.5})
    assert balanced(static, a=1.0, b=4.0, c=0.25) == 2.0 + 2.0 + 0.25
    learned = UncertaintyWeights(TASKS, init={"a": 1.0}, default_init=0.0, loss_cap=3.0)
    expected = 0.5 * math.exp(-1) * 2.0 + 0.5 + 0.5 * 3.0 + 0.5 * 1.0  # exp(-s) L / 2 + s / 2; b is capped
    assert balanced(learned, a=2.0, b=9.0, c=1.0) == pytest.approx(expected)
    combined = MultipleGradientDescent(TASKS)
    assert balanced(combined, a=2.0, b=9.0, c=1.0) == 12.0
    assert combined.weights() == pytest.approx(dict.fromkeys(TASKS, 1 / 3))


def test_a_task_without_a_label_in_validation_is_not_part_of_its_loss():
    learned = UncertaintyWeights(TASKS, default_init=-2.0)
    assert balanced(learned, a=1.0, b=math.nan, c=math.nan) == pytest.approx(0.5 * math.exp(2) - 1.0)
    assert math.isnan(balanced(learned, a=math.nan, b=math.nan, c=math.nan))  # not 0, which would be the best of all


def test_a_task_that_nobody_labelled_is_told_from_a_loss_that_is_not_finite(tmp_path):
    logged: dict[str, float] = {}
    trainer = SimpleNamespace(world_size=1, current_epoch=2, global_step=7, default_root_dir=str(tmp_path))
    module: Any = SimpleNamespace(
        device=torch.device("cpu"), balancer=StaticWeights(["a", "b"], weights={"b": 3.0}), trainer=trainer, _heads=[],
        stage=SimpleNamespace(tasks=["a", "b"]), model=SimpleNamespace(heads={"a": None, "b": None}), _sums={},
        log_dict=logged.update, terms=LossTerms(),
    )  # fmt: skip
    module._balanced = lambda losses: MultiTaskModule._balanced(module, losses)
    for value, weight in ((2.0, 1.0), (4.0, 3.0)):
        MultiTaskModule._add_mean(module, "val/b/loss", torch.tensor(value), weight)
    MultiTaskModule._log_sums(module, "val")
    assert math.isnan(logged.pop("val/a/loss")) and logged == {"val/b/loss": 3.5, "val/loss": 10.5}
    MultiTaskModule._add_mean(module, "val/a/loss", torch.tensor(math.nan), 1.0)
    with pytest.raises(TrainingError, match=r"The mean val/a/loss is not finite .* in epoch 3, step 7.*No epoch was finished"):
        MultiTaskModule._log_sums(module, "val")


@pytest.mark.parametrize(
    ("batches", "every", "expected"),
    [
        (4, 3, [1.0, 1.0, 1.0, 3.0]),
        (5, 3, [1.0, 1.0, 1.0, 1.5, 1.5]),
        (6, 3, [1.0] * 6),
        (2, 3, [1.5, 1.5]),
        (3, 1, [1.0] * 3),
    ],
)
def test_what_a_step_accumulates_is_a_mean_over_its_batches(batches: int, every: int, expected: list[float]):
    factors = [_undivided(index, batches, every) for index in range(batches)]
    assert factors == expected
    steps = [factors[start : start + every] for start in range(0, batches, every)]
    assert [sum(factor / every for factor in step) for step in steps] == pytest.approx([1.0] * len(steps))
