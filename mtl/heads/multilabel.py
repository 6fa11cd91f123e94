"""Independent classes of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction, labelled_loss
from mtl.layers import fully_connected
from mtl.losses.base import build_loss


@HEADS.register("multilabel_classifier")
class MultilabelClassifierHead(Head):
    """Mean of the last map, then fully connected layers; every class is a question of its own.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        hidden: Widths of the hidden layers (with ReLU); an empty list gives a linear classifier.
        dropout: Dropout after every hidden layer; before the linear classifier where there is none.
    """

    kind = "multilabel_classification"

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
        self.criterion = build_loss(loss, spec)
        self.classifier = fully_connected(channels[-1], hidden, self.criterion.outputs(len(spec.classes)), dropout)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `logits` [B, C]."""
        return {"logits": self.classifier(features[-1].mean(dim=(2, 3)))}

    def loss(self, output: Output, target: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Compute the loss over labelled rows; `target` is [B, C] float, NaN where a class is unknown."""
        return {"class": labelled_loss(self.criterion, output["logits"], target, present)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `probabilities` [C] per row, each in [0, 1] on its own."""
        return [{"probabilities": row} for row in self.criterion.probabilities(output["logits"].float())]
