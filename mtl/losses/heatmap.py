"""Losses between maps in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import Loss


@LOSSES.register("heatmap_focal")
class HeatmapFocal(Loss):
    """Penalty-reduced focal loss on peaks (CornerNet, Law and Deng 2018; CenterNet, Zhou et al. 2019).

    Cells where the truth is 1 are positives and cost -(1 - p)^alpha log p; the others cost
    -(1 - truth)^beta p^alpha log(1 - p). The sum is divided by the number of positives in the batch, at least 1.

    Args:
        spec: The task.
        alpha: Focusing exponent.
        beta: How little map pixels near a peak cost.
    """

    kinds = ("heatmap",)

    def __init__(self, spec: TaskSpec | None = None, *, alpha: float = 2.0, beta: float = 4.0) -> None:
        super().__init__(spec)
        self.alpha = alpha
        self.beta = beta

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from maps [B, K, h, w] in [0, 1]."""
        p = prediction.clamp(1e-6, 1 - 1e-6)
        positive = target >= 1
        hit = (1 - p) ** self.alpha * p.log() * positive
        rest = (1 - target) ** self.beta * p**self.alpha * torch.log1p(-p) * ~positive
        return -(hit + rest).sum() / positive.sum().clamp(min=1)


@LOSSES.register("tversky_boundary")
class TverskyBoundary(Loss):
    """Focal Tversky loss plus the L1 distance of Sobel gradients, as published for parasite heatmaps.

    tversky_weight * (1 - TI)^gamma + boundary_weight * boundary, TI = (TP + s) / (TP + fp_weight * FP + fn_weight * FN + s)
    with soft counts summed over the batch. The published text says that false negatives cost more; the published formula puts
    the larger weight, .7, on false positives, and so do the defaults here. Swap the two keys for what the text says.

    Args:
        spec: The task.
        tversky_weight: Weight of the Tversky part.
        boundary_weight: Weight of the boundary part.
        fp_weight: Cost of a false positive.
        fn_weight: Cost of a false negative.
        gamma: Exponent of the Tversky part.
        smooth: Keeps the index finite.
    """

    kinds = ("heatmap",)
    sobel: Tensor

    def __init__(
        self,
        spec: TaskSpec | None = None,
        *,
        tversky_weight: float = 0.8,
        boundary_weight: float = 0.2,
        fp_weight: float = 0.7,
        fn_weight: float = 0.3,
        gamma: float = 0.75,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(spec)
        self.tversky_weight = tversky_weight
        self.boundary_weight = boundary_weight
        self.fp_weight = fp_weight
        self.fn_weight = fn_weight
        self.gamma = gamma
        self.smooth = smooth
        horizontal = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack([horizontal, horizontal.T])[:, None], persistent=False)

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from maps [B, K, h, w] in [0, 1]."""
        return self.tversky_weight * self.tversky(prediction, target) + self.boundary_weight * self.boundary(prediction, target)

    def tversky(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute (1 - TI)^gamma."""
        hits = (prediction * target).sum()
        false_positives = (prediction * (1 - target)).sum()
        misses = ((1 - prediction) * target).sum()
        costs = self.fp_weight * false_positives + self.fn_weight * misses
        index = (hits + self.smooth) / (hits + costs + self.smooth)
        # At a perfect match the exponent below 1 has an infinite slope.
        return (1 - index).clamp(min=1e-7) ** self.gamma

    def boundary(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the mean absolute difference of horizontal plus that of vertical gradients."""
        # The Sobel filter is linear: the gradient of the difference is the difference of the gradients.
        difference = (prediction - target).flatten(0, 1)[:, None]
        gradients = F.conv2d(difference, self.sobel, padding=1)
        return gradients.abs().mean(dim=(0, 2, 3)).sum()


@LOSSES.register("mse")
class MeanSquaredError(Loss):
    """Mean squared error.

    Args:
        spec: The task.
    """

    kinds = ("heatmap",)

    def __init__(self, spec: TaskSpec | None = None) -> None:
        super().__init__(spec)

    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute from two tensors of the same shape.

        Raises:
            ValueError: The shapes differ; broadcasting would silently compare every value with every other.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"mse compares equal shapes, found {tuple(prediction.shape)} and {tuple(target.shape)}")
        return F.mse_loss(prediction, target)
