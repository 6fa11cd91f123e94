"""Optimizers with one parameter group per part of the network."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mtl.config.schema import OptimizerConfig, RunConfig
from mtl.core.errors import ConfigError, nearest, unknown
from mtl.core.parts import covers, part_of
from mtl.encoders.base import adapter_parameters

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD,
}  # fmt: skip
FUSED = ("adam", "adamw")  # of these torch has a fused step for CPUs
# Accepted in `parts` even where a run has no such part (no adapters, static balancer), so that one setting serves many runs.
PART_FAMILIES = ("backbone", "adapters", "neck", "head", "balancer")

Parts = dict[str, list[tuple[str, nn.Parameter]]]


def split_parts(model: nn.Module, balancer: nn.Module | None = None) -> Parts:
    """Sort all parameters, frozen ones too, by the part of the network they belong to.

    Parts are `backbone`, `adapters` (inside the encoder, trained beside frozen weights), `neck.<name>`, `head.<task>` and
    `balancer`; a parameter elsewhere forms a part named after the sub-module of the model that holds it.
    """
    parts: Parts = {}
    adapters = {id(parameter) for parameter in adapter_parameters(model)}
    for name, parameter in model.named_parameters():
        part = "adapters" if id(parameter) in adapters else part_of(name)
        parts.setdefault(part, []).append((name, parameter))
    for name, parameter in balancer.named_parameters() if balancer is not None else ():
        parts.setdefault("balancer", []).append((f"balancer.{name}", parameter))
    return parts


def inactive_parts(config: RunConfig) -> list[str]:
    """Name the parts of a suite; settings for those a run leaves out (a single-task twin) are accepted and have no effect."""
    return [f"head.{task}" for task in config.heads] + [f"neck.{name}" for name in config.necks]


def build_optimizer(parts: Parts, config: OptimizerConfig, inactive: Iterable[str] = ()) -> Optimizer:
    """Build the optimizer with one group per part that has trainable parameters.

    Each group carries `name` and `floor`, the learning rate that schedulers end at. `config.parts` changes `lr`, `floor` and
    `weight_decay` of a part (`head.detection`) or of all parts below a name (`head`); the longer name wins. A floor that is
    inherited never exceeds the group's own learning rate, so that no schedule raises a slow group.

    Args:
        parts: Result of `split_parts`.
        config: The section `optimizer`; `options` are further arguments of its class.
        inactive: Parts of the suite that this run leaves out (heads of tasks that are not selected); settings for them are
            accepted and have no effect.

    Raises:
        ConfigError: Unknown optimizer, option or part; a floor above its learning rate, or nothing to train.
    """
    problems = _problems(config, [*parts, *inactive])
    if problems:
        raise ConfigError(problems)
    groups: list[dict[str, Any]] = []
    for part, named in parts.items():
        trainable = [parameter for _, parameter in named if parameter.requires_grad]
        if trainable:
            groups.append({"params": trainable, "name": part, **_group_settings(part, config)})
    if not groups:
        raise ConfigError("Nothing to train: every parameter is frozen. Unfreeze the backbone, add adapters or select a head.")
    check_groups(groups, parts)
    defaults: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    chosen: dict[str, Any] = {"fused": True} if _fusible(config, groups) else {}
    try:
        optimizer = OPTIMIZERS[config.name](groups, **defaults, **chosen, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`optimizer.options` do not suit `{config.name}`: {error}.") from error
    if chosen:
        # It would unscale gradients, but without a GPU none are scaled; the Trainer refuses to clip what scales by itself.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _fusible(config: OptimizerConfig, groups: list[dict[str, Any]]) -> bool:
    """Return whether one pass over each parameter does the whole step: Adam on a CPU, which is then three times as fast.

    On GPUs torch chooses well by itself.
    """
    own = {"fused", "foreach", "capturable", "differentiable"} & config.options.keys()
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return config.name in FUSED and not own and devices == {"cpu"}


def _lay_out_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Give gradients the memory format of their parameters, without which a fused step would mix them up."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def check_groups(groups: list[dict[str, Any]], parts: Parts) -> None:
    """Assert that every trainable parameter is in exactly one group and every frozen one in none."""
    found = Counter(id(parameter) for group in groups for parameter in group["params"])
    for part, named in parts.items():
        for name, parameter in named:
            count, expected = found[id(parameter)], int(parameter.requires_grad)
            if count != expected:
                raise AssertionError(f"`{name}` of `{part}` is in {count} optimizer groups, expected {expected}")


def _group_settings(part: str, config: OptimizerConfig) -> dict[str, float]:
    values = {"lr": config.lr, "floor": config.floor, "weight_decay": config.weight_decay}
    own_floor = False
    for name in sorted(config.parts, key=len):
        if covers(name, part):
            given = config.parts[name].model_dump(exclude_none=True)
            own_floor = own_floor or "floor" in given
            values |= given
    if values["floor"] > values["lr"]:
        if own_floor:
            raise ConfigError(
                f"`optimizer.parts`: `{part}` has floor {values['floor']:g} above its lr {values['lr']:g}, so it would rise. "
                "Lower the floor or raise the lr."
            )
        values["floor"] = values["lr"]
    return values


def _problems(config: OptimizerConfig, known: list[str]) -> list[str]:
    if config.name not in OPTIMIZERS:
        return [unknown("optimizer", config.name, OPTIMIZERS, "optimizer.name")]
    taken = ("self", "params", "lr", "weight_decay")
    valid = [key for key in inspect.signature(OPTIMIZERS[config.name].__init__).parameters if key not in taken]
    problems = [unknown("option", key, valid, "optimizer.options") for key in config.options if key not in valid]
    for name in config.parts:
        if name not in PART_FAMILIES and not any(covers(name, part) for part in known):
            names = sorted({*PART_FAMILIES, *known})
            problems.append(f"`optimizer.parts.{name}` matches no part. Parts: {', '.join(names)}.{nearest(name, names)}")
    return problems
