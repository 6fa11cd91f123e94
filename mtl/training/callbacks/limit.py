"""A limit on optimizer steps that leaves epochs as they are."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class StepLimit(Callback):
    """Ends training after a number of optimizer steps; the epoch they fall into is validated and recorded.

    Used in place of the Trainer's own `max_steps`, under which a resumed Trainer repeats the end of the last epoch.

    Args:
        steps: Optimizer steps of the run, or of a stage of it.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the Trainer to stop once the steps are done."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
