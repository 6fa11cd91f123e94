"""Overlap losses for masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss, is_multilabel
from mtl.losses.classification import sigmoid_focal, softmax_cross_entropy, softmax_focal


@LOSSES.register("dice_bce")
class DiceBCE(Loss):
    """Weighted sum of soft Dice loss and binary cross-entropy; with one class per pixel, of softmax Dice and cross-entropy.

    Args:
        spec: The task; pixels with `spec.ignore_index` count nowhere.
        dice_weight: Weight of the Dice loss (`soft_dice`).
        bce_weight: Weight of the cross-entropy.
        smooth: Keeps the ratio finite.
        pooled: One ratio over the whole batch instead of a mean over images and channels (the published form).
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
        else:
            entropy = softmax_cross_entropy(prediction, target, None, ignore_index=self.ignore_index)
        dice = soft_dice(*channels_of(prediction, target, self.ignore_index), self.smooth, self.pooled)
        return self.dice_weight * dice + self.bce_weight * entropy


@LOSSES.register("dice_focal")
class DiceFocal(Loss):
    """Weighted sum of soft Dice loss per image and sigmoid focal loss; with one class per pixel, of their softmax forms.

    The published form also averages Dice over channels without a true pixel; here these count in the focal loss only.

    Args:
        spec: The task; pixels with `spec.ignore_index` count nowhere.
        dice_weight: Weight of the Dice loss (`soft_dice`).
        focal_weight: Weight of the focal loss.
        alpha: Weight of positives, negatives weigh 1 - alpha; with one class per pixel a constant factor. None leaves it out.
        gamma: How fast easy pixels fade.
        smooth: Keeps the ratio of Dice finite.
    """

    kinds = ("segmentation",)

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        alpha: float | None = 0.75,
        gamma: float = 4.0,
        smooth: float = 1e-6,
    ) -> None:
        super().__init__(spec)
        self.dice_weight = dice_weight
        self.focal_weight = focal_weight
        self.alpha = alpha
        self.gamma = gamma
        self.smooth = smooth

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, K, H, W] and [B, K, H, W] float32 in {0, 1} or [B, H, W] int64."""
        if is_multilabel(prediction, target):
            focal = sigmoid_focal(prediction, target, self.gamma, self.alpha).mean()
        else:
            focal = softmax_focal(prediction, target, self.gamma, self.alpha, ignore_index=self.ignore_index)
        dice = soft_dice(*channels_of(prediction, target, self.ignore_index), self.smooth)
        return self.dice_weight * dice + self.focal_weight * focal


def channels_of(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return probabilities and truth, both [B, K, H, W] float32, of independent channels or of one class per pixel.

    Pixels with `ignore_index` are 0 in both.
    """
    if is_multilabel(logits, target):
        return logits.sigmoid(), target
    counts = (target != ignore_index)[:, None]
    classes = F.one_hot(target.where(counts[:, 0], 0), logits.shape[1])
    return logits.softmax(dim=1) * counts, (torch.movedim(classes, -1, 1) * counts).float()


def soft_dice(probabilities: Tensor, truth: Tensor, smooth: float, pooled: bool = False) -> Tensor:
    """Compute the soft Dice loss, 1 - (2 * overlap + smooth) / (prediction + truth + smooth).

    Averaged per image and channel, a channel without a true pixel is left out: its loss would be a constant 1 with no useful
    gradient.

    Args:
        probabilities: [B, K, H, W].
        truth: [B, K, H, W].
        smooth: Keeps the ratio finite.
        pooled: All pixels of the batch form one ratio, empty or not.
    """
    axes = tuple(range(truth.ndim)) if pooled else tuple(range(2, truth.ndim))
    overlap = (probabilities * truth).sum(axes)
    true_area = truth.sum(axes)
    loss = 1 - (2 * overlap + smooth) / (probabilities.sum(axes) + true_area + smooth)
    if pooled:
        return loss
    filled = (true_area > 0).float()
    return (loss * filled).sum() / filled.sum().clamp(min=1)
