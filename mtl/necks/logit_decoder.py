"""The decoder of the published network for tissue and lymphocytes, which sees what the heads make of the coarse map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS
from mtl.layers import convolution_block, fine_position, join_maps


@NECKS.register("logit_decoder")
class LogitDecoder(nn.Module):
    """Shared decoder as published: of the last map only class logits pass, a few channels for each task.

    1x1 convolutions, one for each task, turn the last map into logits. These are resized, with aligned corners, to the fine
    map, which a 1x1 convolution and BatchNorm without activation have made narrow; two 3x3 convolutions fuse both. Meant for
    the neck `aspp` with `low_level: 3` and for heads that are 1x1 convolutions. The published network enlarges the result to
    the size of the input before these convolutions; they and an interpolation can change places, so that resizing the logits
    of the heads gives the same.

    Args:
        channels: Channels of the maps, finest first.
        strides: Their strides.
        classes: Logits of each task: its classes, the background included where it has one.
        width: Channels of the 3x3 convolutions, and of the result.
        low_channels: Channels to which the fine map is reduced.
        low_level: Level of the fine map (log2 of its stride), which is that of the result.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        classes: list = [3, 2],  # noqa: B006 (read only)
        width: int = 256,
        low_channels: int = 48,
        low_level: int = 3,
    ) -> None:
        super().__init__()
        if not classes or any(type(count) is not int or count < 1 for count in classes):
            raise ConfigError(f"`neck.classes={classes}`: expected the number of logits of each task, for example [3, 2].")
        self.position = fine_position(strides, low_level, "neck")
        self.logits = nn.ModuleList(nn.Conv2d(channels[-1], count, 1) for count in classes)
        self.reduce = nn.Sequential(nn.Conv2d(channels[self.position], low_channels, 1), nn.BatchNorm2d(low_channels))
        self.fuse = nn.Sequential(convolution_block(sum(classes) + low_channels, width, 3), convolution_block(width, width, 3))
        self.channels: tuple[int, ...] = (width,)
        self.strides: tuple[int, ...] = (strides[self.position],)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fuse the logits of the last map with the fine map.

        Args:
            features: Maps, finest first.

        Returns:
            One map, [B, width, H / stride, W / stride] at the stride of the fine map.
        """
        logits = torch.cat([convolution(features[-1]) for convolution in self.logits], dim=1)
        return (self.fuse(join_maps(self.reduce(features[self.position]), logits, align_corners=True)),)
