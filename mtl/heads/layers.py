"""Building blocks that several heads share."""

from __future__ import annotations

from torch import nn


def separable_block(inputs: int, outputs: int) -> nn.Sequential:
    """Build a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU and without bias."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
