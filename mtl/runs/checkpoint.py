"""Checkpoints that are whole or not there, and plain words when one cannot be written or read."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mtl.config.load import stored_config
from mtl.config.schema import RunConfig
from mtl.core.digest import append_digest, archive_damage, has_digest
from mtl.core.disk import free_bytes
from mtl.core.distribution import install_command
from mtl.core.errors import CheckpointError, ConfigError, TrainingError
from mtl.core.files import beside, sync_folder
from mtl.runs.folder import BEST, EXAMPLE, LAST, RunFolder, is_a_folder
from mtl.runs.stored import FORMAT, converted

log = logging.getLogger("mtl")
REQUIRED = ("format", "config")
EXPECTED = f"Expected a file written by training ({EXAMPLE.with_name('*.ckpt')})."


def save_atomic(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint beside its place, flush it to disk and rename it.

    Raises:
        TrainingError: The file cannot be written. The temporary file is gone and `path` is as it was.
    """
    target = Path(path)
    free: int | str = "unknown"
    try:
        with beside(target) as partial:
            try:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                append_digest(partial)
            finally:
                # The number must describe the disk as the writer met it, so it is read before the partial file goes.
                free = free_bytes(target.parent)
        sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        raise TrainingError(
            f"The checkpoint `{target}` could not be written: {cause.strerror or cause} ({free} bytes free). "
            "The previous checkpoint is untouched. Make room or choose another folder, then go on with "
            f"resume={RunFolder.of(target).path}."
        ) from error


def load_without_code(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Load a file of tensors and plain values.

    Raises:
        CheckpointError: The file is missing, broken, changed since it was written, or needs code to be loaded.
    """
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(is_a_folder(file))
    if not file.is_file():
        raise CheckpointError(f"Checkpoint `{file}` does not exist. Give the path of a file such as {EXAMPLE}.")
    try:
        damage = archive_damage(file)
    except OSError as error:
        raise CheckpointError(f"Checkpoint `{file}` cannot be read: {error.strerror}. {EXPECTED}") from error
    if damage:
        raise CheckpointError(
            f"Checkpoint `{file}` is damaged: it is not what was written ({damage}). Restore it from a copy, or take another "
            f"checkpoint of the run: a copy of {BEST} in place of {LAST} lets resume= go on from its epoch."
        )
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything
        if zipfile.is_zipfile(file) and not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"Checkpoint `{file}` cannot be read: {_first_line(error)}. {EXPECTED}") from error
        if zipfile.is_zipfile(file):
            raise CheckpointError(
                f"`{file}` needs code to be loaded, which is refused ({_first_line(error)}). {EXPECTED}"
            ) from error
        raise CheckpointError(
            f"`{file}` ({file.stat().st_size} bytes) is damaged, incomplete or another kind of file. {EXPECTED}"
        ) from error


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint of this program, with its `state_dict` and the entry `mtl` (config, model, thresholds ...).

    The entry of a file of an earlier release is brought to the present format.

    Raises:
        CheckpointError: As in `load_without_code`, or the file holds something else; the message says what.
    """
    content = load_without_code(path, map_location)
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds a {type(content).__name__}, not a checkpoint. {EXPECTED}")
    if not isinstance(content.get("mtl"), dict) or "state_dict" not in content:
        raise CheckpointError(f"`{path}` is {_what_it_is(content)}. {EXPECTED}")
    about = content["mtl"]
    missing = [key for key in REQUIRED if key not in about]
    if missing:
        raise CheckpointError(f"`{path}` lacks `mtl.{'`, `mtl.'.join(missing)}`. {EXPECTED}")
    if not isinstance(about["format"], int) or not isinstance(about["config"], dict):
        raise CheckpointError(f"`mtl.format` of `{path}` is no number, or `mtl.config` no mapping. {EXPECTED}")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"`{path}` has format {about['format']}; this release reads up to {FORMAT}. Update it with `{install_command()}`."
        )
    if not has_digest(Path(path)):
        _note_missing_digest(Path(path))
    try:
        return content | {"mtl": converted(about)}
    except RecursionError:
        raise CheckpointError(f"The entry `mtl` of `{path}` is nested too deeply. {EXPECTED}") from None


@cache
def _note_missing_digest(path: Path) -> None:
    log.info(f"{path} carries no digest (an earlier release or another program wrote it); the sums of its parts are right")


def config_of(about: dict[str, Any], path: str | os.PathLike[str]) -> RunConfig:
    """Return the run configuration in the entry `mtl` of a checkpoint.

    Raises:
        CheckpointError: Another release wrote it, or it was edited.
    """
    try:
        return stored_config(about["config"], os.fspath(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _what_it_is(content: dict[str, Any]) -> str:
    keys = [str(key) for key in content]
    if "pytorch-lightning_version" in content:
        return "a Lightning checkpoint of another program (it has no entry `mtl`)"
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return f"a bare state dict with {len(keys)} tensors (first: `{keys[0]}`); it can only serve as backbone.weights"
    return f"a file with the entries {', '.join(f'`{key}`' for key in keys[:6]) or '(none)'}"


def _disk_error(error: BaseException) -> OSError | None:
    """Find the OSError behind an error; `torch.save` hides it behind a RuntimeError when it closes the archive."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return OSError(errno.EIO, str(error).splitlines()[0]) if "enforce fail" in str(error) else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
