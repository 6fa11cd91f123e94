"""What the losses of tasks are made of: the terms of each head, as means of an epoch, and the losses of the last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mtl.training.distributed import gather_objects

Key = tuple[str, str, tuple[str, ...]]  # split, task, names of the terms


class LossTerms:
    """Means of the terms that heads return, over the labelled samples of an epoch.

    Nothing is copied from or to the device before the epoch ends: the terms of a task are one vector there, and how many
    samples it stands for is known on the host. A task with one term has none here, since its loss is that term.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[tuple[str, ...], Tensor]] = {}
        self._sums: dict[Key, Tensor] = {}
        self._counts: dict[Key, float] = {}

    def reset(self, split: str) -> None:
        """Forget what was collected for a split."""
        self._last = {}
        for key in [key for key in self._counts if key[0] == split]:
            del self._sums[key], self._counts[key]

    def sum_of(self, task: str, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a task in one batch, the sum of its terms, and remember these for `add`."""
        values = torch.stack(list(terms.values()))
        self._last[task] = (tuple(terms), values.detach())
        return values.sum()

    def add(self, split: str, present: Mapping[str, Tensor]) -> None:
        """Count the batch whose terms `sum_of` saw last.

        Args:
            split: `train` or `val`.
            present: By task, [B] bool on the host: which samples of this rank are labelled.
        """
        for task, (names, values) in self._last.items():
            if len(names) < 2:
                continue
            key, count = (split, task, names), float(present[task].sum())
            entry = values.double() * count
            self._sums[key] = self._sums[key] + entry if key in self._sums else entry
            self._counts[key] = self._counts.get(key, 0.0) + count
        self._last = {}

    def means(self, split: str, module: pl.LightningModule) -> dict[str, float]:
        """Return the means over all ranks as `<split>/<task>/loss_<term>`, NaN where nothing is labelled.

        The keys are the same on all ranks, although a rank may have seen no batch of a split.
        """
        mine: dict[str, tuple[float, float]] = {}
        for key, count in self._counts.items():
            if key[0] == split:
                for name, total in zip(key[2], self._sums[key].tolist(), strict=True):
                    before = mine.get(f"{split}/{key[1]}/loss_{name}", (0.0, 0.0))
                    mine[f"{split}/{key[1]}/loss_{name}"] = (before[0] + total, before[1] + count)
        ranks: list[dict[str, tuple[float, float]]] = [mine, *gather_objects(mine, module)]
        found = {}
        for key_name in sorted({key_name for rank in ranks for key_name in rank}):
            parts = [rank[key_name] for rank in ranks if key_name in rank]
            count = sum(part[1] for part in parts)
            found[key_name] = sum(part[0] for part in parts) / count if count > 0 else float("nan")
        return found


def latest_losses(losses: Mapping[str, Tensor], counts: Mapping[str, float], total: Tensor) -> dict[str, Tensor]:
    """Return the losses of a step on the device, for whoever wants to know them now and then.

    Args:
        losses: By task, scaled so that their mean over ranks is the mean over all labelled samples.
        counts: By task, how many samples of all ranks are labelled; a task without one has no loss.
        total: What the balancer made of them.

    Returns:
        `train/loss` and `train/<task>/loss`.
    """
    known: dict[str, Any] = {f"train/{task}/loss": loss.detach() for task, loss in losses.items() if counts[task] > 0}
    return {"train/loss": total.detach()} | known
