"""Which keys hold the name of a file, a folder or a run: those that are declared as a `Place`, in plug-ins too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mtl.config.keys import GROUPS_OF_PARTS, SECTIONS
from mtl.config.schema import RunConfig
from mtl.config.verbs import CompareConfig, DataToolConfig, EvaluateConfig, PredictConfig, SynthConfig
from mtl.core.errors import ConfigError
from mtl.core.places import Place
from mtl.core.registry import Registry

MODELS: tuple[type[BaseModel], ...] = (
    RunConfig, CompareConfig, DataToolConfig, EvaluateConfig, PredictConfig, SynthConfig,
)  # fmt: skip
RUN_NAME = ("name",)  # becomes that of a folder
ANY = "*"
Steps = tuple[str, ...]
# By section: the parts in it, and how deep they are in it.
PARTS: dict[str, tuple[Registry, int]] = {
    **{section: (registry, 1) for registry, section in SECTIONS},
    **{section: (registry, 2) for registry, section in GROUPS_OF_PARTS},
}


def holds_path(key: str) -> bool:
    """Return whether the value of a dotted key is the name of a file, a folder or a run."""
    steps = tuple(key.split("."))
    if any(_fits(steps, pattern) for pattern in _of_models()):
        return True
    registry, depth = PARTS.get(steps[0], (None, 0))
    return registry is not None and any(_fits(steps[depth:], pattern) for pattern in _of_parts(registry, steps[depth:]))


def _fits(steps: Steps, pattern: Steps) -> bool:
    return len(steps) == len(pattern) and all(want in (ANY, step) for step, want in zip(steps, pattern, strict=True))


@cache
def _of_models() -> frozenset[Steps]:
    return frozenset({RUN_NAME}.union(*(_declared(model) for model in MODELS)))


def _of_parts(registry: Registry, steps: Steps) -> Iterator[Steps]:
    """List the places among the keys of all parts of a kind that begin like `steps`; plug-ins may have come since last time."""
    entries = registry.entries()
    for name in entries if steps else ():
        with suppress(ConfigError):  # a part that cannot be read is told where it is used
            if parameter := entries[name].parameters.get(steps[0]):
                yield from ((steps[0], *rest) for rest in _declared(parameter.annotation))


def _declared(annotation: Any) -> Iterator[Steps]:
    """List where a type has places; the names in a mapping are free."""
    if annotation == Place:
        yield ()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if set(get_args(Place)[1:]) & set(field.metadata):
                yield (name,)  # pydantic has taken the type apart
            yield from ((name, *rest) for rest in _declared(field.annotation))
    elif get_origin(annotation) is dict:
        yield from ((ANY, *rest) for rest in _declared(get_args(annotation)[1]))
    else:
        for inner in get_args(annotation):
            yield from _declared(inner)
