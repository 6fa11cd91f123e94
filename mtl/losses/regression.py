"""Losses of numbers. A head compares standardised values, so that a loss means the same in any unit."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss

LOG_VARIANCE_LIMIT = 10.0


class RegressionLoss(Loss):
    """A loss between rows of outputs and one true value each; knows which value, and how much spread, outputs stand for."""

    kinds = ("regression",)

    def outputs(self, classes: int) -> int:
        """Return the outputs per value."""
        return 1

    def value(self, outputs: Tensor) -> Tensor:
        """Return the predicted values [B] of float32 outputs [B, `outputs`]."""
        return outputs[:, 0]

    def spread(self, outputs: Tensor) -> Tensor | None:
        """Return the predicted standard deviations [B], or None where the loss teaches none."""
        return None

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from outputs [B, `outputs`] and values [B].

        Raises:
            ValueError: The shapes differ; broadcasting would silently compare every value with every other.
        """
        expected = (*target.shape, self.outputs(1))
        if target.ndim != 1 or prediction.shape != expected:
            raise ValueError(f"a loss of numbers takes {expected} for targets {tuple(target.shape)}, found {prediction.shape}")
        return self.errors(prediction, target).mean()

    @abstractmethod
    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B] of each row."""


@LOSSES.register("l1")
class AbsoluteError(RegressionLoss):
    """Mean absolute error: aims at the median, and large errors pull no harder than small ones.

    Args:
        spec: The task.
    """

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute |p - t|."""
        return (self.value(prediction) - target).abs()


@LOSSES.register("l2")
class SquaredError(RegressionLoss):
    """Mean squared error: aims at the mean.

    Args:
        spec: The task.
    """

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute (p - t)^2."""
        return (self.value(prediction) - target) ** 2


@LOSSES.register("huber")
class Huber(RegressionLoss):
    """Huber loss (1964): half the squared error up to `delta`, linear beyond it.

    Args:
        spec: The task.
        delta: Error at which the loss becomes linear, in standard deviations of the training targets.
    """

    def __init__(self, spec: TaskSpec | None = None, *, delta: float = 1.0) -> None:
        super().__init__(spec)
        if not delta > 0:
            raise ConfigError(f"Loss `huber` has `delta: {delta:g}`. Expected a number of standard deviations above 0.")
        self.delta = delta

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B]."""
        return F.huber_loss(self.value(prediction), target, delta=self.delta, reduction="none")


@LOSSES.register("gaussian")
class GaussianLikelihood(RegressionLoss):
    """Negative log-likelihood of a normal distribution whose mean and log variance are both learned (Nix and Weigend 1994).

    Where the network is unsure it may say so, and errors there cost less. The value can be negative. The log variance is
    bounded smoothly to +-10, which keeps its gradient where a hard limit would end it.

    Args:
        spec: The task.
    """

    can_be_negative = True

    def outputs(self, classes: int) -> int:
        """Return 2: mean and log variance."""
        return 2

    def spread(self, outputs: Tensor) -> Tensor:
        """Return the predicted standard deviations [B]."""
        return (0.5 * self._log_variance(outputs)).exp()

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the negative log-likelihood [B]."""
        log_variance = self._log_variance(prediction)
        squared = (self.value(prediction) - target) ** 2
        return 0.5 * (log_variance + squared * torch.exp(-log_variance) + math.log(2 * math.pi))

    @staticmethod
    def _log_variance(outputs: Tensor) -> Tensor:
        return LOG_VARIANCE_LIMIT * torch.tanh(outputs[:, 1] / LOG_VARIANCE_LIMIT)
