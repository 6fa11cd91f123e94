"""A run whose numbers are not finite any more ends; what it finished before stays, and NaN is the best of nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_runs import DENSE, checkpoint, history, tiny_run

from mtl.core.errors import TrainingError
from mtl.core.types import TaskBatch
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.module import MultiTaskModule

NAN = float("nan")
SHORT = (*DENSE, "trainer.max_epochs=3", "trainer.limit_train_batches=1")


def spoil_a_weight(self: MultiTaskModule, *_: object) -> None:
    """After the last batch of an epoch, so that no training loss shows it."""
    if self.current_epoch == 1:
        with torch.no_grad():
            next(self.model.heads["heatmap"].parameters()).view(-1)[0] = NAN


def spoil_a_loss(bad: float) -> Callable[..., torch.Tensor]:
    original = MultiTaskModule._loss

    def loss(self: MultiTaskModule, task: str, *arguments: Any) -> torch.Tensor:
        found = original(self, task, *arguments)
        return found * bad if task == "heatmap" and not self.training and self.current_epoch == 1 else found

    return loss


def spoil_an_output(self: MultiTaskModule, *arguments: Any, **rows: Any) -> dict[str, Any]:
    outputs = ORIGINAL_FORWARD(self, *arguments, **rows)
    if not self.training and self.current_epoch == 1:
        outputs["heatmap"] = {key: value * NAN for key, value in outputs["heatmap"].items()}
    return outputs


ORIGINAL_FORWARD = MultiTaskModule.forward
A_WEIGHT = r"The weight `heads\.heatmap\."
A_MEAN = "The mean val/heatmap/loss"
AN_OUTPUT = "What the network says for heatmap of validation image"
# By name: attribute of the module and what stands in for it, settings, beginning of the sentence.
CASES = {
    "a weight": ("on_train_batch_end", spoil_a_weight, (), A_WEIGHT),
    "a weight, averaged": ("on_train_batch_end", spoil_a_weight, ("callbacks=ema",), A_WEIGHT),
    "a weight, not validated": ("on_train_batch_end", spoil_a_weight, ("trainer.check_val_every_n_epoch=3",), A_WEIGHT),
    "a loss of NaN": ("_loss", spoil_a_loss(NAN), ("monitor=val/loss",), A_MEAN),
    "an infinite loss": ("_loss", spoil_a_loss(math.inf), (), A_MEAN),
    "an output": ("forward", spoil_an_output, (), AN_OUTPUT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_diverges_ends_with_the_last_good_checkpoint_named(name: str, smears: Path, tmp_path: Path) -> None:
    attribute, spoiled, settings, begins = CASES[name]
    with (
        patch.object(MultiTaskModule, attribute, spoiled),
        pytest.raises(TrainingError, match=rf"^{begins}.*is not finite \(NaN or infinite\) in epoch 2, step 2") as ended,
    ):
        tiny_run(smears, tmp_path / "run", *SHORT, *settings)
    kept = tmp_path / "run" / "checkpoints"
    assert f"The last good checkpoint is {kept / 'last.ckpt'} of epoch 1" in str(ended.value) and ended.value.exit_code == 5
    assert ("best.ckpt stays too" in str(ended.value)) == (kept / "best.ckpt").is_file() == ("not validated" not in name)
    assert len(history(tmp_path / "run")) == 1 and checkpoint(tmp_path / "run")["mtl"]["epoch"] == 0
    for path in kept.iterdir():
        assert all(value.isfinite().all() for value in checkpoint(tmp_path / "run", path.stem)["state_dict"].values())


def test_a_run_that_never_finished_an_epoch_says_so(smears: Path, tmp_path: Path) -> None:
    def step(self: MultiTaskModule, batch: TaskBatch, index: int) -> torch.Tensor:
        batch.images.fill_(NAN)
        return original(self, batch, index)

    original = MultiTaskModule.training_step
    with patch.object(MultiTaskModule, "training_step", step), pytest.raises(TrainingError, match="No epoch was finished"):
        tiny_run(smears, tmp_path / "run", *SHORT)


@pytest.mark.parametrize("higher", [True, False])
def test_what_is_not_finite_is_never_the_best(higher: bool) -> None:
    recorder, trainer = RunRecorder(Path(), "val/score", higher), SimpleNamespace(sanity_checking=False)
    for value in (NAN, math.inf, -math.inf, None):
        assert not recorder._improves(value, trainer)
    assert recorder._improves(0.5, trainer)
    recorder.best_value = 0.5
    assert not any(recorder._improves(value, trainer) for value in (NAN, math.inf, -math.inf, None))
