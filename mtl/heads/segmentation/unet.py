"""U-Net on encoder features."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead
from mtl.heads.segmentation.smp_decoder import UnetAdapter


@HEADS.register("unet")
class UnetHead(SegmentationHead):
    """U-Net decoder (Ronneberger et al. 2015; blocks of segmentation-models-pytorch).

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        decoder_channels: Output channels of the blocks, coarsest first. Four blocks on a stride-32 encoder end at stride 2,
            five at full size; what is left is bilinear.
        norm: Normalisation inside the blocks.
        attention: `scse` adds channel and spatial squeeze-and-excitation to the blocks.
        dropout: Share of channels dropped before the last convolution.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        decoder_channels: list = [128, 64, 32, 16],  # noqa: B006 (read as a literal, never changed)
        norm: Literal["batchnorm", "instancenorm", "identity"] = "batchnorm",
        attention: Literal["scse"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, channels, strides, loss)
        self.decoder = UnetAdapter(channels, strides, list(decoder_channels), norm, attention, f"heads.{spec.name}")
        self.dropout = nn.Dropout2d(dropout)
        self.logits = nn.Conv2d(self.decoder.channels, len(spec.classes), 3, padding=1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at the size where the last block ends."""
        logits: Tensor = self.logits(self.dropout(self.decoder(features, image_size)))
        return logits
