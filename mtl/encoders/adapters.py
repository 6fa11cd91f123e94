"""The choice to have no adapters, and what adapters share."""

from __future__ import annotations

from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS
from mtl.encoders.base import SHARED, Encoder, adapter_parameters


@ADAPTERS.register("none")
def no_adapter(encoder: Encoder, tasks: list[str]) -> Encoder:
    """Leave the encoder as it is."""
    return encoder


def set_names(encoder: Encoder, tasks: list[str], per_task: bool) -> list[str]:
    """Return the keys of the adapter sets to build.

    Raises:
        ConfigError: The encoder already has adapters, or there is no task to build a set for.
    """
    if adapter_parameters(encoder):
        raise ConfigError("`peft`: this encoder already has adapters; attach one kind only.")
    if per_task and not tasks:
        raise ConfigError("`peft.per_task=true` needs at least one task.")
    return list(tasks) if per_task else [SHARED]


def check_rank(rank: int, key: str = "peft.rank") -> None:
    """Refuse ranks below one."""
    if rank < 1:
        raise ConfigError(f"`{key}={rank}`: expected a whole number of at least 1.")
