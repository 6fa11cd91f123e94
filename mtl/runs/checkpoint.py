"""Checkpoints that are whole or not there, and plain words when one cannot be written or read."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mtl.config.load import stored_config
from mtl.config.schema import RunConfig
from mtl.core.errors import CheckpointError, ConfigError, TrainingError

# Version of the entry `mtl` of a checkpoint; a file with a higher one was written by a newer release.
FORMAT = 1
REQUIRED = ("format", "config")


def save_atomic(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint to a temporary file in the same folder, flush it to disk and rename it.

    Raises:
        TrainingError: The file cannot be written. The temporary file is gone and `path` is as it was.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        # The number must describe the disk as the writer met it, so it is read before the partial file goes.
        free = _free_bytes(target.parent)
        raise TrainingError(
            f"The checkpoint `{target}` could not be written: {cause.strerror or cause} ({free} bytes free). "
            "The previous checkpoint is untouched. Make room or choose another folder, then go on with "
            f"resume={_run_folder(target)}."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def load_plain(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Load a file of tensors and plain values.

    Raises:
        CheckpointError: The file is missing, broken, or needs code to be loaded.
    """
    file = Path(path)
    if file.is_dir():
        inside = file / "checkpoints" / "best.ckpt"
        inside = inside if inside.is_file() else inside.with_name("last.ckpt")
        hint = f" Did you mean `{inside}`?" if inside.is_file() else " It is not a run with a finished epoch either."
        raise CheckpointError(f"`{file}` is a folder, expected a checkpoint file.{hint}")
    if not file.is_file():
        raise CheckpointError(
            f"Checkpoint `{file}` does not exist. Give the path of a file such as <run dir>/checkpoints/best.ckpt."
        )
    expected = "Expected a file written by training (<run dir>/checkpoints/*.ckpt)."
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything
        if zipfile.is_zipfile(file) and not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"Checkpoint `{file}` cannot be read: {_first_line(error)}. {expected}") from error
        if zipfile.is_zipfile(file):
            raise CheckpointError(
                f"`{file}` needs code to be loaded, which is refused ({_first_line(error)}). {expected}"
            ) from error
        raise CheckpointError(
            f"`{file}` ({file.stat().st_size} bytes) is damaged, incomplete or another kind of file. {expected}"
        ) from error


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint of this program, with its `state_dict` and the entry `mtl` (format, config, classes, thresholds ...).

    Raises:
        CheckpointError: As in `load_plain`, or the file holds something else; the message says what.
    """
    content = load_plain(path, map_location)
    expected = "Expected a file written by training (<run dir>/checkpoints/*.ckpt)."
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds a {type(content).__name__}, not a checkpoint. {expected}")
    if not isinstance(content.get("mtl"), dict) or "state_dict" not in content:
        raise CheckpointError(f"`{path}` is {_what_it_is(content)}. {expected}")
    about = content["mtl"]
    missing = [key for key in REQUIRED if key not in about]
    if missing:
        raise CheckpointError(f"`{path}` lacks `mtl.{'`, `mtl.'.join(missing)}`. {expected}")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"`{path}` has format {about['format']}; this release reads up to {FORMAT}. Update it with `pip install -U mtl`."
        )
    return content


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


def _free_bytes(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "unknown"


def _run_folder(target: Path) -> Path:
    return target.parent.parent if target.parent.name == "checkpoints" else target.parent


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself; file systems without folder handles are left alone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
