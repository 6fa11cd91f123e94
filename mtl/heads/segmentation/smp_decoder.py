"""The only module that touches decoder classes of segmentation-models-pytorch, which are not public API of it."""

from __future__ import annotations

from typing import Literal

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from mtl.core.errors import ConfigError

Norm = Literal["batchnorm", "instancenorm", "identity"]


class UnetAdapter(nn.Module):
    """smp's U-Net decoder on maps that need not start at stride 2.

    The decoder expects the input image and one map per halving. Where finer maps are missing (ConvNeXt and Swin start at stride
    4) a map without channels stands in, so that the block upsamples without a skip connection.

    Args:
        channels: Channels of the maps, finest first.
        strides: Their strides.
        decoder_channels: Output channels of the blocks, coarsest first; each block goes one map finer. With as many
            blocks as maps (counting the stand-ins), the last one works at the input's size.
        norm: Normalisation inside the blocks.
        attention: None or "scse".
        where: Config path for error messages.

    Attributes:
        channels: Channels of the result.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        decoder_channels: list[int],
        norm: Norm,
        attention: Literal["scse"] | None,
        where: str,
    ) -> None:
        super().__init__()
        self.missing = [2**power for power in range(1, strides[0].bit_length() - 1)]
        encoder_channels = [3, *[0] * len(self.missing), *channels]
        blocks = len(decoder_channels)
        if not 1 <= blocks < len(encoder_channels):
            raise ConfigError(
                f"`{where}.decoder_channels`: expected 1 to {len(encoder_channels) - 1} entries for maps of strides "
                f"{[*self.missing, *strides]}, found {blocks}."
            )
        if attention == "scse" and min(decoder_channels) < 16:
            raise ConfigError(
                f"`{where}.decoder_channels`: scse attention needs at least 16 channels, found {list(decoder_channels)}."
            )
        self.decoder = UnetDecoder(encoder_channels, tuple(decoder_channels), blocks, use_norm=norm, attention_type=attention)
        self.channels = decoder_channels[-1]

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Decode maps to one map [B, channels, h, w]."""
        sizes = [image_size, *[(-(-image_size[0] // stride), -(-image_size[1] // stride)) for stride in self.missing]]
        # Only the size of the image and of the stand-ins is used.
        stand_ins = [features[0].new_zeros((len(features[0]), 0, *size)) for size in sizes]
        return self.decoder([*stand_ins, *features])
