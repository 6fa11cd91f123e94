"""The decoder of DeepLabv3+ in front of the heads, so that several of them can share it."""

from __future__ import annotations

from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS
from mtl.layers import Dropout, decoder_blocks, fine_position, join_maps


@NECKS.register("decoder")
class Decoder(nn.Module):
    """Decoder of DeepLabv3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611) without its last convolution.

    The last map is resized to a fine one, which a 1x1 convolution has made narrow, and 3x3 convolutions fuse both. The head
    `deeplabv3plus` is the same with a 1x1 convolution behind it. It needs the two maps of the neck `aspp`: further ones would
    be left unread, so that what makes them got no gradient, which training on several devices does not allow. With `shared:
    false` each head that reads it has a decoder of its own.

    Args:
        channels: Channels of the maps, finest first.
        strides: Their strides.
        width: Channels of the 3x3 convolutions, and of the result.
        low_channels: Channels to which the fine map is reduced.
        low_level: Level of the fine map (log2 of its stride), which is that of the result.
        convolutions: Number of 3x3 convolutions.
        separable: Depthwise-separable 3x3 convolutions.
        dropout: Dropout on the result.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        width: int = 256,
        low_channels: int = 48,
        low_level: int = 2,
        convolutions: int = 2,
        separable: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(strides) > 2:
            raise ConfigError(
                f"`neck.features`: expected a neck that gives two maps, such as `aspp`; found {len(strides)} maps. Name one."
            )
        self.position = fine_position(strides, low_level, "neck")
        self.reduce, self.fuse = decoder_blocks(
            channels[self.position], channels[-1], width, low_channels, convolutions, separable, "neck"
        )
        self.dropout = Dropout(dropout)
        self.channels: tuple[int, ...] = (width,)
        self.strides: tuple[int, ...] = (strides[self.position],)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fuse the fine and the last map.

        Args:
            features: Maps, finest first.

        Returns:
            One map, [B, width, H / stride, W / stride] at the stride of the fine map.
        """
        return (self.dropout(self.fuse(join_maps(self.reduce(features[self.position]), features[-1]))),)
