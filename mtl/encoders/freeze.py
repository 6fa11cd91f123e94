"""Frozen means frozen: no gradient, and no layer of the frozen part in training mode.

Batch-norm statistics move in training mode even where `requires_grad` is off; dropout and stochastic depth would add
noise to features that cannot adapt to it. So the frozen part stays in evaluation mode.
"""

from __future__ import annotations

from torch import nn

from mtl.core.errors import ConfigError, nearest
from mtl.encoders.keys import spelled, under


def stage_names(body: nn.Module) -> list[str]:
    """Return the parts of a network that can be unfrozen, spelled as in timm: `layer4`, `stages.3`, `blocks.5`."""
    names = []
    for name, child in body.named_children():
        if name in ("model", "body"):
            names += stage_names(child)
        elif isinstance(child, nn.Sequential | nn.ModuleList) and name in ("blocks", "stages", "layers", "features"):
            names += [f"{name}.{index}" for index, part in enumerate(child) if any(True for _ in part.parameters())]
        elif any(True for _ in child.parameters()):
            names.append(spelled(name))
    return names


def check_modules(body: nn.Module, names: list[str], where: str) -> None:
    """Refuse module names that the network does not have.

    Args:
        body: A timm network.
        names: Module-name prefixes as in timm.
        where: The key that gives them, for messages.

    Raises:
        ConfigError: A prefix names no parameters.
    """
    problems = []
    for prefix in names:
        if not any(under(name, str(prefix)) for name, _ in body.named_parameters()):
            valid = stage_names(body)
            expected = f"Expected module names such as: {', '.join(valid)}.{nearest(str(prefix), valid)}"
            problems.append(f"`{where}` names `{prefix}`, which this network does not have. {expected}")
    if problems:
        raise ConfigError(problems)


def freeze(body: nn.Module, unfreeze: list[str]) -> tuple[str, ...]:
    """Switch gradients off, except in the parts named by `unfreeze`.

    Args:
        body: A timm network.
        unfreeze: Module-name prefixes as in timm; whole components count (`layer4` is not `layer40`).

    Returns:
        Names of the modules that must stay in evaluation mode, for `Encoder.frozen_modules`.

    Raises:
        ConfigError: A prefix names no parameters.
    """
    check_modules(body, unfreeze, "backbone.unfreeze")
    parameters = dict(body.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(any(under(name, str(prefix)) for prefix in unfreeze))
    return tuple(name for name, _ in body.named_modules() if name and not any(under(name, str(prefix)) for prefix in unfreeze))


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer may move, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
