"""Overlap losses for masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss, WeightedLoss, is_multilabel
from mtl.losses.classification import one_class_per_pixel, sigmoid_focal, softmax_cross_entropy, softmax_focal


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
        over = "batch" if self.pooled else "image"
        dice = soft_dice(*channels_of(prediction, target, self.ignore_index), self.smooth, over)
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


@LOSSES.register("dice_bce_published")
class PublishedDiceBCE(Loss):
    """Softmax Dice per sample plus binary cross-entropy of the same logits, as published for tissue.

    1 - 2 sum_c I_c / sum_c U_c, I the product and U the sum of probability and truth, over all pixels of a sample. Both sum to
    1 at each pixel, so this is one minus the mean probability of the true class: classes are not balanced, as they are in
    `dice_cross_entropy`. The cross-entropy takes the channels as independent. The published code adds 1e-6 to the truth and
    trains pixels that nobody annotated as a class of their own; here pixels with `spec.ignore_index` count nowhere.

    Args:
        spec: The task.
        bce_weight: Weight of the cross-entropy.
    """

    kinds = ("segmentation",)

    def __init__(self, spec: TaskSpec | None = None, *, bce_weight: float = 0.01) -> None:
        super().__init__(spec)
        one_class_per_pixel(spec, "dice_bce_published")
        self.bce_weight = bce_weight

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, K, H, W] and [B, H, W] int64."""
        probabilities, truth = channels_of(prediction, target, self.ignore_index)
        counted = truth.sum(dim=1)
        pixels = counted.flatten(1).sum(dim=1)
        overlap = (probabilities * truth).flatten(1).sum(dim=1)
        total = (probabilities + truth).flatten(1).sum(dim=1)
        entropy = F.binary_cross_entropy_with_logits(prediction, truth, reduction="none").mean(dim=1) * counted
        entropy = entropy.flatten(1).sum(dim=1) / pixels.clamp(min=1)
        # A sample without an annotated pixel counts nowhere.
        seen = (pixels > 0).float()
        loss = (1 - 2 * overlap / total.clamp(min=1e-8) + self.bce_weight * entropy) * seen
        return loss.sum() / seen.sum().clamp(min=1)


@LOSSES.register("dice_cross_entropy")
class DiceCrossEntropy(WeightedLoss):
    """Weighted sum of soft Dice loss and cross-entropy for one class per pixel, both balanced over classes.

    Dice is computed per class over all pixels of the batch and averaged over the classes that occur in it. In the cross-entropy
    a class that fills the share q of the batch's annotated pixels weighs q^-balance: 0 leaves pixels equal, 1 makes classes
    equal.

    Args:
        spec: The task; pixels with `spec.ignore_index` count nowhere.
        dice_weight: Weight of the Dice loss.
        cross_entropy_weight: Weight of the cross-entropy.
        class_weights: See `WeightedLoss`; in the cross-entropy, times what `balance` gives.
        balance: See above; between 0 and 1.
        label_smoothing: Share of the target probability spread evenly over all classes, in the cross-entropy.
        smooth: Keeps the ratio of Dice finite.
    """

    kinds = ("segmentation",)

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        class_weights: list | dict | None = None,
        balance: float = 0.5,
        label_smoothing: float = 0.0,
        smooth: float = 1e-6,
    ) -> None:
        super().__init__(spec, class_weights)
        one_class_per_pixel(spec, "dice_cross_entropy")
        if not 0 <= balance <= 1:
            raise ConfigError(
                f"Loss `dice_cross_entropy` has balance={balance}: expected 0 (pixels equal) to 1 (classes equal)."
            )
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.balance = balance
        self.label_smoothing = label_smoothing
        self.smooth = smooth

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, K, H, W] and [B, H, W] int64."""
        probabilities, truth = channels_of(prediction, target, self.ignore_index)
        dice = soft_dice(probabilities, truth, self.smooth, "class")
        pixels = truth.sum(dim=(0, 2, 3))
        # A class that does not occur weighs nothing; only smoothed labels would notice.
        weights = (pixels.sum() / pixels.clamp(min=1)) ** self.balance * (pixels > 0)
        weights = weights if self.class_weights is None else weights * self.class_weights
        entropy = softmax_cross_entropy(prediction, target, weights, self.label_smoothing, self.ignore_index)
        return self.dice_weight * dice + self.cross_entropy_weight * entropy


def channels_of(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return probabilities and truth, both [B, K, H, W] float32, of independent channels or of one class per pixel.

    Pixels with `ignore_index` are 0 in both.
    """
    if is_multilabel(logits, target):
        return logits.sigmoid(), target
    counts = (target != ignore_index)[:, None]
    number = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return logits.softmax(dim=1) * counts, ((target[:, None] == number) & counts).float()


AXES = {"image": (2, 3), "class": (0, 2, 3), "batch": (0, 1, 2, 3)}


def soft_dice(probabilities: Tensor, truth: Tensor, smooth: float, over: str = "image") -> Tensor:
    """Compute the soft Dice loss, 1 - (2 * overlap + smooth) / (prediction + truth + smooth).

    Per image and channel, or per class, a ratio without a true pixel is left out of the mean: its loss would be a constant 1
    with no useful gradient.

    Args:
        probabilities: [B, K, H, W].
        truth: [B, K, H, W].
        smooth: Keeps the ratio finite.
        over: What forms one ratio: each channel of each `image`, each `class` over the batch, or the whole `batch`.
    """
    axes = AXES[over]
    overlap = (probabilities * truth).sum(axes)
    true_area = truth.sum(axes)
    loss = 1 - (2 * overlap + smooth) / (probabilities.sum(axes) + true_area + smooth)
    if over == "batch":
        return loss
    filled = (true_area > 0).float()
    return (loss * filled).sum() / filled.sum().clamp(min=1)
