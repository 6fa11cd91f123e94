"""The encoder of the U-Net: plain convolutions from the first pixel on, no published weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl.core.errors import ConfigError
from mtl.core.places import Place
from mtl.core.registry import ENCODERS
from mtl.encoders.base import Encoder
from mtl.encoders.freeze import freeze as freeze_body
from mtl.encoders.weights import load_weights as load_file
from mtl.layers import DoubleConvolution

DEEPEST = 5  # sides of a network input are multiples of 2 ** 5
# What an image in [0, 1] is brought to zero mean and about unit variance with, where no weights expect anything else.
MEAN, STD = 0.5, 0.25


class UnetBody(nn.Module):
    """Double convolutions, the first at full size, each of the others behind a 2x2 maximum.

    Args:
        in_chans: Channels of the image.
        channels: Channels after each double convolution.
        norm: Normalisation inside.
        dropout: Share of channels dropped inside.
    """

    def __init__(self, in_chans: int, channels: tuple[int, ...], norm: str, dropout: float) -> None:
        super().__init__()
        self.stem = DoubleConvolution(in_chans, channels[0], norm, dropout)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConvolution(inputs, outputs, norm, dropout))
            for inputs, outputs in pairwise(channels)
        )


@ENCODERS.register("unet")
class UnetEncoder(Encoder):
    """Encoder of the U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) with batch norm and padding.

    Its maps have the strides 1, 2, 4, ..., its channels double from one to the next. With 32 filters and depth 3 it has the
    1,172,640 parameters of the published brain network.

    Args:
        load_weights: False where a checkpoint follows: no weight file is touched.
        base_filters: Channels of the finest map.
        depth: How often the size is halved, 1 to 5.
        in_chans: Channels of the image; None takes 3.
        norm: Normalisation inside the double convolutions.
        dropout: Share of channels dropped between the two convolutions of each.
        weights: Local file: torch state dict, .safetensors, or an mtl checkpoint, of which the encoder is taken.
        freeze: `all` keeps the network fixed, norm statistics included.
        unfreeze: Exceptions to `freeze: all`: `stem`, `stages.0`, ...; the last one is the coarsest.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time. Batch
            norms that train see each batch again in every backward pass, so their running averages move faster.
    """

    def __init__(
        self,
        load_weights: bool = True,
        *,
        base_filters: int = 32,
        depth: int = 3,
        in_chans: int | None = None,
        norm: Literal["batchnorm", "instancenorm", "none"] = "batchnorm",
        dropout: float = 0.0,
        weights: Place | None = None,
        freeze: Literal["none", "all"] = "none",
        unfreeze: list = [],  # noqa: B006 (read only)
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if unfreeze and freeze != "all":
            raise ConfigError(f"`backbone.unfreeze={unfreeze}` needs `backbone.freeze=all`; nothing is frozen otherwise.")
        if not 1 <= depth <= DEEPEST:
            raise ConfigError(f"`backbone.depth={depth}`: expected 1 to {DEEPEST}, since network inputs are multiples of 32.")
        if base_filters < 1:
            raise ConfigError(f"`backbone.base_filters={base_filters}`: expected at least 1.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"`backbone.dropout={dropout}`: expected a share of channels, from 0 to below 1.")
        self.architecture = "unet"
        self.in_chans = in_chans or 3
        self.gradient_checkpointing = gradient_checkpointing
        self.channels = tuple(base_filters * 2**level for level in range(depth + 1))
        self.strides = tuple(2**level for level in range(depth + 1))
        self.normalization = {"mean": [MEAN] * self.in_chans, "std": [STD] * self.in_chans}
        self.body = UnetBody(self.in_chans, self.channels, norm, dropout)
        if weights is not None and load_weights:
            self.report = load_file(self.body, weights)
        if freeze == "all":
            self.frozen_modules = freeze_body(self.body, [str(name) for name in unfreeze])
        self.train()

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps with the adapters in use."""
        # With one adapter set per task `forward` recomputes the whole pass instead.
        saves = self.gradient_checkpointing and self.training and torch.is_grad_enabled() and not self.per_task
        found: list[Tensor] = []
        for stage in (self.body.stem, *self.body.stages):  # type: ignore[misc]
            inputs = found[-1] if found else images
            found.append(checkpoint(stage, inputs, use_reentrant=False) if saves else stage(inputs))
        return tuple(found)

    def example(self) -> Tensor:
        """Return zeros of a size that the network accepts."""
        first = next(self.body.parameters())
        size = (2 * self.strides[-1], 3 * self.strides[-1])
        return torch.zeros(1, self.in_chans, *size, device=first.device, dtype=first.dtype)
