"""What the runs of a sweep must not share: their directories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def numbered(config: dict[str, Any], words: Sequence[str], number: int) -> dict[str, Any]:
    """Return the configuration of one run of a sweep, with its number in the name or directory that all runs would share.

    Args:
        config: As composed for this run.
        words: The overrides of the sweep; a name that differs from run to run by itself is left alone.
        number: Of the run, from 0.
    """
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in words}

    def shared(key: str) -> bool:
        return not any(sign in given.get(key, "") for sign in ("${", ",", "range(", "choice(", "interval(", "glob("))

    paths = config.get("paths")
    if isinstance(paths, dict) and paths.get("run_dir") and shared("paths.run_dir"):
        return {**config, "paths": {**paths, "run_dir": f"{paths['run_dir']}_{number}"}}
    if isinstance(config.get("name"), str) and config["name"] and shared("name"):
        return {**config, "name": f"{config['name']}_{number}"}
    return config
