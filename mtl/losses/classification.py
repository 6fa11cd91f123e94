"""Losses over class indices or independent channels: cross-entropy, focal and their sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import WeightedLoss, is_multilabel


@LOSSES.register("cross_entropy")
class CrossEntropy(WeightedLoss):
    """Softmax cross-entropy, weighted by class; the mean divides by the summed weights of the targets.

    Args:
        spec: The task.
        class_weights: See `WeightedLoss`.
        label_smoothing: Share of the target probability spread evenly over all classes.
    """

    kinds = ("classification", "roi_classification", "segmentation")

    def __init__(
        self, spec: TaskSpec | None = None, *, class_weights: list | dict | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(spec, class_weights)
        one_class_per_pixel(spec, "cross_entropy")
        self.label_smoothing = label_smoothing

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [B, C, ...] and int64 [B, ...]."""
        return softmax_cross_entropy(prediction, target, self.class_weights, self.label_smoothing, self.ignore_index)


@LOSSES.register("focal")
class Focal(WeightedLoss):
    """Focal loss: cross-entropy times (1 - p)^gamma, p the probability of the truth (Lin et al. 2017).

    Independent channels weigh positives by alpha and negatives by 1 - alpha; with one class per position alpha is a constant
    factor, as published.

    Args:
        spec: The task.
        gamma: How fast easy examples fade; 0 gives weighted cross-entropy.
        alpha: See above; None leaves it out.
        class_weights: See `WeightedLoss`.
    """

    kinds = ("classification", "roi_classification", "segmentation")

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        gamma: float = 2.0,
        alpha: float | None = 0.25,
        class_weights: list | dict | None = None,
    ) -> None:
        super().__init__(spec, class_weights)
        self.gamma = gamma
        self.alpha = alpha

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits and class indices, or logits and values of the same shape."""
        if not is_multilabel(prediction, target):
            return softmax_focal(prediction, target, self.gamma, self.alpha, self.class_weights, self.ignore_index)
        loss = sigmoid_focal(prediction, target, self.gamma, self.alpha)
        if self.class_weights is None:
            return loss.mean()
        weights = self.class_weights.view(1, -1, *[1] * (loss.ndim - 2)).expand_as(loss)
        return (loss * weights).sum() / weights.sum()


@LOSSES.register("cross_entropy_focal")
class CrossEntropyFocal(WeightedLoss):
    """Softmax cross-entropy plus sigmoid focal loss on one-hot targets, as published for retinal grades.

    The focal part treats every class as a question of its own and is averaged over rows and classes, so it is much smaller than
    the cross-entropy unless weighted up.

    Args:
        spec: The task.
        class_weights: See `WeightedLoss`; a row weighs as its true class does, in both parts.
        label_smoothing: Share of the target probability spread evenly over all classes, in the cross-entropy.
        focal_weight: Weight of the focal part.
        alpha: Weight of positives, negatives weigh 1 - alpha; None leaves it out.
        gamma: How fast easy examples fade.
    """

    kinds = ("classification", "roi_classification")

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        class_weights: list | dict | None = None,
        label_smoothing: float = 0.0,
        focal_weight: float = 1.0,
        alpha: float | None = 0.75,
        gamma: float = 4.0,
    ) -> None:
        super().__init__(spec, class_weights)
        self.label_smoothing = label_smoothing
        self.focal_weight = focal_weight
        self.alpha = alpha
        self.gamma = gamma

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from logits [N, C] and int64 [N]."""
        entropy = softmax_cross_entropy(prediction, target, self.class_weights, self.label_smoothing)
        truth = F.one_hot(target, prediction.shape[1]).float()
        focal = sigmoid_focal(prediction, truth, self.gamma, self.alpha).mean(dim=1)
        weights = _target_weights(target, self.class_weights, self.ignore_index)
        return entropy + self.focal_weight * (focal * weights).sum() / weights.sum()


def one_class_per_pixel(spec: TaskSpec | None, loss: str) -> None:
    """Refuse a task with independent channels.

    Raises:
        ConfigError: The channels of the masks may overlap.
    """
    if spec is not None and spec.kind == "segmentation" and spec.multilabel:
        raise ConfigError(
            f"Loss `{loss}` needs one class per pixel, but `{spec.name}` has independent channels. Use `dice_bce` or `focal`."
        )


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """Compute the focal loss of independent channels, of the shape of `logits`."""
    no_alpha = -1.0  # torchvision's word
    loss: Tensor = sigmoid_focal_loss(logits, target, no_alpha if alpha is None else alpha, gamma, reduction="none")
    return loss


def softmax_cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, label_smoothing: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """Compute torch's weighted mean cross-entropy, but 0 instead of NaN where every target is ignored."""
    total = F.cross_entropy(
        logits, target, class_weights, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / _target_weights(target, class_weights, ignore_index).sum().clamp(min=1e-12)


def softmax_focal(
    logits: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float | None,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Compute the mean focal loss of softmax logits; a mean weighted by class where weights are given.

    Args:
        logits: [N, C, ...].
        target: [N, ...] int64.
        gamma: Focusing exponent.
        alpha: Constant factor; None is 1.
        class_weights: [C].
        ignore_index: Target value that does not count.
    """
    entropy = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # 1 - p from the entropy stays exact near p = 1 and is 0 at ignored positions.
    miss = -torch.expm1(-entropy)
    # The floor keeps the gradient finite for gamma below 1.
    focal = entropy * (miss.clamp(min=1e-12) ** gamma)
    weights = _target_weights(target, class_weights, ignore_index)
    return (1.0 if alpha is None else alpha) * (focal * weights).sum() / weights.sum().clamp(min=1e-12)


def _target_weights(target: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor:
    counts = target != ignore_index
    if class_weights is None:
        return counts.float()
    return class_weights[target.where(counts, 0)] * counts
