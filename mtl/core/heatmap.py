"""The one place that renders targets around points, so that loss, metric and figures mean the same map.

Points are marked in an empty map, and the marks are spread by shifting the map. Nothing loops over points or asks the device
for a value, so that a training step does not wait, and nothing is added up in an order that could differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def render_heatmap(points: Tensor, labels: Tensor, classes: int, size: tuple[int, int], stride: float, sigma: float) -> Tensor:
    """Render one Gaussian per point; where several overlap the maximum counts.

    The centre is the map pixel that contains the point, so every peak is exactly 1; the Gaussian is cut at 3 sigma (7 x 7 map
    pixels for sigma 1), so a map without points is exactly zero.

    Args:
        points: [N, 2] (x, y) in pixels of the raster that the map covers.
        labels: [N] int64 channel of each point.
        classes: Number of channels K.
        size: (height, width) of the map.
        stride: Raster pixels per map pixel.
        sigma: Standard deviation in map pixels.

    Returns:
        [K, height, width] float32 in [0, 1].
    """
    import torch

    reach = int(3 * sigma + 0.5)
    marks = _mark(points, labels, classes, size, stride, reach)
    offsets = torch.arange(-reach, reach + 1, device=points.device, dtype=torch.float32)
    profile = torch.exp(-offsets.square() / (2 * sigma**2))
    # The largest product of a mark and two profiles, first along the rows, then along the columns.
    rows = (marks.unfold(2, len(profile), 1) * profile).amax(dim=-1)
    return (rows.unfold(1, len(profile), 1) * profile).amax(dim=-1)


def render_shapes(points: Tensor, labels: Tensor, classes: int, size: tuple[int, int], radius: float, square: bool) -> Tensor:
    """Fill one disc or square around the pixel that contains each point.

    Args:
        points: [N, 2] (x, y) in pixels.
        labels: [N] int64 channel of each point.
        classes: Number of channels K.
        size: (height, width) of the map.
        radius: In pixels. A disc holds the pixels at most this far from the middle one, a square 2 * int(radius) + 1 a side.
        square: Squares instead of discs.

    Returns:
        [K, height, width] float32, 0 or 1.
    """
    import torch
    from torch.nn import functional as F

    reach = int(radius)
    marks = _mark(points, labels, classes, size, 1.0, reach)
    squared = torch.arange(-reach, reach + 1, device=points.device, dtype=torch.float32).square()
    distances = squared[:, None] + squared[None, :]
    shape = torch.ones_like(distances) if square else (distances <= radius**2).float()
    return (F.conv2d(marks[:, None], shape[None, None])[:, 0] > 0.5).float()


def _mark(points: Tensor, labels: Tensor, classes: int, size: tuple[int, int], stride: float, reach: int) -> Tensor:
    """Return [K, height + 2 reach, width + 2 reach]: 1 in the map pixels that contain a point of the channel, else 0."""
    import torch

    height, width = size[0] + 2 * reach, size[1] + 2 * reach
    marked = torch.div(points.float(), stride).floor().long() + reach
    x, y = marked[:, 0], marked[:, 1]
    shown = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    beyond = classes * height * width  # what is too far away to be seen is marked behind the end
    index = torch.where(shown, (labels * height + y) * width + x, beyond)
    marks = torch.zeros(beyond + 1, dtype=torch.float32, device=points.device).index_fill(0, index, 1.0)
    return marks[:-1].view(classes, height, width)
