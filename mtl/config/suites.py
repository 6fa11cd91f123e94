"""Suites and the choices they were written for: what one sets for a choice goes when another choice is made.

A suite (`task=`) or experiment names files of groups (`override /scheduler: plateau`) and sets keys in their sections
(`scheduler: {patience: 5}`). With `scheduler=constant` on the command line, or in an experiment on top, such a key has lost its
meaning. Which choices a file was written for is found by composing it alone; no list of keys or choices is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mtl.config.data_schema import DataGenericConfig
from mtl.config.words import written

GROUPS = ("task", "experiment")  # groups whose files say something of other sections, for the choices in force
SHARED = {"data": frozenset(DataGenericConfig.model_fields)}  # keys of a section that every choice of its group has
UNUSED = re.compile(r"In '(?P<file>[^']+)': Could not override '(?P<key>[^']+)'")
Path = tuple[str, ...]


class SuiteLoader(ConfigLoaderImpl):
    """Composes as Hydra does, without what suites and experiments set for choices that are no longer in force.

    Attributes:
        left_out: What the last composition left out, one line for each section.
    """

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self.left_out: list[str] = []
        self._words: list[Override] = []
        self._name: str | None = None
        self._cuts: dict[tuple[str, str], list[Path]] = {}
        self._without: set[tuple[str, str]] = set()

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose; an `override` of a suite whose target another choice has taken away is left out."""
        self.left_out, self._cuts, self._without = [], {}, set()
        while True:
            try:
                return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
            except ConfigCompositionException as error:
                found = UNUSED.search(str(error))
                unused = (found["file"], found["key"]) if found and _is_suite(found["file"]) else None
                if unused is None or unused in self._without or not self._meant(*unused):
                    raise
                self._without.add(unused)

    def _meant(self, file: str, key: str) -> bool:
        """Return whether an override has its target where its file is composed alone; else it is misspelt."""
        repository = self._repository
        repository.without = set()
        try:
            return key in self._alone(file, repository, None).overrides.known_choices
        except HydraException:
            return False
        finally:
            repository.without = self._without

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        self._words, repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._name = config_name
        self._repository = _Repository(repository, self._without)
        return self._words, self._repository

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        suites = list(dict.fromkeys(str(default.config_path) for default in defaults if _is_suite(default.config_path)))
        if doubtful := [file for file in suites if self._may_lose(file, suites, repo)]:
            self._find_cuts(doubtful, repo)
        self._find_inner_cuts(defaults, repo)
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        cuts = self._cuts.get((str(default.config_path), default.package or ""), [])
        if cuts:
            values = OmegaConf.to_container(result.config, resolve=False)
            for path in cuts:
                _remove(values, path)
            result.config = OmegaConf.create(values)
        return result

    def _may_lose(self, file: str, suites: list[str], repo: IConfigRepository) -> bool:
        """Return whether a file sets keys in a section whose choice somebody else may have made; that is found quickly."""
        keys = [word.get_key_element().lstrip("+~") for word in self._words if repo.group_exists(word.key_or_group)]
        if "task" in keys and file.startswith("experiment/"):
            return True
        for other in suites:
            if other != file and not (file.startswith("experiment/") and other.startswith("task/")):
                keys += [_key(line) for line in _defaults(repo, other) if line.is_override()]
        values = _content(repo, file)
        return any(_section(key) and isinstance(_get(values, _section(key)), dict) for key in keys)

    def _find_inner_cuts(self, defaults: list[ResultDefault], repo: IConfigRepository) -> None:
        """Do the same for files that choose a part of their part and set keys of it, as a head does with its loss."""
        for default in defaults:
            file, package = str(default.config_path), default.package or ""
            if _is_suite(file) or not package:
                continue
            for line in _defaults(repo, file):
                own = _get(_content(repo, file), tuple((line.package or "").split(".")))
                if line.is_override() or not isinstance(own, dict):
                    continue
                group, place = (line.group or "").lstrip("/"), f"{package}.{line.package}"
                chosen = [
                    other.config_path for other in defaults if other.package == place and not _is_suite(other.config_path)
                ]
                names = {_content(repo, str(other)).get("name") for other in (*chosen, f"{group}/{line.value}")}
                if len(names) > 1:
                    paths = [(*place.split("."), str(key)) for key in own]
                    name = str(chosen[-1]).partition("/")[2] if chosen else None
                    self._cut(file, package, paths, f"{group}={line.value}", f"{group}@{place}", name)

    def _cut(self, file: str, package: str, paths: list[Path], set_for: str, key: str, now: str | None) -> None:
        self._cuts.setdefault((file, package), []).extend(paths)
        keys = ", ".join(f"`{'.'.join(path)}`" for path in paths)
        chosen = f"{key}={now} was chosen" if now else f"there is no {key}"
        self.left_out.append(f"{keys} of {file.replace('/', '=', 1)} left out: set for {set_for}, but {chosen}")

    def _find_cuts(self, suites: list[str], repo: IConfigRepository) -> None:
        words = [word for word in self._words if not word.is_sweep_override()]
        now = _Choices(create_defaults_list(repo, self._name, words, prepend_hydra=True, skip_missing=True), repo)
        for file in suites:
            then = _Choices(self._alone(file, repo, now.known.get("task")), repo)
            changed = [key for key in then.known if _section(key) and then.known[key] != now.known.get(key)]
            values = _content(repo, file)
            for key in sorted(changed, key=lambda key: len(_section(key))):
                paths = list(_lost(values, key, then, now))
                if paths:
                    self._cut(file, "", paths, f"{key}={then.known[key]}", key, now.known.get(key))
                for path in paths:
                    _remove(values, path)

    def _alone(self, file: str, repo: IConfigRepository, task: str | None) -> DefaultsList:
        """Return the choices in force where only a suite is chosen, or an experiment on the suite that it is used on."""
        group, _, name = file.partition("/")
        parser = OverridesParser.create()
        search_path = [word for word in self._words if word.key_or_group == "hydra.searchpath"]

        def chosen(*words: str) -> DefaultsList:
            return create_defaults_list(
                repo, self._name, [*search_path, *parser.parse_overrides(list(words))], prepend_hydra=True, skip_missing=True
            )

        found = chosen(written(group, name))
        if group != "task" and found.overrides.known_choices.get("task") in (None, "???") and task:
            found = chosen(written("task", task), written(group, name))
        return found


class _Repository(CachingConfigRepository):
    """Reads the files, without overrides that have lost their target."""

    def __init__(self, delegate: IConfigRepository, without: set[tuple[str, str]]) -> None:
        self.delegate = delegate
        self.cache = {}
        self.without = without

    def load_config(self, config_path: str) -> ConfigResult | None:
        loaded = self.delegate.load_config(config_path=config_path)
        lost = {key for file, key in self.without if file == config_path}
        if loaded is None or not lost:
            return loaded
        kept = [line for line in loaded.defaults_list or [] if not (isinstance(line, GroupDefault) and _key(line) in lost)]
        return ConfigResult(loaded.provider, loaded.path, loaded.config, loaded.header, kept, loaded.is_schema_source)


@dataclass(frozen=True)
class _Choices:
    """Choices in force, and the sections that their files make."""

    found: DefaultsList
    repository: IConfigRepository

    @property
    def known(self) -> dict[str, Any]:
        return self.found.overrides.known_choices

    def at(self, path: Path) -> Any:
        """Return what the files of the choice at a place say themselves."""
        made: dict[str, Any] = {}
        for default in self.found.defaults:
            if default.package == ".".join(path) and not _is_suite(default.config_path):
                _merge(made, _content(self.repository, str(default.config_path)))
        return made or None


def _lost(values: Any, key: str, then: _Choices, now: _Choices) -> Iterable[Path]:
    """Name what a file sets in a section for a choice that is not in force.

    Where the section is a part with a name and its name has changed, that is every key, but not those that each choice of the
    group has, nor sections inside it that are chosen by themselves. In other sections it is what the choice now in force
    switches off: a mapping below a key that is null or absent there.
    """
    path = _section(key)
    own, before, after = _get(values, path), then.at(path), now.at(path)
    if not isinstance(own, dict) or not isinstance(before, dict):
        return
    if "name" not in before:
        yield from _switched_off(own, before, after, path)
    elif not isinstance(after, dict) or after.get("name") != before["name"]:
        inner = {_section(other)[len(path)] for other in now.known if _section(other)[: len(path)] == path != _section(other)}
        for name in own:
            if name not in SHARED.get(key, frozenset()) and name not in inner:
                yield (*path, str(name))


def _switched_off(own: dict[str, Any], before: Any, after: Any, path: Path) -> Iterable[Path]:
    for name, value in own.items():
        if isinstance(value, dict) and isinstance(before, dict) and isinstance(before.get(name), dict):
            there = after.get(name) if isinstance(after, dict) else None
            if isinstance(there, dict):
                yield from _switched_off(value, before[name], there, (*path, str(name)))
            else:
                yield (*path, str(name))


def _is_suite(file: str | None) -> bool:
    return file is not None and file.partition("/")[0] in GROUPS


def _section(key: str) -> Path:
    """Return where the files of a choice go (`head@heads.lesion`: heads, lesion); empty for those that go everywhere."""
    group, _, package = key.partition("@")
    if group in (*GROUPS, "debug", "hydra") or group.startswith("hydra/"):
        return ()
    return tuple((package or group.replace("/", ".")).split("."))


def _key(line: GroupDefault) -> str:
    group = (line.group or "").lstrip("/")
    return f"{group}@{line.package}" if line.package else group


def _content(repo: IConfigRepository, file: str) -> Any:
    loaded = repo.load_config(file)
    return OmegaConf.to_container(loaded.config, resolve=False) if loaded else {}


def _defaults(repo: IConfigRepository, file: str) -> list[GroupDefault]:
    loaded = repo.load_config(file)
    return [line for line in (loaded.defaults_list if loaded else None) or [] if isinstance(line, GroupDefault)]


def _get(values: Any, path: Path) -> Any:
    for step in path:
        values = values.get(step) if isinstance(values, dict) else None
    return values


def _merge(values: dict[str, Any], more: Any) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _remove(values: Any, path: Path) -> None:
    holder = _get(values, path[:-1])
    if isinstance(holder, dict):
        holder.pop(path[-1], None)
        if not holder and path[:-1]:
            _remove(values, path[:-1])
