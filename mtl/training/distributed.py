"""The few collectives a run needs: counts (and shared gradients) per step, sums and records per epoch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor


def _world_size(module: pl.LightningModule) -> int:
    return module.trainer.world_size if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def global_counts(local: dict[str, Tensor], module: pl.LightningModule) -> dict[str, float]:
    """Sum labelled samples per task over all ranks, in one exchange."""
    counts = torch.stack([local[task].double() for task in local])
    if _world_size(module) > 1:
        counts = counts.to(module.device)
        torch.distributed.all_reduce(counts)
    return dict(zip(local, counts.tolist(), strict=True))


def sum_over_ranks(values: Tensor, module: pl.LightningModule) -> Tensor:
    """Sum a tensor over all ranks."""
    if _world_size(module) > 1:
        torch.distributed.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor, module: pl.LightningModule) -> Tensor:
    """Average a tensor over all ranks."""
    world_size = _world_size(module)
    return sum_over_ranks(values, module) / world_size if world_size > 1 else values


def gather_objects(value: Any, module: pl.LightningModule) -> list[Any]:
    """Return the objects of the *other* ranks; ranks may hold different amounts."""
    if _world_size(module) == 1:
        return []
    gathered: list[Any] = [None] * _world_size(module)
    torch.distributed.all_gather_object(gathered, value)
    return [entry for rank, entry in enumerate(gathered) if rank != module.global_rank]
