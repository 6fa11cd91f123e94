"""Runs with a balancer that combines gradients: everything the Trainer does to an ordinary loss works as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from test_distributed import COMPARABLE, ONE, TWO, trained
from tiny_runs import DENSE, before_step, boxes_on_one_rank, checkpoint, differing, history, tiny_run
from torch import Tensor

from mtl.balancing.gradients import MultipleGradientDescent
from mtl.core.types import TaskBatch
from mtl.training import module as training
from mtl.training.module import MultiTaskModule

SGD = ("optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=1")
COMBINING = tuple("balancer=mgda" if word.startswith("balancer=") else word for word in COMPARABLE)


def summed(self: MultipleGradientDescent, gradients: Tensor, tasks: list[str]) -> Tensor:
    """Stand in for the combination: what an ordinary backward pass computes."""
    return gradients.sum(dim=0)


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    state = checkpoint(run_dir)["state_dict"]
    return {name: value for name, value in state.items() if not name.startswith("balancer.")}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="all heads on a nested pyramid"),
        pytest.param((*DENSE, "trainer.accumulate_grad_batches=3"), id="accumulation, a shorter last step"),
        pytest.param((*DENSE, "trainer.gradient_clip_val=0.01"), id="clipping"),
        pytest.param((*DENSE, "backbone.gradient_checkpointing=true", "runtime.channels_last=true"), id="checkpointing"),
        pytest.param((*DENSE, "peft=lora", "peft.per_task=true"), id="adapters per task"),
    ],
)
def test_with_a_plain_sum_a_run_is_that_of_the_summed_losses(settings: tuple[str, ...], smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "static", *SGD, *settings)
    with patch.object(MultipleGradientDescent, "aggregate", summed):
        tiny_run(smears, tmp_path / "sum", *SGD, *settings, "balancer=mgda")
    first, second = weights_of(tmp_path / "static"), weights_of(tmp_path / "sum")
    changed = differing(first, second, tolerance=2e-6)
    if "backbone.gradient_checkpointing=true" in settings:  # batch norms see a batch again in every backward pass
        changed = [name for name in changed if name.rpartition(".")[2] in ("weight", "bias")]
    assert changed == []
    tiny_run(smears, tmp_path / "mgda", *SGD, *settings, "balancer=mgda")
    assert differing(first, weights_of(tmp_path / "mgda"), tolerance=2e-6)  # the combination is another


def test_mixed_precision(smears: Path, tmp_path: Path) -> None:
    settings = (*DENSE, *SGD, "trainer.precision=bf16-mixed", "balancer=mgda")
    tiny_run(smears, tmp_path / "run", *settings)
    row = history(tmp_path / "run")[0]
    weights = [float(row[f"weight/{task}"]) for task in ("segmentation", "heatmap")]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5) and weights != [0.5, 0.5]
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run").values())


def test_without_anything_shared_the_log_says_that_it_has_no_effect(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, *SGD, "backbone.freeze=all", "balancer=mgda")
    says = "balancer=mgda has no effect here: no part that trains serves several tasks"
    assert says in (tmp_path / "run" / "log.txt").read_text()
    tiny_run(smears, tmp_path / "static", *DENSE, *SGD, "backbone.freeze=all")
    assert differing(weights_of(tmp_path / "static"), weights_of(tmp_path / "run")) == []


def test_the_twin_with_one_task_is_trained_as_with_any_balancer(smears: Path, tmp_path: Path) -> None:
    for name in ("static", "mgda"):
        tiny_run(smears, tmp_path / name, *SGD, "tasks=[segmentation]", f"balancer={name}")
    assert differing(weights_of(tmp_path / "static"), weights_of(tmp_path / "mgda")) == []


# -- two processes -----------------------------------------------------------------------------------------------------


def note_ranks(folder: Path) -> Any:
    """Make an action for `before_step` that writes down each rank's weights as it finds them."""

    def action(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        state = {name: value.detach().clone() for name, value in module.model.named_parameters()}
        folder.mkdir(exist_ok=True)
        torch.save(state, folder / f"{module.current_epoch}-{index}-{module.global_rank}.pt")

    return action


def test_two_ranks_equal_one(smears: Path, tmp_path: Path) -> None:
    """Also where one rank, or nobody, has a label of a task; and no rank drifts away from the other."""
    settings = ("tasks=[segmentation,heatmap]", *COMBINING)
    with before_step(note_ranks(tmp_path / "ranks")):
        two = trained(smears, tmp_path / "two", *settings, *TWO)
    one = trained(smears, tmp_path / "one", *settings, *ONE)
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for key in row:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-4, nan_ok=True), key
    states = {path.stem: torch.load(path, weights_only=True) for path in sorted((tmp_path / "ranks").iterdir())}
    assert len(states) == 12
    for name, state in states.items():
        epoch, index, _ = name.split("-")
        assert differing(state, states[f"{epoch}-{index}-0"]) == [], name


def test_accumulation_over_two_ranks(smears: Path, tmp_path: Path) -> None:
    settings = ("tasks=[segmentation,heatmap]", *COMBINING, "trainer.accumulate_grad_batches=2")
    two = trained(smears, tmp_path / "two", *settings, *TWO)
    one = trained(smears, tmp_path / "one", *settings, *ONE)
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []


@pytest.mark.slow
def test_combining_the_gradients_of_a_rank_alone_would_be_seen(smears: Path, tmp_path: Path) -> None:
    settings = ("tasks=[segmentation,heatmap]", *COMBINING, "trainer.max_epochs=1")
    one = trained(smears, tmp_path / "one", *settings, *ONE)
    with patch.object(training, "mean_over_ranks", lambda values, module: values):
        two = trained(smears, tmp_path / "two", *settings, *TWO)
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5)


def test_detection_without_a_box_on_one_rank(smears: Path, tmp_path: Path) -> None:
    """No rank waits for a gradient that the other does not have."""

    with before_step(boxes_on_one_rank):
        tiny_run(smears, tmp_path / "run", *TWO, "trainer.max_epochs=1", "data.loader.batch_size=1", "balancer=mgda")
    assert len(history(tmp_path / "run")) == 1
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run").values())
