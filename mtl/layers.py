"""Building blocks that encoders, necks and heads share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.errors import ConfigError


def attached_zero(tensors: Iterable[Tensor]) -> Tensor:
    """Return 0 that depends on all of some parameters and maps that need a gradient: these become zeros instead of None."""
    tensors = list(tensors)
    sums = [tensor.float().sum() for tensor in tensors if tensor.requires_grad]
    return torch.stack(sums).sum() * 0.0 if sums else tensors[0].new_zeros((), dtype=torch.float32)


def floating(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from floating(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from floating(entry)


def take_rows(values: Any, rows: Sequence[int]) -> Any:
    """Return some rows of a batch, in this order, without making the host wait for a GPU.

    Args:
        values: [B, ...], or a list of B entries; returned as it is where all its rows are asked for.
        rows: Positions in ascending order.
    """
    if len(rows) == len(values):
        return values
    if not isinstance(values, Tensor):
        return [values[row] for row in rows]
    if not rows or rows[-1] - rows[0] == len(rows) - 1:
        first = rows[0] if rows else 0
        return values[first : first + len(rows)]
    return _TakeRows.apply(values, tuple(rows))


class _TakeRows(torch.autograd.Function):
    """Rows of a tensor; backwards each gradient is copied to its row once, where slices would add a whole tensor for each."""

    @staticmethod
    def forward(values: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Return the rows; channels stay last where they are."""
        return torch.cat([values[row : row + 1] for row in rows])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        """Remember which rows of how many."""
        ctx.rows, ctx.length = inputs[1], len(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of all rows, zeros where a row was not taken."""
        nothing = torch.zeros_like(gradient[:1])
        found = [nothing] * ctx.length
        for position, row in enumerate(ctx.rows):
            found[row] = gradient[position : position + 1]
        return torch.cat(found), None


class TolerantBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm that takes its running statistics where a training batch has one value per channel, hence no variance."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C]."""
        return _with_running_statistics(self, input) if _single_value(self, input) else super().forward(input)


class TolerantBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a training batch has one value per channel, hence no variance."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, h, w]."""
        return _with_running_statistics(self, input) if _single_value(self, input) else super().forward(input)


def _single_value(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> bool:
    return norm.training and input.numel() == input.shape[1]


def _with_running_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> Tensor:
    return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with normalisation and ReLU: the block of the U-Net.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        norm: `batchnorm`, `instancenorm` (with scale and shift) or `none`; the convolutions have a bias only without one.
        dropout: Share of channels dropped between the two, while training.
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "batchnorm", dropout: float = 0.0) -> None:
        super().__init__(
            *_convolve_and_normalise(inputs, outputs, norm),
            nn.Dropout2d(dropout),
            *_convolve_and_normalise(outputs, outputs, norm),
        )


def _convolve_and_normalise(inputs: int, outputs: int, norm: str) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")]
    if norm == "batchnorm":
        layers.append(TolerantBatchNorm2d(outputs))
    elif norm == "instancenorm":
        layers.append(nn.InstanceNorm2d(outputs, affine=True))
    return [*layers, nn.ReLU(inplace=True)]


def separable_block(inputs: int, outputs: int) -> nn.Sequential:
    """Build a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU and without bias."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable_convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Build a depthwise and a pointwise convolution, both with bias and nothing in between."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel, stride, padding, dilation, groups=inputs), nn.Conv2d(inputs, outputs, 1)
    )


def convolution_block(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, separable: bool = False) -> nn.Sequential:
    """Build a convolution that keeps the size, BatchNorm and ReLU.

    The bias is redundant before BatchNorm; it is kept so that published networks match parameter for parameter.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the (odd) kernel.
        dilation: Distance of its taps.
        separable: A depthwise and a pointwise convolution instead of a full one.
    """
    convolution: nn.Module = (
        separable_convolution(inputs, outputs, kernel, dilation=dilation)
        if separable
        else nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    )
    return nn.Sequential(convolution, TolerantBatchNorm2d(outputs), nn.ReLU(inplace=True))


def resize(maps: Tensor, size: tuple[int, ...], align_corners: bool = False) -> Tensor:
    """Resize [B, C, h, w] bilinearly to (height, width), if needed."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)


def join_maps(fine: Tensor, coarse: Tensor, align_corners: bool = False) -> Tensor:
    """Resize a coarse map to a fine one and put it in front: [B, coarse + fine channels, h, w]."""
    return torch.cat([resize(coarse, fine.shape[-2:], align_corners), fine], dim=1)


def fine_position(strides: tuple[int, ...], low_level: int, where: str) -> int:
    """Return the position of the fine map that a DeepLabv3+ decoder joins with the last one; the first of several such maps.

    Args:
        strides: Strides of the maps, finest first.
        low_level: log2 of the stride of the fine map.
        where: Config path of the reader, for messages.

    Raises:
        ConfigError: No map before the last one has this level.
    """
    fine = 2**low_level if low_level >= 0 else 0
    if fine not in strides[:-1]:
        given = ", ".join(f"{stride.bit_length() - 1} (/{stride})" for stride in strides[:-1]) or "none"
        raise ConfigError(
            f"`{where}.low_level={low_level}`: expected a level before the last of the maps that it reads ({given}). Choose "
            "one of these, or let the neck it reads pass it on (`low_level` of the neck `aspp`)."
        )
    return strides.index(fine)


def decoder_blocks(
    fine: int, coarse: int, width: int, low_channels: int, convolutions: int, separable: bool, where: str
) -> tuple[nn.Sequential, nn.Sequential]:
    """Build the two parts of a DeepLabv3+ decoder: a 1x1 that makes the fine map narrow, and the 3x3 that fuse both maps.

    Args:
        fine: Channels of the fine map.
        coarse: Channels of the last map.
        width: Channels of the 3x3 convolutions.
        low_channels: Channels to which the fine map is reduced.
        convolutions: Number of 3x3 convolutions.
        separable: Depthwise-separable 3x3 convolutions.
        where: Config path of the reader, for messages.

    Raises:
        ConfigError: Nothing would fuse the maps.
    """
    if convolutions < 1:
        raise ConfigError(f"`{where}.convolutions={convolutions}`: expected at least 1.")
    inputs = [coarse + low_channels] + [width] * (convolutions - 1)
    fuse = nn.Sequential(*(convolution_block(size, width, 3, separable=separable) for size in inputs))
    return convolution_block(fine, low_channels), fuse


def fully_connected(inputs: int, hidden: list[int], outputs: int, dropout: float) -> nn.Sequential:
    """Build linear layers with ReLU between them, for pooled features [B, inputs].

    Args:
        inputs: Features in.
        hidden: Widths of the hidden layers; empty gives one linear layer.
        outputs: Values out.
        dropout: Dropout after every hidden layer; before the linear layer where there is none.
    """
    layers: list[nn.Module] = [] if hidden else [nn.Dropout(dropout)]
    size = inputs
    for wide in hidden:
        layers += [nn.Linear(size, wide), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        size = wide
    return nn.Sequential(*layers, nn.Linear(size, outputs))
