"""Python sources read with `ast`: where a module lies, which classes it holds, what a class inherits. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from mtl.core.errors import ConfigError

OURS = "mtl"


@dataclass(frozen=True)
class Source:
    """One parsed module.

    Attributes:
        path: Its file.
        module: Its dotted name.
        tree: What `ast` made of it.
        classes: Classes at the top level, by name.
        imports: What names that were imported stand for, in full (`Head`: `mtl.heads.base.Head`).
    """

    path: Path
    module: str
    tree: ast.Module
    classes: dict[str, ast.ClassDef]
    imports: dict[str, str]


@dataclass(frozen=True)
class Class:
    """A class with the module that it stands in."""

    node: ast.ClassDef
    source: Source


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module lies, or None. Unlike `importlib.util.find_spec`, this does not import its parents."""
    name, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    for step in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{step}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def files_of(module: str) -> Iterator[tuple[Path, str]]:
    """List the files of a module, or of a package with everything below it, each with its dotted name."""
    spec = find_module(module)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin and spec.origin.endswith(".py"):
            yield Path(spec.origin), module
        return
    for root in map(Path, spec.submodule_search_locations):
        for path in sorted(root.rglob("*.py")):
            yield path, ".".join([module, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")


def read_text(path: Path) -> str:
    """Read a source file.

    Raises:
        ConfigError: It is unreadable or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}. Expected a Python file in UTF-8.") from error


@lru_cache(maxsize=512)
def read_source(path: Path, module: str) -> Source:
    """Parse a file.

    Raises:
        ConfigError: It is unreadable or no Python.
    """
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"`{path}` is not valid Python ({line}). Correct it, or do not use it as a plug-in.") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return Source(path, module, tree, classes, _imports(tree, package))


def inherited(node: ast.ClassDef, source: Source) -> list[Class]:
    """Return a class and its base classes in the order in which Python looks things up.

    Bases are followed within the module and through imports from the same package, from files beside a single file, and
    from ours; all others (`nn.Module`) count as empty.

    Raises:
        ConfigError: Classes inherit each other in a circle, or in an order that contradicts itself.
    """
    own = Class(node, source)
    return [own, *_merged(_lines(own, ()), own)]


def _lines(own: Class, below: tuple[ast.ClassDef, ...]) -> list[list[Class]]:
    """Return the lookup order of each base, then the bases themselves: what the C3 rule merges."""
    if own.node in below:
        raise ConfigError(f"`{own.node.name}` in `{own.source.path}` inherits itself. Correct its base classes.")
    bases = [base for base in (_base(expression, own.source) for expression in own.node.bases) if base is not None]
    return [[base, *_merged(_lines(base, (*below, own.node)), base)] for base in bases] + [bases]


def _merged(lines: list[list[Class]], own: Class) -> list[Class]:
    """Merge lookup orders by Python's C3 rule."""
    order: list[Class] = []
    lines = [list(line) for line in lines if line]
    while lines:
        heads = (line[0] for line in lines)
        following = next((h for h in heads if not any(h.node is c.node for line in lines for c in line[1:])), None)
        if following is None:
            raise ConfigError(
                f"The base classes of `{own.node.name}` in `{own.source.path}` contradict each other's order. Reorder them."
            )
        order.append(following)
        lines = [rest for line in lines if (rest := line[1:] if line[0].node is following.node else line)]
    return order


def _base(expression: ast.expr, source: Source) -> Class | None:
    """Find the class that an expression in a list of base classes names."""
    if isinstance(expression, ast.Subscript):  # Base[int]
        expression = expression.value
    first, *rest = ast.unparse(expression).split(".")
    if not rest and first in source.classes:
        return Class(source.classes[first], source)
    target = source.imports.get(first)
    return _imported(".".join([target, *rest]), source, frozenset()) if target else None


def _imported(target: str, source: Source, seen: frozenset[str]) -> Class | None:
    """Find a class by its full name, also where the module that is named imports it from another one."""
    module, _, name = target.rpartition(".")
    if not module or target in seen or not _near(module, source):
        return None
    spec = find_module(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    found = read_source(Path(spec.origin), module)
    if name in found.classes:
        return Class(found.classes[name], found)
    return _imported(found.imports[name], found, seen | {target}) if name in found.imports else None


def _near(module: str, source: Source) -> bool:
    """Return whether the base classes in a module are read: those of the same package, of a file beside it, and ours."""
    top = module.partition(".")[0]
    return top in (OURS, source.module.partition(".")[0]) or (
        "." not in source.module and (source.path.parent / f"{top}.py").is_file()
    )


def _imports(tree: ast.Module, package: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
            names |= {(top := alias.name.partition(".")[0]): top for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    return names
