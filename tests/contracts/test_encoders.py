"""Every encoder keeps the contract, whatever family it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from mtl.core.errors import ConfigError
from mtl.core.registry import ENCODERS

FAMILIES = (
    "resnet10t",
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "regnetx_002",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
)
UNETS = ("unet 1", "unet 3", "unet 5")  # with their depth
KEEP_THEIR_STRIDES = {"swin_tiny"}
CONFIGS = Path(__file__).parents[2] / "configs" / "backbone"
TIMM = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem not in ("timm", "unet"))


def build(architecture: str, **settings):
    if architecture.startswith("unet"):
        depth = int(architecture.rpartition(" ")[2])
        return ENCODERS.build({"name": "unet", "base_filters": 4, "depth": depth, **settings})
    return ENCODERS.build({"name": "timm", "architecture": architecture, **settings})


def assert_contract(encoder, size: tuple[int, int], in_chans: int) -> None:
    encoder.eval()
    with torch.no_grad():
        maps = encoder(torch.randn(2, in_chans, *size))
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, size[0] // s, size[1] // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert list(encoder.strides) == sorted(encoder.strides)
    assert [2**level for level in encoder.levels] == list(encoder.strides)
    assert all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("architecture", [*FAMILIES, *UNETS])
def test_announced_maps_are_the_real_ones(architecture: str, in_chans: int) -> None:
    encoder = build(architecture, in_chans=in_chans)
    assert_contract(encoder, (64, 64), in_chans)
    assert_contract(encoder, (64, 128), in_chans)
    assert len(encoder.normalization["mean"]) == len(encoder.normalization["std"]) == in_chans


@pytest.mark.parametrize("architecture", [*FAMILIES, *UNETS])
def test_every_parameter_reaches_some_map(architecture: str) -> None:
    encoder = build(architecture)
    sum(m.square().mean() for m in encoder(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_channels_last_network_gives_nchw_at_any_size() -> None:
    encoder = build("swin_tiny_patch4_window7_224")
    assert encoder.strides == (4, 8, 16, 32)
    assert_contract(encoder, (64, 96), 3)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_name_every_key_with_its_default(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    parameters = ENCODERS.entry(config.pop("name")).parameters
    assert set(config) == set(parameters)
    assert {k: v for k, v in config.items() if k != "architecture"} == {
        k: p.default for k, p in parameters.items() if k != "architecture"
    }


@pytest.mark.parametrize("path", TIMM, ids=lambda path: path.stem)
def test_shipped_configs_name_existing_networks(path: Path) -> None:
    from mtl.encoders.timm_encoder import check_architecture

    check_architecture(yaml.safe_load(path.read_text())["architecture"])


@pytest.mark.parametrize("path", [*TIMM, CONFIGS / "unet.yaml"], ids=lambda path: path.stem)
def test_shipped_configs_build(path: Path) -> None:
    assert_contract(ENCODERS.build(yaml.safe_load(path.read_text())), (64, 96), 3)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("path", TIMM, ids=lambda path: path.stem)
def test_output_stride_works_or_is_refused(path: Path, output_stride: int) -> None:
    config = yaml.safe_load(path.read_text()) | {"output_stride": output_stride}
    try:
        encoder = ENCODERS.build(config)
    except ConfigError as error:
        assert "backbone.output_stride" in str(error) and path.stem in KEEP_THEIR_STRIDES
        return
    assert path.stem not in KEEP_THEIR_STRIDES
    assert encoder.strides[-1] == max(encoder.strides) == output_stride
    assert_contract(encoder, (64, 96), 3)
