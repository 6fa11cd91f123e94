"""Names for parts, known without importing them.

A part (an encoder, a head, a loss ...) is a class or function decorated with `@REGISTRY.register("name")` in any module of the
registry's package or of a plug-in (`mtl.core.plugins`). The registry reads the *sources* with `ast`, so names, parameters,
types, defaults and what a class inherits are known in milliseconds, before torch is imported; the module itself is imported
only when the part is built. The signature is the schema: arguments before `*` are wired by the program, keyword-only arguments
are the keys that a YAML may set. A new part is therefore one decorated class in one file, and nothing else has to be edited.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mtl.core import plugins
from mtl.core.declarations import Entry, declared
from mtl.core.errors import ConfigError, MtlError, unknown
from mtl.core.sources import files_of, read_source, read_text

Part = TypeVar("Part", bound=Callable[..., Any])
# The usual form, from which names are known without parsing: parsing every file takes longer than everything else at the start.
ANY = re.compile(r"^\s*@.*\.register\(", re.MULTILINE)
USUAL = re.compile(r'^@([A-Z_]+)\.register\("(\w+)"\)$', re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A module, and the plug-in that brings it."""

    path: Path
    module: str
    plugin: str


class Entries(Mapping[str, Entry]):
    """What sources declare, by name; a file in the usual form is parsed when somebody asks for one of its parts.

    Args:
        symbol: The name of the registry.
    """

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.places: dict[str, Place] = {}
        self._parsed: dict[Place, list[Entry]] = {}

    def __getitem__(self, name: str) -> Entry:
        """Return a declaration.

        Raises:
            ConfigError: Its source cannot be read.
        """
        place = self.places[name]
        for entry in self.at(place):
            if entry.name == name:
                return entry
        raise ConfigError(
            f"`{place.path}` registers `{name}`, but not at the top level of the module. Move the class or function there."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def names_in(self, place: Place) -> list[str]:
        """List the parts of a module."""
        text = read_text(place.path)
        registered = len(ANY.findall(text)) if self.symbol in text else 0
        usual = USUAL.findall(text) if registered else []
        if len(usual) == registered:
            return [name for symbol, name in usual if symbol == self.symbol]
        return [entry.name for entry in self.at(place)]

    def at(self, place: Place) -> list[Entry]:
        """Parse a module."""
        if place not in self._parsed:
            self._parsed[place] = declared(read_source(place.path, place.module), self.symbol, place.plugin)
        return self._parsed[place]


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
        self._entries = Entries(symbol)
        self._read: tuple[plugins.Plugin, ...] | None = None

    def register(self, name: str) -> Callable[[Part], Part]:
        """Give the decorated class or function a name. `name` must be a literal, since it is read from the source."""

        def decorate(part: Part) -> Part:
            known = self._parts.get(name, part)
            if (known.__module__, known.__qualname__) != (part.__module__, part.__qualname__):
                raise ConfigError(
                    f"Two {self.what}s are called `{name}`: `{known.__qualname__}` of `{known.__module__}` and "
                    f"`{part.__qualname__}` of `{part.__module__}`. Rename one of them."
                )
            self._parts[name] = part
            return part

        return decorate

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        return sorted({*self.entries(), *self._parts})

    def entries(self) -> Entries:
        """Return what the sources of the package and of all plug-ins declare, by name.

        Raises:
            ConfigError: Two parts share a name, or a source cannot be read; with one line for each problem.
        """
        known = plugins.known()
        if self._read != known:
            self._entries = self._search(known)
            self._read = known
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
        """Import the module that declares `name` and return the class or function.

        Raises:
            ConfigError: The name is unknown, or the plug-in that declares it cannot be imported.
        """
        if name not in self._parts:
            entry = self.entry(name, where)
            try:
                importlib.import_module(entry.module)
            except MtlError:
                raise
            except Exception as error:  # whatever foreign code may raise
                if not entry.plugin:
                    raise
                raise ConfigError(
                    f"The {self.what} `{name}` cannot be used: importing `{entry.path}` of the plug-in `{entry.plugin}` failed "
                    f"({type(error).__name__}: {error}). Correct the plug-in, or install what it needs."
                ) from error
            if name not in self._parts:
                raise ConfigError(
                    f"The {self.what} `{name}` cannot be used: `{entry.path}` was imported, but `{self.symbol}` in it is not "
                    f"`mtl.core.registry.{self.symbol}`. Import the registry from there."
                )
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

    def _search(self, known: tuple[plugins.Plugin, ...]) -> Entries:
        found = Entries(self.symbol)
        seen, problems = set(), []
        for module, plugin in ((self.package, ""), *((entry.module, entry.name) for entry in known if entry.module)):
            for path, name in files_of(module):
                if path in seen:  # a plug-in inside another one
                    continue
                seen.add(path)
                place = Place(path, name, plugin)
                try:
                    for part in found.names_in(place):
                        if part in found:
                            problems.append(self._clash(found, part, place))
                        found.places.setdefault(part, place)
                except ConfigError as error:
                    problems += error.problems
        if problems:
            raise ConfigError(problems)
        return found

    def _clash(self, found: Entries, name: str, second: Place) -> str:
        first = found.places[name]
        classes = [
            " and ".join(f"`{entry.symbol}`" for entry in found.at(place) if entry.name == name) for place in (first, second)
        ]
        if first == second:
            return f"Two {self.what}s in `{first.path}` are called `{name}`: {classes[0]}. Rename one of them."
        return (
            f"Two {self.what}s are called `{name}`: {classes[0]} in `{first.path}` and {classes[1]} in `{second.path}`. "
            "Rename one of them."
        )


ENCODERS = Registry("backbone", "mtl.encoders", "ENCODERS")
ADAPTERS = Registry("adapter", "mtl.encoders", "ADAPTERS")
NECKS = Registry("neck", "mtl.necks", "NECKS")
HEADS = Registry("head", "mtl.heads", "HEADS")
LOSSES = Registry("loss", "mtl.losses", "LOSSES")
BALANCERS = Registry("balancer", "mtl.balancing", "BALANCERS")
DATA_FAMILIES = Registry("data family", "mtl.data", "DATA_FAMILIES")
STUDY_METRICS = Registry("study metric", "mtl.metrics", "STUDY_METRICS")
SCHEDULERS = Registry("scheduler", "mtl.training", "SCHEDULERS")
KINDS = Registry("task kind", "mtl.kinds", "KINDS")
