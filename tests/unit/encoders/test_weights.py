from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mtl.core.errors import CheckpointError
from mtl.core.registry import ADAPTERS, ENCODERS
from mtl.encoders.weights import adapt_stem, load_weights


def build(architecture: str = "test_resnet", **settings):
    return ENCODERS.build({"name": "timm", "architecture": architecture, **settings})


def assert_same(encoder, source) -> None:
    for name, value in source.body.state_dict().items():
        assert torch.equal(encoder.body.state_dict()[name], value), name


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "wrapped"])
def test_full_timm_network_fills_the_encoder(architecture: str, form: str, tmp_path) -> None:
    full = timm.create_model(architecture).eval()
    state = full.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        wrapped = {"module.backbone." + key: value for key, value in state.items()}
        torch.save(
            {"plain": state, "state_dict": {"state_dict": state}, "model": {"model": state, "epoch": 3}, "wrapped": wrapped}[
                form
            ],
            path,
        )
    encoder = build(architecture, weights=str(path)).eval()
    assert encoder.report.complete and encoder.report.leftover
    assert set(encoder.report.loaded) == set(encoder.body.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = full.forward_intermediates(images, intermediates_only=True)[-1]
        found = encoder(images)[-1]
    if expected.shape == found.shape:
        torch.testing.assert_close(found, expected)


def test_plain_torchvision_resnet50_loads(tmp_path) -> None:
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "tv.pth")
    report = build("resnet50", weights=str(tmp_path / "tv.pth")).report
    assert report.leftover == ("fc.weight", "fc.bias") and report.complete


def test_encoder_of_an_mtl_checkpoint_is_taken(tmp_path) -> None:
    source = build()
    state = {f"model.encoder.{key}": value for key, value in source.state_dict().items()}
    state |= {"model.heads.detection.conv1.weight": torch.zeros(3), "balancer.log_variance": torch.zeros(2)}
    torch.save({"mtl": {"version": 1}, "state_dict": state, "epoch": 4}, tmp_path / "best.ckpt")
    encoder = build(weights=str(tmp_path / "best.ckpt"))
    assert_same(encoder, source)
    assert encoder.report.leftover == ()


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_checkpoint_with_adapters_gives_its_base(kind: str, tmp_path) -> None:
    base = build()
    source = ADAPTERS.build({"name": kind, "rank": 2}, build(), ["a"])
    load_weights(source.body, _save(base.body.state_dict(), tmp_path / "base.pth"))
    state = {f"model.encoder.{key}": value for key, value in source.state_dict().items()}
    encoder = build(weights=_save({"mtl": {}, "state_dict": state}, tmp_path / "c.ckpt"))
    assert_same(encoder, base)
    assert encoder.report.leftover and all("adapters." in key or "parametrizations" in key for key in encoder.report.leftover)


def test_frozen_and_adapted_still_load_first(tmp_path) -> None:
    source = build()
    path = _save(source.body.state_dict(), tmp_path / "w.pth")
    encoder = build(weights=path, freeze="all")
    before = {name: value.clone() for name, value in source.body.state_dict().items()}
    ADAPTERS.build({"name": "lora"}, encoder, ["a"])
    assert torch.equal(encoder.body.layer1[0].conv1.weight, before["layer1.0.conv1.weight"])


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_stem_is_adapted_as_timm_does(in_chans: int, tmp_path) -> None:
    full = timm.create_model("test_resnet")
    encoder = build(weights=_save(full.state_dict(), tmp_path / "w.pth"), in_chans=in_chans)
    from timm.models._manipulate import adapt_input_conv

    own = next(m for m in encoder.body.modules() if isinstance(m, nn.Conv2d)).weight
    theirs = next(m for m in full.modules() if isinstance(m, nn.Conv2d)).weight
    torch.testing.assert_close(own.detach(), adapt_input_conv(in_chans, theirs.detach()))
    assert len(encoder.report.adapted) == 1 and encoder.report.complete


def test_grey_stem_of_a_checkpoint_widens() -> None:
    wide = adapt_stem(torch.ones(2, 1, 3, 3), 3)
    assert wide.shape == (2, 3, 3, 3) and torch.allclose(wide.sum(1), torch.ones(2, 3, 3))


def test_report_names_every_key(tmp_path) -> None:
    state = build().body.state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer2.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    state["layer4.7.conv1.weight"] = torch.zeros(2)
    state["fc.weight"] = torch.zeros(2)
    path = _save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(layer1.0.conv1.weight\) and 1 unexpected \(layer4.7"):
        build(weights=path)
    target = build().body
    before = target.state_dict()["layer1.0.conv1.weight"].clone()
    report = load_weights(target, path, strict=False)
    assert report.missing == ("layer1.0.conv1.weight",)
    assert report.unexpected == ("layer4.7.conv1.weight",)
    assert report.leftover == ("fc.weight",)
    assert len(report.mismatched) == 1 and report.mismatched[0].startswith("layer2.0.conv1.weight: [1, 2, 3, 3]")
    assert len(report.loaded) == len(target.state_dict()) - 2
    assert torch.equal(target.state_dict()["layer1.0.conv1.weight"], before)
    text = "\n".join(report.describe())
    assert all(key in text for key in (*report.missing, *report.unexpected, "fc.weight", "layer2.0.conv1.weight"))


def test_deeper_network_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="unexpected"):
        build("resnet10t", weights=_save(timm.create_model("resnet14t").state_dict(), tmp_path / "w.pth"))


def test_prefix_selects_one_of_two_networks(tmp_path) -> None:
    one, two = build(), build()
    state = {f"student.{k}": v for k, v in one.body.state_dict().items()}
    state |= {f"teacher.{k}": v for k, v in two.body.state_dict().items()}
    target = build()
    load_weights(target.body, _save(state, tmp_path / "w.pth"), prefix="teacher.")
    assert_same(target, two)


@pytest.mark.parametrize("content", [b"", b"not a torch file", None])
def test_unreadable_files_are_named(content: bytes | None, tmp_path) -> None:
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            build(weights=str(path))


def test_pickled_objects_and_foreign_networks_are_refused(tmp_path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build(weights=str(tmp_path / "module.pth"))
    with pytest.raises(CheckpointError, match="No key of"):
        build(weights=_save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="no encoder"):
        build(weights=_save({"mtl": {}, "state_dict": {"model.heads.x": torch.zeros(1)}}, tmp_path / "c.ckpt"))
    with pytest.raises(CheckpointError, match="no state dict"):
        build(weights=_save([1, 2], tmp_path / "l.pth"))


def _save(content, path) -> str:
    torch.save(content, path)
    return str(path)
