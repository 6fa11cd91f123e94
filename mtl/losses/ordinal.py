"""A loss for grades, which have an order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import WeightedLoss


@LOSSES.register("ordinal")
class Ordinal(WeightedLoss):
    """Conditional ordinal regression (CORN; Shi, Cao and Raschka 2021, https://arxiv.org/abs/2111.08851).

    With K classes there are K - 1 logits; logit k asks whether the grade exceeds k, given that it exceeds k - 1. Only samples
    for which its condition holds answer a question, with binary cross-entropy, and the mean is over all answers. P(grade > k)
    is the product of the first k + 1 answers: it cannot rise with k, whatever the logits. Decisions take the most probable
    class, as for every classifier here; the paper counts the k with P(grade > k) above one half, which can differ.

    Args:
        spec: The task; its classes must be ordered.
        class_weights: See `WeightedLoss`; all answers of a sample weigh as its true class does.
    """

    kinds = ("classification",)

    def __init__(self, spec: TaskSpec | None = None, *, class_weights: list | dict | None = None) -> None:
        super().__init__(spec, class_weights)
        if spec is not None and not spec.ordinal:
            raise ConfigError(
                f"Loss `ordinal` needs grades in ascending order, but the classes of `{spec.name}` have no order. "
                "Use `cross_entropy` or `focal`."
            )

    def outputs(self, classes: int) -> int:
        """Return one logit per step between neighbouring grades."""
        return classes - 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn [B, K - 1] conditional logits into class probabilities [B, K]: differences of the cumulative ones."""
        above = logits.sigmoid().cumprod(dim=1)
        certain = torch.ones_like(above[:, :1])
        return torch.cat([certain, above], dim=1) - torch.cat([above, torch.zeros_like(certain)], dim=1)

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, K - 1] and int64 [B]."""
        step = torch.arange(prediction.shape[1], device=prediction.device)
        asked = target[:, None] >= step
        weights = asked.float() if self.class_weights is None else asked * self.class_weights[target][:, None]
        answers = F.binary_cross_entropy_with_logits(prediction, (target[:, None] > step).float(), reduction="none")
        return (answers * weights).sum() / weights.sum().clamp(min=1e-12)
