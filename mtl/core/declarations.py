"""What the source of a registered part declares: its keys with types and defaults, and its class constants."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtl.core.errors import ConfigError
from mtl.core.places import Place
from mtl.core.sources import Source, inherited

# What an annotation of a configurable argument may be made of.
ANNOTATION_NAMES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "list": list, "tuple": tuple, "dict": dict,
    "None": None, "Literal": Literal, "Any": Any, "Place": Place,
}  # fmt: skip
CONTAINERS = {"list": 1, "dict": 2}


@dataclass(frozen=True)
class Parameter:
    """One configurable (keyword-only) argument of a part."""

    name: str
    annotation: Any
    default: Any
    required: bool


@dataclass(frozen=True)
class Entry:
    """What the source says about a part.

    Attributes:
        name: Its registered name.
        module: The module to import.
        path: The file of the module.
        symbol: Name of the class or function.
        parameters: The keys that a YAML may set.
        constants: Literal class attributes, its own and inherited ones.
        unreadable: Attributes that are set or computed by code, and so are known to the instance only.
        summary: First line of the docstring.
        plugin: The plug-in that it comes from, as a configuration names it; empty for ours.
    """

    name: str
    module: str
    path: Path
    symbol: str
    parameters: dict[str, Parameter]
    constants: dict[str, Any] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    summary: str = ""
    plugin: str = ""

    def constant(self, key: str) -> Any:
        """Return a class constant.

        Raises:
            ConfigError: Neither the class nor a base class declares it, or its value is no literal.
        """
        if key in self.constants:
            return self.constants[key]
        problem = "sets `{}` to something that is no literal" if key in self.unreadable else "declares no `{}`"
        raise ConfigError(
            f"`{self.symbol}` in `{self.path}` {problem.format(key)}. Add `{key} = <literal>` to the class, or inherit from a "
            "class of the same package or of mtl that has it."
        )


def declared(source: Source, symbol: str, plugin: str = "") -> list[Entry]:
    """List the parts that a module registers with `@<symbol>.register("name")`.

    Raises:
        ConfigError: A part declares what cannot be read, with one line for each problem.
    """
    entries, problems = [], []
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            try:
                entries += [_entry(name, node, source, plugin) for name in _names(node, source, symbol)]
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return entries


def _names(node: ast.ClassDef | ast.FunctionDef, source: Source, symbol: str) -> list[str]:
    """Return the names under which a registry knows a class or function."""
    names = []
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else None
        if not isinstance(decorator, ast.Call) or not isinstance(call, ast.Attribute) or call.attr != "register":
            continue
        registry = ast.unparse(call.value)
        if source.imports.get(registry, registry).rpartition(".")[2] != symbol:
            continue
        given = decorator.args[0] if decorator.args else None
        if not isinstance(given, ast.Constant) or not isinstance(given.value, str):
            raise ConfigError(
                f"`{node.name}` in `{source.path}` is registered with `{ast.unparse(decorator)}`. Expected a name in quotes, "
                "because it is read from the source."
            )
        names.append(given.value)
    return names


def _entry(name: str, node: ast.ClassDef | ast.FunctionDef, source: Source, plugin: str) -> Entry:
    function: ast.FunctionDef | None = node if isinstance(node, ast.FunctionDef) else None
    holder = source
    constants: dict[str, Any] = {}
    unreadable: set[str] = set()
    for part in inherited(node, source) if isinstance(node, ast.ClassDef) else []:
        methods = {item.name: item for item in part.node.body if isinstance(item, ast.FunctionDef)}
        if function is None and "__init__" in methods:
            function, holder = methods["__init__"], part.source
        unreadable |= {key for key in methods if key not in constants}
        for key, value in _assigned(part.node).items():
            if key not in constants and key not in unreadable:
                try:
                    constants[key] = ast.literal_eval(value)
                except (ValueError, TypeError):
                    unreadable.add(key)
    parameters = _parameters(function, f"`{node.name}` in `{holder.path}`") if function is not None else {}
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Entry(
        name, source.module, source.path, node.name, parameters, constants, frozenset(unreadable), summary, plugin
    )  # fmt: skip


def _assigned(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return the values that the body of a class assigns to names."""
    values: dict[str, ast.expr] = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and item.value is not None and isinstance(item.target, ast.Name):
            values[item.target.id] = item.value
        elif isinstance(item, ast.Assign):
            values |= {target.id: item.value for target in item.targets if isinstance(target, ast.Name)}
    return values


def _parameters(function: ast.FunctionDef, owner: str) -> dict[str, Parameter]:
    """Read the keyword-only arguments of a function.

    Raises:
        ConfigError: Types or defaults that cannot be read, with one line for each.
    """
    parameters, problems = {}, []
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        name, annotation, value = argument.arg, Any, None
        try:
            annotation = Any if argument.annotation is None else _annotation(argument.annotation)
        except (ValueError, TypeError):
            problems.append(
                f"The argument `{name}` of {owner} has the type `{ast.unparse(argument.annotation or argument)}`. Expected one "
                f"made of {', '.join(ANNOTATION_NAMES)}, because it is read from the source."
            )
        try:
            value = None if default is None else ast.literal_eval(default)
        except (ValueError, TypeError):
            problems.append(
                f"The argument `{name}` of {owner} has the default `{ast.unparse(default or argument)}`. Expected a literal "
                "(a number, text, list ...), because it is read from the source."
            )
        parameters[name] = Parameter(name, annotation, value, default is None)
    if problems:
        raise ConfigError(problems)
    return parameters


def _annotation(node: ast.expr) -> Any:
    """Turn an annotation into a type without evaluating any code.

    Raises:
        ValueError: It is made of something else than `ANNOTATION_NAMES`.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _annotation(ast.parse(node.value, mode="eval").body)
        except SyntaxError as error:
            raise ValueError(node.value) from error
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _annotation(node.left) | _annotation(node.right)
    name = _type_name(node.value if isinstance(node, ast.Subscript) else node)
    if not isinstance(node, ast.Subscript):
        if name == "Literal":
            raise ValueError("a bare Literal")
        return ANNOTATION_NAMES[name]
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(value) for value in inner)]
    endless = name == "tuple" and len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is Ellipsis
    if endless:
        return tuple[_annotation(inner[0]), ...]  # type: ignore[misc]
    if name == "tuple" or len(inner) == CONTAINERS.get(name):
        return ANNOTATION_NAMES[name][tuple(_annotation(entry) for entry in inner)]
    raise ValueError(ast.unparse(node))


def _type_name(node: ast.expr) -> str:
    """Return the name of a type that stands alone or behind `typing.`."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("typing", "t"):
        node = ast.Name(node.attr)
    if isinstance(node, ast.Name) and node.id in ANNOTATION_NAMES:
        return node.id
    raise ValueError(ast.unparse(node))
