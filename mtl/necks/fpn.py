"""Feature pyramid: coarse meaning carried down to fine maps.

Source: Lin et al., Feature Pyramid Networks for Object Detection, 2017, https://arxiv.org/abs/1612.03144.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS


@NECKS.register("fpn")
class FPN(nn.Module):
    """1x1 laterals, nearest-neighbour top-down sums, 3x3 output convolutions, all with bias.

    Args:
        channels: Channels of the encoder's maps, finest first.
        strides: Their strides.
        levels: Levels to use (log2 of the stride); where several maps share a level, the deepest is taken.
        width: Channels of every output map.
        published_top_down: Carry down the map after its 3x3 convolution, as the published malaria network does, instead
            of the lateral sum.
        extra_levels: Coarser maps to add on top, each by a 3x3 convolution of stride 2.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        levels: list = [3, 4, 5],  # noqa: B006 (read only)
        width: int = 64,
        published_top_down: bool = False,
        extra_levels: int = 0,
    ) -> None:
        super().__init__()
        available = {(stride.bit_length() - 1): index for index, stride in enumerate(strides)}
        missing = [level for level in levels if level not in available]
        if missing or not levels or len(set(levels)) != len(levels):
            raise ConfigError(
                f"`neck.levels={list(levels)}`: expected distinct levels of the encoder, which has "
                f"{', '.join(f'{level} (/{2**level})' for level in sorted(available))}."
            )
        self.indices = [available[level] for level in sorted(levels)]
        self.published_top_down = published_top_down
        used = [strides[index] for index in self.indices]
        self.strides: tuple[int, ...] = (*used, *(used[-1] * 2 ** (step + 1) for step in range(extra_levels)))
        self.channels: tuple[int, ...] = (width,) * len(self.strides)
        self.laterals = nn.ModuleList(nn.Conv2d(channels[index], width, 1) for index in self.indices)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in self.indices)
        self.extras = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(extra_levels))
        # No activation follows, hence a = 1, as in torchvision.
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=1)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute the pyramid.

        Args:
            features: All maps of the encoder, finest first.

        Returns:
            [B, width, H / stride, W / stride] for each of `strides`, finest first.
        """
        sums = [lateral(features[index]) for lateral, index in zip(self.laterals, self.indices, strict=True)]
        maps: list[Tensor] = []
        carried: Tensor | None = None
        for lateral, output in zip(reversed(sums), reversed(list(self.outputs)), strict=True):
            total = lateral if carried is None else lateral + F.interpolate(carried, size=lateral.shape[-2:], mode="nearest")
            maps.insert(0, output(total))
            carried = maps[0] if self.published_top_down else total
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return tuple(maps)
