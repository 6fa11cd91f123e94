"""A run whose numbers are not finite any more ends at once; what it finished before stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from mtl.core.errors import TrainingError
from mtl.runs.folder import RunFolder
from mtl.runs.history import read_history


def diverged(module: pl.LightningModule, what: str) -> TrainingError:
    """Return the error that ends the run.

    Args:
        module: What was trained.
        what: What is not finite, as the subject of a sentence.
    """
    trainer = module.trainer
    return TrainingError(
        f"{what} is not finite (NaN or infinite) in epoch {trainer.current_epoch + 1}, step {trainer.global_step}. Expected a "
        f"finite number. {last_good(Path(trainer.default_root_dir))} Lower optimizer.lr, set trainer.gradient_clip_val, or use "
        "trainer.precision=32-true."
    )


def last_good(run_dir: Path) -> str:
    """Return a sentence that names the checkpoint of the last finished epoch, which was checked when it was written."""
    run, rows = RunFolder(run_dir), read_history(run_dir)
    if not rows:
        return "No epoch was finished, so there is no checkpoint."
    best = f"; {run.best.name} stays too" if run.best.is_file() else ""
    return f"The last good checkpoint is {run.last} of epoch {int(float(rows[-1]['epoch'])) + 1}{best}."


def check_weights(module: pl.LightningModule) -> None:
    """End the run before weights or statistics that are not finite are validated or written.

    Raises:
        TrainingError: With the name of the first.
    """
    state = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    spoiled = [~torch.isfinite(value).all() for value in state.values()]
    if bool(torch.stack(spoiled).any()):  # one look at the device
        name = next(name for name, bad in zip(state, spoiled, strict=True) if bool(bad))
        raise diverged(module, f"The weight `{name.removeprefix('model.')}`")
