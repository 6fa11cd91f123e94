"""Each optimizer step of a run with accumulated batches follows the mean gradient of the batches that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_runs import DENSE, checkpoint, resume_run, tiny_run
from torch import Tensor

from mtl.core.types import TaskBatch
from mtl.training.fitting import Room
from mtl.training.module import MultiTaskModule


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        pytest.param((), [[0, 1, 2], [3]], id="four batches in threes"),
        pytest.param(
            ("trainer.limit_train_batches=2", "balancer=uncertainty"), [[0, 1]], id="fewer batches than one step takes"
        ),
    ],
)
def test_the_last_shorter_step_is_a_mean_too(settings: tuple[str, ...], windows: list[list[int]], smears: Path, tmp_path: Path):
    by_batch: list[Tensor] = []
    by_step: list[Tensor] = []
    original = MultiTaskModule.training_step

    def step(self: MultiTaskModule, batch: TaskBatch, index: int) -> Tensor:
        loss = original(self, batch, index)
        found = torch.autograd.grad(loss, list(self.model.heads.parameters()), retain_graph=True)
        by_batch.append(torch.cat([gradient.flatten() for gradient in found]))
        return loss

    def before_optimizer_step(self: MultiTaskModule, optimizer: Any) -> None:
        by_step.append(torch.cat([parameter.grad.flatten().clone() for parameter in self.model.heads.parameters()]))

    with (
        patch.object(MultiTaskModule, "training_step", step),
        patch.object(MultiTaskModule, "on_before_optimizer_step", before_optimizer_step),
    ):
        unclipped = ("trainer.gradient_clip_val=null", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=3")
        tiny_run(smears, tmp_path / "run", *DENSE, *unclipped, *settings)
    assert len(by_step) == len(windows)
    for gradient, window in zip(by_step, windows, strict=True):
        mean = torch.stack([by_batch[index] for index in window]).mean(0)
        assert float(gradient.norm()) == pytest.approx(float(mean.norm()), rel=1e-4)
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6)


def test_batches_that_do_not_fit_are_accumulated_and_a_resumed_run_goes_on_so(smears: Path, tmp_path: Path):
    """Four batches of two images become eight of one; each step still sees two."""
    room = Room("cpu", 1, 0)
    with patch("mtl.training.fitting.room_of", lambda trainer: room), patch("mtl.training.fitting.largest") as needed:
        needed.side_effect = lambda memories, plan: {"activations": plan.config.data.loader.batch_size - 1}
        tiny_run(smears, tmp_path / "run", *DENSE, "runtime.fit=auto", "trainer.max_epochs=1")
        stored = json.loads((tmp_path / "run" / "config.json").read_text())
        assert stored["data"]["loader"]["batch_size"] == 1 and stored["trainer"]["accumulate_grad_batches"] == 2
        assert stored["runtime"] == stored["runtime"] | {
            "fit": "auto",
            "asked": {"batch_size": 2, "accumulate_grad_batches": 1},
        }
        log = (tmp_path / "run" / "log.txt").read_text()
        assert (
            "Batches are made smaller: data.loader.batch_size=1 and trainer.accumulate_grad_batches=2, 2 images per step" in log
        )
        resume_run(tmp_path / "run", "trainer.max_epochs=2")
    assert checkpoint(tmp_path / "run")["global_step"] == 2 * 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["runtime"] == stored["runtime"]
