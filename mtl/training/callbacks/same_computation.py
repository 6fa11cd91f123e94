"""All ranks of a run compute alike."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mtl.core.errors import ConfigError
from mtl.runs.precision import Computation
from mtl.training.distributed import gather_objects


class SameComputation(Callback):
    """Refuses to train where ranks on different machines settled differently what `auto` means.

    Args:
        computation: What this rank does.
    """

    def __init__(self, computation: Computation) -> None:
        self.computation = computation

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the other ranks.

        Raises:
            ConfigError: Another rank computes differently; on every rank that sees one.
        """
        others = [other for other in gather_objects(self.computation, pl_module) if other != self.computation]
        if others:
            raise ConfigError(
                f"The machines of this run settle `auto` differently: {self.computation} and {others[0]}. Set "
                "trainer.precision and runtime.channels_last."
            )
