"""The U-Net's encoder: shape of its maps, frozen parts, weights, adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl.core.errors import CheckpointError, ConfigError
from mtl.core.registry import ADAPTERS, ENCODERS
from mtl.encoders.base import adapter_parameters
from mtl.encoders.freeze import trainable_parameters


def build(**settings: Any) -> Any:
    torch.manual_seed(0)
    return ENCODERS.build({"name": "unet", "base_filters": 4, "depth": 3, "in_chans": 1, **settings})


def images(rows: int = 4, channels: int = 1) -> torch.Tensor:
    return torch.randn(rows, channels, 64, 96, generator=torch.Generator().manual_seed(1))


def step(encoder: Any) -> None:
    """One step with every parameter in the optimizer, so that only freezing can keep one still."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    loss = sum(m.square().mean() for m in encoder(images() * 3 + 1))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()


def test_maps_start_at_full_size_and_channels_double() -> None:
    encoder = build(in_chans=4)
    assert encoder.channels == (4, 8, 16, 32) and encoder.strides == (1, 2, 4, 8)
    assert [tuple(m.shape) for m in encoder(images(2, 4))] == [(2, 4, 64, 96), (2, 8, 32, 48), (2, 16, 16, 24), (2, 32, 8, 12)]
    assert encoder.example().shape == (1, 4, 16, 24)
    # Convolutions have a bias only where no norm follows that would undo it.
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in encoder.modules())
    assert all(m.bias is not None for m in build(norm="none").modules() if isinstance(m, nn.Conv2d))


def test_frozen_is_bit_identical_after_a_step() -> None:
    encoder = build(freeze="all", dropout=0.5)
    before = copy.deepcopy(encoder.state_dict())
    step(encoder)
    assert not trainable_parameters(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(encoder(images())[-1], encoder(images())[-1])  # no dropout in a frozen part


def test_all_but_the_last_stages_can_be_frozen() -> None:
    encoder = build(freeze="all", unfreeze=["stages.1", "stages.2"])
    before = copy.deepcopy(encoder.state_dict())
    step(encoder)
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("body.stages.1.", "body.stages.2."))}
    with pytest.raises(ConfigError, match=r"stages\.7.*stem, stages\.0, stages\.1, stages\.2"):
        build(freeze="all", unfreeze=["stages.7"])


def test_weights_load_strictly_and_adapt_to_the_channels(tmp_path: Path) -> None:
    source = build(in_chans=3)
    torch.save({"model_state_dict": {f"encoder.body.{k}": v for k, v in source.body.state_dict().items()}}, tmp_path / "w.pth")
    grey = build(in_chans=1, weights=str(tmp_path / "w.pth"))
    assert grey.report.complete and grey.report.adapted == ("stem.0.weight",)
    copied = images(2).expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey.eval()(images(2))[-1], source.eval()(copied)[-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="another network"):
        build(depth=4, weights=str(tmp_path / "w.pth"))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for saving in (False, True):
        encoder = build(gradient_checkpointing=saving, dropout=0.3)
        torch.manual_seed(3)
        sum(m.square().mean() for m in encoder(images())).backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("peft", ["lora", "bottleneck"])
def test_adapters_per_task(peft: str, saving: bool) -> None:
    encoder = build(freeze="all", base_filters=8, gradient_checkpointing=saving)
    ADAPTERS.build({"name": peft, "rank": 2, "per_task": True}, encoder, ["a", "b"])
    if peft == "bottleneck":  # behind each double convolution
        assert list(encoder.adapters) == ["stem", "stages_0_1", "stages_1_1", "stages_2_1"]
    plain = encoder.eval()(images(), task="a")[-1]
    with torch.no_grad():
        for parameter in adapter_parameters(encoder):
            parameter.add_(0.1)
    assert not torch.equal(encoder(images(), task="a")[-1], plain)
    encoder.train()(images(), task="a")[-1].square().sum().backward()
    moved = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved and all(".a" in name for name in moved)


@pytest.mark.parametrize(
    "settings", [{"depth": 0}, {"depth": 6}, {"base_filters": 0}, {"dropout": 1.0}, {"unfreeze": ["stem"]}], ids=str
)
def test_impossible_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`backbone.{next(iter(settings))}="):
        build(**settings)
