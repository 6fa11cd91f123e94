"""Asks of an object, key by key: does it behave differently when this key has another value?

What is compared is behaviour (outputs, losses, gradients, files, orders), not attributes, so that a part which stores a key and
never looks at it is found out.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch

from mtl.core.errors import MtlError
from mtl.core.registry import Registry

Observe = Callable[[dict[str, Any]], Any]
DERIVED = object()  # take another value from the type


@dataclasses.dataclass(frozen=True)
class Flip:
    """How one key is flipped.

    Attributes:
        value: The other value.
        given: Keys (dotted) that must have these values for the key to matter.
        refuses: The other value ends in an error for the user, and that is right. Anything else must not refuse.
    """

    value: Any = DERIVED
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    refuses: bool = False


def other(value: Any, annotation: Any = None) -> Any:
    """Return another valid value, from the type alone.

    Raises:
        LookupError: The type does not tell; the test must name a value.
    """
    members = list(get_args(annotation)) if get_origin(annotation) is Literal else []
    if members:
        return next(member for member in members if member != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.1
    raise LookupError


def put(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with dotted keys replaced."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = changed
        for parent in parents:
            section = section[parent]
        section[last] = copy.deepcopy(value)
    return changed


def leaf_keys(config: dict[str, Any], without: Iterable[str] = ("name",), prefix: str = "") -> list[str]:
    """List the dotted keys of a section; empty dicts and lists are leaves."""
    found: list[str] = []
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path not in without:
            found += leaf_keys(value, without, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def digest(value: Any) -> str:
    """Hash tensors, arrays, plain values and containers of them, exactly."""
    sha = hashlib.sha256()

    def walk(entry: Any) -> None:
        sha.update(type(entry).__name__.encode())
        if isinstance(entry, torch.Tensor):
            walk(entry.detach().cpu().float().numpy() if entry.dtype == torch.bfloat16 else entry.detach().cpu().numpy())
        elif isinstance(entry, np.ndarray):
            sha.update(f"{entry.dtype}{entry.shape}".encode())
            sha.update(np.ascontiguousarray(entry).tobytes())
        elif dataclasses.is_dataclass(entry) and not isinstance(entry, type):
            for field in dataclasses.fields(entry):
                sha.update(field.name.encode())
                walk(getattr(entry, field.name))
        elif isinstance(entry, dict):
            for key, item in entry.items():
                sha.update(str(key).encode())
                walk(item)
        elif isinstance(entry, list | tuple):
            for item in entry:
                walk(item)
        elif entry is None or isinstance(entry, bool | int | float | complex | str | bytes | Path | np.generic):
            sha.update(repr(entry).encode())
        else:
            raise TypeError(f"digest: no rule for {type(entry)}; observe plain values")

    walk(value)
    return sha.hexdigest()


def dead_keys(observe: Observe, config: dict[str, Any], flips: dict[str, Flip]) -> list[str]:
    """Return the keys whose flip changes nothing, with the reason; an empty list is what a test wants.

    Args:
        observe: Builds from a config and returns what it does; must be repeatable.
        config: With a valid value for every key.
        flips: By dotted key.
    """

    def outcome(changes: dict[str, Any]) -> tuple[str, bool]:
        try:
            return digest(observe(put(config, changes))), False
        except MtlError as error:
            return f"refused: {error}", True

    bases: dict[str, tuple[str, bool]] = {}
    dead = []
    for key, flip in flips.items():
        about = json.dumps(flip.given, sort_keys=True, default=str)
        if about not in bases:
            bases[about] = outcome(flip.given)
            assert bases[about] == outcome(flip.given), f"observation is not repeatable ({flip.given})"
            assert not bases[about][1], f"the starting point is refused: {bases[about][0]}"
        changed, refused = outcome({**flip.given, key: flip.value})
        if changed == bases[about][0]:
            dead.append(f"{key}={flip.value!r} changes nothing")
        elif refused != flip.refuses:
            dead.append(f"{key}={flip.value!r}: {changed if refused else 'should have been refused'}")
    return dead


def flips_for(
    keys: Iterable[str], config: dict[str, Any], table: dict[str, Flip], annotations: dict[str, Any]
) -> dict[str, Flip]:
    """Complete a table of flips from the types of the values; every key gets one."""
    found = {}
    for key in keys:
        flip = table.get(key, Flip())
        if flip.value is DERIVED:
            value: Any = put(config, flip.given)
            for step in key.split("."):
                value = value[step]
            try:
                flip = dataclasses.replace(flip, value=other(value, annotations.get(key)))
            except LookupError:
                raise AssertionError(f"name another value for `{key}` (default {value!r})") from None
        found[key] = flip
    return found


def part_flips(
    registry: Registry, config: dict[str, Any], table: dict[str, Flip], without: Iterable[str] = ()
) -> dict[str, Flip]:
    """Return flips for all keys of a registered part.

    Args:
        registry: Knows the part.
        config: `name` and every key.
        table: Values and conditions that the types do not tell.
        without: Keys that another test flips.
    """
    parameters = registry.entry(config["name"]).parameters
    keys = [key for key in parameters if key not in without]
    assert set(keys) <= set(config), "the YAML lacks a key"
    unknown = set(table) - set(parameters)
    assert not unknown, f"the table names keys that do not exist: {unknown}"
    return flips_for(keys, config, table, {key: parameters[key].annotation for key in keys})


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder with their contents."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
