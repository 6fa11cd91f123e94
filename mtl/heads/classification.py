"""Classes of an image."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.layers import fully_connected, in_float32, pooled, separable_convolution
from mtl.losses.base import build_loss


class ClassificationHead(Head):
    """A head that computes one row of logits per image in `scores`; the loss knows how many and what they mean.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
    """

    kind = "classification"

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...], loss: dict) -> None:
        super().__init__(spec, channels, strides)
        self.criterion = build_loss(loss, spec)
        self.outputs = self.criterion.outputs(len(spec.classes))

    @abstractmethod
    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Compute logits [B, `outputs`] from the maps, finest first."""

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `logits` [B, `outputs`]."""
        return {"logits": self.scores(features)}

    def loss(self, output: Output, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss over labelled rows; `target` is [B] int64, of independent classes [B, C], NaN where unknown."""
        return {"class": self.criterion(output["logits"].float(), target)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `probabilities` [C] per row."""
        return [{"probabilities": row} for row in self.criterion.probabilities(output["logits"].float())]


@HEADS.register("classifier")
class ClassifierHead(ClassificationHead):
    """Mean of the last map, then fully connected layers.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        hidden: Widths of the hidden layers (with ReLU); an empty list gives a linear classifier.
        dropout: Dropout after every hidden layer; before the linear classifier where there is none.
    """

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
        super().__init__(spec, channels, strides, loss)
        self.classifier = fully_connected(channels[-1], hidden, self.outputs, dropout)

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Compute logits [B, `outputs`]."""
        return in_float32(self.classifier, pooled(features[-1]))


@HEADS.register("classifier_published")
class PublishedClassifierHead(ClassificationHead):
    """Classification expert of the published retinal network (2,382,341 parameters on 2048 channels with 5 classes).

    Average pooling to a fixed grid, a depthwise-separable 3x3 convolution of stride 2, the mean over the image, then one hidden
    layer. Nothing lies between the convolutions and the hidden layer, so up to it the head is linear, as published.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        pool: Rows and columns of the grid.
        reduce: Channels after the convolution.
        hidden: Width of the hidden layer (with ReLU).
        dropout: Dropout after the hidden layer.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        pool: list = [11, 16],  # noqa: B006 (read as a literal, never changed)
        reduce: int = 1024,
        hidden: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(spec, channels, strides, loss)
        if len(pool) != 2:
            raise ConfigError(f"`heads.{spec.name}.pool={list(pool)}`: expected [rows, columns].")
        self.pool = (pool[0], pool[1])
        self.reduce = separable_convolution(channels[-1], reduce, 3, stride=2)
        self.classifier = fully_connected(reduce, [hidden], self.outputs, dropout)

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Compute logits [B, `outputs`]."""
        reduced = self.reduce(F.adaptive_avg_pool2d(features[-1], self.pool))
        return in_float32(self.classifier, pooled(reduced))
