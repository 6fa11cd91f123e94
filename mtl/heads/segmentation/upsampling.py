"""Segmentation decoder that looks at the last map only."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead
from mtl.layers import convolution_block


@HEADS.register("upsampling")
class UpsamplingHead(SegmentationHead):
    """Decoder without skips, as in the published skin network (10,604,289 parameters on 1280 channels with one class).

    Each block doubles the size bilinearly and convolves twice. Four blocks on a map of stride 32 end at half the size of the
    input. Nothing finer than the last map reaches the mask, so borders are as smooth as that map.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        decoder_channels: Output channels of the blocks, coarsest first.
        last_channels: Channels between the blocks and the logits.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        decoder_channels: list = [512, 256, 128, 64],  # noqa: B006 (read as a literal, never changed)
        last_channels: int = 32,
    ) -> None:
        super().__init__(spec, channels, strides, loss)
        if not decoder_channels or 2 ** len(decoder_channels) > strides[-1]:
            raise ConfigError(
                f"`heads.{spec.name}.decoder_channels={list(decoder_channels)}` doubles the last map {len(decoder_channels)} "
                f"times; expected 1 to {strides[-1].bit_length() - 1} times, since its stride is {strides[-1]}."
            )
        widths = [channels[-1], *decoder_channels]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                    convolution_block(inputs, outputs, 3),
                    convolution_block(outputs, outputs, 3),
                )
                for inputs, outputs in pairwise(widths)
            )
        )
        self.last = convolution_block(widths[-1], last_channels, 3)
        self.logits = nn.Conv2d(last_channels, len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at the stride of the last map, halved by every block."""
        logits: Tensor = self.logits(self.last(self.blocks(features[-1])))
        return logits
