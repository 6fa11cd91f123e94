"""Each optimizer step of a run with accumulated batches follows the mean gradient of the batches that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_runs import DENSE, tiny_run
from torch import Tensor

from mtl.core.types import TaskBatch
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
