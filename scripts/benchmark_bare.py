"""A training step as one would write it by hand: no Lightning, no checks, no log. It does what the Trainer was built to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mtl.balancing.base import Step
from mtl.core.types import TaskBatch
from mtl.heads.base import Output
from mtl.layers import take_rows
from mtl.model import MultiTaskModel
from mtl.training.module import MultiTaskModule
from mtl.training.optim import build_optimizer, inactive_parts, split_parts

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
FULL = ("32-true", "32")


# -- the calls of the network: the only place in the benchmark that knows them ------------------------------------------------


def forward(model: nn.Module, batch: TaskBatch, tasks: tuple[str, ...]) -> dict[str, Output]:
    """Compute what the heads of some tasks say of the rows that are labelled for them."""
    outputs: dict[str, Output] = model(batch.images, tasks, batch.rows)
    return outputs


def task_loss(model: MultiTaskModel, task: str, outputs: dict[str, Output], batch: TaskBatch) -> Tensor:
    """Return the loss of a task, the sum of its terms; zero where nothing is labelled."""
    rows = batch.rows[task]
    if not rows:
        return batch.images.new_zeros(())
    head: Any = model.heads[task]
    return torch.stack(list(head.loss(outputs[task], take_rows(batch.targets[task], rows)).values())).sum()


# -- the loop --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a Trainer carries out a step, after it has replaced what this machine cannot do.

    Attributes:
        device: Where.
        precision: As Lightning names it.
        clip: Largest norm, or value, of gradients; None does not clip.
        by_value: What `clip` is.
        accumulate: Batches per step.
    """

    device: torch.device
    precision: str
    clip: float | None
    by_value: bool
    accumulate: int

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Recipe:
        """Read what a Trainer was built with."""
        precision = str(trainer.precision)
        if precision not in (*MIXED, *FULL):
            raise ValueError(f"the bare loop knows {', '.join([*MIXED, *FULL])}, not the Trainer's precision {precision}")
        by_value = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm) == "value"
        return cls(
            trainer.strategy.root_device, precision, trainer.gradient_clip_val, by_value, trainer.accumulate_grad_batches
        )

    @property
    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        dtype = MIXED.get(self.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what scales the loss: fp16 needs it, all else passes through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "16-mixed")


def in_channels_last(model: nn.Module) -> bool:
    """Return whether the weights of a network lie in memory with the channels last."""
    return any(weight.dim() == 4 and not weight.is_contiguous() for weight in model.parameters())


def placed(batch: TaskBatch, device: torch.device, channels_last: bool) -> TaskBatch:
    """Return the batch on the device, with its images in the memory format of the network."""
    batch = batch.to(device)
    if channels_last:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    return batch


def bare_step(module: MultiTaskModule, recipe: Recipe) -> Callable[[TaskBatch], None]:
    """Return one optimizer step over a batch, or over the same batch several times where the Trainer accumulates."""
    device, config, tasks = recipe.device, module.config, module.stage.tasks
    module.to(device)
    model, balancer = module.model, module.balancer
    network = torch.compile(model) if config.runtime.compile else model
    optimizer = build_optimizer(split_parts(model, balancer), config.optimizer, inactive_parts(config))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler, channels_last = recipe.scaler(), in_channels_last(model)
    module.train()

    def step(batch: TaskBatch) -> None:
        optimizer.zero_grad()
        for _ in range(recipe.accumulate):
            moved = placed(batch, device, channels_last)
            with recipe.autocast:
                outputs = forward(network, moved, tasks)
                losses = {task: task_loss(model, task, outputs, moved) for task in tasks}
                present = {task: bool(moved.present[task].any()) for task in tasks}
                loss = balancer(Step(losses, present, module.shared, module.own))
            scaler.scale(loss / recipe.accumulate).backward()
        if recipe.clip:
            scaler.unscale_(optimizer)
            if recipe.by_value:
                nn.utils.clip_grad_value_(parameters, recipe.clip)
            else:
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
        scaler.step(optimizer)
        scaler.update()

    return step
