"""Residual adapters on the output of each block of the encoder, as in the published malaria network.

The form is that of Houlsby et al., 2019 (https://arxiv.org/abs/1902.00751), without the non-linearity: a linear
low-rank map per pixel, added to what the block puts out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.core.errors import ConfigError, unknown
from mtl.core.registry import ADAPTERS
from mtl.encoders.adapters import check_rank, set_names
from mtl.encoders.base import PASSAGE, SHARED, Adapter, Encoder, keep_tasks_apart, output_shapes
from mtl.encoders.keys import spelled
from mtl.layers import Dropout

# Classes of timm that count as one block, by family. Where such modules are nested, the outer one counts.
BLOCKS = {
    "resnet, resnest, res2net, regnet, hrnet": ("BasicBlock", "Bottleneck", "Bottle2neck", "ResNestBottleneck"),
    "resnetv2, nfnet": ("PreActBasic", "PreActBottleneck", "NormFreeBlock"),
    "efficientnet, mobilenet": (
        "InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual", "UniversalInvertedResidual", "ConvBnAct",
    ),
    "convnext, mambaout": ("ConvNeXtBlock", "GatedConvBlock"),
    "swin": ("SwinTransformerBlock", "SwinTransformerV2Block"),
    "byobnet, cspnet": ("BottleneckBlock", "DarkBlock", "EdgeBlock"),
    "maxvit, coatnet": ("MaxxVitBlock", "MbConvBlock"),
    "densenet": ("DenseBlock",),
    "unet": ("DoubleConvolution",),
}  # fmt: skip


class Bottleneck(nn.Module):
    """alpha / rank * up(down(dropout(x))), per pixel.

    Args:
        channels: Channels of the map.
        rank: Channels in between.
        scale: alpha / rank.
        dropout: Rate on the input, while training.
        axis: Axis of the channels: 1 for NCHW, -1 for NHWC and token sequences.
    """

    def __init__(self, channels: int, rank: int, scale: float, dropout: float, axis: int) -> None:
        super().__init__()
        self.scale = scale
        self.axis = axis
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(channels, rank, bias=False)
        self.up = nn.Linear(rank, channels, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return the correction, same shape as the features."""
        hidden = self.dropout(features)
        for layer in (self.down, self.up):
            # A 1x1 convolution is the same map without moving the channels to the end.
            hidden = F.conv2d(hidden, layer.weight[:, :, None, None]) if self.axis == 1 else layer(hidden)
        return self.scale * hidden


class BlockAdapter(Adapter):
    """The adapters of one block, one set per task or a shared one.

    Args:
        sets: Adapter by key.
        per_task: Each task has a set of its own.
    """

    by_row = True

    def __init__(self, sets: dict[str, Bottleneck], per_task: bool) -> None:
        super().__init__(per_task)
        self.sets = nn.ModuleDict(sets)

    def add(self, block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Correct a block's output; registered as its forward hook."""
        if not self.per_task:
            return output + self.sets[SHARED](output)
        passage = PASSAGE.get()
        if passage is None:
            return output
        return torch.cat([part + self.sets[task](part) for task, part in passage.split(output).items()])


@ADAPTERS.register("bottleneck")
def attach_bottleneck(
    encoder: Encoder,
    tasks: list[str],
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.1,
    per_task: bool = True,
    ranks: dict = {},  # noqa: B006 (read only)
) -> Encoder:
    """Add a low-rank correction to the output of each residual block, in place.

    The blocks themselves keep their names and weights; the adapters live in `encoder.adapters`. They start as zero.

    Args:
        encoder: Receives the adapters.
        tasks: Names of the tasks; used where `per_task`.
        rank: Channels of the bottleneck.
        alpha: The correction is multiplied by alpha / rank.
        dropout: Rate on the input of the bottleneck, while training.
        per_task: One set per task instead of a shared one; behind the first block the encoder then computes the maps of each.
        ranks: Other ranks for some tasks; alpha / rank stays the same.

    Returns:
        The same encoder.

    Raises:
        ConfigError: The network has no known blocks, or `ranks` names an unknown task.
    """
    sets = set_names(encoder, tasks, per_task)
    problems = [unknown("task", name, tasks, "peft.ranks") for name in ranks if name not in tasks]
    if ranks and not per_task:
        problems.append("`peft.ranks` gives tasks their own rank and so needs `peft.per_task=true`.")
    if problems:
        raise ConfigError(problems)
    check_rank(rank)
    for task in ranks:
        check_rank(ranks[task], f"peft.ranks.{task}")
    for name, channels, axis in find_blocks(encoder):
        block = encoder.body.get_submodule(name)
        adapters = {key: Bottleneck(channels, ranks.get(key, rank), alpha / rank, dropout, axis) for key in sets}
        adapter = BlockAdapter(adapters, per_task).to(next(block.parameters()).device)
        encoder.adapters[spelled(name).replace(".", "_")] = adapter
        # A bound method, so that a deep copy of the encoder calls the copied adapter.
        block.register_forward_hook(adapter.add)
    for norm in encoder.body.modules() if per_task else ():
        if isinstance(norm, nn.BatchNorm2d):
            keep_tasks_apart(norm)
    encoder.announce_adapters(tasks, per_task)
    return encoder


def find_blocks(encoder: Encoder) -> list[tuple[str, int, int]]:
    """Return (module name, channels, axis of the channels) of each block that the features pass through.

    Raises:
        ConfigError: None of the network's modules is a known block.
    """
    kinds = {kind for family in BLOCKS.values() for kind in family}
    names: list[str] = []
    for name, module in encoder.body.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in names)
        if type(module).__name__ in kinds and not nested:
            names.append(name)
    channels_last = str(getattr(encoder.body, "output_fmt", "NCHW")).endswith("NHWC")
    found = []
    for name, shape in output_shapes(encoder, names).items():
        axis = 1 if len(shape) == 4 and not channels_last else -1
        found.append((name, shape[axis], axis))
    if not found:
        raise ConfigError(
            f"`peft.name=bottleneck`: `{encoder.architecture}` has no blocks to adapt: expected a network of the families "
            f"{', '.join(BLOCKS)}. Use `peft=lora`, which works for any."
        )
    return found
