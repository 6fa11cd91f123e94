"""What heads that find points share: one point per object, and the form of a prediction."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction

# Points that may be objects, per row: [N, 2] (x, y) in network pixels; [N] scores, descending; [N] int64 labels.
Candidates = tuple[Tensor, Tensor, Tensor]
PEAK_WINDOW = 3  # map pixels; what lies nearer is left to the suppression


class PointsHead(Head):
    """A head that finds candidates in `candidates`; the best of those that lie close together remains.

    Keys are in reference pixels, which are microns in data families with such a task; `spec.resolution` turns them into network
    pixels.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        suppression_radius: Microns below which two points are the same object, whatever their classes.
    """

    kind = "points"

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...], suppression_radius: float) -> None:
        super().__init__(spec, channels, strides)
        self.insist("suppression_radius", suppression_radius, suppression_radius >= 0, "a distance in microns, or 0 for none")
        self.radius = suppression_radius * spec.resolution

    def insist(self, key: str, value: float, fits: bool, expected: str) -> None:
        """Refuse the value of a key that does not fit."""
        if not fits:
            raise ConfigError(f"`heads.{self.spec.name}.{key}={value}`: expected {expected}.")

    @abstractmethod
    def candidates(self, output: Output) -> list[Candidates]:
        """Find points in the result of `forward`, for each row of the batch."""

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `points` (network pixels), `scores`, `labels` and the suppression's `radius` (network pixels), best first."""
        predictions = []
        for points, scores, labels in self.candidates(output):
            keep = suppress(points, self.radius)
            radius = torch.tensor(self.radius, dtype=torch.float32, device=points.device)
            predictions.append({"points": points[keep], "scores": scores[keep], "labels": labels[keep], "radius": radius})
        return predictions


def where_it_counts(target: dict[str, Tensor], rendered: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return [1, h, w], 1 where objects were looked for or are rendered, at the size (h, w) of a map; 1 where nothing is known.

    Args:
        target: Of one row; `region` [H, W] bool says where objects were looked for, if not everywhere.
        rendered: [K, h, w] what was rendered for the objects.
        size: Of the map.
    """
    if "region" not in target:
        return torch.ones_like(rendered[:1])
    region = F.interpolate(target["region"][None, None].to(rendered.dtype), size=tuple(size), mode="nearest")[0]
    return torch.maximum(region, (rendered.amax(dim=0, keepdim=True) > 0).to(rendered.dtype))


def suppress(points: Tensor, radius: float) -> Tensor:
    """Keep the best point wherever several lie within a radius.

    The result is that of going through the points from the best to the worst and dropping those that are nearer than `radius`
    to one that was kept. It is found in rounds over all points at once: a point stays once no better one near it is undecided,
    and takes those near it with it. There are as many rounds as the longest chain of ever weaker neighbours needs, a handful.

    Args:
        points: [N, 2], best first.
        radius: Distance, in the unit of `points`, below which two points are the same object.

    Returns:
        [N] bool.
    """
    x, y = points.T.contiguous()
    near = (x[:, None] - x).square_().add_((y[:, None] - y).square_()) < radius**2
    better, worse = near.triu_(1).nonzero().T  # few of all pairs
    kept = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    open_ = ~kept
    while bool(open_.any()):
        best = open_.clone()
        best[worse[open_[better]]] = False
        kept |= best
        open_ &= ~best
        open_[worse[best[better]]] = False
    return kept
