"""The segmentation head of the published malaria network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.pyramid import select_levels
from mtl.heads.segmentation.base import SegmentationHead
from mtl.layers import resize, separable_block


@HEADS.register("unet_published")
class PublishedUnetHead(SegmentationHead):
    """Separable U-Net decoder as published (647,217 parameters on ResNet-50 with one class).

    Takes the maps of strides 4 to 32. Logits are computed at stride 4, averaged to stride 8 and resized bilinearly to the
    input, so no detail below 8 pixels survives.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
    """

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...], *, loss: dict) -> None:
        super().__init__(spec, channels, strides, loss)
        self.positions = select_levels(strides, [2, 3, 4, 5], spec.name)
        c1, c2, c3, c4 = (channels[position] for position in self.positions)
        self.up3, self.fuse3 = nn.ConvTranspose2d(c4, 64, 2, stride=2), separable_block(64 + c3, 64)
        self.up2, self.fuse2 = nn.ConvTranspose2d(64, 32, 2, stride=2), separable_block(32 + c2, 32)
        self.up1, self.fuse1 = nn.ConvTranspose2d(32, 16, 2, stride=2), separable_block(16 + c1, 16)
        self.logits = nn.Conv2d(16, len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at stride 8."""
        f1, f2, f3, x = (features[position] for position in self.positions)
        for up, fuse, skip in ((self.up3, self.fuse3, f3), (self.up2, self.fuse2, f2), (self.up1, self.fuse1, f1)):
            x = fuse(torch.cat([resize(up(x), skip.shape[-2:]), skip], dim=1))
        return F.adaptive_avg_pool2d(self.logits(x), (max(image_size[0] // 8, 1), max(image_size[1] // 8, 1)))
