"""Parameter groups and schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtl.config.parts import validate
from mtl.config.schema import OptimizerConfig
from mtl.core.errors import ConfigError
from mtl.encoders.base import Adapter
from mtl.training.optim import build_optimizer, check_groups, split_parts
from mtl.training.schedules import build_scheduler

CONFIG = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "floor": 1e-6, "options": {}, "parts": {}}


class SmallAdapter(Adapter):
    def __init__(self) -> None:
        super().__init__(per_task=False)
        self.down = nn.Linear(2, 1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.adapters = nn.ModuleDict({"block": SmallAdapter()})
        self.layer = nn.Linear(2, 2)
        self.layer.inner = SmallAdapter()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.necks = nn.ModuleDict({"fpn": nn.Linear(2, 2)})
        self.heads = nn.ModuleDict({"detection": nn.Linear(2, 2), "heatmap": nn.Linear(2, 2)})


class Balancer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2))


def groups(config: dict, model: nn.Module | None = None, **more: object) -> dict[str, dict]:
    optimizer = build_optimizer(split_parts(model or Model(), Balancer()), OptimizerConfig(**{**CONFIG, **config}), **more)
    return {group["name"]: group for group in optimizer.param_groups}


def test_every_parameter_belongs_to_the_part_its_name_says() -> None:
    parts = split_parts(Model(), Balancer())
    assert set(parts) == {"backbone", "adapters", "neck.fpn", "head.detection", "head.heatmap", "balancer"}
    assert {name for name, _ in parts["adapters"]} == {
        f"encoder.{place}.down.{kind}" for place in ("adapters.block", "layer.inner") for kind in ("weight", "bias")
    }
    assert len(parts["backbone"]) == 4 and [name for name, _ in parts["balancer"]] == ["balancer.log_variance"]


def test_trainable_parameters_are_in_one_group_and_frozen_ones_in_none() -> None:
    model = Model()
    model.encoder.stem.requires_grad_(False)
    model.necks.requires_grad_(False)
    found = groups({}, model)
    assert set(found) == {"backbone", "adapters", "head.detection", "head.heatmap", "balancer"}
    members = [parameter for group in found.values() for parameter in group["params"]]
    assert len({id(p) for p in members}) == len(members) == sum(p.requires_grad for p in model.parameters()) + 1


def test_a_parameter_in_two_parts_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(1))
    parts = {"backbone": [("a", weight)], "head.x": [("b", weight)]}
    with pytest.raises(AssertionError, match="2 optimizer groups"):
        check_groups([{"params": [weight]}, {"params": [weight]}], parts)
    with pytest.raises(AssertionError, match="2 optimizer groups"):
        build_optimizer(parts, OptimizerConfig(**CONFIG))


def test_part_settings_inherit_and_the_longer_name_wins() -> None:
    found = groups(
        {"parts": {"head.heatmap": {"lr": 5e-3}, "head": {"lr": 2e-3, "weight_decay": 0.0}, "backbone": {"lr": None}}}
    )
    assert (found["head.detection"]["lr"], found["head.detection"]["weight_decay"]) == (2e-3, 0.0)
    assert (found["head.heatmap"]["lr"], found["head.heatmap"]["weight_decay"]) == (5e-3, 0.0)
    assert (found["backbone"]["lr"], found["backbone"]["weight_decay"], found["backbone"]["floor"]) == (1e-3, 1e-4, 1e-6)


def test_inherited_floor_never_exceeds_the_learning_rate_of_a_group() -> None:
    assert groups({"floor": 1e-5, "parts": {"backbone": {"lr": 1e-6}}})["backbone"]["floor"] == 1e-6
    with pytest.raises(ConfigError, match="above its lr"):
        groups({"parts": {"backbone": {"floor": 1e-2}}})


def test_problems_are_reported_together_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        groups({"options": {"beta": 1}, "parts": {"head.detecton": {"lr": 1.0}}})
    # A key that no part has is refused with the rest of the configuration, before there are parts.
    _, refused = validate(OptimizerConfig, {**CONFIG, "parts": {"backbone": {"learning_rate": 1.0}}}, "optimizer")
    problems = [*caught.value.problems, *refused]
    assert len(problems) == 3
    text = "\n".join(problems)
    assert "Did you mean `head.detection`?" in text and "Did you mean `betas`?" in text and "learning_rate" in text
    with pytest.raises(ConfigError, match="Did you mean `adamw`"):
        groups({"name": "adamww"})


def test_settings_of_parts_that_a_run_leaves_out_are_accepted() -> None:
    groups({"parts": {"head.segmentation": {"lr": 1.0}}}, inactive=["head.segmentation"])
    with pytest.raises(ConfigError):
        groups({"parts": {"head.segmentation": {"lr": 1.0}}})


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(split_parts(Model().requires_grad_(False)), OptimizerConfig(**CONFIG))


@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {"momentum": 0.9}), ("adam", {}), ("adamw", {"betas": [0.8, 0.9]}), ("rmsprop", {})]
)
def test_every_group_moves(name: str, options: dict) -> None:
    model, balancer = Model(), Balancer()
    parts = split_parts(model, balancer)
    optimizer = build_optimizer(parts, OptimizerConfig(**{**CONFIG, "name": name, "options": options}))
    before = {name: parameter.detach().clone() for named in parts.values() for name, parameter in named}
    sum((p * (i + 1)).sum() for i, named in enumerate(parts.values()) for _, p in named).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for named in parts.values() for name, p in named)


def rates(config: dict, steps: int, **horizon: object) -> dict[str, list[float]]:
    optimizer = build_optimizer(
        split_parts(Model()),
        OptimizerConfig(**{**CONFIG, "floor": 1e-5, "parts": {"backbone": {"lr": 1e-6}, "head": {"lr": 1e-2, "floor": 1e-3}}}),
    )
    built = build_scheduler(optimizer, config, **{"total_steps": steps, "steps_per_epoch": 10, **horizon})
    seen: dict[str, list[float]] = {group["name"]: [] for group in optimizer.param_groups}
    for _ in range(steps + 1):
        for group in optimizer.param_groups:
            seen[group["name"]].append(group["lr"])
        optimizer.step()
        built["scheduler"].step()
    return seen


def test_warmup_cosine_ends_at_each_groups_own_floor_and_never_rises_above_its_rate() -> None:
    seen = rates({"name": "warmup_cosine", "warmup_epochs": 2, "warmup_start": 0.1}, 100)
    assert seen["neck.fpn"][0] == pytest.approx(1e-4) and seen["neck.fpn"][10] == pytest.approx(0.55e-3)
    assert seen["neck.fpn"][20] == pytest.approx(1e-3) and seen["neck.fpn"][60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert [seen[name][-1] for name in ("neck.fpn", "head.heatmap", "backbone")] == pytest.approx([1e-5, 1e-3, 1e-6])
    assert max(seen["backbone"]) <= 1e-6 * (1 + 1e-9)
    assert all(a >= b - 1e-12 for a, b in zip(seen["neck.fpn"][20:], seen["neck.fpn"][21:], strict=False))


def test_warmup_cosine_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_epochs"):
        rates({"name": "warmup_cosine"}, 2, total_steps=math.inf)


def test_step_and_constant() -> None:
    seen = rates({"name": "step", "step_size": 3, "gamma": 0.1}, 12)
    assert seen["neck.fpn"][2:4] == pytest.approx([1e-3, 1e-4]) and seen["neck.fpn"][12] == pytest.approx(1e-5)
    assert seen["head.heatmap"][12] == pytest.approx(1e-3)
    assert set(rates({"name": "constant"}, 5)["head.heatmap"]) == {1e-2}


def test_plateau_watches_in_the_direction_of_its_metric() -> None:
    def last(monitor: str | None, values: list[float], run: str = "val/score") -> dict[str, float]:
        optimizer = build_optimizer(split_parts(Model()), OptimizerConfig(**{**CONFIG, "parts": {"head": {"floor": 5e-4}}}))
        config = {"name": "plateau", "monitor": monitor, "factor": 0.5, "patience": 1}
        built = build_scheduler(optimizer, config, 10, 1, run, epochs_per_validation=2)
        assert built["monitor"] == (monitor or run) and built["frequency"] == 2
        for value in values:
            built["scheduler"].step(value)
        return {group["name"]: group["lr"] for group in optimizer.param_groups}

    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert last(None, rising)["neck.fpn"] == 1e-3
    assert last("val/heatmap/mse", rising)["neck.fpn"] == pytest.approx(1e-3 / 8)
    assert last(None, rising, run="val/heatmap/mse")["head.detection"] == pytest.approx(5e-4)


@pytest.mark.parametrize("monitor", ["val/score", "val/loss"])
def test_plateau_takes_a_metric_that_is_not_defined_for_one_that_did_not_improve(monitor: str) -> None:
    optimizer = build_optimizer(split_parts(Model()), OptimizerConfig(**CONFIG))
    config = {"name": "plateau", "monitor": monitor, "factor": 0.5, "patience": 2}
    scheduler = build_scheduler(optimizer, config, 10, 1)["scheduler"]
    for value in (0.5, float("nan"), float("nan")):
        scheduler.step(value)
    assert scheduler.best == 0.5 and scheduler.num_bad_epochs == 2


@pytest.mark.parametrize("name", ["warmup_cosine", "step", "plateau", "constant"])
def test_schedule_state_resumes(name: str, tmp_path) -> None:
    def fresh() -> tuple:
        torch.manual_seed(0)
        optimizer = build_optimizer(split_parts(Model()), OptimizerConfig(**CONFIG))
        settings = {"plateau": {"patience": 1}, "step": {"step_size": 2}, "warmup_cosine": {"warmup_epochs": 0.3}}
        return optimizer, build_scheduler(optimizer, {"name": name, **settings.get(name, {})}, 20, 10)["scheduler"]

    def advance(optimizer, scheduler, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step(0.5) if name == "plateau" else scheduler.step()
            seen += [group["lr"] for group in optimizer.param_groups]
        return seen

    straight = fresh()
    expected = advance(*straight, 14)
    first = fresh()
    got = advance(*first, 7)
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    second = fresh()
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert got + advance(*second, 7) == expected


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_in_one_pass_on_a_cpu(name: str) -> None:
    """The same step, also for gradients that do not lie in memory like their parameter, which torch itself would mix up."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(8, 4, 3, 3)
    found = []
    for options in ({}, {"fused": False}):
        model = nn.ModuleDict({"encoder": nn.Conv2d(4, 8, 3, bias=False)}).to(memory_format=torch.channels_last)
        model["encoder"].weight.data.copy_(weight)
        config = OptimizerConfig(**{**CONFIG, "name": name, "lr": 0.1, "options": options})
        optimizer = build_optimizer(split_parts(model), config)
        assert bool(optimizer.param_groups[0]["fused"]) is (not options)
        for _ in range(3):
            model["encoder"].weight.grad = gradient.clone()
            optimizer.step()
        found.append(model["encoder"].weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)  # the Trainer clips such an optimizer's gradients too
