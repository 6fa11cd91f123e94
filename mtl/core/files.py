"""Files appear whole or not at all: written beside, flushed to the disk, then renamed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.processes import host_word, runs, wrote

PARTIAL = ".{name}.{process}.partial"
WRITER = re.compile(r"\.(?P<name>.*)\.(?:(?P<host>\w+)-)?(?P<pid>\d+)\.partial", re.DOTALL)
NAME_BYTES = 180  # of the file that is written, in the name beside it: no name of a file has more than 255
DAY = 24 * 3600.0


def partial_beside(path: Path) -> Path:
    """Return the name under which this process writes `path`; it tells who writes, so that others know what was left behind."""
    return path.with_name(PARTIAL.format(name=_cut(path.name), process=f"{host_word()}-{os.getpid()}"))


def _cut(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:NAME_BYTES])


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what was written is flushed to the disk and takes the place of `path`.

    After an error nothing is left, and `path` is as it was. An error of the system names the file.
    """
    partial = partial_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(
            missing_ok=True
        )  # of a killed process with this number; it may be a link that must not be written through
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_stale(path: Path, below: bool = False) -> None:
    """Remove what processes that are gone left of writing `path`.

    Of another machine it is not known who runs; what lies unchanged for a day is taken for left behind.

    Args:
        path: The name `*` stands for every file of the folder.
        below: Look into the folders of the folder too.
    """
    for folder, folders, names in os.walk(path.parent):
        for name in [*names, *folders]:
            found, partial = WRITER.fullmatch(name), Path(folder) / name
            if found and (path.name == "*" or found["name"] == _cut(path.name)) and _is_left(partial, found):
                shutil.rmtree(partial) if name in folders else partial.unlink(missing_ok=True)
        if not below:
            folders.clear()


def _is_left(partial: Path, writer: re.Match[str]) -> bool:
    try:
        modified = partial.lstat().st_mtime
    except OSError:
        return False
    if writer["host"] not in (None, host_word()):
        return modified < time.time() - DAY
    return not (runs(int(writer["pid"])) and wrote(int(writer["pid"]), modified))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its final place and rename it."""
    with beside(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text beside its final place and rename it."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON; numbers that are not finite become null, numpy values plain ones."""
    write_text(path, json.dumps(plain(content), indent=2) + "\n")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV beside its final place and rename it."""
    write_text(path, table_text(rows, columns))


def table_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV text; a column that a row lacks is left empty.

    Raises:
        ValueError: A row has another column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def link_or_copy(source: Path, target: Path) -> None:
    """Give the content of a file a second name; later renames over the one do not change the other."""
    with beside(target) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a file system without links
            shutil.copyfile(source, partial)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk; file systems without folder handles are left alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(value: Any) -> Any:
    """Turn numpy values, tuples and non-finite numbers into what JSON knows."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def cache_folder() -> Path:
    """Return the folder used when `data.cache.folder` is null."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl"


@dataclass(frozen=True)
class Listing:
    """What lies below a folder.

    Attributes:
        files: Regular files, sorted; links count as what they lead to.
        unread: What cannot be read and is none of the program's business to guess about, sorted: links that lead nowhere, pipes
            and devices, folders that cannot be opened.
    """

    files: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


def list_files(folder: Path, below: bool = True) -> Listing:
    """List the files of a folder; links are followed like files and folders, one that leads back to a folder above is not.

    Hidden entries (`.name`) are left out.

    Args:
        folder: Has to exist.
        below: Look into folders too.
    """
    found = Listing()
    _list(folder, below, (), found)
    found.files.sort()
    found.unread.sort()
    return found


def _list(folder: Path, below: bool, above: tuple[tuple[int, int], ...], found: Listing) -> None:
    try:
        about = folder.stat()
        if (here := (about.st_dev, about.st_ino)) in above:
            return
        entries = list(folder.iterdir())
    except OSError:
        found.unread.append(folder)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            found.files.append(entry)
        elif not entry.is_dir():
            found.unread.append(entry)
        elif below:
            _list(entry, below, (*above, here), found)


def file_hash(path: str | Path) -> str:
    """Return the sha256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
