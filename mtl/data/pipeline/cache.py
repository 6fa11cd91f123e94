"""A memory-mapped cache of working rasters: the expensive decode, resize and contrast happen once per data set.

On disk, one folder per key: `images.bin` (all rasters, one after the other) and `index.json`. It is built as
`<key>.partial` with a journal of finished images, so an interrupted build goes on where it stopped, and renamed when
complete. A file lock lets one process build while the others wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.core.family import DataFamily
from mtl.core.files import cache_folder, write_text
from mtl.core.json_text import parse_json
from mtl.core.types import Record
from mtl.imaging.preprocessing import Preprocessing

FORMAT = 1
Entry = dict[str, Any]


class RasterCache:
    """Read access to a finished cache.

    Args:
        folder: The folder that `prepare` returned or made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = parse_json((folder / "index.json").read_text())["entries"]
        self._bytes: np.ndarray | None = None

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}  # a memory map would be copied into the pickle

    def read(self, sample_id: str) -> np.ndarray:
        """Return the working raster [H, W, C] of a sample: a read-only view of the file."""
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / "images.bin", mode="r", dtype=np.uint8)
        entry = self.entries[sample_id]
        part = self._bytes[entry["offset"] : entry["offset"] + _length(entry)]
        return part.view(np.dtype(entry["dtype"])).reshape(entry["shape"])

    def original_size(self, sample_id: str) -> tuple[int, int]:
        """Return (height, width) of the stored image."""
        height, width = self.entries[sample_id]["original_size"]
        return height, width

    def content(self, sample_id: str) -> tuple[int, int, int, int] | None:
        """Return the part of the stored image that the raster shows; None is all of it."""
        content = self.entries[sample_id]["content"]
        return None if content is None else tuple(content)


def cache_key(family: DataFamily, records: list[Record], preprocessing: Preprocessing) -> str:
    """Hash everything that changes the cached pixels."""
    files = []
    for record in sorted(records, key=lambda record: record.sample_id):
        try:
            status = Path(record.path).stat()
        except OSError as error:
            raise DataError(f"Image `{record.path}` cannot be read: {error.strerror}. Run `mtl data check`.") from error
        files.append([record.sample_id, record.pixel_scale, status.st_size, status.st_mtime_ns])
    settings = [FORMAT, type(family).__name__, family.pixel_settings, preprocessing.raster_key(), files]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


def prepare(
    family: DataFamily,
    records: list[Record],
    preprocessing: Preprocessing,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RasterCache:
    """Open the cache of these records, building what is missing.

    Args:
        family: Reads the images; called from several threads.
        records: All samples to hold.
        preprocessing: Makes the working raster.
        folder: Where caches live; None takes `cache_folder()`.
        progress: Show a progress bar while building.

    Raises:
        DataError: A file cannot be read, or the disk is full.
    """
    key = cache_key(family, records, preprocessing)
    root = cache_folder() if folder is None else Path(folder)
    target = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            if not _complete(target, records):
                shutil.rmtree(target, ignore_errors=True)
                _build(family, records, preprocessing, root / f"{key}.partial", progress)
                (root / f"{key}.partial").replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"The disk is full while writing the image cache in `{root}`. Free some space (a repeated run goes on where "
                "this one stopped), set data.cache.folder to another disk, or data.cache.enabled=false."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(
                f"The image cache cannot be written in `{root}`: {error.strerror}. "
                "Set data.cache.folder, or data.cache.enabled=false."
            ) from error
        raise
    return RasterCache(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel even when the process dies
        yield


def _length(entry: Entry) -> int:
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize


def _complete(folder: Path, records: list[Record]) -> bool:
    try:
        index = parse_json((folder / "index.json").read_text())
        entries, size = index["entries"], (folder / "images.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return size == index["bytes"] and all(record.sample_id in entries for record in records)


def _resume(partial: Path) -> tuple[dict[str, Entry], int]:
    """Read which images of an interrupted build are safe, and where to go on writing."""
    entries: dict[str, Entry] = {}
    end = 0
    try:
        size = (partial / "images.bin").stat().st_size
        for line in (partial / "journal.jsonl").read_text().splitlines():
            entry = parse_json(line)
            if entry["offset"] != end or end + _length(entry) > size:
                break
            entries[entry.pop("sample_id")] = entry
            end += _length(entry)
    except (OSError, ValueError, KeyError):
        pass  # no journal, or its last line is torn
    return entries, end


def _build(family: DataFamily, records: list[Record], preprocessing: Preprocessing, partial: Path, progress: bool) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    entries, end = _resume(partial)
    missing = [record for record in records if record.sample_id not in entries]

    def raster(record: Record) -> tuple[np.ndarray, Entry]:
        image = family.read_image(record)
        content = preprocessing.content(image)
        working = np.ascontiguousarray(preprocessing.working(image, record.pixel_scale, content))
        return working, {"original_size": list(image.shape[:2]), "content": content}

    workers = min(4, os.cpu_count() or 1)
    with (
        _progress_bar(progress, len(entries), len(records)) as advance,
        ThreadPoolExecutor(workers) as pool,
        (partial / "images.bin").open("r+b" if end else "wb") as images,
        (partial / "journal.jsonl").open("w", encoding="utf-8") as journal,
    ):
        images.truncate(end)
        images.seek(end)
        for sample_id, entry in entries.items():
            journal.write(json.dumps({"sample_id": sample_id, **entry}) + "\n")
        for start in range(0, len(missing), workers):
            some = missing[start : start + workers]
            for record, (image, about) in zip(some, pool.map(raster, some), strict=True):
                entry = {"offset": end, "shape": list(image.shape), "dtype": image.dtype.str, **about}
                _write(images, image)
                end += image.nbytes
                entries[record.sample_id] = entry
                # Pixels first, then the line that vouches for them.
                images.flush()
                journal.write(json.dumps({"sample_id": record.sample_id, **entry}) + "\n")
                journal.flush()
                advance()
        images.flush()
        os.fsync(images.fileno())
    write_text(partial / "index.json", json.dumps({"bytes": end, "settings": preprocessing.raster_key(), "entries": entries}))
    (partial / "journal.jsonl").unlink()


def _write(file: Any, image: np.ndarray) -> None:
    file.write(image.data)


@contextlib.contextmanager
def _progress_bar(show: bool, done: int, total: int) -> Iterator[Callable[[], None]]:
    if not show or done == total:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Preparing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        row = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(row)
