"""Names for parts, known without importing them.

A part (an encoder, a head, a loss ...) is a class or function decorated with `@REGISTRY.register("name")` in any module of the
registry's package. The registry reads the *source* of that package with `ast`, so names, parameters, types and
defaults are known in milliseconds, before torch is imported; the module itself is imported only when the part is
built. The signature is the schema: arguments before `*` are wired by the program, keyword-only arguments are the keys
that a YAML may set. A new part is therefore one decorated class in one file, and nothing else has to be edited.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtl.core.errors import ConfigError, unknown

Part = TypeVar("Part", bound=Callable[..., Any])

# What an annotation of a configurable argument may be made of.
ANNOTATION_NAMES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "list": list, "tuple": tuple, "dict": dict,
    "None": None, "Literal": Literal, "Any": Any,
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One configurable (keyword-only) argument of a part."""

    name: str
    annotation: Any
    default: Any
    required: bool


@dataclass(frozen=True)
class Entry:
    """What the source says about a part: where it is, what it takes, which class constants it declares."""

    name: str
    module: str
    parameters: dict[str, Parameter]
    constants: dict[str, Any] = field(default_factory=dict)
    summary: str = ""


class Registry:
    """Maps names to parts of one package.

    Args:
        what: Singular noun used in error messages (`head`).
        package: Package whose modules are searched (`mtl.heads`).
        symbol: The name under which this registry is imported (`HEADS`): two registries may share a package.
    """

    def __init__(self, what: str, package: str, symbol: str) -> None:
        self.what = what
        self.symbol = symbol
        self.package = package
        self._parts: dict[str, Callable[..., Any]] = {}
        self._entries: dict[str, Entry] | None = None

    def register(self, name: str) -> Callable[[Part], Part]:
        """Give the decorated class or function a name. `name` must be a literal, since it is read from the source."""

        def decorate(part: Part) -> Part:
            self._parts[name] = part
            return part

        return decorate

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        return sorted({*self.entries(), *self._parts})

    def entries(self) -> dict[str, Entry]:
        """Return what the sources of the package declare, by name."""
        if self._entries is None:
            spec = importlib.util.find_spec(self.package)
            if spec is None or not spec.submodule_search_locations:
                raise ImportError(f"`{self.package}` is not a package")
            root = Path(next(iter(spec.submodule_search_locations)))
            self._entries = {}
            for path in sorted(root.rglob("*.py")):
                module = ".".join([self.package, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
                for entry in _declared(path, module, self.symbol):
                    self._entries[entry.name] = entry
        return self._entries

    def entry(self, name: str, where: str = "") -> Entry:
        """Return the declaration of `name`.

        Raises:
            ConfigError: The name is unknown; the message lists the valid ones.
        """
        entries = self.entries()
        if name not in entries:
            raise ConfigError(unknown(self.what, name, self.names(), where))
        return entries[name]

    def get(self, name: str, where: str = "") -> Callable[..., Any]:
        """Import the module that declares `name` and return the class or function."""
        if name not in self._parts:
            importlib.import_module(self.entry(name, where).module)
        return self._parts[name]

    def build(self, config: dict[str, Any], *args: Any, where: str = "", **wired: Any) -> Any:
        """Build the part that `config["name"]` names; the other keys are its keyword-only arguments.

        Raises:
            ConfigError: Unknown name, or a key that the part does not take.
        """
        parameters = dict(config)
        name = parameters.pop("name")
        part = self.get(name, where)
        if name in self.entries():
            valid = self.entries()[name].parameters
            problems = [unknown("key", key, valid, f"{where or self.what}.{name}") for key in parameters if key not in valid]
            if problems:
                raise ConfigError(problems)
        return part(*args, **wired, **parameters)


def _declared(path: Path, module: str, symbol: str) -> list[Entry]:
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if (
                isinstance(decorator, ast.Call)
                and isinstance(decorator.func, ast.Attribute)
                and decorator.func.attr == "register"
                and isinstance(decorator.func.value, ast.Name)
                and decorator.func.value.id == symbol
                and decorator.args
                and isinstance(decorator.args[0], ast.Constant)
            ):
                found.append(_entry(str(decorator.args[0].value), module, node))
    return found


def _entry(name: str, module: str, node: ast.ClassDef | ast.FunctionDef) -> Entry:
    function: ast.FunctionDef | None = node if isinstance(node, ast.FunctionDef) else None
    constants: dict[str, Any] = {}
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                function = item
            target = (
                item.target if isinstance(item, ast.AnnAssign) else item.targets[0] if isinstance(item, ast.Assign) else None
            )
            if isinstance(target, ast.Name) and isinstance(item, ast.AnnAssign | ast.Assign) and item.value is not None:
                try:
                    constants[target.id] = ast.literal_eval(item.value)
                except ValueError:
                    continue
    parameters = {}
    if function is not None:
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            annotation: Any = Any
            if argument.annotation is not None:
                annotation = eval(ast.unparse(argument.annotation), {"__builtins__": {}}, ANNOTATION_NAMES)
            value = None if default is None else ast.literal_eval(default)
            parameters[argument.arg] = Parameter(argument.arg, annotation, value, default is None)
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Entry(name, module, parameters, constants, summary)


ENCODERS = Registry("backbone", "mtl.encoders", "ENCODERS")
ADAPTERS = Registry("adapter", "mtl.encoders", "ADAPTERS")
NECKS = Registry("neck", "mtl.necks", "NECKS")
HEADS = Registry("head", "mtl.heads", "HEADS")
LOSSES = Registry("loss", "mtl.losses", "LOSSES")
BALANCERS = Registry("balancer", "mtl.balancing", "BALANCERS")
SOURCES = Registry("data family", "mtl.data", "SOURCES")
STUDY_METRICS = Registry("study metric", "mtl.metrics", "STUDY_METRICS")
SCHEDULERS = Registry("scheduler", "mtl.training", "SCHEDULERS")
