"""Gives loggers what happens between epochs: losses and learning rates."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from mtl.training.callbacks.recorder import RunRecorder, learning_rates
from mtl.training.distributed import mean_over_ranks


class StepValues(Callback):
    """Logs losses as `<name>_step` and the learning rates every `trainer.log_every_n_steps` optimizer steps.

    The learning rates come at the end of an epoch as well, which may have fewer steps than that. Losses are those of the last
    batch, averaged over all ranks; between these steps nothing is read from the device. `metrics.csv` has the means of epochs.

    Args:
        recorder: Knows the steps of the stages before.
    """

    def __init__(self, recorder: RunRecorder) -> None:
        self._recorder = recorder
        self._last = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where a resumed run begins."""
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log if the batch ended such a step; with accumulation most end none."""
        step = trainer.global_step
        if step == self._last or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        losses: Any = pl_module.step_losses
        means = mean_over_ranks(torch.stack([value.double() for value in losses.values()]), pl_module).tolist()
        self._log(trainer, {f"{name}_step": mean for name, mean in zip(losses, means, strict=True)} | learning_rates(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the learning rates, unless they just were."""
        if trainer.global_step != self._last:
            self._log(trainer, learning_rates(trainer))

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        epochs, steps = self._recorder.before
        self._last = trainer.global_step
        for logger in trainer.loggers:
            values = values | {"epoch": float(epochs + trainer.current_epoch)}
            logger.log_metrics(values, step=steps + trainer.global_step)
