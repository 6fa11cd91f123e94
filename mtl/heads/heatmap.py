"""Heatmaps whose peaks are objects."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.heatmap import render_heatmap
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.heads.pyramid import select_levels
from mtl.layers import in_float32, resize, separable_block
from mtl.losses.base import build_loss


class HeatmapBase(Head):
    """Loss and peak finding of heads whose `forward` returns `heatmap` [B, K, h, w] in [0, 1].

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys); it sees the map, not logits.
        stride: Network pixels per map pixel of the heatmap.
        sigma: Standard deviation of a target peak, in map pixels.
        peak_window: A peak is the largest map pixel of this (odd) window around it.
        score_threshold: Lowest peak that `decode` returns.
        max_peaks: Most peaks per image.
        refine: Move a peak within its map pixel by a parabola through the logarithm of its neighbours.
    """

    kind = "heatmap"

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        loss: dict,
        stride: int,
        sigma: float,
        peak_window: int,
        score_threshold: float,
        max_peaks: int,
        refine: bool,
    ) -> None:
        super().__init__(spec, channels, strides)
        if peak_window % 2 == 0:
            raise ConfigError(f"`heads.{spec.name}.peak_window`: expected an odd number of map pixels, found {peak_window}.")
        self.criterion = build_loss(loss, spec)
        self.stride = stride
        self.sigma = sigma
        self.peak_window = peak_window
        self.score_threshold = score_threshold
        self.max_peaks = max_peaks
        self.refine = refine

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the heatmap of an input."""
        return -(-image_size[0] // self.stride), -(-image_size[1] // self.stride)

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Render the targets from their points and compare."""
        heatmap = output["heatmap"]
        truth = torch.stack([self.render(known, heatmap.shape[-2:]) for known in target])
        return {"heatmap": self.criterion(heatmap.float(), truth)}

    def render(self, target: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the target [K, h, w] of one row."""
        return render_heatmap(target["points"], target["labels"], len(self.spec.classes), size, self.stride, self.sigma)

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `heatmap`, `points` (network pixels), `scores`, `labels`, `stride` and `sigma` per row, best peak first."""
        heatmap = output["heatmap"].detach().float()
        constants = {"stride": heatmap.new_tensor(float(self.stride)), "sigma": heatmap.new_tensor(float(self.sigma))}
        found = find_peaks(heatmap, self.peak_window, self.score_threshold, self.max_peaks, self.refine)
        return [
            {"heatmap": row, "points": places * self.stride, "scores": scores, "labels": labels, **constants}
            for row, (places, scores, labels) in zip(heatmap, found, strict=True)
        ]


def find_peaks(heatmap: Tensor, side: int, threshold: float, limit: int, refine: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Find local maxima.

    Args:
        heatmap: [B, K, h, w] float32.
        side: Odd side of the neighbourhood in map pixels.
        threshold: Lowest value of a peak.
        limit: Most peaks per row.
        refine: Estimate the position within the map pixel.

    Returns:
        Per row: [N, 2] (x, y) in map pixels, the middle of the first being (0.5, 0.5); [N] values, descending; [N] channels.
    """
    rows, _, height, width = heatmap.shape
    # The index of the neighbourhood's first maximum: on a plateau one map pixel wins, instead of all.
    _, winner = F.max_pool2d(heatmap, side, stride=1, padding=side // 2, return_indices=True)
    own = torch.arange(height * width, device=heatmap.device).view(height, width)
    peaks = torch.where((winner == own) & (heatmap >= threshold), heatmap, -1.0).view(rows, -1)
    values, index = peaks.topk(min(limit, peaks.shape[1]), dim=1)
    found = []
    for row in range(rows):
        flat = index[row][values[row] >= 0].sort().values
        # Equal values in the order of their map pixels, whatever topk makes of them.
        scores, order = peaks[row, flat].sort(descending=True, stable=True)
        flat = flat[order]
        labels, place = flat.div(height * width, rounding_mode="floor"), flat % (height * width)
        y, x = place.div(width, rounding_mode="floor"), place % width
        position = torch.stack([x, y], dim=1).float() + 0.5
        if refine:
            position = position + _offset(heatmap[row], labels, y, x)
        found.append((position, scores, labels))
    return found


def _offset(heatmap: Tensor, labels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return where the parabola through three log values peaks, per axis, in [-0.5, 0.5]; exact for a Gaussian."""
    # The border repeats its value, which keeps peaks there from moving outwards.
    log = F.pad(heatmap[None].clamp(min=1e-6), (1, 1, 1, 1), mode="replicate")[0].log()
    here = log[labels, y + 1, x + 1]

    def vertex(before: Tensor, after: Tensor) -> Tensor:
        curvature = (2 * here - before - after).clamp(min=1e-6)
        return ((after - before) / (2 * curvature)).clamp(-0.5, 0.5)

    horizontal = vertex(log[labels, y + 1, x], log[labels, y + 1, x + 2])
    vertical = vertex(log[labels, y, x + 1], log[labels, y + 2, x + 1])
    return torch.stack([horizontal, vertical], dim=1)


def project_maps(
    channels: tuple[int, ...], strides: tuple[int, ...], stride: int, width: int
) -> tuple[list[int], nn.ModuleList]:
    """Choose maps and build a 1x1 projection for each; maps finer than `stride` are left out unless all are.

    Returns:
        Positions of the maps, and their projections.
    """
    positions = [index for index, given in enumerate(strides) if given >= stride] or [len(strides) - 1]
    return positions, nn.ModuleList(nn.Conv2d(channels[position], width, 1) for position in positions)


def sum_maps(features: tuple[Tensor, ...], positions: list[int], projections: nn.ModuleList, size: tuple[int, int]) -> Tensor:
    """Add up the projected maps at (height, width).

    One after the other, since a stack of them would not keep channels last; in float32, so that 16 bits are rounded to once.
    """
    projected = [resize(project(features[at]), size) for project, at in zip(projections, positions, strict=True)]
    if len(projected) == 1:
        return projected[0]
    return reduce(torch.add, (maps.float() for maps in projected)).to(projected[0].dtype)


def heatmap_blocks(width: int, norm: str) -> nn.Sequential:
    """Build two 3x3 convolutions, each with normalisation and ReLU."""

    def block() -> list[nn.Module]:
        normalise = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(8, width), width)
        return [nn.Conv2d(width, width, 3, padding=1, bias=False), normalise, nn.ReLU(inplace=True)]

    return nn.Sequential(*block(), *block())


def rare_logits(width: int, classes: int, prior_probability: float) -> nn.Conv2d:
    """Build the 1x1 convolution of a heatmap's logits, whose sigmoid is `prior_probability` everywhere before training."""
    logits = nn.Conv2d(width, classes, 1)
    nn.init.normal_(logits.weight, std=0.01)
    assert logits.bias is not None
    nn.init.constant_(logits.bias, math.log(prior_probability / (1 - prior_probability)))
    return logits


@HEADS.register("heatmap")
class HeatmapHead(HeatmapBase):
    """Sums 1x1 projections of the maps at the output stride, then two 3x3 convolutions and a sigmoid.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps; maps finer than the output are left out unless all are.
        loss: The loss (a name and its keys).
        stride: Network pixels per map pixel of the heatmap.
        sigma: Standard deviation of a target peak, in map pixels.
        width: Channels of the convolutions.
        norm: `group` does not depend on how many images share a batch.
        prior_probability: Value of every map pixel before training; peaks are rare.
        peak_window: A peak is the largest map pixel of this (odd) window around it.
        score_threshold: Lowest peak that `decode` returns.
        max_peaks: Most peaks per image.
        refine: Estimate a peak's position within its map pixel.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        stride: int = 4,
        sigma: float = 2.0,
        width: int = 32,
        norm: Literal["group", "batch"] = "group",
        prior_probability: float = 0.01,
        peak_window: int = 5,
        score_threshold: float = 0.1,
        max_peaks: int = 600,
        refine: bool = True,
    ) -> None:
        super().__init__(spec, channels, strides, loss, stride, sigma, peak_window, score_threshold, max_peaks, refine)
        self.positions, self.projections = project_maps(channels, strides, stride, width)
        self.convolutions = heatmap_blocks(width, norm)
        self.logits = rare_logits(width, len(spec.classes), prior_probability)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `heatmap` [B, K, h, w] in [0, 1]."""
        summed = sum_maps(features, self.positions, self.projections, self.size(image_size))
        return {"heatmap": in_float32(self.logits, self.convolutions(summed)).sigmoid()}


@HEADS.register("heatmap_published")
class PublishedHeatmapHead(HeatmapBase):
    """Heatmap head of the published malaria network (66,018 parameters on ResNet-50 with one class).

    Takes the maps of strides 4 and 8; the attention is an unbounded multiplier, as published. The map is computed at stride 4
    and averaged to stride 8.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        sigma: Standard deviation of a target peak, in map pixels of 8 network pixels.
        peak_window: A peak is the largest map pixel of this (odd) window around it.
        score_threshold: Lowest peak that `decode` returns.
        max_peaks: Most peaks per image.
        refine: Estimate a peak's position within its map pixel.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        sigma: float = 1.0,
        peak_window: int = 3,
        score_threshold: float = 0.1,
        max_peaks: int = 600,
        refine: bool = True,
    ) -> None:
        super().__init__(spec, channels, strides, loss, 8, sigma, peak_window, score_threshold, max_peaks, refine)
        self.positions = select_levels(strides, [2, 3], spec.name)
        fine, coarse = (channels[position] for position in self.positions)
        self.project_fine, self.project_coarse = nn.Conv2d(fine, 64, 1), nn.Conv2d(coarse, 64, 1)
        self.attention = nn.Sequential(nn.Conv2d(128, 32, 1), nn.ReLU(inplace=True), nn.Conv2d(32, 1, 1))
        self.convolutions = nn.Sequential(separable_block(128, 64), separable_block(64, 32))
        self.logits = nn.Conv2d(32, len(spec.classes), 1)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `heatmap` [B, K, h, w] in [0, 1]."""
        fine, coarse = (features[position] for position in self.positions)
        coarse = resize(self.project_coarse(coarse), fine.shape[-2:])
        both = torch.cat([self.project_fine(fine), coarse], dim=1)
        heatmap = in_float32(self.logits, self.convolutions(both * self.attention(both))).sigmoid()
        return {"heatmap": F.adaptive_avg_pool2d(heatmap, self.size(image_size))}
