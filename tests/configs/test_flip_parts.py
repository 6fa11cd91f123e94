"""Every key of every registered part does something: its flip changes what the built part computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flip_tools import Flip, dead_keys, part_flips
from torch import Tensor, nn

from mtl.balancing.base import Step
from mtl.config.compose import choices, configs_folder
from mtl.config.load import NECK_KEYS, kind_of
from mtl.config.schema import OptimizerConfig
from mtl.core.registry import ADAPTERS, BALANCERS, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS
from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.kinds.objects import ObjectKind
from mtl.training.optim import build_optimizer, split_parts
from mtl.training.schedules import Horizon

CLASSES = ("Infected", "Healthy", "WBC")
SIZE = (64, 96)
MAPS = {
    "encoder": ((8, 16, 24, 32), (4, 8, 16, 32)),
    "fpn": ((16, 16, 16), (8, 16, 32)),
    "aspp": ((8, 16, 24), (4, 8, 16)),
    "decoder": ((16,), (4,)),
}


def read(group: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((configs_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


@cache
def head_config(name: str) -> dict[str, Any]:
    from mtl.config.compose import compose

    config, problems = compose("data_tool", ["data=malaria", f"+head@heads.task={name}"])
    assert not problems
    return config["heads"]["task"]


# -- heads -------------------------------------------------------------------------------------------------------------

FOCAL = {"classification_loss": "focal"}
DETECTOR = {
    "levels": Flip([3, 4]),
    "score_threshold": Flip(0.3),
    "detections_per_image": Flip(3),
    "class_weights": Flip([3.0, 1.0, 2.0]),
    "focal_gamma": Flip(given=FOCAL),
    "focal_alpha": Flip(given=FOCAL),
}
PUBLISHED = {key: flip for key, flip in DETECTOR.items() if key != "levels"}
PEAKS = {"prior_probability": 0.5}  # an untrained head finds none otherwise
FEW = {"score_threshold": Flip(0.6), "max_points": Flip(3)}
HEAD_TABLES: dict[str, dict[str, Flip]] = {
    "faster_rcnn": DETECTOR
    | {
        "levels": Flip([3, 4], given={"anchor_sizes": [28, 56]}),
        "anchor_sizes": Flip([28, 56, 120]),
        "aspect_ratios": Flip([0.5, 1.0]),
        "rpn_pre_nms_top_n_train": Flip(4),
        "rpn_pre_nms_top_n_test": Flip(4),
        "rpn_post_nms_top_n_train": Flip(5),
        "rpn_post_nms_top_n_test": Flip(5),
        "rpn_positive_fraction": Flip(0.01),
        "box_batch_size_per_image": Flip(16),
        "box_positive_fraction": Flip(0.01),
        "box_fg_iou": Flip(0.6),
    },
    "faster_rcnn_published": PUBLISHED,
    "fcos": {key: DETECTOR[key] for key in ("levels", "detections_per_image")}
    | {"score_threshold": Flip(0.12), "candidates_per_level": Flip(3), "size_limit": Flip(2.0)},
    "roi_classifier": {
        "levels": Flip([4, 5]),
        "hidden": Flip([256, 64]),
        "dropout": Flip([0.4, 0.0]),
        "boxes_per_image": Flip(2),
        "balanced": Flip(given={"boxes_per_image": 2}),
    },
    "unet": {"decoder_channels": Flip([64, 32, 16]), "attention": Flip("scse")},
    "unet_classic": {},
    "heatmap": {
        "stride": Flip(8),
        "peak_window": Flip(3, PEAKS),
        "score_threshold": Flip(0.9, PEAKS),
        "max_peaks": Flip(2, PEAKS),
        "refine": Flip(given=PEAKS),
    },
    "heatmap_published": {"peak_window": Flip(5), "score_threshold": Flip(0.6), "max_peaks": Flip(2)},
    "pixelwise": {},
    "blobs": FEW | {"suppression_radius": Flip(0.0, given={"smoothing": 0.0})},
    "centres": {key: replace(flip, given=PEAKS) for key, flip in FEW.items()}
    | {"stride": Flip(4), "norm": Flip("group"), "suppression_radius": Flip(8.0, given=PEAKS)},
    "box_centres": {
        "detector": Flip({"name": "faster_rcnn"}),
        "suppression_radius": Flip(8.0),
    },
    "upsampling": {"decoder_channels": Flip([256, 128, 64]), "last_channels": Flip(16)},
    "classifier": {"hidden": Flip([8])},
    "multilabel_classifier": {"hidden": Flip([8])},
    "regressor": {"hidden": Flip([8])},
    "classifier_published": {"pool": Flip([5, 4])},
    "deeplabv3plus": {"low_level": Flip(3)},
    "mixture": {
        "expert": Flip({"name": "classifier", "hidden": [8], "loss": {"name": "cross_entropy"}}),
        "routing": Flip("top_k"),
        "top_p": Flip(0.3, given={"routing": "top_p"}),
        "top_k": Flip(1, given={"routing": "top_k"}),
        "dense_until": Flip(0.5, given={"routing": "top_k"}),
    },
}
OTHER_LOSS = {
    "cross_entropy": {"name": "focal"},
    "cross_entropy_focal": {"name": "focal"},
    "dice_bce": {"name": "focal"},
    "dice_cross_entropy": {"name": "cross_entropy"},
    "heatmap_focal": {"name": "mse"},
    "tversky_boundary": {"name": "mse"},
    "bce_multilabel": {"name": "bce_multilabel", "gamma": 2.0},
    "huber": {"name": "gaussian"},
}


def objects(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    box = torch.tensor(boxes).reshape(-1, 4)
    return {
        "boxes": box,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "points": (box[:, :2] + box[:, 2:]) / 2,
        "ids": torch.arange(len(labels)),
    }


def target_for(kind: str) -> Any:
    if isinstance(rules_named(kind), ObjectKind):
        return [
            objects([[10, 12, 38, 40], [60, 30, 90, 58], [32, 2, 95, 60], [20, 36, 44, 63]], [0, 1, 1, 1]),
            objects([[5, 30, 35, 58], [68, 10, 95, 40], [40, 30, 65, 60], [41, 29, 68, 63]], [1, 2, 1, 1]),
        ]
    generator = torch.Generator().manual_seed(1)
    if kind == "classification":
        return torch.tensor([0, 2])
    if kind == "multilabel_classification":
        return torch.tensor([[0.0, 1.0, 1.0], [1.0, float("nan"), 0.0]])
    if kind == "regression":
        return torch.tensor([2.0, -0.5])
    return (torch.rand(2, len(CLASSES), *SIZE, generator=generator) > 0.7).float()


def observe_head(config: dict[str, Any]) -> Any:
    """What a head computes from fixed maps: raw output, losses, gradients, predictions; while training and after."""
    settings = {key: value for key, value in config.items() if key != "features"}
    kind: Any = kind_of(config)
    channels, strides = MAPS[config["features"]]
    torch.manual_seed(0)
    exclusive = kind != "segmentation" or config["loss"]["name"] in ONE_CLASS
    spec = TaskSpec("task", kind, CLASSES, multilabel=not exclusive, resolution=2.0 if kind == "points" else 1.0)
    head = HEADS.build(settings, spec, channels, strides)
    generator = torch.Generator().manual_seed(2)
    features = tuple(
        torch.randn(2, c, SIZE[0] // s, SIZE[1] // s, generator=generator) * 3 for c, s in zip(channels, strides, strict=True)
    )
    target, seen = target_for(kind), {}
    target = target.argmax(dim=1) if kind == "segmentation" and exclusive else target
    for training in (True, False):
        head.train(training)
        torch.manual_seed(3)
        output = head(features, SIZE)
        terms = head.loss(output, target)
        torch.stack(list(terms.values())).sum().backward()
        boxes = [row["boxes"] for row in target] if head.needs_boxes else None
        seen[str(training)] = [terms, head.decode(output, boxes=boxes)]
    return [seen, {name: parameter.grad for name, parameter in head.named_parameters()}]


@pytest.mark.parametrize("name", choices("head"))
def test_heads(name: str) -> None:
    config = head_config(name)
    table = dict(HEAD_TABLES.get(name, {}))
    if "loss" in config:
        table["loss"] = Flip(OTHER_LOSS[config["loss"]["name"]])
    assert dead_keys(observe_head, config, part_flips(HEADS, config, table)) == []


# -- losses ------------------------------------------------------------------------------------------------------------

LOSS_TABLES = {
    "cross_entropy": {"class_weights": Flip([3.0, 1.0, 2.0])},
    "focal": {"class_weights": Flip([3.0, 1.0, 2.0])},
    "cross_entropy_focal": {"class_weights": Flip([3.0, 1.0, 2.0])},
    "ordinal": {"class_weights": Flip([3.0, 1.0, 2.0])},
    "dice_bce": {"smooth": Flip(1.0)},
    "dice_focal": {"smooth": Flip(1.0)},
    "dice_cross_entropy": {"class_weights": Flip([3.0, 1.0, 2.0]), "smooth": Flip(1.0)},
    "tversky_boundary": {"smooth": Flip(1.0)},
    "bce_multilabel": {"positive_weight": Flip([3.0, 1.0, 2.0])},
}


KINDS = ("classification", "roi_classification", "segmentation", "heatmap", "multilabel_classification", "regression")
ONE_CLASS = ("cross_entropy", "dice_bce_published", "dice_cross_entropy")  # per pixel
USES = [(name, kind) for name in choices("loss") for kind in KINDS if kind in LOSSES.entry(name).constants["kinds"]]


@pytest.mark.parametrize(("name", "kind"), USES)
def test_losses(name: str, kind: str) -> None:
    multilabel = kind == "segmentation" and name not in ONE_CLASS

    def observe(config: dict[str, Any]) -> Any:
        loss = LOSSES.build(config, TaskSpec("task", kind, CLASSES, multilabel=multilabel, ordinal=kind == "classification"))
        generator = torch.Generator().manual_seed(4)
        shape = (2, 3, 12, 16) if kind in ("segmentation", "heatmap") else (6, loss.outputs(1 if kind == "regression" else 3))
        prediction = torch.randn(shape, generator=generator)
        if kind == "heatmap":
            prediction, target = prediction.sigmoid(), torch.rand(shape, generator=generator).clamp(max=0.9)
            target[:, :, 4, 4] = 1.0
        elif kind == "regression":
            target = 3 * torch.randn(shape[0], generator=generator)
        elif multilabel or kind == "multilabel_classification":
            target = (torch.rand(shape, generator=generator) > 0.6).float()
        else:
            target = torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator)
        prediction.requires_grad_()
        value = loss(prediction, target)
        value.backward()
        return [value, prediction.grad]

    config = read("loss", name)
    assert dead_keys(observe, config, part_flips(LOSSES, config, LOSS_TABLES.get(name, {}))) == []


# -- encoders, adapters, necks -----------------------------------------------------------------------------------------


def run_encoder(encoder: nn.Module, channels: int = 3, tasks: tuple[str | None, ...] = (None,)) -> Any:
    """Maps of both modes, gradients, what trains, and how often the layers ran forwards."""
    images = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(5))
    calls: Counter[str] = Counter()
    for name, module in encoder.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    seen: dict[str, Any] = {"strides": encoder.strides, "normalization": encoder.normalization}
    for task in tasks:
        for training in (True, False):
            encoder.train(training)
            torch.manual_seed(6)
            maps = encoder(images, task=task)
            if training and any(m.requires_grad for m in maps):
                sum(m.square().mean() for m in maps).backward()
            seen[f"{task} {training}"] = maps
    encoder.train()
    seen["gradients"] = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    return [seen, {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}, dict(calls)]


@pytest.fixture
def weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of another initialisation; also what the hub would send."""
    torch.manual_seed(99)
    encoder = ENCODERS.build({"name": "timm", "architecture": "test_resnet"})
    torch.save(encoder.body.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr("mtl.encoders.timm_encoder.fetch", lambda architecture: tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_encoder(weight_file: str) -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        return run_encoder(ENCODERS.build(config), config["in_chans"])

    config = {**read("backbone", "test_resnet"), "in_chans": 3}
    table = {
        "architecture": Flip("resnet10t"),
        "weights": Flip(weight_file),
        "reinitialize": Flip(["layer4"], given={"weights": weight_file}),
        "output_stride": Flip(16),
        "image_size": Flip([64, 64], refuses=True),  # takes any size; the next test has a network that does not
        "unfreeze": Flip(["layer4"], given={"freeze": "all"}),
        "drop_path": Flip(0.9),
        "top_convolution": Flip(refuses=True),  # an efficientnet is flipped below
    }
    assert dead_keys(observe, config, part_flips(ENCODERS, config, table)) == []


def test_unet_encoder(tmp_path: Path) -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        return run_encoder(ENCODERS.build(config), config["in_chans"])

    config = {**read("backbone", "unet"), "base_filters": 4, "in_chans": 1}
    torch.manual_seed(99)
    torch.save(ENCODERS.build(config).body.state_dict(), tmp_path / "weights.pth")
    table = {"weights": Flip(str(tmp_path / "weights.pth")), "unfreeze": Flip(["stages.2"], given={"freeze": "all"})}
    assert dead_keys(observe, config, part_flips(ENCODERS, config, table)) == []


def test_top_convolution_of_networks_that_have_one() -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        return run_encoder(ENCODERS.build(config))

    config = {**read("backbone", "test_resnet"), "architecture": "test_efficientnet"}
    assert dead_keys(observe, config, {"top_convolution": Flip(True)}) == []


def test_image_size_of_networks_built_for_one() -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        encoder = ENCODERS.build(config)
        return [list(encoder.example().shape), {name: list(value.shape) for name, value in encoder.state_dict().items()}]

    config = {**read("backbone", "test_resnet"), "architecture": "maxvit_nano_rw_256", "image_size": [256, 256]}
    assert dead_keys(observe, config, {"image_size": Flip([128, 128])}) == []


PEFT_TABLES = {"bottleneck": {"ranks": Flip({"b": 3})}, "lora": {"targets": Flip(["linear", "layer4.*"])}}


@pytest.mark.parametrize("name", choices("peft"))
def test_adapters(name: str) -> None:
    from mtl.encoders.base import adapter_parameters

    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        encoder = ENCODERS.build({"name": "timm", "architecture": "test_resnet", "freeze": "all"})
        ADAPTERS.build(config, encoder, ["a", "b"])
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():  # they start as zero
            for parameter in adapter_parameters(encoder):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return run_encoder(encoder, tasks=("a", "b"))

    config = read("peft", name)
    assert dead_keys(observe, config, part_flips(ADAPTERS, config, PEFT_TABLES.get(name, {}))) == []


NECK_TABLES = {
    "fpn": {"levels": Flip([2, 4, 5])},
    "aspp": {"rates": Flip([1, 2, 3]), "low_level": Flip(3)},
    "decoder": {"low_level": Flip(3, refuses=True)},  # of two maps only one can be the fine one
    "logit_decoder": {"classes": Flip([3, 1]), "low_level": Flip(2)},
}


@pytest.mark.parametrize("name", choices("neck"))
def test_necks(name: str) -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        channels, strides = ((8, 24), (4, 16)) if name == "decoder" else MAPS["encoder"]
        neck = NECKS.build(config, channels, strides)
        generator = torch.Generator().manual_seed(8)
        maps = (torch.randn(2, c, 128 // s, 128 // s, generator=generator) for c, s in zip(channels, strides, strict=True))
        return [neck.channels, neck.strides, neck(tuple(maps))]

    config = {key: value for key, value in read("neck", name).items() if key not in NECK_KEYS}  # those are the model's
    assert dead_keys(observe, config, part_flips(NECKS, config, NECK_TABLES.get(name, {}))) == []


# -- balancers, schedulers, optimizers ---------------------------------------------------------------------------------

BALANCER_TABLES = {
    "static": {"weights": Flip({"b": 0.5})},
    "uncertainty": {"init": Flip({"b": 0.5}), "clamp": Flip(0.5), "loss_cap": Flip(1.0)},
}


@pytest.mark.parametrize("name", choices("balancer"))
def test_balancers(name: str) -> None:
    def observe(config: dict[str, Any]) -> Any:
        balancer = BALANCERS.build(config, ["a", "b"])
        losses = {"a": torch.tensor(0.7, requires_grad=True), "b": torch.tensor(3.0, requires_grad=True)}
        total = balancer(Step(losses, {"a": True, "b": True}))
        total.backward()
        return [total, balancer.weights(), {task: loss.grad for task, loss in losses.items()}]

    config = read("balancer", name)
    assert dead_keys(observe, config, part_flips(BALANCERS, config, BALANCER_TABLES.get(name, {}))) == []


class Stub(nn.Module):
    """The shape of a model: an encoder and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        return sum(head(self.encoder(x)).square().mean() for head in self.heads.values())


OPTIMIZER = {"name": "sgd", "lr": 0.1, "floor": 1e-3, "weight_decay": 1e-2, "options": {}, "parts": {}}


def schedule(config: dict[str, Any], optimizer: torch.optim.Optimizer, epochs: int = 40, steps: int = 5) -> Any:
    """Learning rates of a run, as Lightning would step the schedule."""
    plan = SCHEDULERS.build(config, optimizer, Horizon(epochs * steps, steps, "val/score"))
    scheduler, rates = plan["scheduler"], []
    for epoch in range(epochs):
        for _ in range(steps):
            optimizer.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
            if plan["interval"] == "step":
                scheduler.step()
        if plan["interval"] == "epoch":
            # The metric creeps up for 20 epochs, then stays.
            scheduler.step(*([0.01 * min(epoch, 20)] if "monitor" in plan else []))
    return [rates, plan.get("monitor")]


SCHEDULER_TABLES = {
    "plateau": {"monitor": Flip("val/loss"), "threshold": Flip(0.2)},
    "warmup_cosine": {"warmup_epochs": Flip(4.0), "warmup_start": Flip(0.5, given={"warmup_epochs": 4.0})},
}


@pytest.mark.parametrize("name", choices("scheduler"))
def test_schedulers(name: str) -> None:
    def observe(config: dict[str, Any]) -> Any:
        return schedule(config, build_optimizer(split_parts(Stub()), OptimizerConfig(**OPTIMIZER)))

    config = read("scheduler", name)
    assert dead_keys(observe, config, part_flips(SCHEDULERS, config, SCHEDULER_TABLES.get(name, {}))) == []


OPTIONS = {"adam": {"betas": [0.5, 0.9]}, "adamw": {"betas": [0.5, 0.9]}, "sgd": {"momentum": 0.5, "nesterov": True}}


@pytest.mark.parametrize("name", choices("optimizer"))
def test_optimizers(name: str) -> None:
    from mtl.config.schema import OptimizerPartConfig

    def observe(config: dict[str, Any]) -> Any:
        model = Stub()
        optimizer = build_optimizer(split_parts(model), OptimizerConfig(**config))
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(9))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
        return [list(model.parameters()), schedule({"name": "warmup_cosine"}, optimizer, epochs=3)]

    config = read("optimizer", name)
    flips = {
        "name": Flip("nadam" if name != "sgd" else "rmsprop", given={"options": {}}),
        "lr": Flip(config["lr"] / 2),
        "weight_decay": Flip(config["weight_decay"] + 0.5),
        "floor": Flip(config["floor"] * 10),
        "options": Flip(OPTIONS[name]),
        "parts": Flip({"head.a": {"lr": 1e-4}}),
    }
    assert set(flips) == set(config) == set(OptimizerConfig.model_fields)
    assert dead_keys(observe, config, flips) == []
    parts = {key: Flip({"head": {key: value}}) for key, value in (("lr", 1e-5), ("floor", 1e-4), ("weight_decay", 0.5))}
    assert set(parts) == set(OptimizerPartConfig.model_fields)
    for key, flip in parts.items():
        assert dead_keys(observe, config, {"parts": flip}) == [], key


# -- the test itself ---------------------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    """Takes three keys: one works, one is stored and never used, one is dropped."""

    def __init__(self, *, scale: float = 1.0, stored: float = 1.0, dropped: bool = False) -> None:
        super().__init__()
        self.scale, self.stored = scale, stored

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_a_key_that_is_ignored_is_found() -> None:
    def observe(config: dict[str, Any]) -> Any:
        return Forgetful(**config)(torch.ones(3))

    flips = {"scale": Flip(2.0), "stored": Flip(2.0), "dropped": Flip(True)}
    assert dead_keys(observe, {"scale": 1.0, "stored": 1.0, "dropped": False}, flips) == [
        "stored=2.0 changes nothing",
        "dropped=True changes nothing",
    ]


def test_a_refusal_does_not_pass_for_a_change() -> None:
    from mtl.core.errors import ConfigError

    def observe(config: dict[str, Any]) -> Any:
        if config["key"] > 1:
            raise ConfigError("no")
        return 0

    assert dead_keys(observe, {"key": 1}, {"key": Flip(2)}) == ["key=2: refused: no"]
    assert dead_keys(observe, {"key": 1}, {"key": Flip(2, refuses=True)}) == []


def test_an_observation_that_flickers_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not repeatable"):
        dead_keys(lambda config: torch.rand(3), {"key": 1}, {"key": Flip(2)})
