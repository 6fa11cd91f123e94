"""One number per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.layers import fully_connected, in_float32, pooled
from mtl.losses.base import build_loss
from mtl.losses.regression import RegressionLoss


@HEADS.register("regressor")
class RegressorHead(Head):
    """Mean of the last map, then fully connected layers; learns standardised values and predicts in the unit of the task.

    Mean and standard deviation of the training targets are buffers, saved with the weights. Until `observe_targets` has set
    them, they are 0 and 1.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys); `gaussian` also predicts a standard deviation.
        hidden: Widths of the hidden layers (with ReLU); an empty list gives a linear model.
        dropout: Dropout after every hidden layer; before the linear layer where there is none.
    """

    kind = "regression"
    looks_at_targets = True
    target_mean: Tensor
    target_std: Tensor

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
        criterion = build_loss(loss, spec)
        assert isinstance(criterion, RegressionLoss)  # no other loss is of this kind
        self.criterion = criterion
        self.regressor = fully_connected(channels[-1], hidden, criterion.outputs(1), dropout)
        self.register_buffer("target_mean", torch.tensor(0.0))
        self.register_buffer("target_std", torch.tensor(1.0))

    def observe_targets(self, targets: Sequence[Any]) -> None:
        """Take mean and standard deviation; a constant target keeps a standard deviation of 1, none at all changes nothing."""
        values = torch.as_tensor([float(target) for target in targets], dtype=torch.float64)
        values = values[values.isfinite()]
        if not len(values):
            return
        mean, std = values.mean(), values.std(correction=0)
        self.target_mean.fill_(float(mean))
        # Below this it is rounding of equal numbers.
        self.target_std.fill_(float(std) if std > 1e-6 * max(1.0, abs(float(mean))) else 1.0)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `outputs` [B, `outputs` of the loss], standardised."""
        return {"outputs": in_float32(self.regressor, pooled(features[-1]))}

    def loss(self, output: Output, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss of standardised values; `target` is [B] float, in the unit."""
        standardised = (target.float() - self.target_mean) / self.target_std
        return {"value": self.criterion(output["outputs"].float(), standardised)}

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `value` () per row in the unit, and its standard deviation `spread` () where the loss teaches one."""
        outputs = output["outputs"].float()
        found = {"value": self.criterion.value(outputs) * self.target_std + self.target_mean}
        spread = self.criterion.spread(outputs)
        if spread is not None:
            found["spread"] = spread * self.target_std
        return [{name: values[row] for name, values in found.items()} for row in range(len(outputs))]
