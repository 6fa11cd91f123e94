"""Going on with an interrupted run."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from mtl.config.keys import ALLOWED
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError


def resumed_plan(run_dir: str, overrides: list[str]) -> Plan:
    """Read the configuration of a run and plan how it goes on.

    Args:
        run_dir: Directory of the run.
        overrides: Further `key=value` words; only keys of `ALLOWED`, since a run keeps its own configuration.

    Raises:
        ConfigError: No such run, or an override that would change it.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"`{run_dir}` is not a run: it has no config.json. Give the directory that train.py printed as `run:`."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"`{path}` is damaged: {error}. Restore it, or start a new run.") from error
    if not isinstance(config, dict) or "suite" not in config:
        raise ConfigError(f"`{path}` is not the configuration of a run. Restore it, or start a new run.")
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key not in ALLOWED:
            raise ConfigError(
                f"`{override}` cannot be combined with resume=: a run goes on with its own configuration. "
                f"Only these may change: {', '.join(ALLOWED)}. Start a new run for anything else."
            )
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = yaml.safe_load(value)
    config["resume"] = run_dir
    return Plan.from_config(config)
