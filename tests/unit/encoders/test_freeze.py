from __future__ import annotations

import copy

import pytest
import torch

from mtl.core.registry import ENCODERS
from mtl.encoders.freeze import trainable_parameters


def build(architecture: str = "test_resnet", **settings):
    return ENCODERS.build({"name": "timm", "architecture": architecture, **settings})


def train_one_step(encoder, **call) -> None:
    """One real step with every parameter in the optimizer, so that only freezing can keep one still."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    loss = sum(m.square().mean() for m in encoder(torch.randn(4, 3, 64, 64) * 3 + 1, **call))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()


@pytest.mark.parametrize("architecture", ["test_resnet", "mobilenetv3_small_050", "test_convnext"])
def test_frozen_is_bit_identical_after_a_step(architecture: str) -> None:
    encoder = build(architecture, freeze="all", drop_path=0.2)
    before = copy.deepcopy(encoder.state_dict())
    train_one_step(encoder)
    assert not trainable_parameters(encoder)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert encoder.training and not any(m.training for n, m in encoder.body.named_modules() if n)


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [("test_resnet", "layer4"), ("mobilenetv3_small_050", "blocks.5"), ("test_convnext", "stages.3"), ("regnetx_002", "s4")],
)
def test_unfrozen_stage_moves_with_its_statistics_and_nothing_else(architecture: str, prefix: str) -> None:
    encoder = build(architecture, freeze="all", unfreeze=[prefix])
    for parameter in trainable_parameters(encoder).values():
        if parameter.ndim == 1:  # timm starts the last norm of a block at zero, which blocks gradients
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    before = copy.deepcopy(encoder.state_dict())
    train_one_step(encoder)
    inside = prefix.replace("stages.", "stages_")
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(f"body.{inside}.")}
    assert moved


def test_whole_name_components_count() -> None:
    encoder = build("mobilenetv3_large_100", freeze="all", unfreeze=["blocks.1.0"])
    assert {name.split(".")[2] + "." + name.split(".")[3] for name in trainable_parameters(encoder)} == {"1.0"}


def test_published_hybrid_trains_layer4_only() -> None:
    encoder = build("resnet50", freeze="all", unfreeze=["layer4"])
    assert sum(p.numel() for p in trainable_parameters(encoder).values()) == 14_964_736


def test_frozen_survives_eval_train_and_copy() -> None:
    encoder = copy.deepcopy(build(freeze="all", unfreeze=["layer4"]).eval()).train()
    modes = {name: m.training for name, m in encoder.body.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {name.startswith("layer4") for name, mode in modes.items() if mode} == {True}
    assert {name.startswith("layer4") for name, mode in modes.items() if not mode} == {False}
