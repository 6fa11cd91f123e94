"""Objects as the peaks of a heatmap, with an offset within the map pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from mtl.core.heatmap import render_heatmap
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Output
from mtl.heads.heatmap import find_peaks, heatmap_blocks, project_maps, rare_logits, sum_maps
from mtl.heads.points.base import PEAK_WINDOW, Candidates, PointsHead, where_it_counts
from mtl.layers import in_float32
from mtl.losses.base import build_loss


@HEADS.register("centres")
class CentresHead(PointsHead):
    """Centre heatmap with offset (CenterNet, Zhou et al. 2019, https://arxiv.org/abs/1904.07850), without sizes.

    Sums 1x1 projections of the maps at the output stride; after two 3x3 convolutions one 1x1 convolution gives a heatmap for
    each class and another the position of the centre within its map pixel, which all classes share. The offset is learnt at the
    centres alone, with the L1 distance in map pixels.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps; maps finer than the output are left out unless all are.
        loss: The loss of the heatmap (a name and its keys); it sees the map, not logits.
        stride: Network pixels per map pixel of the heatmap. Two objects need two map pixels between them to be told apart.
        sigma: Standard deviation of a target peak, in microns.
        width: Channels of the convolutions.
        norm: `batch`, or `group`, which depends on the whole window: windows of a large image then do not fit together.
        prior_probability: Value of every map pixel before training; centres are rare.
        offset_weight: Weight of the offset's loss.
        suppression_radius: Microns below which two points are the same object, whatever their classes.
        score_threshold: Lowest peak that `decode` returns.
        max_points: Most peaks per image, before suppression; must exceed the densest image.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        stride: int = 2,
        sigma: float = 1.0,
        width: int = 64,
        norm: Literal["group", "batch"] = "batch",
        prior_probability: float = 0.01,
        offset_weight: float = 1.0,
        suppression_radius: float = 2.0,
        score_threshold: float = 0.05,
        max_points: int = 2000,
    ) -> None:
        super().__init__(spec, channels, strides, suppression_radius)
        self.insist("stride", stride, stride >= 1 and stride.bit_count() == 1, "a power of two, for example 2 or 4")
        self.insist("sigma", sigma, sigma > 0, "microns, more than 0")
        self.insist("width", width, width >= 1, "at least 1")
        self.insist("prior_probability", prior_probability, 0 < prior_probability < 1, "more than 0 and less than 1")
        self.insist("max_points", max_points, max_points >= 1, "at least 1")
        self.criterion = build_loss(loss, replace(spec, kind="heatmap"))
        self.stride = stride
        self.sigma = sigma * spec.resolution / stride
        self.offset_weight = offset_weight
        self.score_threshold = score_threshold
        self.max_points = max_points
        self.positions, self.projections = project_maps(channels, strides, stride, width)
        self.convolutions = heatmap_blocks(width, norm)
        self.logits = rare_logits(width, len(spec.classes), prior_probability)
        self.offset = nn.Conv2d(width, 2, 1)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `heatmap` [B, K, h, w] in [0, 1] and `offset` [B, 2, h, w], (x, y) in map pixels from the corner of one."""
        size = (-(-image_size[0] // self.stride), -(-image_size[1] // self.stride))
        maps = self.convolutions(sum_maps(features, self.positions, self.projections, size))
        return {"heatmap": in_float32(self.logits, maps).sigmoid(), "offset": in_float32(self.offset, maps).sigmoid()}

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare the heatmap with one rendered from the points, and the offsets at these points."""
        heatmap = output["heatmap"]
        truth = torch.zeros_like(heatmap)
        counts = torch.ones_like(truth[:, :1])
        for row, known in enumerate(target):
            points, labels = known["points"], known["labels"]
            truth[row] = render_heatmap(points, labels, len(self.spec.classes), heatmap.shape[-2:], self.stride, self.sigma)
            counts[row] = where_it_counts(known, truth[row], heatmap.shape[-2:])
        counted = heatmap.where(counts > 0, truth)  # where nobody looked the prediction is the truth, whatever it is
        return {
            "heatmap": self.criterion(counted, truth),
            "offset": self.offset_weight * self.offset_loss(output["offset"], target),
        }

    def offset_loss(self, offset: Tensor, target: list[dict[str, Tensor]]) -> Tensor:
        """Compute the mean L1 distance, in map pixels, of the offsets at the points; 0 where there is none."""
        points = torch.cat([known["points"] for known in target]).float() / self.stride
        row = torch.cat([known["labels"].new_full((len(known["points"]),), row) for row, known in enumerate(target)])
        corners = points.floor()
        x, y = (corners[:, axis].long().clamp(0, offset.shape[3 - axis] - 1) for axis in (0, 1))
        return (offset[row, :, y, x] - (points - corners)).abs().sum() / max(len(points), 1)

    def candidates(self, output: Output) -> list[Candidates]:
        """Find the peaks and move each within its map pixel."""
        found = []
        peaks = find_peaks(output["heatmap"].detach(), PEAK_WINDOW, self.score_threshold, self.max_points, refine=False)
        for (middles, scores, labels), offset in zip(peaks, output["offset"].detach(), strict=True):
            corners = middles.floor().long()
            points = corners + offset[:, corners[:, 1], corners[:, 0]].T
            found.append((points * self.stride, scores, labels))
        return found
