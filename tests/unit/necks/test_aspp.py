from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS
from mtl.layers import TolerantBatchNorm2d

CHANNELS, STRIDES = (6, 8, 10, 12, 14), (2, 4, 8, 16, 16)


def build(channels: tuple[int, ...] = CHANNELS, strides: tuple[int, ...] = STRIDES, **settings: Any) -> Any:
    torch.manual_seed(0)
    return NECKS.build({"name": "aspp", "width": 8, **settings}, channels, strides)


def maps(strides: tuple[int, ...] = STRIDES, rows: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(rows, c, height // s, width // s, generator=generator) for c, s in zip(CHANNELS, strides, strict=True)
    )


@pytest.mark.parametrize(
    ("strides", "rates"),
    [((2, 4, 8, 8, 8), [12, 24, 36]), ((2, 4, 8, 16, 16), [6, 12, 18]), ((2, 4, 8, 16, 32), [3, 6, 9])],
)
@pytest.mark.parametrize("separable", [False, True])
def test_rates_follow_the_stride(strides: tuple[int, ...], rates: list[int], separable: bool) -> None:
    neck = build(strides=strides, separable=separable)
    kernels = [m for m in neck.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.dilation for m in kernels] == [(rate, rate) for rate in rates]
    assert all((m.groups == m.in_channels) == separable for m in kernels)
    assert all(m.bias is not None for m in neck.modules() if isinstance(m, nn.Conv2d))
    found = neck(maps(strides))
    assert neck.channels == (8, 8) and neck.strides == (4, strides[-1])
    assert [tuple(m.shape) for m in found] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(neck.channels, neck.strides, strict=True)
    ]


def test_equals_torchvision() -> None:
    """The same branches, but torchvision has no biases."""
    neck, reference = build(rates=[1, 2, 3], separable=False).eval(), TorchvisionASPP(14, [1, 2, 3], 8).eval()
    blocks = [neck.point, *neck.dilated, neck.image, neck.project[0]]
    layers = [m for m in reference.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for block, convolution, norm in zip(blocks, layers[::2], layers[1::2], strict=True):
        nn.init.zeros_(block[0].bias)
        convolution.weight = block[0].weight
        nn.init.uniform_(block[1].running_mean)
        norm.load_state_dict(block[1].state_dict())
    features = maps()
    torch.testing.assert_close(neck(features)[1], reference(features[-1]))


def test_the_fine_map_is_passed_on_untouched() -> None:
    features = maps()
    fine, _ = build()(features)
    assert fine is features[1]
    third = build(low_level=3)
    assert third.strides == (8, 16) and third(features)[0] is features[2]
    alone = build(low_level=None)
    assert alone.strides == (16,) and alone.channels == (8,) and len(alone(features)) == 1


def test_without_image_pooling_far_away_does_not_matter() -> None:
    features = maps(strides=(2, 4, 8, 16, 16), height=512, width=512)
    moved = (*features[:-1], features[-1].clone())
    moved[-1][:, :, :, -4:] += 1
    for image_pooling in (True, False):
        neck = build(rates=[1, 2, 3], image_pooling=image_pooling).eval()
        same = torch.equal(neck(features)[1][..., :16], neck(moved)[1][..., :16])
        assert same != image_pooling
    pooled, plain = build(), build(image_pooling=False)
    parameters = [sum(p.numel() for p in neck.parameters()) for neck in (pooled, plain)]
    assert parameters[0] - parameters[1] == 14 * 8 + 8 + 2 * 8 + 8 * 8  # the branch, and its part of the joining convolution


def test_deepest_of_maps_that_share_a_level() -> None:
    neck = build((6, 8, 10), (4, 4, 8))
    assert neck.channels == (8, 8) and neck.position == 1


def test_every_parameter_learns() -> None:
    neck = build(rates=[1, 2], separable=True)
    neck(maps())[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())
    assert neck(maps())[1].std() > 0


@pytest.mark.parametrize("low_level", [0, 4, 5])
def test_missing_levels_are_named(low_level: int) -> None:
    with pytest.raises(ConfigError, match=r"1 \(/2\), 2 \(/4\), 3 \(/8\)"):
        build(low_level=low_level)
    with pytest.raises(ConfigError, match="none; or null"):
        build((6,), (16,))


@pytest.mark.parametrize("rates", [[], [0, 6], [1.5]])
def test_odd_rates_are_refused(rates: list) -> None:
    with pytest.raises(ConfigError, match="rates"):
        build(rates=rates)


def test_a_batch_of_one_trains_on_running_statistics() -> None:
    """Image pooling leaves one value per channel, which has no variance; the other branches keep the batch's statistics."""
    neck, features = build(), maps(rows=1)
    before = neck.image[1].running_mean.clone()
    neck.train()(features)[1].square().sum().backward()
    assert torch.equal(neck.image[1].running_mean, before)
    assert not torch.equal(neck.point[1].running_mean, torch.zeros(8))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())
    neck(maps(rows=2))
    assert not torch.equal(neck.image[1].running_mean, before)


def test_tolerant_norm_is_batch_norm_wherever_there_is_a_variance() -> None:
    torch.manual_seed(0)
    tolerant, plain = TolerantBatchNorm2d(5), nn.BatchNorm2d(5)
    for shape in ((2, 5, 1, 1), (1, 5, 2, 1), (3, 5, 4, 4)):
        value = torch.randn(shape)
        torch.testing.assert_close(tolerant(value), plain(value))
    torch.testing.assert_close(tolerant.running_var, plain.running_var)
    with pytest.raises(ValueError, match="more than 1 value"):
        plain(torch.randn(1, 5, 1, 1))
    single = torch.randn(1, 5, 1, 1)
    torch.testing.assert_close(tolerant(single), plain.eval()(single))


def test_shipped_config_names_every_key_with_its_default() -> None:
    config = yaml.safe_load((Path(__file__).parents[3] / "configs" / "neck" / "aspp.yaml").read_text())
    name = config.pop("name")
    assert (config.pop("shared"), config.pop("features")) == (True, "encoder")  # keys of the model
    assert config == {key: parameter.default for key, parameter in NECKS.entry(name).parameters.items()}
