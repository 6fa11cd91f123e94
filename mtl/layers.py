"""Building blocks that encoders, necks and heads share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

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


class Dropout(nn.Dropout):
    """Dropout of single values that draws its mask on a CPU in a third of the time.

    One random number of 64 bits decides over four values, so that the share is a multiple of 2^-16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Set a share `p` of the values to 0 while training, and scale the others."""
        limit = round(self.p * 2**16)
        if not self.training or input.device.type != "cpu" or not 0 < limit < 2**16:
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: input.numel()] >= limit - 2**15
        if input.ndim == 4 and memory_format_of(input) is torch.channels_last:
            batch, channels, height, width = input.shape
            mask = kept.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            mask = kept.view(input.shape)
        return input * mask.to(input.dtype).div_(1 - limit / 2**16)


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


class DilatedConvolution(nn.Conv2d):
    """A dilated convolution with zeros around that leaves out the taps which lie outside the map wherever the kernel stands.

    They would add nothing and get no gradient. A depthwise one in channels_last on a CPU is computed in the other memory
    format, which is several times as fast.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        steps = [dilation if dilation < length else 0 for dilation, length in zip(self.dilation, input.shape[2:], strict=True)]
        seen = [
            slice(None) if step else slice(side // 2, side // 2 + 1) for step, side in zip(steps, self.kernel_size, strict=True)
        ]
        padding = [step * (side // 2) for step, side in zip(steps, self.kernel_size, strict=True)]
        weight = weight[:, :, seen[0], seen[1]]
        if self.groups == 1 or input.device.type != "cpu":
            return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
        # A copy, since weights of one channel count as both formats, and their strides decide.
        weight = weight.clone(memory_format=torch.contiguous_format)
        output = F.conv2d(input.contiguous(), weight, bias, self.stride, padding, self.dilation, self.groups)
        return output.contiguous(memory_format=memory_format_of(input))


class DepthwiseConvolution(nn.Conv2d):
    """A depthwise convolution that is not slower in bfloat16 on a CPU than in float32; elsewhere an ordinary one.

    The library has no fast kernels there for the gradient of the input of a strided convolution, nor for the gradient of
    kernels wider than 3. They are computed as a convolution without stride, and in float32.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        mixed = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not mixed or torch.get_autocast_dtype("cpu") != torch.bfloat16 or self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        padding = self.padding
        if isinstance(padding, str) or any(pad >= side for pad, side in zip(padding, self.kernel_size, strict=True)):
            return super()._conv_forward(input, weight, bias)
        cast = (input.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())
        result: Tensor = _Depthwise.apply(*cast, self.stride, padding)
        return result


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in bfloat16 with its own backward pass."""

    @staticmethod
    def forward(
        context: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Convolve; all tensors have the same type."""
        context.save_for_backward(input, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(input, weight, bias, stride, padding, 1, input.shape[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        input, weight = context.saved_tensors
        wants_input, wants_weight, wants_bias = context.needs_input_grad[:3]
        to_input = to_weight = None
        gradient = gradient.contiguous(memory_format=memory_format_of(input))
        with torch.autocast("cpu", enabled=False):
            if wants_input:
                spread = _spread(gradient, input, weight, context.stride, context.padding)
                outside = [side - 1 - pad for side, pad in zip(weight.shape[2:], context.padding, strict=True)]
                to_input = F.conv2d(spread, weight.flip(2, 3), None, 1, outside, 1, input.shape[1])
            if wants_weight:
                wide = max(weight.shape[2:]) > 3
                maps = [
                    part.float().contiguous(memory_format=torch.channels_last) if wide else part for part in (gradient, input)
                ]
                to_weight = conv2d_weight(
                    maps[1], weight.shape, maps[0], context.stride, context.padding, 1, input.shape[1]
                ).to(weight.dtype)  # fmt: skip
        to_bias = gradient.sum(dim=(0, 2, 3)) if wants_bias else None
        return to_input, to_weight, to_bias, None, None


def _spread(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:  # fmt: skip
    """Return the gradient of an output [B, C, h, w] with zeros between its values, as if there had been no stride."""
    if max(stride) == 1:
        return gradient
    size = [
        length + 2 * pad - side + 1
        for length, pad, side in zip(input.shape[2:], padding, weight.shape[2:], strict=True)
    ]  # fmt: skip
    spread = torch.zeros(*gradient.shape[:2], *size, dtype=gradient.dtype)
    spread = spread.contiguous(memory_format=memory_format_of(gradient))
    height, width = ((length - 1) * step + 1 for length, step in zip(gradient.shape[2:], stride, strict=True))
    spread[:, :, : height : stride[0], : width : stride[1]] = gradient
    return spread


def memory_format_of(maps: Tensor) -> torch.memory_format:
    """Return how [B, C, h, w] lies in memory; what is both counts as contiguous."""
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def ready_for_bfloat16(model: nn.Module) -> None:
    """Turn the depthwise convolutions of a network into `DepthwiseConvolution`, in place; nothing that is stored changes."""
    for module in model.modules():
        depthwise = type(module) is nn.Conv2d and 1 < module.groups == module.in_channels == module.out_channels
        if depthwise and module.dilation == (1, 1):
            module.__class__ = DepthwiseConvolution


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
    kind = nn.Conv2d if dilation == 1 else DilatedConvolution
    return nn.Sequential(kind(inputs, inputs, kernel, stride, padding, dilation, groups=inputs), nn.Conv2d(inputs, outputs, 1))


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
    kind = nn.Conv2d if dilation == 1 else DilatedConvolution
    convolution: nn.Module = (
        separable_convolution(inputs, outputs, kernel, dilation=dilation)
        if separable
        else kind(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    )
    return nn.Sequential(convolution, TolerantBatchNorm2d(outputs), nn.ReLU(inplace=True))


def in_float32(layer: nn.Module, values: Tensor) -> Tensor:
    """Apply a last, small layer in float32 whatever the precision: what it gives is ranked, or tells a place within a pixel."""
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = layer(values.float())
    return result


def pooled(maps: Tensor) -> Tensor:
    """Return the mean [B, C] of [B, C, h, w], in float32."""
    return maps.mean(dim=(2, 3), dtype=torch.float32)


def resize(maps: Tensor, size: tuple[int, ...], align_corners: bool = False) -> Tensor:
    """Resize [B, C, h, w] bilinearly to (height, width), if needed."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    resized = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)
    if resized.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
        # Of maps that are put behind others the gradient is a part of theirs, of which the backward pass would be five times as
        # slow.
        resized.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return resized


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
