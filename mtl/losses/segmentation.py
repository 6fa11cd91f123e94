"""Overlap losses for masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss, is_multilabel
from mtl.losses.classification import softmax_cross_entropy


@LOSSES.register("dice_bce")
class DiceBCE(Loss):
    """Weighted sum of soft Dice loss and binary cross-entropy; with one class per pixel, of softmax Dice and cross-entropy.

    Dice is 1 - (2 * overlap + smooth) / (prediction + truth + smooth). Averaged per image and channel, a channel without a
    true pixel counts in the cross-entropy only: its Dice loss would be a constant 1 with no useful gradient. Pooled, all pixels
    of the batch form one ratio, empty or not (the published form).

    Args:
        spec: The task; pixels with `spec.ignore_index` count nowhere.
        dice_weight: Weight of the Dice loss.
        bce_weight: Weight of the cross-entropy.
        smooth: Keeps the ratio finite.
        pooled: One ratio over the whole batch instead of a mean over images and channels.
    """

    kinds = ("segmentation",)

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        dice_weight: float = 0.5,
        bce_weight: float = 0.5,
        smooth: float = 1e-6,
        pooled: bool = False,
    ) -> None:
        super().__init__(spec)
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.smooth = smooth
        self.pooled = pooled

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, K, H, W] and [B, K, H, W] float32 in {0, 1} or [B, H, W] int64."""
        if is_multilabel(prediction, target):
            entropy = F.binary_cross_entropy_with_logits(prediction, target)
            probabilities, truth = prediction.sigmoid(), target
        else:
            entropy = softmax_cross_entropy(prediction, target, None, ignore_index=self.ignore_index)
            counts = (target != self.ignore_index)[:, None]
            classes = F.one_hot(target.where(counts[:, 0], 0), prediction.shape[1])
            truth = torch.movedim(classes, -1, 1) * counts
            probabilities = prediction.softmax(dim=1) * counts
        return self.dice_weight * self.dice(probabilities, truth.float()) + self.bce_weight * entropy

    def dice(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """Compute the soft Dice loss of [B, K, H, W] probabilities."""
        axes = tuple(range(truth.ndim)) if self.pooled else tuple(range(2, truth.ndim))
        overlap = (probabilities * truth).sum(axes)
        true_area = truth.sum(axes)
        loss = 1 - (2 * overlap + self.smooth) / (probabilities.sum(axes) + true_area + self.smooth)
        if self.pooled:
            return loss
        filled = (true_area > 0).float()
        return (loss * filled).sum() / filled.sum().clamp(min=1)
