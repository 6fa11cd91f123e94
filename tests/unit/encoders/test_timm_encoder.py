from __future__ import annotations

import time

import pytest
import torch

from mtl.core.errors import CheckpointError, ConfigError
from mtl.core.registry import ENCODERS
from mtl.encoders import hub
from mtl.encoders.timm_encoder import create_body


def build(architecture: str = "test_resnet", **settings):
    return ENCODERS.build({"name": "timm", "architecture": architecture, **settings})


def test_resnet50_is_the_published_core() -> None:
    encoder = build("resnet50")
    assert sum(p.numel() for p in encoder.parameters()) == 23_508_032
    assert encoder.channels == (64, 256, 512, 1024, 2048)
    assert encoder.normalization == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"architecture": "resnet5"}, "Did you mean `resnet50`?"),
        ({"architecture": "resnet50.nobody_in1k"}, "resnet50.tv_in1k"),
        ({"architecture": "test_vit"}, "single stride"),
        ({"architecture": "swin_tiny_patch4_window7_224", "output_stride": 16}, "resnet"),
        ({"architecture": "densenet121", "output_stride": 16}, "resnet"),
        ({"architecture": "densenet121", "drop_path": 0.1}, "backbone.drop_path"),
        ({"architecture": "test_resnet", "output_stride": 12}, "8 or 16"),
        ({"architecture": "test_resnet", "image_size": [64, 64]}, "any size"),
        ({"architecture": "test_resnet", "image_size": [64]}, "[height, width]"),
        ({"architecture": "maxvit_nano_rw_256"}, "backbone.image_size"),
        ({"architecture": "legacy_xception"}, "does not keep its strides"),
        ({"architecture": "test_resnet", "unfreeze": ["layer4"]}, "backbone.freeze=all"),
        ({"architecture": "test_resnet", "freeze": "all", "unfreeze": ["layer5"]}, "Did you mean `layer4`?"),
        ({"architecture": "test_convnext", "freeze": "all", "unfreeze": ["layer4"]}, "stages.3"),
        ({"architecture": "resnet18", "typo": 1}, "typo"),
    ],
)
def test_wrong_settings_are_named(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        ENCODERS.build({"name": "timm", **settings})
    assert says in str(error.value)


def test_output_stride_keeps_maps_fine() -> None:
    encoder = build(output_stride=8)
    assert encoder.strides == (2, 4, 8, 8, 8)
    assert encoder(torch.zeros(2, 3, 64, 64))[-1].shape[-2:] == (8, 8)


def test_image_size_builds_for_that_size() -> None:
    encoder = build("hiera_tiny_224", image_size=[64, 96])
    assert encoder(torch.zeros(1, 3, 64, 96))[-1].shape[-2:] == (2, 3)


def test_drop_path_is_passed_on_and_zero_by_default() -> None:
    def rates(encoder) -> list[float]:
        return [p.drop_prob for p in encoder.modules() if type(p).__name__ == "DropPath"]

    assert max(rates(build(drop_path=0.2))) == pytest.approx(0.2)
    assert not any(rates(build("swin_tiny_patch4_window7_224")))  # timm's own default is 0.1


def test_normalization_follows_the_channels() -> None:
    assert build(in_chans=1).normalization == {"mean": [0.5], "std": [0.5]}
    assert build("resnet10t", in_chans=4).normalization["mean"] == [0.485, 0.456, 0.406, 0.485]


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain, saving = build("test_convnext"), build("test_convnext", gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    kept: list[int] = []
    for encoder in (plain, saving):
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = encoder(images)[-1].square().sum()
        kept.append(count)
        loss.backward()
    assert kept[1] < 0.7 * kept[0]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_offline_pretrained_fails_fast_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_cached", lambda config: None)
    monkeypatch.setattr(hub, "_host", lambda config: "http://10.255.255.1/")  # swallows packets
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"backbone\.weights=<file>"):
        build(pretrained=True)
    assert time.perf_counter() - started < 5


def test_pretrained_without_published_weights_names_the_tags() -> None:
    with pytest.raises(ConfigError, match="no weights are published"):
        build("cspresnet50d", pretrained=True)


def test_pretrained_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    source = build()
    torch.save({**source.body.state_dict(), "fc.weight": torch.zeros(3, 96)}, tmp_path / "published.pth")
    monkeypatch.setattr(hub, "_cached", lambda config: tmp_path / "published.pth")
    encoder = build(pretrained=True)
    assert encoder.report is not None and encoder.report.leftover == ("fc.weight",)
    for name, value in source.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


def test_hub_is_not_touched_where_a_checkpoint_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.encoders.timm_encoder.fetch", lambda name: pytest.fail("asked the hub"))
    config = {"name": "timm", "architecture": "test_resnet", "weights": "gone.pth"}
    assert ENCODERS.build(config, False).report is None
    assert ENCODERS.build({**config, "weights": None, "pretrained": True}, load_weights=False).report is None


def test_reachable_answers_within_its_timeout() -> None:
    started = time.perf_counter()
    assert not hub.reachable("http://no-such-host.invalid/")
    assert not hub.reachable(None)
    assert time.perf_counter() - started < hub.TIMEOUT_SECONDS + 1


def test_a_file_that_does_not_fit_is_not_blamed_on_the_network(tmp_path):
    """Neither the network nor the output stride is at fault when downloaded weights are broken."""
    first = next(iter(build().body.state_dict()))
    torch.save({first: torch.zeros(1, 1)}, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="does not hold weights of `test_resnet`"):
        create_body("test_resnet", str(tmp_path / "broken.pth"), output_stride=16)


def test_weights_that_timm_silently_skips_are_an_error(tmp_path, monkeypatch):
    torch.save({"nothing.we.know": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setattr("mtl.encoders.timm_encoder.fetch", lambda architecture: tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="gives no weights for"):
        build(pretrained=True)
