"""Atrous spatial pyramid pooling: one map seen through several fields of view at once.

Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation (DeepLabv3+), 2018,
https://arxiv.org/abs/1802.02611.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS
from mtl.layers import Dropout, convolution_block

# Distance in network pixels of the taps of the finest dilated branch: rate 6 at stride 16, as published.
FINEST_DILATION = 96


@NECKS.register("aspp")
class ASPP(nn.Module):
    """Parallel branches on the last map (1x1, dilated 3x3, mean of the image), joined by a 1x1 convolution.

    Gives a fine map of the encoder, untouched, and the joined map. Image pooling leaves one value per channel and image, so
    with a single image in a training batch its BatchNorm takes the running statistics.

    Args:
        channels: Channels of the encoder's maps, finest first.
        strides: Their strides.
        width: Channels of every branch and of the result.
        rates: Dilation of the 3x3 branches; None takes 12, 24, 36 at stride 8, half of that at stride 16, and so on.
        separable: Depthwise-separable 3x3 branches.
        low_level: Level (log2 of the stride) of the fine map that decoders get; where several maps share it, the deepest.
            None gives the joined map alone.
        image_pooling: The branch with the mean of the image. Without it a map depends on its surroundings only, so that the
            windows of a large image fit together.
        dropout: Dropout on the joined map.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        width: int = 256,
        rates: list | None = None,
        separable: bool = True,
        low_level: int | None = 2,
        image_pooling: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        finest = max(1, FINEST_DILATION // strides[-1])
        used = [finest, 2 * finest, 3 * finest] if rates is None else list(rates)
        if not used or any(not isinstance(rate, int) or rate < 1 for rate in used):
            raise ConfigError(f"`neck.rates={rates}`: expected whole numbers of at least 1, for example [6, 12, 18], or null.")
        self.position: int | None = None
        if low_level is not None:
            available = {stride.bit_length() - 1: index for index, stride in enumerate(strides) if stride < strides[-1]}
            if low_level not in available:
                raise ConfigError(
                    f"`neck.low_level={low_level}`: expected a level of the encoder finer than its last map, which are "
                    f"{', '.join(f'{level} (/{2**level})' for level in sorted(available)) or 'none'}; or null."
                )
            self.position = available[low_level]
        passed = [] if self.position is None else [self.position]
        self.channels: tuple[int, ...] = (*(channels[index] for index in passed), width)
        self.strides: tuple[int, ...] = (*(strides[index] for index in passed), strides[-1])
        size = channels[-1]
        self.point = convolution_block(size, width)
        self.dilated = nn.ModuleList(convolution_block(size, width, 3, rate, separable) for rate in used)
        self.image = convolution_block(size, width) if image_pooling else None
        branches = 1 + len(used) + int(image_pooling)
        self.project = nn.Sequential(convolution_block(branches * width, width), Dropout(dropout))

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            features: All maps of the encoder, finest first.

        Returns:
            [B, channels[i], H / strides[i], W / strides[i]]: the fine map (unless `low_level` is None) and the joined one.
        """
        x = features[-1]
        views = [self.point(x), *(branch(x) for branch in self.dilated)]
        if self.image is not None:
            views.append(self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:]))
        joined = self.project(torch.cat(views, dim=1))
        return (joined,) if self.position is None else (features[self.position], joined)
