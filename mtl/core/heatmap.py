"""The one place that draws a Gaussian target, so that loss, metric and figures mean the same map."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def render_heatmap(points: Tensor, labels: Tensor, classes: int, size: tuple[int, int], stride: float, sigma: float) -> Tensor:
    """Draw one Gaussian per point; where several overlap the maximum counts.

    The centre is the cell that contains the point, so every peak is exactly 1; the Gaussian is cut at 3 sigma (7 x 7 cells
    for sigma 1), so a map without points is exactly zero.

    Args:
        points: [N, 2] (x, y) in pixels of the raster that the map covers.
        labels: [N] int64 channel of each point.
        classes: Number of channels K.
        size: (height, width) of the map.
        stride: Raster pixels per map cell.
        sigma: Standard deviation in map cells.

    Returns:
        [K, height, width] float32 in [0, 1].
    """
    import torch

    height, width = size
    heatmap = torch.zeros((classes, height, width), dtype=torch.float32, device=points.device)
    if len(points) == 0:
        return heatmap
    cells = torch.div(points.float(), stride).floor()
    radius = int(3 * sigma + 0.5)

    def profile(centre: Tensor, length: int) -> Tensor:
        offset = torch.arange(length, device=points.device)[None] - centre[:, None]
        return torch.exp(-offset.square() / (2 * sigma**2)) * (offset.abs() <= radius)

    columns, rows = profile(cells[:, 0], width), profile(cells[:, 1], height)
    for channel in range(classes):
        mine = labels == channel
        if not bool(mine.any()):
            continue
        # In blocks, so that thousands of points on a large map stay within memory.
        for some_rows, some_columns in zip(rows[mine].split(64), columns[mine].split(64), strict=True):
            blobs = (some_rows[:, :, None] * some_columns[:, None, :]).amax(dim=0)
            heatmap[channel] = torch.maximum(heatmap[channel], blobs)
    return heatmap
