"""Objects as blobs of a mask, found at the blobs' middles."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.heatmap import render_heatmap, render_shapes
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Output
from mtl.heads.heatmap import find_peaks
from mtl.heads.points.base import PEAK_WINDOW, Candidates, PointsHead, where_it_counts
from mtl.layers import in_float32, resize
from mtl.losses.base import build_loss

CERTAIN = 30.0  # logit of a probability that is 1 in float32


@HEADS.register("blobs")
class BlobsHead(PointsHead):
    """A 1x1 convolution on the finest map it reads; every object is a blob of one size, drawn around its point.

    Points are local maxima of the smoothed probabilities. Blobs are flat inside, so that without smoothing the place of the
    maximum within a blob is noise. Blobs that touch become two points only where smoothing leaves a dip between them.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps; logits have the finest one and are resized to the input.
        loss: A loss for masks of independent channels (a name and its keys).
        shape: `disc`, `square`, or `gaussian`, whose standard deviation is half the radius.
        radius: Of the blobs, in microns; half the side of a square.
        background: One more channel for what is no object. Scores are then softmax probabilities; the loss takes both
            channels as independent, as published.
        smoothing: Standard deviation, in microns, of the Gaussian that smooths the probabilities; 0 for none.
        suppression_radius: Microns below which two points are the same object, whatever their classes.
        score_threshold: Lowest smoothed probability that `decode` returns.
        max_points: Most local maxima per image, before suppression; must exceed the densest image.
        refine: Move a point within its pixel by a parabola through the logarithm of its neighbours.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        shape: Literal["disc", "square", "gaussian"] = "disc",
        radius: float = 4.0,
        background: bool = False,
        smoothing: float = 1.5,
        suppression_radius: float = 4.0,
        score_threshold: float = 0.05,
        max_points: int = 2000,
        refine: bool = True,
    ) -> None:
        super().__init__(spec, channels, strides, suppression_radius)
        self.insist("radius", radius, radius > 0, "microns, more than 0")
        self.insist("smoothing", smoothing, smoothing >= 0, "microns, or 0 for none")
        self.insist("max_points", max_points, max_points >= 1, "at least 1")
        names = ("background", *spec.classes) if background else spec.classes
        self.criterion = build_loss(loss, replace(spec, kind="segmentation", classes=names, multilabel=True))
        self.shape = shape
        self.blob_radius = radius * spec.resolution
        self.background = background
        self.smoothing = smoothing * spec.resolution
        self.score_threshold = score_threshold
        self.max_points = max_points
        self.refine = refine
        self.logits = nn.Conv2d(channels[0], len(names), 1)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return `logits` [B, K (+ 1), h, w], the background first, and the `size` (height, width) of the input."""
        return {"logits": in_float32(self.logits, features[0]), "size": image_size}

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute the loss at the size of the input."""
        logits, size = resize(output["logits"].float(), output["size"]), output["size"]
        truth = torch.stack([self.render(known, size) for known in target])
        counted = torch.stack(
            [where_it_counts(known, drawn[-len(self.spec.classes) :], size) for known, drawn in zip(target, truth, strict=True)]
        )
        # Where nobody looked the prediction is the truth, whatever it is.
        return {"blobs": self.criterion(logits.where(counted > 0, CERTAIN * (2 * truth - 1)), truth)}

    def render(self, target: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the target [K (+ 1), height, width] of one row."""
        points, labels, classes = target["points"], target["labels"], len(self.spec.classes)
        if self.shape == "gaussian":
            blobs = render_heatmap(points, labels, classes, size, 1.0, self.blob_radius / 2)
        else:
            blobs = render_shapes(points, labels, classes, size, self.blob_radius, self.shape == "square")
        return torch.cat([1 - blobs.amax(dim=0, keepdim=True), blobs]) if self.background else blobs

    def candidates(self, output: Output) -> list[Candidates]:
        """Find the local maxima of the smoothed probabilities at the size of the input."""
        logits = resize(output["logits"].detach().float(), output["size"])
        scores = logits.softmax(dim=1)[:, 1:] if self.background else logits.sigmoid()
        scores = smooth(scores, self.smoothing)
        return find_peaks(scores, PEAK_WINDOW, self.score_threshold, self.max_points, self.refine)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth [B, K, h, w] by a Gaussian, cut at 3 sigma; beyond the border nothing counts, instead of counting as 0."""
    reach = int(3 * sigma + 0.5)
    if reach == 0:
        return maps
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    profile = torch.exp(-offsets.square() / (2 * sigma**2))

    def blur(planes: Tensor) -> Tensor:
        rows = F.conv2d(planes, profile.view(1, 1, 1, -1), padding=(0, reach))
        return F.conv2d(rows, profile.view(1, 1, -1, 1), padding=(reach, 0))

    planes = maps.flatten(0, 1)[:, None]
    with torch.autocast(maps.device.type, enabled=False):  # 8 bits would make plateaus
        return (blur(planes) / blur(torch.ones_like(planes[:1]))).view(maps.shape)
