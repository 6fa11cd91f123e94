"""Going on with an interrupted run."""

from __future__ import annotations

from pathlib import Path

from mtl.config.compose import take_plugins
from mtl.config.keys import ALLOWED
from mtl.config.plan import Plan
from mtl.config.words import read_word, shown, value_of
from mtl.core.errors import ConfigError
from mtl.runs.folder import RunFolder
from mtl.runs.stored import read_config


def resumed_plan(run_dir: str, overrides: list[str]) -> Plan:
    """Read the configuration of a run and plan how it goes on.

    Args:
        run_dir: Directory of the run.
        overrides: Further `key=value` words; only keys of `ALLOWED`, since a run keeps its own configuration.

    Raises:
        ConfigError: No such run, or an override that would change it.
    """
    overrides, problems = take_plugins(overrides)
    if problems:
        raise ConfigError(problems)
    run_dir = str(Path(run_dir).expanduser())
    config = read_config(RunFolder(Path(run_dir)))
    for override in overrides:
        key = read_word(override).key
        if key == "plugins":  # taken above; the run goes on recording its own
            continue
        if key not in ALLOWED:
            raise ConfigError(
                f"`{shown(override)}` cannot be combined with resume=: a run goes on with its own configuration. "
                f"Only these may change: {', '.join(ALLOWED)}. Start a new run for anything else."
            )
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = value_of(override)
    config["resume"] = run_dir
    return Plan.from_config(config)
