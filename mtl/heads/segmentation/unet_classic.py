"""The decoder of the U-Net as first drawn: every map of the encoder joins on the way up."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead
from mtl.layers import DoubleConvolution, resize


class UpwardStep(nn.Module):
    """Enlarge a map to the next finer one, put it behind that one, and convolve both down to its channels.

    Args:
        inputs: Channels of the coarse map.
        skip: Channels of the fine map, and of the result.
        factor: Ratio of their strides.
        upsampling: `bilinear` or `transposed`.
        norm: Normalisation inside.
        dropout: Share of channels dropped inside.
    """

    def __init__(self, inputs: int, skip: int, factor: int, upsampling: str, norm: str, dropout: float) -> None:
        super().__init__()
        transposed = upsampling == "transposed"
        self.enlarge = nn.ConvTranspose2d(inputs, skip, factor, stride=factor) if transposed else None
        self.fuse = DoubleConvolution(skip + (skip if transposed else inputs), skip, norm, dropout)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Map [B, inputs, h, w] and [B, skip, H, W] to [B, skip, H, W]."""
        size = (fine.shape[-2], fine.shape[-1])
        if self.enlarge is not None:
            coarse = resize(self.enlarge(coarse), size)
        else:
            coarse = resize(coarse, size, align_corners=True)
        fused: Tensor = self.fuse(torch.cat([fine, coarse], dim=1))
        return fused


@HEADS.register("unet_classic")
class ClassicUnetHead(SegmentationHead):
    """Decoder of the U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) with padding.

    Each step has the channels of the map that joins there. Logits end at the finest map: full size on the encoder `unet`, on
    which the head has the 775,073 parameters of the published brain network (32 filters, depth 3, one class).

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps; at least two.
        loss: The loss (a name and its keys).
        upsampling: Bilinear with aligned corners, or a transposed convolution to the channels of the finer map.
        norm: Normalisation inside the double convolutions.
        dropout: Share of channels dropped between the two convolutions of each.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        upsampling: Literal["bilinear", "transposed"] = "bilinear",
        norm: Literal["batchnorm", "instancenorm", "none"] = "batchnorm",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, channels, strides, loss)
        if len(channels) < 2:
            raise ConfigError(
                f"`heads.{spec.name}.features`: unet_classic joins at least two maps; found one of stride {strides[0]}. "
                "Read the encoder, or a neck that gives several maps."
            )
        self.steps = nn.ModuleList(
            UpwardStep(channels[level + 1], channels[level], strides[level + 1] // strides[level], upsampling, norm, dropout)
            for level in reversed(range(len(channels) - 1))
        )
        self.logits = nn.Conv2d(channels[0], len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at the size of the finest map."""
        x = features[-1]
        for step, fine in zip(self.steps, reversed(features[:-1]), strict=True):
            x = step(x, fine)
        logits: Tensor = self.logits(x)
        return logits
