from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml

from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS, ENCODERS
from mtl.encoders.base import adapter_parameters, named_adapter_parameters
from mtl.encoders.bottleneck import find_blocks
from mtl.encoders.lora import merge_lora

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
KINDS = ["lora", "bottleneck"]


def build(architecture: str = "test_resnet", **settings):
    return ENCODERS.build({"name": "timm", "architecture": architecture, "freeze": "all", **settings})


def attach(encoder, name: str, tasks=("a", "b"), **settings):
    settings = {"rank": 2, **settings}
    return ADAPTERS.build({"name": name, **settings}, encoder, list(tasks))


def settle(encoder) -> None:
    """Give norms, layer scales and gains values as after training: timm starts some at zero, which blocks all gradients."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.body.parameters():
        if parameter.ndim < 2 or parameter.numel() == max(parameter.shape):
            parameter.data.uniform_(0.5, 1.0, generator=generator)


def loss(maps) -> torch.Tensor:
    return sum(m.square().mean() for m in maps)


def steps(encoder, task: str | None = None, count: int = 2) -> None:
    optimizer = torch.optim.Adam(adapter_parameters(encoder), lr=0.01)
    for _ in range(count):
        optimizer.zero_grad()
        loss(encoder(IMAGES, task=task)).backward()
        optimizer.step()


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "architecture",
    [
        "test_resnet",
        "test_convnext",
        "test_efficientnet",
        "mobilenetv3_small_050",
        "regnetx_002",
        "test_nfnet",
        "test_mambaout",
        "test_byobnet",
    ],
)
def test_starts_as_identity_then_every_adapter_parameter_moves(architecture: str, kind: str, per_task: bool) -> None:
    encoder = build(architecture).eval()
    settle(encoder)
    with torch.no_grad():
        expected = encoder(IMAGES)
    # Dropout off, since it would keep some gradients at zero by chance.
    attach(encoder, kind, per_task=per_task, **({"dropout": 0.0} if kind == "bottleneck" else {}))
    encoder.eval()
    tasks = ["a", "b"] if per_task else [None]
    assert encoder.per_task == per_task
    with torch.no_grad():
        for task in tasks:
            for found, wanted in zip(encoder(IMAGES, task=task), expected, strict=True):
                assert torch.equal(found, wanted)
    before = copy.deepcopy(encoder.state_dict())
    for task in tasks:
        steps(encoder, task)
    adapters = {name for name, _ in named_adapter_parameters(encoder)}
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == adapters
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == adapters


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_tasks_are_independent(kind: str) -> None:
    encoder = attach(build(), kind, per_task=True)
    before = copy.deepcopy(encoder.state_dict())
    steps(encoder, "a")
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.endswith(".a") or ".a." in name for name in moved)
    encoder.eval()
    with torch.no_grad():
        assert not torch.equal(encoder(IMAGES, task="a")[-1], encoder(IMAGES, task="b")[-1])
    with pytest.raises(ValueError, match="task="):
        encoder(IMAGES)
    with pytest.raises(ValueError, match="task="):
        encoder(IMAGES, task="c")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_of_two_tasks_uses_each_tasks_set(kind: str, checkpointing: bool) -> None:
    """Recomputing in the backward pass must not mix the sets: the sum's gradient is the sum of the gradients."""
    encoder = attach(build(gradient_checkpointing=checkpointing), kind, per_task=True)
    reference = attach(build(), kind, per_task=True)
    for parameter in adapter_parameters(encoder):
        torch.nn.init.normal_(parameter, std=0.1)
    reference.load_state_dict(encoder.state_dict())
    for part in (encoder, reference):
        for module in part.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    (loss(encoder(IMAGES, task="a")) + 2 * loss(encoder(IMAGES, task="b"))).backward()
    loss(reference(IMAGES, task="a")).backward()
    (2 * loss(reference(IMAGES, task="b"))).backward()
    for found, wanted in zip(adapter_parameters(encoder), adapter_parameters(reference), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_set_with_gradient_checkpointing(kind: str) -> None:
    encoder = attach(build("test_convnext", gradient_checkpointing=True), kind, per_task=False)
    steps(encoder)
    assert all(p.grad is not None for p in adapter_parameters(encoder))


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copy_is_independent_and_strictly_reloadable(kind: str, per_task: bool) -> None:
    encoder = attach(build(), kind, per_task=per_task)
    task = "a" if per_task else None
    steps(encoder, task)
    encoder.eval()
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES, task=task)[-1], encoder(IMAGES, task=task)[-1])
        expected = encoder(IMAGES, task=task)[-1].clone()
        for parameter in adapter_parameters(twin):
            parameter.fill_(0.3)
        assert torch.equal(encoder(IMAGES, task=task)[-1], expected)
        assert not torch.equal(twin(IMAGES, task=task)[-1], expected)
        again = attach(build(), kind, per_task=per_task).eval()
        again.load_state_dict(encoder.state_dict(), strict=True)
        assert torch.equal(again(IMAGES, task=task)[-1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_works_under_data_parallel(kind: str, tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        encoder = attach(build(), kind, per_task=True)
        wrapped = torch.nn.parallel.DistributedDataParallel(Both(encoder))
        wrapped(IMAGES).backward()
        assert all(p.grad is not None for p in adapter_parameters(encoder))
    finally:
        torch.distributed.destroy_process_group()


class Both(torch.nn.Module):
    def __init__(self, encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return loss(self.encoder(images, task="a")) + loss(self.encoder(images, task="b"))


@pytest.mark.parametrize("kind", KINDS)
def test_attaching_leaves_the_freezing_and_the_statistics(kind: str) -> None:
    encoder = build(unfreeze=["layer4"])
    frozen = {id(p) for p in encoder.parameters() if not p.requires_grad}
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    attach(encoder, kind)
    adapters = {id(p) for p in adapter_parameters(encoder)}
    assert {id(p) for p in encoder.parameters() if not p.requires_grad} == frozen
    assert adapters and not adapters & frozen
    assert encoder.training and encoder.body.layer4[0].bn1.training and not encoder.body.layer1[0].bn1.training
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())


@pytest.mark.parametrize(("settings", "per_task"), [({"rank": 16}, 483_328), ({"rank": 8, "alpha": 16.0}, 241_664)])
def test_published_bottleneck_counts(settings: dict, per_task: int) -> None:
    encoder = build("resnet50")
    attach(encoder, "bottleneck", ["detection", "roi"], **settings)
    assert len(encoder.adapters) == 16
    assert sum(p.numel() for p in adapter_parameters(encoder)) == 2 * per_task
    assert all(
        module.scale == 2.0
        for module in encoder.modules()
        if type(module).__name__ == "Bottleneck" and hasattr(module, "scale")
    )


def test_bottleneck_is_the_published_formula() -> None:
    encoder = build()
    block = encoder.body.layer1[0]
    x = torch.randn(1, 32, 8, 8)
    plain = block.eval()(x)
    attach(encoder, "bottleneck", rank=4, alpha=12.0, per_task=False)
    adapter = encoder.adapters["layer1_0"].sets["shared"]
    assert adapter.down.weight.shape == (4, plain.shape[1]) and not adapter.up.weight.any()
    torch.nn.init.normal_(adapter.up.weight)
    encoder.eval()
    pixels = plain.permute(0, 2, 3, 1)
    expected = pixels + 12.0 / 4 * (pixels @ adapter.down.weight.T @ adapter.up.weight.T)
    torch.testing.assert_close(block(x), expected.permute(0, 3, 1, 2))


def test_bottleneck_rank_per_task_and_dropout() -> None:
    encoder = attach(build(), "bottleneck", rank=4, alpha=8.0, ranks={"b": 2}, dropout=0.5)
    sets = encoder.adapters["layer1_0"].sets
    assert sets["a"].down.out_features == 4 and sets["b"].down.out_features == 2
    assert sets["a"].scale == sets["b"].scale == 2.0
    torch.nn.init.normal_(sets["a"].up.weight)
    encoder.train()
    assert not torch.equal(encoder(IMAGES, task="a")[-1], encoder(IMAGES, task="a")[-1])
    encoder.eval()
    assert torch.equal(encoder(IMAGES, task="a")[-1], encoder(IMAGES, task="a")[-1])


def test_blocks_of_channels_last_networks() -> None:
    encoder = ENCODERS.build({"name": "timm", "architecture": "swin_tiny_patch4_window7_224"})
    blocks = find_blocks(encoder)
    assert [channels for _, channels, _ in blocks] == [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    assert {axis for *_, axis in blocks} == {-1}


def test_lora_is_the_low_rank_update() -> None:
    encoder = attach(build(), "lora", rank=2, alpha=6.0, targets=["layer1.0.conv2"])
    layer = encoder.body.layer1[0].conv2
    update, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    torch.nn.init.normal_(update.up["shared"])
    torch.testing.assert_close(layer.weight, original + 3.0 * (update.up["shared"] @ update.down["shared"]).view_as(original))
    assert len(adapter_parameters(encoder)) == 2


def test_lora_targets_and_its_rule_for_small_layers() -> None:
    def adapted(architecture: str, **settings) -> list[str]:
        names = named_adapter_parameters(attach(build(architecture), "lora", **settings))
        return sorted({name.split(".parametrizations")[0].removeprefix("body.") for name, _ in names})

    assert adapted("test_resnet", targets=["layer4.*"]) and all(
        name.startswith("layer4") for name in adapted("test_resnet", targets=["layer4.*"])
    )
    assert all("conv_dw" in name for name in adapted("test_convnext", targets=["grouped"]))
    assert all("mlp" in name for name in adapted("test_convnext", targets=["linear"]))
    assert "conv_dw" not in " ".join(adapted("test_convnext", targets=["conv", "linear"]))
    assert adapted("test_convnext", targets=["stages.2.*"])
    few, many = adapted("test_resnet", rank=24), adapted("test_resnet", rank=2)
    assert set(few) < set(many)


def test_lora_merges_into_plain_layers() -> None:
    encoder = attach(build(), "lora", per_task=False)
    steps(encoder)
    encoder.eval()
    with torch.no_grad():
        expected = encoder(IMAGES)[-1]
        keys = set(build().state_dict())
        merge_lora(encoder)
        assert set(encoder.state_dict()) == keys
        torch.testing.assert_close(encoder(IMAGES)[-1], expected)


@pytest.mark.parametrize(
    ("architecture", "settings", "says"),
    [
        ("test_resnet", {"name": "lora", "rank": 0}, "peft.rank"),
        ("test_resnet", {"name": "lora", "targets": ["layer9.*"]}, "layer9"),
        ("test_resnet", {"name": "lora", "rank": 10_000}, "too large"),
        ("test_resnet", {"name": "bottleneck", "ranks": {"bb": 2}}, "Did you mean"),
        ("test_resnet", {"name": "bottleneck", "ranks": {"a": 2}, "per_task": False}, "per_task"),
        ("test_resnet", {"name": "bottleneck", "ranks": {"a": 0}}, "peft.ranks.a"),
        ("repghostnet_050", {"name": "bottleneck"}, "peft=lora"),
    ],
)
def test_wrong_settings_are_named(architecture: str, settings: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        ADAPTERS.build(settings, build(architecture), ["a", "b"])
    assert says in str(error.value)


def test_one_kind_only() -> None:
    with pytest.raises(ConfigError, match="already"):
        attach(attach(build(), "lora"), "bottleneck")


def test_none_changes_nothing() -> None:
    encoder = build()
    assert ADAPTERS.build({"name": "none"}, encoder, ["a"]) is encoder and not adapter_parameters(encoder)


@pytest.mark.parametrize("name", ["none", "lora", "bottleneck"])
def test_shipped_configs_name_every_key_with_its_default(name: str) -> None:
    path = Path(__file__).parents[3] / "configs" / "peft" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    assert config.pop("name") == name
    assert config == {key: parameter.default for key, parameter in ADAPTERS.entry(name).parameters.items()}
