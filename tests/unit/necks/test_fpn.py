from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torchvision.ops import FeaturePyramidNetwork

from mtl.core.errors import ConfigError
from mtl.core.registry import NECKS

CHANNELS, STRIDES = (8, 16, 32, 64), (4, 8, 16, 32)


def build(channels=CHANNELS, strides=STRIDES, **settings):
    return NECKS.build({"name": "fpn", "width": 8, **settings}, channels, strides)


def maps(height: int = 64, width: int = 96):
    return tuple(torch.randn(2, c, height // s, width // s) for c, s in zip(CHANNELS, STRIDES, strict=True))


def test_published_count() -> None:
    neck = build((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32), levels=[3, 4, 5], width=64)
    assert sum(p.numel() for p in neck.parameters()) == 340_352


def test_equals_torchvision() -> None:
    neck = build(levels=[2, 3, 4, 5])
    reference = FeaturePyramidNetwork(list(CHANNELS), 8)
    for i in range(4):
        reference.inner_blocks[i][0].load_state_dict(neck.laterals[i].state_dict())
        reference.layer_blocks[i][0].load_state_dict(neck.outputs[i].state_dict())
    features = maps()
    for found, wanted in zip(neck(features), reference(dict(enumerate(features))).values(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_published_variant_carries_down_the_finished_map() -> None:
    neck = build(levels=[4, 5], published_top_down=True)
    features = maps()
    coarse = neck.outputs[1](neck.laterals[1](features[3]))
    fine = neck.outputs[0](neck.laterals[0](features[2]) + F.interpolate(coarse, scale_factor=2, mode="nearest"))
    found = neck(features)
    torch.testing.assert_close(found[0], fine)
    torch.testing.assert_close(found[1], coarse)
    plain = build(levels=[4, 5])
    plain.load_state_dict(neck.state_dict())
    assert not torch.allclose(plain(features)[0], fine)


@pytest.mark.parametrize(("levels", "extra"), [([3, 4, 5], 0), ([2, 5], 0), ([3], 2), ([5, 3, 4], 1)])
def test_announced_maps_are_the_real_ones(levels: list, extra: int) -> None:
    neck = build(levels=levels, extra_levels=extra, width=12)
    assert neck.strides[: len(levels)] == tuple(2**level for level in sorted(levels))
    found = neck(maps(256, 128))
    assert [tuple(m.shape) for m in found] == [
        (2, c, 256 // s, 128 // s) for c, s in zip(neck.channels, neck.strides, strict=True)
    ]
    sum(m.square().mean() for m in found).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


def test_deepest_of_maps_with_one_stride_is_taken() -> None:
    neck = build((8, 16, 32, 64), (4, 8, 8, 8), levels=[3])
    assert neck.laterals[0].in_channels == 64 and neck.strides == (8,)


@pytest.mark.parametrize("levels", [[1, 2], [6], [], [3, 3]])
def test_missing_levels_are_named(levels: list) -> None:
    with pytest.raises(ConfigError, match=r"2 \(/4\), 3 \(/8\), 4 \(/16\), 5 \(/32\)"):
        build(levels=levels)


def test_convolutions_are_initialised_for_linear_outputs() -> None:
    neck = build(width=64)
    for name, parameter in neck.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            fan_in = parameter[0].numel()
            assert parameter.abs().max() <= (3 / fan_in) ** 0.5
            assert parameter.std().item() == pytest.approx((1 / fan_in) ** 0.5, rel=0.1)


def test_shipped_config_names_every_key_with_its_default() -> None:
    config = yaml.safe_load((Path(__file__).parents[3] / "configs" / "neck" / "fpn.yaml").read_text())
    name = config.pop("name")
    assert (config.pop("shared"), config.pop("features")) == (True, "encoder")  # keys of the model
    assert config == {key: parameter.default for key, parameter in NECKS.entry(name).parameters.items()}
