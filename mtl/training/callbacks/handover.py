"""Checks that a stage really starts with the weights that the stage before ended with."""

from __future__ import annotations

import logging
import math

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mtl.core.errors import TrainingError

log = logging.getLogger("mtl")
TOLERANCE = 1e-3  # kernels of a GPU do not add up in the same order twice


class HandOverCheck(Callback):
    """Compares the validation before the first step with the figures stored beside the weights.

    Keys that load strictly can still hold something else: weights of a wrong epoch, statistics that were reset. The same images
    and weights give the same figures, of tasks that the new stage leaves out as well.

    Args:
        expected: `validation` of the checkpoint that the stage starts from.
        origin: What to call it.
    """

    def __init__(self, expected: dict[str, float], origin: str) -> None:
        self.expected = {name: value for name, value in expected.items() if name.count("/") == 2}
        self.origin = origin

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare; the Trainer has just run all of validation."""
        found = {name: float(value) for name, value in pl_module.validation.items()}  # type: ignore[operator, union-attr]
        differences = {name: difference(value, found.get(name, math.nan)) for name, value in self.expected.items()}
        wrong = [name for name, value in differences.items() if value > TOLERANCE * max(1.0, abs(self.expected[name]))]
        if wrong:
            name = wrong[0]
            raise TrainingError(
                f"The first validation of this stage gives {name} {found.get(name, math.nan):.4f}, expected "
                f"{self.expected[name]:.4f} as at the end of {self.origin} ({len(wrong)} of {len(differences)} figures "
                "differ): its weights did not arrive as they were. Please report this; the finished stages are kept."
            )
        if trainer.is_global_zero:
            log.info(
                f"hand-over checked: {len(differences)} figures of the first validation equal those of {self.origin} "
                f"(largest difference {max(differences.values(), default=0.0):.2g})"
            )


def difference(expected: float, found: float) -> float:
    """Return |expected - found|; two undefined figures are equal, one is as far from the other as can be."""
    if math.isnan(expected) or math.isnan(found):
        return 0.0 if math.isnan(expected) and math.isnan(found) else math.inf
    return abs(expected - found)
