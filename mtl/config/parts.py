"""Check the settings of registered parts against their signatures, without importing them."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mtl.config.bounds import RANGES, has_bool, part_problems, takes_bool
from mtl.config.words import shown
from mtl.core.declarations import Entry
from mtl.core.errors import nearest, unknown
from mtl.core.registry import HEADS, LOSSES, Registry

# Keys of a head that the model consumes, not the head.
HEAD_KEYS = frozenset({"features"})
# Dict arguments with these names are parts themselves, with the keys that somebody else consumes.
NESTED: dict[str, tuple[Registry, frozenset[str]]] = {
    "loss": (LOSSES, frozenset()), "expert": (HEADS, HEAD_KEYS), "detector": (HEADS, HEAD_KEYS),
}  # fmt: skip

NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number", "bool_parsing": "true or false"}
FORM = re.compile(r"constrained-\w+|int|float|str|bool|[a-z-]+\[.*\]", re.DOTALL)


def check_part(
    registry: Registry, config: Any, where: str, extra: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[str]]:
    """Validate one part.

    Args:
        registry: Where its name must be known.
        config: `{"name": ..., key: value, ...}`.
        where: Config path, for messages.
        extra: Keys that somebody else consumes and that are passed through.

    Returns:
        The configuration with every default filled in, and the problems found (one line each).
    """
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        return {}, [
            f"`{where}` must be a {registry.what} with a `name`, found `{config!r}`. Known: {', '.join(registry.names())}."
        ]
    name = config["name"]
    entries = registry.entries()
    if name not in entries:
        return dict(config), [unknown(registry.what, name, registry.names(), f"{where}.name")]
    entry = entries[name]
    own = {key: value for key, value in config.items() if key != "name" and key not in extra}
    valid = [*entry.parameters, *sorted(extra)]
    problems = [unknown("key", key, valid, where) for key in own if key not in entry.parameters]
    own = {key: value for key, value in own.items() if key in entry.parameters}
    problems += [
        f"`{where}.{key}` is `{value!r}`. Input should be a number."  # pydantic would take true for 1
        for key, value in own.items()
        if has_bool(value) and (key in RANGES or not takes_bool(entry.parameters[key].annotation))
    ]
    values, found = validate(_model(registry.package, name, entry), own, where)
    sound = {key: value for key, value in values.items() if not any(f"`{where}.{key}" in line for line in problems + found)}
    problems += found + part_problems(sound, where, ours=not entry.plugin)
    for key, (nested, consumed) in NESTED.items():
        if key in entry.parameters and isinstance(values.get(key), dict):
            values[key], found = check_part(nested, values[key], f"{where}.{key}", consumed)
            problems += found
    passed = {key: config[key] for key in extra if key in config}
    return {"name": name, **passed, **values}, problems


def plugins_of(registry: Registry, config: dict[str, Any]) -> set[str]:
    """Return the plug-ins that a checked part and the parts inside it come from."""
    found = {registry.entry(config["name"]).plugin} - {""}
    for key, (nested, _) in NESTED.items():
        if isinstance(config.get(key), dict):
            found |= plugins_of(nested, config[key])
    return found


def validate(model: type[BaseModel], values: Any, where: str, groups: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Validate against a pydantic model; return plain values (defaults filled in) and one line per problem.

    Args:
        model: The shape.
        values: What was found.
        where: Config path, for messages.
        groups: Names that are no keys but may stand at the top level of a command line (`experiment`).
    """
    try:
        return model.model_validate(values).model_dump(mode="python"), []
    except ValidationError as error:
        # Of the forms that a value may have, one says enough: the one that it has, where it is one of them.
        found: dict[tuple[str, ...], Any] = {}
        for problem in sorted(error.errors(), key=lambda problem: problem["type"].endswith(("_type", "_parsing"))):
            first = found.setdefault(tuple(_keys(problem["loc"])), problem)
            if first["type"] == "literal_error" and problem["type"] in NUMBERS:  # `auto` or a number: neither says it alone
                first["msg"] += f" or {NUMBERS[problem['type']]}"
        lines = [_line(problem, model, where, groups) for problem in found.values()]
        return (dict(values) if isinstance(values, dict) else {}), lines


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys in the place of a problem, without the forms of a value that pydantic adds (`constrained-int`)."""
    return [step for step in map(str, location) if not FORM.fullmatch(step)]


def _line(problem: Any, model: type[BaseModel], where: str, groups: tuple[str, ...]) -> str:
    location = _keys(problem["loc"])
    path = ".".join([*([where] if where else []), *location])
    if problem["type"] == "extra_forbidden":
        valid = [*_valid_keys(model, location[:-1]), *(groups if len(location) == 1 else ())]
        return unknown("key", location[-1], set(valid), path.rpartition(".")[0])
    if problem["type"] == "missing":
        return f"`{path}` is required and was not given. Set it with {path}=<value>."
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        hint = nearest(problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{path}` is `{shown(repr(problem['input']))}`. {message}.{hint}"


def _valid_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """List the keys of the sub-model at `location`; keys of dicts and branches of unions are skipped over."""
    current: Any = model
    for step in location:
        field = getattr(current, "model_fields", {}).get(step)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [entry for entry in candidates if isinstance(entry, type) and issubclass(entry, BaseModel)]
        current = models[0] if models else current
    return list(getattr(current, "model_fields", {}))


def _model(package: str, name: str, entry: Entry) -> type[BaseModel]:
    definitions: dict[str, Any] = {
        key: (parameter.annotation, ... if parameter.required else parameter.default)
        for key, parameter in entry.parameters.items()
    }
    return create_model(f"{package}.{name}", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **definitions)
