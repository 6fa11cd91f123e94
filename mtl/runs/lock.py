"""One process at a time writes a run, or a comparison: who it is stands in a file of the folder while it lasts."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mtl.core.errors import ConfigError, TrainingError
from mtl.core.json_text import parse_json
from mtl.core.processes import Process, this_process
from mtl.runs.folder import RunFolder, is_main_process

_held: dict[Path, Process] = {}  # by folder, of this process or the one that forked it


def require_held(folder: Path) -> None:
    """Make sure that a run is still written by its own process, before anything more is written.

    Raises:
        TrainingError: Its folder, or the lock in it, was removed or is another one by now.
    """
    mine = _held.get(folder)
    if mine is None:
        return
    try:
        with RunFolder(folder).lock.open(encoding="utf-8") as file:
            holder = _holder(file)
    except OSError:
        holder = None
    if holder is None or holder[0] != mine:
        raise TrainingError(
            f"The run directory `{folder}` was removed or replaced while the run was writing it, so nothing more is written. "
            "Leave it in place, and start the run again."
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run or comparison; of several ranks the first one does.

    A lock of a process that is gone is taken over.

    Raises:
        ConfigError: Another process writes there.
    """
    path = RunFolder(folder).lock
    if not is_main_process():
        yield
        return
    with _opened(path) as file:
        _refuse_others(folder, file)
        file.seek(0)
        file.truncate()
        about = asdict(this_process()) | {"command": _command(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(about) + "\n")
    _held[folder] = this_process()
    try:
        yield
    finally:
        del _held[folder]
        with suppress(OSError), _opened(path, "r+") as file:
            holder = _holder(file)
            if holder is not None and holder[0] == this_process():  # not a forked rank, and nobody else's
                path.unlink()


def refuse_if_held(folder: Path) -> None:
    """Refuse to read a run as finished while another process writes it.

    Raises:
        ConfigError: One does.
    """
    with suppress(FileNotFoundError), RunFolder(folder).lock.open(encoding="utf-8") as file:
        _refuse_others(folder, file)


def _refuse_others(folder: Path, file: IO[str]) -> None:
    found = _holder(file)
    if found is None:
        return
    holder, about = found
    if not holder.runs or holder == this_process():
        return
    here = holder.host == this_process().host
    remedy = (
        f"Wait until it is finished, or end it (kill {holder.pid})."
        if here
        else f"Whether it still runs cannot be told from here. Wait for it; if it is gone, remove `{file.name}`."
    )
    raise ConfigError(
        f"`{folder}` is being written by process {holder.pid} on {holder.host} since {about.get('since')} "
        f"(`{about.get('command')}`). {remedy}"
    )


@contextmanager
def _opened(path: Path, mode: str = "a+") -> Iterator[IO[str]]:
    """Open the file and keep others from reading and changing it meanwhile, where the file system can."""
    while True:
        with path.open(mode, encoding="utf-8") as file:
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(path.stat(), os.fstat(file.fileno()))
            except FileNotFoundError:
                same = False
            if same:  # else its holder removed it between the two steps
                yield file
                return


def _command() -> str:
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return words if len(words) <= 100 else f"{words[:97]}..."


def _holder(file: IO[str]) -> tuple[Process, dict[str, Any]] | None:
    """Return who holds the lock; nobody does where the file is new or was left half written."""
    file.seek(0)
    try:
        about = parse_json(file.read())
        return Process(str(about["host"]), int(about["pid"]), str(about["began"])), about
    except (ValueError, KeyError, TypeError):
        return None
