"""From command-line words to one plain, checked configuration.

Hydra composes the YAML files; `mtl.config.schema` and `mtl.config.parts` check the result. Every problem is collected before
anything is reported, and nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.config.variables import NOT_KEPT, as_written
from mtl.config.words import EXAMPLE, Word, read_word, shown, value_of, written
from mtl.core import plugins
from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mtl.config.suites import SuiteLoader

MISSING = "???"
GROUP = re.compile(r"\w+(?:/\w+)*")


@dataclass(frozen=True)
class Composition:
    """What words and YAML files make.

    Attributes:
        values: The resolved plain configuration; empty if Hydra could not make one.
        problems: What is wrong so far.
        left_out: What suites set for choices that are not in force.
    """

    values: dict[str, Any]
    problems: list[str]
    left_out: list[str]


def configs_folder() -> Path:
    """Return the folder of the YAML files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"The configuration files are missing: expected `configs/train.yaml` beside or inside `{package}`. "
        f"Run: {install_command()} --force-reinstall."
    )


def choices(group: str) -> list[str]:
    """List the YAML files of a configuration group, also those of plug-ins.

    Files in sub-folders are `folder/name`, fragments (`_name`) are left out.
    """
    folders = [folder / group for folder in (configs_folder(), *plugins.config_folders())]
    files = [(path, folder) for folder in folders for path in folder.rglob("*.yaml") if not path.name.startswith("_")]
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for path, folder in files})


def take_plugins(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Make the plug-ins known that the word `plugins=` names; everything else is looked up among what they bring, too.

    Returns:
        The overrides, with the paths of plug-ins made absolute, and the problems found.
    """
    ready, problems = [], []
    for override in overrides:
        if override.partition("=")[0].lstrip("+") != "plugins":
            ready.append(override)
            continue
        try:
            names = value_of(override) or []
        except ConfigError:
            names = None
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append(f"Cannot read `{shown(override)}`. Expected plugins=[<module or path>, ...].")
            continue
        try:
            ready.append(written("plugins", plugins.use(names)))
        except ConfigError as error:
            problems += error.problems
    return ready, problems + _hidden_files()


def _hidden_files() -> list[str]:
    """Name the YAML files of plug-ins that would be read in place of others, or not at all."""
    places = {path.relative_to(configs_folder()): configs_folder() for path in configs_folder().rglob("*.yaml")}
    problems = []
    for folder in plugins.config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            first = places.setdefault(path.relative_to(folder), folder)
            if first != folder:
                problems.append(f"`{path}` has the name of `{first / path.relative_to(folder)}`. Rename one of them.")
    return problems


def prepare_overrides(overrides: list[str], sweep: bool = False) -> tuple[list[str], list[str]]:
    """Make words ready for Hydra, sort out group choices that do not exist and let unknown keys through to the schema.

    Hydra stops at the first unknown key and does not know the nearest valid name, therefore `a.b=c` is passed on as
    `++a.b=c`: the schema then reports all unknown keys together.

    Args:
        overrides: As typed.
        sweep: Whether commas separate values, each of which is tried.

    Returns:
        The overrides for Hydra, and the problems found.
    """
    overrides, problems = take_plugins(overrides)
    ready = []
    folders = [configs_folder(), *plugins.config_folders()]
    for override in overrides:
        try:
            word = read_word(override)
            prepared = word.ready(sweep)
        except ConfigError as error:
            problems += error.problems
            continue
        if word.group == "hydra.searchpath":
            problems.append(
                "`hydra.searchpath` is set by the program. Put the YAML files into a folder `configs` and name the folder that "
                "holds it: plugins=[<folder>]."
            )
        elif word.group.startswith("hydra/"):
            ready.append(prepared)
        elif GROUP.fullmatch(word.group) and any((folder / word.group).is_dir() for folder in folders):
            wrong = _wrong_choices(word)
            problems += wrong
            if not wrong:
                ready.append(prepared)
        else:
            ready.append(prepared if word.prefix else f"++{prepared}")
    if folders[1:]:
        ready.append(written("hydra.searchpath", [f"file://{folder.as_posix()}" for folder in folders[1:]]))
    return ready, problems


def _wrong_choices(word: Word) -> list[str]:
    valid = choices(word.group)
    return [unknown(word.group, choice, valid, word.key) for choice in word.choices() if choice not in valid]


def loader() -> SuiteLoader:
    """Return what composes YAML files; Hydra is set up for it."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    from mtl.config.suites import SuiteLoader

    version.setbase("1.3")
    composing = SuiteLoader(create_config_search_path(str(configs_folder())))
    Hydra("train", composing)  # registers the resolvers
    return composing


def composition(config_name: str, overrides: list[str]) -> Composition:
    """Compose a configuration file with the words of a command line."""
    ready, problems = prepare_overrides(overrides)
    return composed(config_name, ready, problems)


def composed(config_name: str, ready: list[str], problems: list[str]) -> Composition:
    """Compose a configuration file with words that are ready for Hydra; `problems` are what is already known to be wrong."""
    import yaml
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    composing = loader()
    try:
        config = composing.load_configuration(config_name, ready, RunMode.RUN, from_shell=False)
        values, left_out = _resolved(config), composing.left_out
        return Composition(values, problems + _unknown_stages(composing, config_name, ready), left_out)
    except (HydraException, OmegaConfBaseException) as error:
        return Composition({}, problems or [hydra_sentence(error, config_name)], [])
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # in a file of a plug-in, or an edited one of ours
        sentence = f"A YAML file of the configuration is damaged: {' '.join(str(error).split())}. Correct it."
        return Composition({}, problems or [sentence], [])
    except RecursionError:
        return Composition({}, problems or ["A value is nested too deeply. Expected settings, lists of them and mappings."], [])


def compose(config_name: str, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Compose a configuration file that knows no suites.

    Returns:
        The resolved plain configuration (empty if Hydra could not make one) and the problems found so far.
    """
    made = composition(config_name, overrides)
    return made.values, made.problems


def _unknown_stages(composing: SuiteLoader, config_name: str, ready: list[str]) -> list[str]:
    """Name the stages that words want to change but no file describes; `+stages.<name>={...}` adds one on purpose.

    Names of stages are free, so that the schema would take a misspelt one for a further stage.
    """
    from hydra.types import RunMode

    changed = [word for word in ready if word.startswith("++stages.")]
    if not changed:
        return []
    others = [word for word in ready if word not in changed]
    described = _resolved(composing.load_configuration(config_name, others, RunMode.RUN, from_shell=False)).get("stages", {})
    names = dict.fromkeys(word.partition("=")[0].split(".")[1] for word in changed)
    if not described:
        listed = ", ".join(f"`stages.{name}`" for name in names)
        return [
            f"There are no stages here, so {listed} cannot be changed. Choose stages=<name> first, or add one with +stages."
        ]
    hint = "To add a stage write +stages.<name>={epochs: ...}."
    return [f"{unknown('stage', name, described, 'stages')} {hint}" for name in names if name not in described]


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Turn an omegaconf node into dicts and lists with all references resolved, but those of `mtl.config.variables`."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        del config["hydra"]
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    for section in NOT_KEPT:
        if section in values:
            values[section] = as_written(values[section], OmegaConf.to_container(config[section], resolve=False), section)
    return {str(key): _without_missing(value) for key, value in values.items() if value != MISSING}


def _without_missing(value: Any) -> Any:
    """Drop keys that still hold `???`; the schema then says that they are required, together with all other problems."""
    if isinstance(value, dict):
        return {key: _without_missing(entry) for key, entry in value.items() if entry != MISSING}
    return [_without_missing(entry) for entry in value] if isinstance(value, list) else value


def hydra_sentence(error: Exception, config_name: str) -> str:
    """Return a composition error of Hydra as one line."""
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return f"Cannot read `{shown(error.override.lstrip('+'))}`. {EXAMPLE}"
    text = " ".join(str(error).split())
    missing = re.search(r"You must specify '(\w+)'", text)
    if missing:
        group = missing[1]
        return f"No {group} was chosen. Add {group}=<name>; known: {', '.join(choices(group))}."
    missing = re.search(r"Missing mandatory value.*full_key: (\S+)", text)
    if missing:
        return f"`{missing[1]}` is required and was not given. Set it with {missing[1]}=<value>."
    return f"`{config_name}.yaml` with these overrides cannot be composed: {text}"
