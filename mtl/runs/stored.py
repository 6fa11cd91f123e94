"""What earlier releases stored, brought to the present format. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtl.config.defaults import completed
from mtl.core.errors import ConfigError, DataError
from mtl.core.json_text import parse_json
from mtl.runs.folder import RunFolder

# Version of the entry `mtl` of a checkpoint; a file with a higher one was written by a newer release.
FORMAT = 2
# Version of `records.json`. Formats of checkpoints, of records and of the cache change independently of each other.
RECORDS_FORMAT = 3
# Entries that the first releases of format 1 did not write yet, at the values that say so.
# By section, how runs that do not tell computed.
COMPUTED = {"trainer": ("precision", "32-true"), "runtime": ("channels_last", False)}
ADDED: dict[str, Any] = {"stage": "", "validation": {}, "plateau": None, "monitored": []}


def converted(about: dict[str, Any]) -> dict[str, Any]:
    """Return the entry `mtl` of a checkpoint of any earlier format as the present release writes it.

    Formats differ so far in what the configuration holds, and in that format 1 judged two classes without a threshold, so that
    its validation cannot come out again.

    Args:
        about: With `format` (at most `FORMAT`) and `config`.
    """
    judged_otherwise: dict[str, Any] = {"validation": {}} if about["format"] == 1 else {}
    return ADDED | about | judged_otherwise | {"format": FORMAT, "config": converted_config(about["config"])}


def converted_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored run configuration with what the present release needs besides.

    It carries no number of its own, so that every change is told by the keys themselves: a new key is filled in with the
    default of the schema, which therefore has to mean what a run without the key did. How a network computes is settled when a
    run starts, and a run that does not tell computed as the first releases did.
    """
    sections = {name: {key: value} | config.get(name, {}) for name, (key, value) in COMPUTED.items()}
    return completed({**config, **sections})


def converted_records(content: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return the content of `records.json` of any earlier format as the present release writes it.

    Records of format 2 call what a group is its `unit`, and hold the confusion of each sample at the class of the highest
    probability. That is derived from the probabilities now, which they hold too, except those of regions.

    Args:
        content: As read.
        where: The file, for messages.

    Raises:
        DataError: Another format, or records that lack what is needed now.
    """
    found = content.get("format")
    kinds = {task: spec["kind"] for task, spec in content.get("specs", {}).items()} if found == 2 else {}
    if found != RECORDS_FORMAT and (found != 2 or "roi_classification" in kinds.values()):
        lacking = "has no probabilities of regions" if found == 2 else f"has record format {found}"
        raise DataError(f"`{where}` {lacking}. Expected records of format {RECORDS_FORMAT}; evaluate the run again.")
    for task, kind in kinds.items():
        if kind == "classification":
            for record in content["tasks"][task]:
                record.pop("confusion", None)
    renamed = {"group_by": content["unit"]} if found == 2 else {}
    return content | renamed | {"format": RECORDS_FORMAT}


def read_config(run: RunFolder) -> dict[str, Any]:
    """Read the configuration of a run, of this release or an earlier one.

    Raises:
        ConfigError: There is none, or it is not one.
    """
    path = run.config
    remedy = "Restore it, or remove the folder and train the run again."
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"`{run.path}` is not a run: it has no {path.name}. Give the directory that train.py printed as `run:`."
        ) from None
    except OSError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.strerror}. {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"`{path}` is damaged: {error}. {remedy}") from error
    if not isinstance(config, dict) or "suite" not in config:
        raise ConfigError(f"`{path}` is not the configuration of a run. {remedy}")
    return converted_config(config)
