"""Weight files of self-supervised training: where they keep the network, and what else is in them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mtl.core.errors import CheckpointError, ConfigError
from mtl.core.registry import ENCODERS

PROJECTION = {"0.weight": torch.zeros(4, 32), "0.bias": torch.zeros(4), "2.weight": torch.zeros(2, 4)}
State = dict[str, Tensor]


def build(**settings: Any) -> Any:
    return ENCODERS.build({"name": "timm", "architecture": "test_resnet", **settings})


@pytest.fixture(scope="module")
def network() -> State:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=0).state_dict()


@pytest.fixture(scope="module")
def copy() -> State:
    """The slowly following second network that some methods keep."""
    torch.manual_seed(2)
    return timm.create_model("test_resnet", num_classes=0).state_dict()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def file_of(method: str, network: State, copy: State) -> Any:
    """What the training code of a method writes."""
    head = under("projection_head.", PROJECTION)
    return {
        "lunit": lambda: network,  # swav_, bt_ and mocov2_rn50_ep200.torch: the bare trunk
        "retccl": lambda: {**network, "fc.weight": torch.zeros(4, 32)},
        "swav": lambda: {
            "state_dict": {**under("module.", {**network, **head}), "module.prototypes.weight": torch.zeros(9, 2)}
        },
        "barlow_twins": lambda: {
            "epoch": 200,
            "model": {**under("module.backbone.", network), "module.bn.running_mean": torch.zeros(4)},
        },
        "moco": lambda: {
            "arch": "resnet50",
            "state_dict": {
                **under("module.encoder_k.", copy),
                **under("module.encoder_q.", {**network, **under("fc.", PROJECTION)}),
                "module.queue": torch.zeros(2, 9),
            },
        },
        "moco_v3": lambda: {
            "state_dict": {**under("module.momentum_encoder.", copy), **under("module.base_encoder.", network)},
        },
        "dino": lambda: {
            "student": under("module.backbone.", copy),
            "teacher": {**under("backbone.", network), "head.last_layer.weight_v": torch.zeros(3)},
            "args": argparse.Namespace(arch="resnet50", lr=0.03),
        },
        "dino_flat": lambda: {**under("student.backbone.", copy), **under("teacher.backbone.", network)},
        "bolts_byol": lambda: {
            "state_dict": {
                **under("target_network.encoder.", copy),
                **under("online_network.encoder.", {**network, "fc.weight": torch.zeros(4, 32)}),
                **under("online_network.projector.model.", PROJECTION),
            }
        },
        "lightly": lambda: {
            "state_dict": {**under("backbone_momentum.", copy), **under("backbone.", network), **head},
        },
        "simclr": lambda: {"state_dict": under("model.resnet.", network)},
        "vissl": lambda: {
            "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", network), "heads": PROJECTION}}}
        },
    }[method]()


METHODS = (
    "lunit", "retccl", "swav", "barlow_twins", "moco", "moco_v3", "dino", "dino_flat", "bolts_byol", "lightly", "simclr",
    "vissl",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_the_network_of_a_method_is_found(method: str, network: State, copy: State, tmp_path: Path) -> None:
    torch.save(file_of(method, network, copy), tmp_path / "weights.torch")
    encoder = build(weights=str(tmp_path / "weights.torch"))
    for name, value in encoder.body.state_dict().items():
        assert torch.equal(value, network[name]), name
    assert encoder.report.complete and set(encoder.report.loaded) == set(encoder.body.state_dict())
    # Everything else in the file is named, keys of the second network too.
    leftover = "\n".join(encoder.report.leftover)
    expected = {
        "retccl": "fc.weight", "swav": "prototypes", "barlow_twins": "module.bn.", "moco": "module.encoder_k.conv1",
        "moco_v3": "momentum_encoder.conv1", "dino": "head.last_layer", "dino_flat": "student.backbone.conv1",
        "bolts_byol": "target_network.encoder.conv1", "lightly": "backbone_momentum.conv1",
    }.get(method, "")  # fmt: skip
    assert expected in leftover and not (method in ("lunit", "simclr", "vissl") and leftover)
    assert expected in "\n".join(encoder.report.describe())


def test_a_second_network_serves_where_it_is_the_only_one(network: State, tmp_path: Path) -> None:
    torch.save({"student": under("module.backbone.", network)}, tmp_path / "student.pth")
    torch.save(under("module.encoder_k.", network), tmp_path / "momentum.pth")
    for name in ("student", "momentum"):
        assert torch.equal(build(weights=str(tmp_path / f"{name}.pth")).body.conv1[0].weight, network["conv1.0.weight"])


def test_a_network_cut_open_into_its_children(tmp_path: Path) -> None:
    """`nn.Sequential(*list(resnet.children())[:-1])`, as in many tutorials, with its second copy."""
    torch.manual_seed(3)
    full, other = timm.create_model("resnet10t"), timm.create_model("resnet10t")
    cut, second = (nn.Sequential(*list(model.children())[:-1]).state_dict() for model in (full, other))
    torch.save({"state_dict": {**under("backbone_momentum.", second), **under("backbone.", cut)}}, tmp_path / "cut.ckpt")
    encoder = ENCODERS.build({"name": "timm", "architecture": "resnet10t", "weights": str(tmp_path / "cut.ckpt")})
    for name, value in encoder.body.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name
    assert encoder.report.complete and len(encoder.report.leftover) == len(second)


def test_a_part_can_stay_at_its_random_start(network: State, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "weights.torch")
    torch.manual_seed(7)
    plain = build().body.state_dict()
    torch.manual_seed(7)
    encoder = build(weights=str(tmp_path / "weights.torch"), reinitialize=["layer4"], freeze="all", unfreeze=["layer4"])
    for name, value in encoder.body.state_dict().items():
        assert torch.equal(value, (plain if name.startswith("layer4.") else network)[name]), name
    report = encoder.report
    assert report.complete and report.kept and all(key.startswith("layer4.") for key in report.kept)
    assert set(report.loaded) | set(report.kept) == set(plain) and not set(report.loaded) & set(report.kept)
    assert any("kept at their random start: layer4." in line for line in report.describe())


def test_what_is_not_used_may_be_missing_or_different(network: State, tmp_path: Path) -> None:
    """A file whose layer4 is another one is refused, unless layer4 is not taken from it."""
    without = {key: value for key, value in network.items() if not key.startswith("layer4.")}
    deeper = {**network, "layer4.1.conv1.weight": torch.zeros(2, 2, 3, 3), "layer4.0.conv1.weight": torch.zeros(3)}
    for name, state in (("without", without), ("deeper", deeper)):
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match="belongs to another network"):
            build(weights=str(tmp_path / f"{name}.pth"))
        report = build(weights=str(tmp_path / f"{name}.pth"), reinitialize=["layer4"]).report
        assert report.complete and report.leftover == (("layer4.1.conv1.weight",) if name == "deeper" else ())
    del without["layer1.0.conv1.weight"]
    torch.save(without, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(layer1\.0\.conv1\.weight\)"):
        build(weights=str(tmp_path / "broken.pth"), reinitialize=["layer4"])


def test_published_weights_leave_a_part_at_its_start_too(network: State, tmp_path: Path, monkeypatch) -> None:
    torch.save(network, tmp_path / "published.pth")
    monkeypatch.setattr("mtl.encoders.timm_encoder.fetch", lambda architecture: tmp_path / "published.pth")
    encoder = build(pretrained=True, reinitialize=["layer3", "layer4"])
    same = {name.partition(".")[0] for name, p in encoder.body.named_parameters() if torch.equal(p, network[name])}
    assert {"conv1", "layer1", "layer2"} <= same
    changed = {name for name, p in encoder.body.named_parameters() if not torch.equal(p, network[name])}
    assert changed and all(name.startswith(("layer3.", "layer4.")) for name in changed)


def test_a_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.reinitialize` names `layer5`.*layer4"):
        build(reinitialize=["layer5"])
