"""What segmentation heads share: loss and decoding of logits at the size of the network input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction, labelled_loss
from mtl.losses.base import build_loss


class SegmentationHead(Head):
    """A head whose `forward` returns `logits` [B, K, H, W] at the size of the network input.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
    """

    kind = "segmentation"

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...], loss: dict) -> None:
        super().__init__(spec, channels, strides)
        self.criterion = build_loss(loss, spec)

    def loss(self, output: Output, target: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Compute the loss over labelled rows; `target` as in `TaskBatch.targets`."""
        return {"mask": labelled_loss(self.criterion, output["logits"], target, present)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `probabilities` [K, H, W] per row: independent per channel, or summing to 1 for one class per pixel."""
        logits = output["logits"].float()
        probabilities = logits.sigmoid() if self.spec.multilabel else logits.softmax(dim=1)
        return [{"probabilities": row} for row in probabilities]


def resize(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize bilinearly to (height, width), if needed."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
