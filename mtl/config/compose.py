"""From command-line words to one plain, checked configuration.

Hydra composes the YAML files; `mtl.config.schema` and `mtl.config.parts` check the result. Every problem is collected before
anything is reported, and nothing here imports torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
        f"The configuration files are missing: expected `configs/train.yaml` beside or inside `{package}`. Reinstall mtl."
    )


def choices(group: str) -> list[str]:
    """List the YAML files of a configuration group; those in sub-folders as `folder/name`, fragments (`_name`) left out."""
    folder = configs_folder() / group
    files = [path for path in folder.rglob("*.yaml") if not path.name.startswith("_")]
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def prepare_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Sort out group choices that do not exist and let unknown keys through to the schema.

    Hydra stops at the first unknown key and does not know the nearest valid name, therefore `a.b=c` is passed on as
    `++a.b=c`: the schema then reports all unknown keys together.

    Returns:
        The overrides for Hydra, and the problems found.
    """
    ready, problems = [], []
    for override in overrides:
        match = _OVERRIDE.match(override)
        if match is None or not (match["assign"] or match["prefix"].startswith("~")):
            problems.append(
                f"Cannot read `{override}`. Expected key=value, for example backbone=resnet50 or optimizer.lr=1e-4; "
                "--help lists what there is."
            )
            continue
        group, value = match["key"].partition("@")[0], match["value"] or ""
        if (configs_folder() / group).is_dir():
            valid = choices(group)
            wanted = [] if value in ("", "null") or value.startswith("[") else value.split(",")
            wrong = [choice for choice in wanted if choice not in valid]
            problems += [unknown(group, choice, valid, match["key"]) for choice in wrong]
            if not wrong:
                ready.append(override)
        else:
            ready.append(override if match["prefix"] else f"++{override}")
    return ready, problems


def quoted(override: str) -> str:
    """Quote the name of a file for Hydra, whose grammar would stumble over `=`, `,`, `(`, `é` or a bare number in it."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in FILES or value in ("", "null") or value[0] in "'\"" or "${" in value:
        return override
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def compose(config_name: str, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Compose a configuration file with overrides.

    Returns:
        The resolved plain configuration (empty if Hydra could not make one) and the problems found so far.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ready, problems = prepare_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            return plain(hydra_compose(config_name, overrides=[quoted(override) for override in ready])), problems
    except (HydraException, OmegaConfBaseException) as error:
        return {}, problems or [hydra_sentence(error, config_name)]


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


def plain(config: Any) -> dict[str, Any]:
    """Turn an omegaconf node into dicts and lists with all references resolved."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    return {str(key): _without_missing(value) for key, value in values.items() if key != "hydra" and value != MISSING}


def _without_missing(value: Any) -> Any:
    """Drop keys that still hold `???`; the schema then says that they are required, together with all other problems."""
    if isinstance(value, dict):
        return {key: _without_missing(entry) for key, entry in value.items() if entry != MISSING}
    return [_without_missing(entry) for entry in value] if isinstance(value, list) else value


def hydra_sentence(error: Exception, config_name: str) -> str:
    """Word a composition error of Hydra as one line."""
    text = " ".join(str(error).split())
    missing = re.search(r"You must specify '(\w+)'", text)
    if missing:
        group = missing[1]
        return f"No {group} was chosen. Add {group}=<name>; known: {', '.join(choices(group))}."
    missing = re.search(r"Missing mandatory value.*full_key: (\S+)", text)
    if missing:
        return f"`{missing[1]}` is required and was not given. Set it with {missing[1]}=<value>."
    return f"`{config_name}.yaml` with these overrides cannot be composed: {text}"
