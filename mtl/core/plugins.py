"""Modules outside the package that bring parts and YAML files of their own.

A plug-in is known because its distribution says so (an entry point in one of `GROUPS`) or because the user named it: the word
`plugins=[...]` on a command line, the argument of `mtl.load`. Nothing else makes one known. A configuration, a run and a
checkpoint only record which plug-ins they need; they come from elsewhere at times, and to import what they name would be to
run what they like.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mtl.core.errors import ConfigError, nearest
from mtl.core.sources import find_module

# Groups of entry points, named like the packages whose parts they add to. The value is a module, or a package with all below.
GROUPS = (
    "mtl.encoders", "mtl.necks", "mtl.heads", "mtl.losses", "mtl.balancing", "mtl.data", "mtl.metrics", "mtl.kinds",
    "mtl.training",
)  # fmt: skip
CONFIGS = "configs"


@dataclass(frozen=True)
class Plugin:
    """A module or package that is searched for parts.

    Attributes:
        name: How a configuration names it: a dotted name, or the absolute path of a file or folder.
        module: Its dotted name; empty for a folder that brings YAML files only.
        folders: Where its YAML files lie.
    """

    name: str
    module: str
    folders: tuple[Path, ...]


_named: list[Plugin] = []


def known() -> tuple[Plugin, ...]:
    """Return all plug-ins of this process, each module once: the installed ones, then those that the user named.

    Raises:
        ConfigError: One that is installed cannot be found.
    """
    return tuple({plugin.module or plugin.name: plugin for plugin in (*_installed(), *_named)}.values())


def use(names: Iterable[str]) -> list[str]:
    """Make plug-ins known that the user named; they stay so until the process ends.

    Args:
        names: Dotted names, or paths of `.py` files, of packages, or of folders that hold `configs/`. The folder of a file or
            package joins the end of `sys.path`.

    Returns:
        The names as a configuration records them.

    Raises:
        ConfigError: With one line for each that cannot be found.
    """
    found, problems = [], []
    for name in names:
        try:
            found.append(_from_path(Path(name)) if _is_path(name) else _from_module(name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    _named.extend(plugin for plugin in found if plugin not in _named)
    return [plugin.name for plugin in found]


def missing(names: Iterable[str], where: str) -> list[str]:
    """Return one line for each recorded plug-in that is not known.

    A file counts as known from any folder: a run may have moved with it.

    Args:
        names: As recorded.
        where: What recorded them, for messages.
    """
    here = {name for plugin in known() for name in (plugin.module, plugin.name)}
    return [
        f"{where} needs the plug-in `{name}`, which is neither installed nor named here. What a file asks for is not imported "
        f"unasked: install the plug-in, or add {shlex.quote(f'plugins=[{name}]')} if you trust it."
        for name in names
        if name not in here and _module_of(name) not in here
    ]


def config_folders() -> list[Path]:
    """Return the folders of YAML files that plug-ins bring, in the order in which they are searched."""
    return list(dict.fromkeys(folder for plugin in known() for folder in plugin.folders))


@cache
def _installed() -> tuple[Plugin, ...]:
    from importlib.metadata import entry_points  # slow to import

    plugins, problems = [], []
    found = entry_points()
    for point in dict.fromkeys(point for group in GROUPS for point in found.select(group=group)):
        try:
            plugins.append(_from_module(point.module))
        except ConfigError:
            owner = point.dist.name if point.dist else "?"
            problems.append(
                f"The distribution `{owner}` announces the plug-in `{point.value}` ({point.group}), but has no such module. "
                "Reinstall or remove the distribution."
            )
    if problems:
        raise ConfigError(problems)
    return tuple(plugins)


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or "\\" in name


def _module_of(name: str) -> str:
    return Path(name).stem if _is_path(name) else name


def _from_module(name: str) -> Plugin:
    """Find a plug-in by its dotted name; YAML files lie in a folder `configs` of the package or of one that holds it."""
    spec = find_module(name) if all(step.isidentifier() for step in name.split(".")) else None
    if spec is None:
        beside = " Write the path of a file with its ending, for example plugins=[./heads.py]."
        raise ConfigError(f"There is no module `{name}` to take as a plug-in. Name one that Python can import here.{beside}")
    steps = name.split(".")
    packages = [find_module(".".join(steps[:length])) for length in range(len(steps), 0, -1)]
    roots = [Path(root) for package in packages if package for root in package.submodule_search_locations or ()]
    return Plugin(name, name, tuple(folder for root in roots if (folder := root / CONFIGS).is_dir()))


def _from_path(path: Path) -> Plugin:
    """Find a plug-in by its path; YAML files lie in a folder `configs` beside a file, or inside a folder."""
    path = path.expanduser().resolve()
    is_package, folder = (path / "__init__.py").is_file(), path / CONFIGS
    if not is_package and folder.is_dir():
        return Plugin(str(path), "", (folder,))
    if not is_package and not (path.suffix == ".py" and path.is_file()):
        near = path.parent.glob("*.py") if path.parent.is_dir() else []
        raise ConfigError(
            f"There is no plug-in `{path}`. Expected a file that ends in .py, or a folder with an __init__.py or with "
            f"{CONFIGS}/ in it.{nearest(str(path), map(str, near))}"
        )
    module = path.stem
    if not module.isidentifier():
        raise ConfigError(
            f"The plug-in `{path}` cannot be imported under its name `{module}`. Rename it to letters, digits and _."
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    spec = find_module(module)
    origin = spec.origin if spec else None
    if origin is None or Path(origin).resolve() != (path / "__init__.py" if is_package else path):
        raise ConfigError(f"The plug-in `{path}` is hidden by another module of its name, `{origin}`. Rename the plug-in.")
    folder = folder if is_package else path.parent / CONFIGS
    return Plugin(str(path), module, (folder,) if folder.is_dir() else ())
