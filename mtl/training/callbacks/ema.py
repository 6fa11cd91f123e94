"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class ExponentialAverage(WeightAveraging):
    """Averages weights and norm statistics after every optimizer step; validation and checkpoints use the average.

    The decay rises as min(decay, (1 + n) / (10 + n)) with the number n of updates, as in TensorFlow's moving averages: with the
    full decay from the start, a short run would mostly average its first, untrained weights.

    Args:
        decay: Weight of the average in each update, once warmed up.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(mean: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not mean.is_floating_point():
                return current
            number = float(count)
            # Unlike a sum of two products, this leaves a value that does not change (a frozen weight) bit for bit as it is.
            return mean.lerp(current.to(mean.dtype), 1.0 - min(decay, (1.0 + number) / (10.0 + number)))

        options: dict[str, Any] = {"avg_fn": average}
        super().__init__(use_buffers=True, **options)
