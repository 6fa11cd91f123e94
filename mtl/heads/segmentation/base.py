"""What segmentation heads share: logits at a head's own stride, brought to the size of the input where they are needed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.layers import resize
from mtl.losses.base import build_loss


class SegmentationHead(Head):
    """A head that computes logits in `maps`, at whatever size suits it.

    Sub-classes implement `maps`; `loss` and `decode` resize bilinearly to the input.

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

    @abstractmethod
    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits [B, K, h, w]; arguments as in `forward`."""

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `logits` [B, K, h, w] and the `size` (height, width) of the input."""
        return {"logits": self.maps(features, image_size), "size": image_size}

    def loss(self, output: Output, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss at the size of the input; `target` as in `TaskBatch.targets`."""
        return {"mask": self.criterion(resize(output["logits"].float(), output["size"]), target)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `probabilities` [K, H, W] per row: independent per channel, or summing to 1 for one class per pixel."""
        logits = resize(output["logits"].float(), output["size"])
        probabilities = logits.sigmoid() if self.spec.multilabel else logits.softmax(dim=1)
        return [{"probabilities": row} for row in probabilities]
