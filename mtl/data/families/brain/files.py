"""What the volumes of cases hold, slice by slice, and where in a picture the head is."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.cores import usable_cores
from mtl.core.errors import DataError
from mtl.core.memo import Memo
from mtl.data.families.brain.folders import Case
from mtl.data.formats.volumes import Volume, read_volume
from mtl.imaging.background import not_background

LABELS = (1, 2, 4)  # necrosis and non-enhancing core, oedema, enhancing tumour
ENHANCING, ENHANCING_2023 = 4, 3
WORKERS = 4
SCALED = 0.01  # a label scaled into 8 bits is up to 4 / 255 / 2 off
SCAN = "brain scan 2"  # the number rises when a scan says something else


@dataclass(frozen=True)
class Scan:
    """What a case holds.

    Attributes:
        size: (slices, rows, columns).
        spacing: Millimetres between them.
        brain: Pixels that are not background, per slice.
        labels: Pixels per slice by label of `LABELS`.
        skew: As `Volume.skew`.
        notes: Worth knowing.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    brain: list[int]
    labels: dict[int, list[int]]
    skew: tuple[float, float, float] | None
    notes: list[str] = field(default_factory=list)


def head_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    """Return (x_min, y_min, x_max, y_max) of the head in a picture [h, w]; all of it where none is found."""
    from mtl.imaging.intensity import brain_mask

    mask = brain_mask(grey)
    if not mask.any():
        return 0, 0, grey.shape[1], grey.shape[0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class CaseReader:
    """Reads volumes of cases, from several threads; keeps a few decoded, and all label maps that were read, compressed.

    Args:
        modalities: Names of the channels, in order.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = modalities
        self._kept = 2 * len(modalities)  # slices of neighbouring cases may be asked for in turn
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"modalities": self.modalities, "_kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._volumes: OrderedDict[Path, Volume] = OrderedDict()
        self._labels: dict[str, list[bytes]] = {}
        self._locks: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    def slice(self, case: Case, z: int, size: tuple[int, int]) -> np.ndarray:
        """Return one slice [rows, columns, modalities] float32 as stored; a modality that is missing is 0."""
        image = np.zeros((*size, len(self.modalities)), np.float32)
        for channel, name in enumerate(self.modalities):
            if name in case.modalities:
                image[..., channel] = self._volume(case.modalities[name]).array[z]
        return image

    def labels(self, case: Case, z: int, size: tuple[int, int]) -> np.ndarray:
        """Return the labels of one slice [rows, columns] uint8: 0 or one of `LABELS`."""
        if case.name not in self._labels:
            self.read_labels(case)
        return np.frombuffer(zlib.decompress(self._labels[case.name][z]), np.uint8).reshape(size)

    def scan(self, case: Case) -> Scan:
        """Look at all slices of a case: of the labels, of the first modality, and of others whose type allows NaN.

        Raises:
            DataError: A volume cannot be read, lies elsewhere than the others of its case, holds voxels that are no numbers, or
                labels that do not exist.
        """
        assert case.seg is not None
        volumes = [read_volume(case.modalities[name]) for name in self.modalities if name in case.modalities]
        first = volumes[0]
        for volume in [*volumes[1:], read_volume(case.seg)]:
            if not volume.matches(first):
                raise DataError(
                    f"{volume.path}: is {volume.shape} voxels with the affine {_in_words(volume)}; expected that of "
                    f"{first.path.name}, {first.shape} with {_in_words(first)}. Resample one of them."
                )
        brain = [int(np.count_nonzero(plane)) for plane in not_background(first.array)]
        for volume in volumes[1:]:
            if volume.may_lack_numbers:
                _ = read_volume(volume.path).array  # not kept
        labels, notes = self.read_labels(case)
        counts = {label: [int(np.count_nonzero(plane == label)) for plane in labels] for label in LABELS}
        return Scan(first.size, first.spacing, brain, counts, first.skew, [*first.notes, *notes])

    def read_labels(self, case: Case) -> tuple[np.ndarray, list[str]]:
        """Decode and keep the label maps of a case.

        Returns:
            [slices, rows, columns] uint8, and what is worth knowing.
        """
        assert case.seg is not None
        notes = list[str]()
        labels = _whole(read_volume(case.seg).array)
        found = np.unique(labels).tolist()
        expected = {0, *LABELS} | ({ENHANCING_2023} if ENHANCING not in found else set())
        if wrong := [value for value in found if value not in expected]:
            raise DataError(
                f"{case.seg}: has the label {wrong[0]:.7g}; expected 0, 1, 2 and 4 (BraTS 2023: 3 for 4). Correct the file."
            )
        if ENHANCING_2023 in found:
            notes.append(f"{case.seg}: label 3 counts as enhancing tumour, as in BraTS 2023.")
        labels = labels.astype(np.uint8)
        labels[labels == ENHANCING_2023] = ENHANCING
        self._labels[case.name] = [zlib.compress(plane.tobytes(), 1) for plane in labels]
        return labels, notes

    def _volume(self, path: Path) -> Volume:
        """Return a volume whose array is decoded; one thread decodes it while others that want it wait."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            with self._lock:
                volume = self._volumes.get(path)
                if volume is not None:
                    self._volumes.move_to_end(path)
                    return volume
            volume = read_volume(path)
            _ = volume.array
            with self._lock:
                self._volumes[path] = volume
                while len(self._volumes) > self._kept:
                    self._volumes.popitem(last=False)
            return volume


def scan_cases(reader: CaseReader, cases: list[Case], memo: Memo) -> tuple[dict[str, Scan], list[str]]:
    """Look at all slices of all cases, in threads.

    Args:
        reader: Decodes them.
        cases: With labels.
        memo: Remembers what was found.

    Returns:
        Scan by name of the case, and what is wrong, one sentence per case.
    """

    def look(case: Case) -> Scan | DataError:
        used = [case.modalities[name] for name in reader.modalities if name in case.modalities]
        files = [*used, *([case.seg] if case.seg else [])]
        try:
            state_of(files)  # a missing volume is told by name
            known = memo.answer(SCAN, files, lambda: vars(reader.scan(case)), lambda value: _recalled(value) is not None)
        except DataError as error:
            return error
        scan = _recalled(known)
        assert scan is not None
        return scan

    found: dict[str, Scan] = {}
    problems: list[str] = []
    with ThreadPoolExecutor(min(WORKERS, usable_cores())) as pool:
        for case, result in zip(cases, pool.map(look, cases), strict=True):
            if isinstance(result, Scan):
                found[case.name] = result
            else:
                problems.append(str(result))
    memo.write()
    return found, problems


def state_of(paths: Iterable[Path]) -> str:
    """Hash path, size and modification time of files."""
    states = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: there is no such volume.") from error
        states.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:24]


def _recalled(entry: Any) -> Scan | None:
    """Return a scan as a memo holds it; None of anything else."""
    try:
        labels = {int(label): counts for label, counts in entry["labels"].items()}
        skew = None if entry["skew"] is None else tuple(entry["skew"])
        return Scan(tuple(entry["size"]), tuple(entry["spacing"]), entry["brain"], labels, skew, entry["notes"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _whole(values: np.ndarray) -> np.ndarray:
    """Round what scaling by a header moved off a whole number; what is further off stays, and is no label."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values)
    return np.where(np.abs(values - whole) <= SCALED, whole, values)


def _in_words(volume: Volume) -> str:
    return str(np.round(volume.affine[:3], 3).tolist())
