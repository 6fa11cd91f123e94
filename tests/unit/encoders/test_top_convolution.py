"""The layers behind the last map: those of the whole network, treated as part of the body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mtl.core.errors import CheckpointError, ConfigError
from mtl.core.registry import ADAPTERS, ENCODERS
from mtl.encoders import hub
from mtl.encoders.base import adapter_parameters


def build(architecture: str = "test_efficientnet", **settings: Any) -> Any:
    return ENCODERS.build({"name": "timm", "architecture": architecture, "top_convolution": True, **settings})


def whole(architecture: str = "test_efficientnet", **settings: Any) -> Any:
    """The network as timm builds it, with statistics that an untrained one does not have."""
    torch.manual_seed(5)
    network = timm.create_model(architecture, **settings)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, settings.get("in_chans", 3), 64, 64))
    return network.eval()


@pytest.mark.parametrize("architecture", ["test_efficientnet", "efficientnet_b0", "mobilenetv2_050", "tf_efficientnet_lite0"])
def test_the_last_map_is_that_of_the_whole_network(architecture: str, tmp_path: Path) -> None:
    network, path = whole(architecture), tmp_path / "whole.pth"
    torch.save(network.state_dict(), path)
    encoder = build(architecture, weights=str(path)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(encoder(images)[-1], network.forward_features(images))
    assert encoder.channels[-1] == network.num_features and encoder.strides[-1] == 32
    assert encoder.report.complete and encoder.report.leftover == ("classifier.weight", "classifier.bias")
    top = {"conv_head.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"}
    assert top <= set(encoder.report.loaded)
    plain = ENCODERS.build({"name": "timm", "architecture": architecture, "weights": str(path)}).eval()
    assert top <= set(plain.report.leftover) and plain.report.complete
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(plain(images)[:-1], encoder(images)[:-1], strict=True))


def test_size_of_b0() -> None:
    assert sum(parameter.numel() for parameter in build("efficientnet_b0").parameters()) == 4_007_548


def test_a_file_without_these_layers_is_refused(tmp_path: Path) -> None:
    plain = ENCODERS.build({"name": "timm", "architecture": "test_efficientnet"})
    torch.save(plain.body.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"5 missing \(conv_head.weight"):
        build(weights=str(tmp_path / "plain.pth"))


@pytest.mark.parametrize("architecture", ["test_resnet", "mobilenetv3_small_050"])
def test_networks_that_end_otherwise_are_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.top_convolution=true.*`" + architecture):
        build(architecture)


def test_frozen_with_the_body_and_unfrozen_by_name() -> None:
    def step(encoder: Any) -> tuple[set[str], set[str]]:
        """Names that moved, and parameters with a gradient."""
        before = {key: value.clone() for key, value in encoder.body.state_dict().items()}
        encoder.train()
        maps = encoder(torch.randn(4, 3, 64, 64))
        if maps[-1].requires_grad:
            maps[-1].square().mean().backward()
        moved = {key for key, value in encoder.body.state_dict().items() if not torch.equal(value, before[key])}
        return moved, {name for name, parameter in encoder.body.named_parameters() if parameter.grad is not None}

    frozen = build(freeze="all")
    assert step(frozen) == (set(), set()) and not frozen.body.bn2.training
    opened = build(freeze="all", unfreeze=["conv_head", "bn2"])
    moved, trained = step(opened)
    assert moved == {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"}
    assert trained == {"conv_head.weight", "bn2.weight", "bn2.bias"}


@pytest.mark.parametrize("name", ["lora", "bottleneck"])
def test_adapters_work_beside_it(name: str) -> None:
    encoder = build(freeze="all")
    ADAPTERS.build({"name": name, "per_task": False}, encoder, ["a"])
    encoder(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert any(parameter.grad is not None for parameter in adapter_parameters(encoder))
    assert all(parameter.grad is None for key, parameter in encoder.body.named_parameters() if key == "bn2.weight")


def test_published_weights_that_timm_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detour over timm's own loading fills the last layers too."""
    network = whole()
    torch.save({**network.state_dict(), "blocks.0.0.conv_of_somebody.weight": torch.zeros(1)}, tmp_path / "published.pth")
    monkeypatch.setattr(hub, "_cached", lambda config: tmp_path / "published.pth")
    monkeypatch.setattr("timm.models._builder.load_pretrained", load_leniently(tmp_path / "published.pth"))
    encoder = build(pretrained=True)
    assert "converted by timm" in encoder.report.source
    assert torch.equal(encoder.body.conv_head.weight, network.conv_head.weight)
    assert torch.equal(encoder.body.bn2.running_var, network.bn2.running_var)


def load_leniently(path: Path) -> Any:
    def load(model: Any, **settings: Any) -> None:
        model.load_state_dict(torch.load(path, weights_only=True), strict=False)

    return load
