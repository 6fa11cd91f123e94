"""One class per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction, labelled_loss
from mtl.losses.base import build_loss


@HEADS.register("classifier")
class ClassifierHead(Head):
    """Mean of the coarsest map, then fully connected layers.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        hidden: Widths of the hidden layers; an empty list gives a linear classifier.
        dropout: Dropout before every layer.
    """

    kind = "classification"

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        hidden: list = [],  # noqa: B006 (read as a literal, never changed)
        dropout: float = 0.2,
    ) -> None:
        super().__init__(spec, channels, strides)
        layers: list[nn.Module] = []
        size = channels[-1]
        for wide in hidden:
            layers += [nn.Dropout(dropout), nn.Linear(size, wide), nn.ReLU(inplace=True)]
            size = wide
        self.classifier = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(size, len(spec.classes)))
        self.criterion = build_loss(loss, spec)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `logits` [B, C]."""
        return {"logits": self.classifier(features[-1].mean(dim=(2, 3)))}

    def loss(self, output: Output, target: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Compute the loss over labelled rows; `target` is [B] int64."""
        return {"class": labelled_loss(self.criterion, output["logits"], target, present)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `probabilities` [C] per row."""
        return [{"probabilities": row} for row in output["logits"].float().softmax(dim=1)]
