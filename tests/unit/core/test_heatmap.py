"""Targets around points, against drawing them one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtl.core.heatmap import render_heatmap, render_shapes

SIZE = (24, 40)


def scatter(count: int = 30) -> tuple[Tensor, Tensor]:
    """Points in and around a map of `SIZE`, of two classes."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 2, generator=generator) * torch.tensor([48.0, 32.0]) - 4
    return points, torch.randint(0, 2, (count,), generator=generator)


@pytest.mark.parametrize(("stride", "sigma"), [(1.0, 1.0), (2.0, 1.5), (4.0, 0.5), (1.0, 20.0)])
def test_gaussians_are_those_drawn_one_by_one(stride: float, sigma: float) -> None:
    points, labels = scatter()
    height, width = (int(side // stride) for side in SIZE)
    expected = torch.zeros(2, height, width)
    reach = int(3 * sigma + 0.5)
    for (px, py), label in zip((points / stride).floor().tolist(), labels.tolist(), strict=True):
        for y in range(height):
            for x in range(width):
                if abs(x - px) <= reach and abs(y - py) <= reach:
                    value = math.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
                    expected[label, y, x] = max(expected[label, y, x].item(), value)
    drawn = render_heatmap(points, labels, 2, (height, width), stride, sigma)
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-7)
    assert drawn.max() == 1  # exactly, at every peak


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("radius", [0.4, 3.0, 4.5])
def test_shapes_are_those_drawn_one_by_one(square: bool, radius: float) -> None:
    points, labels = scatter(12)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    expected = torch.zeros(2, *SIZE)
    for (px, py), label in zip(points.floor().tolist(), labels.tolist(), strict=True):
        near = ((x - px).abs() <= radius) & ((y - py).abs() <= radius)
        expected[label][near if square else (x - px) ** 2 + (y - py) ** 2 <= radius**2] = 1
    assert torch.equal(render_shapes(points, labels, 2, SIZE, radius, square), expected)


def test_a_disc_has_its_area_and_a_map_without_points_is_empty() -> None:
    disc = render_shapes(torch.tensor([[20.0, 12.0]]), torch.tensor([0]), 1, SIZE, 8.0, False)
    assert disc.sum().item() == pytest.approx(math.pi * 64, rel=0.03)
    nothing, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    assert render_shapes(nothing, labels, 2, SIZE, 8.0, True).abs().sum() == 0
    assert render_heatmap(nothing, labels, 2, SIZE, 1.0, 2.0).shape == (2, *SIZE)
    far = torch.tensor([[-500.0, 3.0], [10.0, 1e6]])
    assert render_heatmap(far, torch.zeros(2).long(), 1, SIZE, 1.0, 2.0).abs().sum() == 0
