"""From command-line words to one plain, checked configuration.

Hydra composes the YAML files; `mtl.config.schema` and `mtl.config.parts` check the result. Every problem is collected before
anything is reported, and nothing here imports torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mtl.config.environment import NOT_KEPT, as_written
from mtl.core import plugins
from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError, unknown

MISSING = "???"
_OVERRIDE = re.compile(r"^(?P<prefix>[+~]{0,2})(?P<key>[^=]+?)(?P<assign>=)?(?P<value>(?<==).*)?$", re.DOTALL)

# Keys whose value is the name of a file, a folder or a run.
FILES = frozenset(
    {
        "backbone.weights", "checkpoint", "data.cache.folder", "data.root", "data.split.file", "name", "output", "output_root",
        "paths.output_root", "paths.run_dir", "source",
    }
)  # fmt: skip


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
        The overrides, with the paths of plug-ins made absolute and quoted for Hydra, and the problems found.
    """
    ready, problems = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") != "plugins":
            ready.append(override)
            continue
        import yaml  # slow to import

        try:
            names = yaml.safe_load(value or "[]")
        except yaml.YAMLError:
            names = None
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append(f"Cannot read `{override}`. Expected plugins=[<module or path>, ...].")
            continue
        try:
            ready.append(f"plugins=[{','.join(_in_quotes(name) for name in plugins.use(names))}]")
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


def prepare_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Sort out group choices that do not exist and let unknown keys through to the schema.

    Hydra stops at the first unknown key and does not know the nearest valid name, therefore `a.b=c` is passed on as
    `++a.b=c`: the schema then reports all unknown keys together.

    Returns:
        The overrides for Hydra, and the problems found.
    """
    overrides, problems = take_plugins(overrides)
    ready = []
    folders = [configs_folder(), *plugins.config_folders()]
    for override in overrides:
        match = _OVERRIDE.match(override)
        if match is None or not (match["assign"] or match["prefix"].startswith("~")):
            problems.append(
                f"Cannot read `{override}`. Expected key=value, for example backbone=resnet50 or optimizer.lr=1e-4; "
                "--help lists what there is."
            )
            continue
        group, value = match["key"].partition("@")[0], match["value"] or ""
        if group == "hydra.searchpath":
            problems.append(
                "`hydra.searchpath` is set by the program. Put the YAML files into a folder `configs` and name the folder that "
                "holds it: plugins=[<folder>]."
            )
        elif any((folder / group).is_dir() for folder in folders):
            valid = choices(group)
            wanted = [] if value in ("", "null") or value.startswith("[") else value.split(",")
            wrong = [choice for choice in wanted if choice not in valid]
            problems += [unknown(group, choice, valid, match["key"]) for choice in wrong]
            if not wrong:
                ready.append(override)
        else:
            ready.append(override if match["prefix"] else f"++{override}")
    if folders[1:]:
        ready.append(f"hydra.searchpath=[{','.join(_in_quotes(f'file://{folder.as_posix()}') for folder in folders[1:])}]")
    return ready, problems


def quoted(override: str) -> str:
    """Quote the name of a file for Hydra, whose grammar would stumble over `=`, `,`, `(`, `é` or a bare number in it."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in FILES or value in ("", "null") or value[0] in "'\"" or "${" in value:
        return override
    return f"{key}={_in_quotes(value)}"


def _in_quotes(value: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def compose(config_name: str, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Compose a configuration file with overrides.

    Returns:
        The resolved plain configuration (empty if Hydra could not make one) and the problems found so far.
    """
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ready, problems = prepare_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            return resolved(hydra_compose(config_name, overrides=[quoted(override) for override in ready])), problems
    except (HydraException, OmegaConfBaseException) as error:
        return {}, problems or [hydra_sentence(error, config_name)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # in a file of a plug-in, or an edited one of ours
        return {}, problems or [f"A YAML file of the configuration is damaged: {' '.join(str(error).split())}. Correct it."]


def unknown_stages(config_name: str, overrides: list[str]) -> list[str]:
    """Name the stages that overrides want to change but no file describes; `+stages.<name>={...}` adds one on purpose.

    Names of stages are free, so that the schema would take a misspelt one for a further stage.
    """
    changed = [word for word in overrides if word.startswith("stages.")]
    if not changed:
        return []
    described = compose(config_name, [word for word in overrides if word not in changed])[0].get("stages", {})
    names = dict.fromkeys(word.partition("=")[0].split(".")[1] for word in changed)
    if not described:
        listed = ", ".join(f"`stages.{name}`" for name in names)
        return [
            f"There are no stages here, so {listed} cannot be changed. Choose stages=<name> first, or add one with +stages."
        ]
    hint = "To add a stage write +stages.<name>={epochs: ...}."
    return [f"{unknown('stage', name, described, 'stages')} {hint}" for name in names if name not in described]


def resolved(config: Any) -> dict[str, Any]:
    """Turn an omegaconf node into dicts and lists with all references resolved, but those of `mtl.config.environment`."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    for section in NOT_KEPT:
        if section in values:
            values[section] = as_written(values[section], OmegaConf.to_container(config[section], resolve=False), section)
    return {str(key): _without_missing(value) for key, value in values.items() if key != "hydra" and value != MISSING}


def _without_missing(value: Any) -> Any:
    """Drop keys that still hold `???`; the schema then says that they are required, together with all other problems."""
    if isinstance(value, dict):
        return {key: _without_missing(entry) for key, entry in value.items() if entry != MISSING}
    return [_without_missing(entry) for entry in value] if isinstance(value, list) else value


def hydra_sentence(error: Exception, config_name: str) -> str:
    """Return a composition error of Hydra as one line."""
    text = " ".join(str(error).split())
    missing = re.search(r"You must specify '(\w+)'", text)
    if missing:
        group = missing[1]
        return f"No {group} was chosen. Add {group}=<name>; known: {', '.join(choices(group))}."
    missing = re.search(r"Missing mandatory value.*full_key: (\S+)", text)
    if missing:
        return f"`{missing[1]}` is required and was not given. Set it with {missing[1]}=<value>."
    return f"`{config_name}.yaml` with these overrides cannot be composed: {text}"
