"""A loss for independent classes, each of which may be unknown."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss, class_weight_tensor


@LOSSES.register("bce_multilabel")
class MultilabelCrossEntropy(Loss):
    """Binary cross-entropy per class: mean over the classes that are known of an image, then over images.

    An image counts the same however many of its classes are known, so that the mean over all images of a batch is that of
    its parts, as ranks compute them.

    Args:
        spec: The task.
        positive_weight: How many times a positive entry weighs a negative one: a number per class in class order, or by class
            name; None is 1.
        gamma: How fast easy entries fade (focal loss, Lin et al. 2017): times (1 - p)^gamma, p the probability of the truth; 0
            leaves it out.
    """

    kinds = ("multilabel_classification",)
    positive_weight: Tensor | None

    def __init__(self, spec: TaskSpec | None = None, *, positive_weight: list | dict | None = None, gamma: float = 0.0) -> None:
        super().__init__(spec)
        if gamma < 0:
            raise ConfigError(f"Loss `bce_multilabel` has `gamma: {gamma:g}`. Expected 0 or more.")
        # Not saved: the weights come from the configuration, and a checkpoint should load under new ones.
        weight = class_weight_tensor(spec, positive_weight, "positive_weight")
        self.register_buffer("positive_weight", weight, persistent=False)
        self.gamma = gamma

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits [B, C] into the probability of each class on its own."""
        return logits.sigmoid()

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, C] and float [B, C]: 0, 1 or NaN where it is unknown.

        Raises:
            ValueError: The shapes differ; broadcasting would silently compare every class with every other.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"bce_multilabel compares equal shapes, found {prediction.shape} and {target.shape}")
        known = ~target.isnan()
        truth = torch.where(known, target, 0.0)
        entropy = F.binary_cross_entropy_with_logits(prediction, truth, reduction="none")
        losses = entropy
        if self.gamma:
            # The floor keeps the gradient finite for gamma below 1.
            losses = losses * (-torch.expm1(-entropy)).clamp(min=1e-12) ** self.gamma
        if self.positive_weight is not None:
            losses = losses * torch.where(truth > 0, self.positive_weight, 1.0)
        rows = (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return rows.sum() / known.any(dim=1).sum().clamp(min=1)
