"""Decoders that several heads read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS, NECKS
from mtl.core.task import TaskSpec

CHANNELS, STRIDES = (6, 9, 12), (4, 8, 16)
SIZE = (64, 96)


def build(name: str, strides: tuple[int, ...] = STRIDES, **settings: Any) -> Any:
    torch.manual_seed(0)
    return NECKS.build({"name": name, **settings}, tuple(CHANNELS[STRIDES.index(s)] for s in strides), strides)


def maps(strides: tuple[int, ...] = STRIDES, rows: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    found = {
        s: torch.randn(rows, c, SIZE[0] // s, SIZE[1] // s, generator=generator) for c, s in zip(CHANNELS, STRIDES, strict=True)
    }
    return tuple(found[stride] for stride in strides)


def test_decoder_and_pixelwise_head_are_the_deeplab_head() -> None:
    """The same layers in the same order, so that a suite can choose how much its heads share."""
    keys = {"width": 8, "low_channels": 4, "low_level": 2, "convolutions": 2, "separable": True, "dropout": 0.0}
    spec, loss = TaskSpec("tissue", "segmentation", ("a", "b", "c"), multilabel=False), {"name": "dice_cross_entropy"}
    whole: Any = HEADS.build({"name": "deeplabv3plus", "loss": loss, **keys}, spec, (6, 12), (4, 16)).eval()
    neck = build("decoder", (4, 16), **keys).eval()
    head: Any = HEADS.build({"name": "pixelwise", "loss": loss}, spec, neck.channels, neck.strides).eval()
    neck.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("logits")})
    head.load_state_dict({key: value for key, value in whole.state_dict().items() if key.startswith("logits")})
    features = maps((4, 16))
    found = head(neck(features), SIZE)["logits"]
    assert neck.channels == (8,) and neck.strides == (4,)
    assert found.shape == (2, 3, 16, 24) and torch.equal(found, whole(features, SIZE)["logits"])


def test_logit_decoder_is_the_published_one() -> None:
    """Step by step: logits at the last map, aligned corners, the fine map without activation, then the two blocks."""
    neck = build("logit_decoder", classes=[3, 2], width=8, low_channels=5, low_level=3).eval()
    assert neck.channels == (8,) and neck.strides == (8,)
    features = maps()
    for norm in (module for module in neck.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean)
    enlarged = [
        F.interpolate(convolution(features[-1]), size=(8, 12), mode="bilinear", align_corners=True)
        for convolution in neck.logits
    ]
    low = neck.reduce[1](neck.reduce[0](features[1]))
    assert (low < 0).any()
    joined = torch.cat([*enlarged, low], dim=1)
    for block in neck.fuse:
        joined = F.relu(block[1](block[0](joined)))
    (found,) = neck(features)
    torch.testing.assert_close(found, joined)
    # A 1x1 convolution before or after enlarging the map: the same logits.
    last = nn.Conv2d(8, 3, 1)
    before = last(F.interpolate(found, size=SIZE, mode="bilinear"))
    torch.testing.assert_close(F.interpolate(last(found), size=SIZE, mode="bilinear"), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["decoder", "logit_decoder"])
def test_every_parameter_learns_from_the_two_maps(name: str) -> None:
    neck = build(name, (8, 16), width=8, low_level=3)
    features = tuple(level.requires_grad_() for level in maps((8, 16)))
    neck(features)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())
    assert all(level.grad is not None for level in features)


@pytest.mark.parametrize("name", ["decoder", "logit_decoder"])
def test_mistakes_are_explained(name: str) -> None:
    with pytest.raises(ConfigError, match=r"neck\.low_level=4.*3 \(/8\)"):
        build(name, (8, 16), low_level=4)
    key, values = ("convolutions", [0]) if name == "decoder" else ("classes", [[3, 0], [True, 2], []])
    for wrong in values:
        with pytest.raises(ConfigError, match=rf"neck\.{key}="):
            build(name, (8, 16), **{"low_level": 3, key: wrong})


def test_a_pyramid_of_which_maps_would_stay_unread_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a neck that gives two maps, such as `aspp`; found 3 maps"):
        build("decoder")


@pytest.mark.parametrize("name", ["decoder", "logit_decoder"])
def test_shipped_config_reads_the_pooling(name: str) -> None:
    config = yaml.safe_load((Path(__file__).parents[3] / "configs" / "neck" / f"{name}.yaml").read_text())
    assert (config["shared"], config["features"]) == (True, "aspp")  # keys of the model
