"""Learning rate schedules; each parameter group ends at its own floor and none ever rises above its own learning rate.

A schedule is a function `(optimizer, horizon, *, settings) -> dict` in the form Lightning's `configure_optimizers` takes under
`lr_scheduler`. All are plain `torch.optim.lr_scheduler` objects, whose state resumes with the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from mtl.core.errors import ConfigError
from mtl.core.registry import SCHEDULERS
from mtl.core.task import higher_is_better


@dataclass(frozen=True)
class Horizon:
    """What a schedule has to know of the run.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps per epoch (fewer than batches when gradients are accumulated).
        monitor: Metric that selects checkpoints.
        epochs_per_validation: Epochs between two validations.
    """

    total_steps: int
    steps_per_epoch: int
    monitor: str = "val/score"
    epochs_per_validation: int = 1


def build_scheduler(
    optimizer: Optimizer,
    config: dict[str, Any],
    total_steps: int,
    steps_per_epoch: int,
    monitor: str = "val/score",
    epochs_per_validation: int = 1,
) -> dict[str, Any]:
    """Build the schedule that `config["name"]` names, as a Lightning `lr_scheduler` dict; arguments as in `Horizon`."""
    horizon = Horizon(total_steps, steps_per_epoch, monitor, epochs_per_validation)
    return SCHEDULERS.build(config, optimizer, horizon, where="scheduler")


@SCHEDULERS.register("constant")
def constant(optimizer: Optimizer, horizon: Horizon) -> dict[str, Any]:
    """Keep every learning rate as it is."""
    return {"scheduler": _per_group(optimizer, lambda count, low: 1.0), "interval": "step", "frequency": 1}


@SCHEDULERS.register("warmup_cosine")
def warmup_cosine(
    optimizer: Optimizer, horizon: Horizon, *, warmup_epochs: float = 0.0, warmup_start: float = 0.01
) -> dict[str, Any]:
    """Rise linearly, then fall along half a cosine to each group's floor, step by step.

    Args:
        optimizer: Groups carry `floor`.
        horizon: Length of the run.
        warmup_epochs: Epochs until the full learning rate; a run that is shorter than this only warms up.
        warmup_start: Share of the learning rate at the first step.
    """
    if horizon.total_steps in (-1, math.inf):
        raise ConfigError("`scheduler.name=warmup_cosine` needs a known end. Set trainer.max_epochs or trainer.max_steps.")
    warmup = min(round(warmup_epochs * horizon.steps_per_epoch), horizon.total_steps)
    falling = max(horizon.total_steps - warmup, 1)

    def share(step: int, low: float) -> float:
        if step < warmup:
            return warmup_start + (1.0 - warmup_start) * step / warmup
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min((step - warmup) / falling, 1.0)))

    return {"scheduler": _per_group(optimizer, share), "interval": "step", "frequency": 1}


@SCHEDULERS.register("step")
def step(optimizer: Optimizer, horizon: Horizon, *, step_size: int = 30, gamma: float = 0.1) -> dict[str, Any]:
    """Multiply by `gamma` every `step_size` epochs, down to each group's floor."""
    if step_size < 1 or not 0 < gamma <= 1:
        raise ConfigError(f"`scheduler` step needs step_size >= 1 and 0 < gamma <= 1, found {step_size} and {gamma}.")
    scheduler = _per_group(optimizer, lambda epoch, low: max(gamma ** (epoch // step_size), low))
    return {"scheduler": scheduler, "interval": "epoch", "frequency": 1}


@SCHEDULERS.register("plateau")
def plateau(
    optimizer: Optimizer,
    horizon: Horizon,
    *,
    monitor: str | None = None,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
) -> dict[str, Any]:
    """Multiply by `factor` when a metric has not improved for `patience` validations, down to each group's floor.

    Args:
        optimizer: Groups carry `floor`.
        horizon: Names the metric that selects checkpoints and how often it is computed.
        monitor: Metric to watch; None takes the one that selects checkpoints. Its name tells the direction.
        factor: Multiplier, below 1.
        patience: Validations without improvement before a cut.
        threshold: Absolute change that counts as improvement.
    """
    if not 0 < factor < 1:
        raise ConfigError(f"`scheduler.factor` of plateau must lie between 0 and 1, found {factor}.")
    watched = monitor or horizon.monitor
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode="max" if higher_is_better(watched) else "min",
        factor=factor,
        patience=patience,
        threshold=threshold,
        threshold_mode="abs",
        min_lr=[group.get("floor", 0.0) for group in optimizer.param_groups],
        eps=0.0,
    )
    return {"scheduler": scheduler, "interval": "epoch", "frequency": horizon.epochs_per_validation, "monitor": watched}


def _per_group(optimizer: Optimizer, share: Callable[[int, float], float]) -> LambdaLR:
    """Let each group follow `share(count, low)`, where `low` is its floor as a share of its learning rate."""

    def follow(low: float) -> Callable[[int], float]:
        return lambda count: share(count, low)

    lows = [min(group.get("floor", 0.0) / group["lr"], 1.0) if group["lr"] > 0 else 1.0 for group in optimizer.param_groups]
    return LambdaLR(optimizer, [follow(low) for low in lows])
