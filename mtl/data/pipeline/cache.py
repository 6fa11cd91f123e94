"""A memory-mapped cache of working rasters: the expensive decode, resize and contrast happen once per data set.

On disk, one folder per key: `images.bin` (all rasters, one after the other) and `index.json`. It is built as
`<key>.partial` with a journal of finished images, so an interrupted build goes on where it stopped, and renamed when
complete. A file lock lets one process build while the others wait.

The index carries a digest, and of every raster its CRC-32, held against the pixels when a process first reads them (0.3 ms for
512 x 512 px): what a disk changed is made anew from the image.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.cores import usable_cores
from mtl.core.digest import with_digest, without_digest
from mtl.core.errors import DataError
from mtl.core.family import DataFamily
from mtl.core.files import cache_folder, remove_stale, write_text
from mtl.core.json_text import parse_json
from mtl.core.progress import progress_of
from mtl.core.types import Record
from mtl.imaging.preprocessing import Preprocessing

log = logging.getLogger("mtl")
FORMAT = 2
PIXELS, INDEX, JOURNAL = "images.bin", "index.json", "journal.jsonl"
Entry = dict[str, Any]


class RasterCache:
    """Read access to a finished cache.

    Args:
        folder: The folder that `prepare` returned or made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = _read_index(folder)["entries"]
        self._bytes: np.ndarray | None = None
        self._checked: set[str] = set()

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}  # a memory map would be copied into the pickle

    def read(self, sample_id: str, make: Callable[[], np.ndarray] | None = None) -> np.ndarray:
        """Return the working raster [H, W, C] of a sample: a read-only view of the file.

        Args:
            sample_id: Which sample.
            make: Makes the raster from the image, where the one in the cache turns out to be damaged; None is an error then.

        Raises:
            DataError: It is damaged and cannot be replaced.
        """
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / PIXELS, mode="r", dtype=np.uint8)
        entry = self.entries[sample_id]
        part = self._bytes[entry["offset"] : entry["offset"] + _length(entry)]
        if sample_id not in self._checked:
            if _sum(part) != entry["crc32"]:
                self._replace(sample_id, make() if make else None)
            self._checked.add(sample_id)
        return part.view(np.dtype(entry["dtype"])).reshape(entry["shape"])

    def _replace(self, sample_id: str, raster: np.ndarray | None) -> None:
        """Write a damaged raster anew, where it was; the memory maps of all processes show the file as it is."""
        entry, hint = self.entries[sample_id], "Remove that folder; the next run builds it again."
        if raster is None:
            raise DataError(f"The image cache `{self.folder}` is damaged at `{sample_id}`. {hint}")
        raster = np.ascontiguousarray(raster)
        if raster.nbytes != _length(entry) or _sum(raster) != entry["crc32"]:
            raise DataError(
                f"The image cache `{self.folder}` is damaged at `{sample_id}`, whose image gives other pixels today. {hint}"
            )
        try:
            with (self.folder / PIXELS).open("r+b") as file:
                file.seek(entry["offset"])
                _write(file, raster)
        except OSError as error:
            raise DataError(
                f"The image cache `{self.folder}` is damaged at `{sample_id}` and cannot be mended ({error.strerror}). {hint}"
            ) from error
        log.warning(f"the image cache {self.folder} was damaged at {sample_id}; this image was prepared anew")

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
        remove_stale(root / "*")
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


def _read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a finished cache.

    Raises:
        DataError: There is none, or it is damaged.
    """
    try:
        text = without_digest((folder / INDEX).read_text(encoding="utf-8"))
        index = parse_json(text or "")
        if all("crc32" in entry for entry in index["entries"].values()) and isinstance(index["bytes"], int):
            return dict(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"The image cache `{folder}` is damaged. Remove that folder; the next run builds it again.")


def _sum(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.data)


def _complete(folder: Path, records: list[Record]) -> bool:
    try:
        index = _read_index(folder)
        size = (folder / PIXELS).stat().st_size
    except (OSError, DataError):
        return False
    return size == index["bytes"] and all(record.sample_id in index["entries"] for record in records)


def _resume(partial: Path) -> tuple[dict[str, Entry], int]:
    """Read which images of an interrupted build are safe, and where to go on writing."""
    entries: dict[str, Entry] = {}
    end = 0
    try:
        with (partial / PIXELS).open("rb") as pixels:
            for line in (partial / JOURNAL).read_text(encoding="utf-8").splitlines():
                entry = parse_json(_checked_line(line))
                if entry["offset"] != end or zlib.crc32(pixels.read(_length(entry))) != entry["crc32"]:
                    break
                entries[entry.pop("sample_id")] = entry
                end += _length(entry)
    except (OSError, ValueError, KeyError):
        pass  # no journal, or its last line is torn
    return entries, end


def _line(sample_id: str, entry: Entry) -> str:
    text = json.dumps({"sample_id": sample_id, **entry})
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _checked_line(line: str) -> str:
    crc, _, text = line.partition(" ")
    return text if int(crc, 16) == zlib.crc32(text.encode()) else ""


def _build(family: DataFamily, records: list[Record], preprocessing: Preprocessing, partial: Path, progress: bool) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    entries, end = _resume(partial)
    missing = [record for record in records if record.sample_id not in entries]

    def raster(record: Record) -> tuple[np.ndarray, Entry]:
        image = family.read_image(record)
        content = preprocessing.content(image)
        working = np.ascontiguousarray(preprocessing.working(image, record.pixel_scale, content))
        return working, {"original_size": list(image.shape[:2]), "content": content}

    workers = min(4, usable_cores())
    with (
        progress_of("preparing images", len(records), len(entries), show=progress) as shown,
        ThreadPoolExecutor(workers) as pool,
        (partial / PIXELS).open("r+b" if end else "wb") as images,
        (partial / JOURNAL).open("w", encoding="utf-8") as journal,
    ):
        images.truncate(end)
        images.seek(end)
        for sample_id, entry in entries.items():
            journal.write(_line(sample_id, entry))
        for start in range(0, len(missing), workers):
            some = missing[start : start + workers]
            for record, (image, about) in zip(some, pool.map(raster, some), strict=True):
                entry = {
                    "offset": end, "shape": list(image.shape), "dtype": image.dtype.str, "crc32": _sum(image), **about
                }  # fmt: skip
                _write(images, image)
                end += image.nbytes
                entries[record.sample_id] = entry
                # Pixels first, then the line that vouches for them.
                images.flush()
                journal.write(_line(record.sample_id, entry))
                journal.flush()
                shown.advance()
        images.flush()
        os.fsync(images.fileno())
    index = {"bytes": end, "settings": preprocessing.raster_key(), "entries": entries}
    write_text(partial / INDEX, with_digest(json.dumps(index)))
    (partial / JOURNAL).unlink()


def _write(file: Any, image: np.ndarray) -> None:
    file.write(image.data)
