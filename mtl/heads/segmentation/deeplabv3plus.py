"""The decoder of DeepLabv3+."""

from __future__ import annotations

from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead
from mtl.layers import Dropout, decoder_blocks, fine_position, join_maps


@HEADS.register("deeplabv3plus")
class DeepLabV3PlusHead(SegmentationHead):
    """Decoder of DeepLabv3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611): the last map joins a fine one.

    The last map is resized to the fine one, which a 1x1 convolution has made narrow; 3x3 convolutions fuse both, and a 1x1
    convolution gives the logits. Meant for the two maps of the neck `aspp`, but any pyramid will do.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        width: Channels of the 3x3 convolutions.
        low_channels: Channels to which the fine map is reduced; 48 in the paper, 64 as published.
        low_level: Level of the fine map (log2 of its stride), at which the logits are computed; the first of several such maps.
        convolutions: Number of 3x3 convolutions; 2 in the paper, 1 as published.
        separable: Depthwise-separable 3x3 convolutions.
        dropout: Dropout before the last convolution.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        width: int = 256,
        low_channels: int = 48,
        low_level: int = 2,
        convolutions: int = 2,
        separable: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, channels, strides, loss)
        where = f"heads.{spec.name}"
        self.position = fine_position(strides, low_level, where)
        self.reduce, self.fuse = decoder_blocks(
            channels[self.position], channels[-1], width, low_channels, convolutions, separable, where
        )
        self.dropout = Dropout(dropout)
        self.logits = nn.Conv2d(width, len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at the stride of the fine map."""
        joined = join_maps(self.reduce(features[self.position]), features[-1])
        logits: Tensor = self.logits(self.dropout(self.fuse(joined)))
        return logits
