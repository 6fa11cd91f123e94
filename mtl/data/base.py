"""What a data family is: a reader of one data set as it lies on disk. Imports neither torch nor albumentations."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtl.core.errors import ConfigError, DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Record, Sample

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
SHOWN_PROBLEMS = 5  # in a message; `mtl data check` lists all


@dataclass
class CheckReport:
    """What `mtl data check` found: `errors` make the data unusable, `notes` are worth knowing."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class DataFamily(ABC):
    """Reads one data set in its native layout.

    Sub-classes are registered with `@SOURCES.register("name")` and take keyword-only arguments (the keys of `data.*` in
    YAML). The constructor touches no file; `records()` raises `DataError` when the folder is missing or unusable.
    """

    object_classes: ClassVar[tuple[str, ...]] = ()
    microns: ClassVar[bool] = False  # the reference pixel is a micron; networks for such data can be used on slides

    @property
    def channels(self) -> int:
        """Number of channels of the images: what the encoder must take."""
        return 3

    @property
    def sources(self) -> tuple[str, ...]:
        """Names that `Record.source` may have, as far as the settings tell; empty where only the records know."""
        return ()

    @abstractmethod
    def specs(self) -> dict[str, TaskSpec]:
        """Return every task this data set can label, by name."""

    @abstractmethod
    def locate(self) -> Path:
        """Return the folder of the data set.

        Raises:
            DataError: It does not exist or does not look like this data set; answered without reading annotations.
        """

    @abstractmethod
    def records(self) -> list[Record]:
        """Index the data set, sorted by sample id: annotations, and pixels only where copies are recognised by them."""

    @abstractmethod
    def read_image(self, record: Record) -> np.ndarray:
        """Decode one image as stored (no EXIF rotation): [H, W, `channels`] uint8, or float32 in a unit of its own.

        Raises:
            DataError: The file is missing or cannot be decoded completely.
        """

    @abstractmethod
    def read_labels(self, record: Record) -> Sample:
        """Return the sample with its labels and an empty (0, 0, 3) image."""

    def pixel_scale_of(self, size: tuple[int, int], name: str = "") -> float:
        """Return stored pixels per reference pixel of an image; 1 unless the family has a rule.

        Args:
            size: (height, width).
            name: Of the file, without folder and suffix; empty where there is none.
        """
        return 1.0

    def known_classes(self) -> tuple[str, ...]:
        """Return every class that tasks may have, those that the settings leave out among them."""
        return self.object_classes

    def person_of(self, group: str) -> str:
        """Return the part of a group's name that related data sets share, to find a patient again in another one.

        The whole name unless the family has a rule.
        """
        return group.casefold()

    @classmethod
    def draw(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Draw a small data set in the native layout (`mtl data synth`); families without a generator refuse.

        Args:
            output: New folder.
            patients: Number of patients.
            fields: Photographs per patient (fields of a smear, eyes, single cells).
            seed: Of everything random.
            width: Of a photograph in pixels; None takes the generator's default.
            kind: Variant of the layout, where there are several; None takes the generator's default.
            overwrite: Replace an earlier data set at `output`.

        Raises:
            ConfigError: The family has no generator, or none of these settings.
        """
        raise ConfigError(f"`{cls.__name__}` has no generator. Point data.root at real data.")

    @abstractmethod
    def check(self) -> CheckReport:
        """Read everything, decode every image and collect what is wrong instead of stopping at the first."""


def find_root(root: str | None, family: str, is_root: str, candidates: tuple[str, ...] = ("",)) -> Path:
    """Find the folder of a data set: the configured one, or the first candidate below `MTL_DATA_DIR/<family>`.

    Args:
        root: `data.root` from the configuration.
        family: Folder name below `MTL_DATA_DIR`.
        is_root: Plain words for what the folder must hold, for the error message.
        candidates: Sub-folders tried in order.

    Raises:
        DataError: No such folder; the message says how to set one or how to generate data.
    """
    hint = f"Set data.root=<folder> (it holds {is_root}), set MTL_DATA_DIR, or draw test data with `mtl data synth {family}`."
    if root:
        if not Path(root).is_dir():
            raise DataError(f"Data folder `{root}` {'is a file' if Path(root).exists() else 'does not exist'}. {hint}")
        return Path(root)
    base = os.environ.get("MTL_DATA_DIR")
    if not base:
        raise DataError(
            f"No data folder for `{family}`: data.root is not set and MTL_DATA_DIR is not in the environment. {hint}"
        )
    for candidate in candidates:
        folder = Path(base) / family / candidate
        if folder.is_dir():
            return folder
    raise DataError(f"No `{family}` data below MTL_DATA_DIR (`{base}`). {hint}")


def find_sets_root(
    root: str | None, family: str, sets: dict[str, str], chosen: list[str] | None, find_sets: Callable[[Path], Any],
    candidates: tuple[str, ...] = ("",),
) -> Path:  # fmt: skip
    """Find the folder of a data set that comes in several parts.

    Args:
        root: `data.root` from the configuration.
        family: Folder name below `MTL_DATA_DIR`.
        sets: Folder of each part by its name in `data.sets`.
        chosen: `data.sets`; None takes the parts that are there.
        find_sets: Names of the parts that a folder holds.
        candidates: As in `find_root`.

    Raises:
        DataError: A chosen part is missing, or all are.
    """
    wanted = list(chosen or sets)
    found = find_root(root, family, " and/or ".join(f"`{sets[name]}/`" for name in wanted), candidates)
    present = find_sets(found)
    missing = [name for name in wanted if name not in present]
    if missing and (chosen or not present):
        hint = suggest_root(found, lambda path: any(name in find_sets(path) for name in wanted))
        raise DataError(f"`{found}` holds no {' and no '.join(f'`{sets[name]}/`' for name in missing)}. {hint}")
    return found


def suggest_root(root: Path, fits: Callable[[Path], bool], levels: int = 3) -> str:
    """Word what to do where `data.root` is not the folder of the data set: a sub-folder of it, or a folder above, may be.

    Args:
        root: What was given.
        fits: Says whether a folder looks like the data set.
        levels: How many folders above are looked at.
    """
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    around = [*below, *root.resolve().parents[:levels]]
    near = next((path for path in around if fits(path)), None)
    return f"Did you mean data.root={near}?" if near else "Set data.root to the folder that holds them."


def check_usable(family: str, folder: Path, problems: list[str], records: list[Record], expected: str) -> None:
    """Refuse a data set whose files are wrong, or in which there is nothing.

    Args:
        family: Name of the data family.
        folder: Where it looked.
        problems: One sentence each, with its file.
        records: What was found.
        expected: What is missing where nothing was found, and how it should look: a sentence or two.

    Raises:
        DataError: There are problems, or no records.
    """
    if problems:
        hint = f"Correct or restore these files; `mtl data check {family}` lists all."
        raise listed_errors(f"below `{folder}`", problems, hint)
    if not records:
        raise DataError(f"Nothing to use below `{folder}`. {expected}")


def listed_errors(where: str, problems: list[str], hint: str) -> DataError:
    """Word what is wrong with the files of a data set: how many errors, the first few, and what to do.

    Args:
        where: Behind the number of errors: `below <folder>`.
        problems: One sentence each, with its file; at least one.
        hint: A sentence.
    """
    total, more = len(problems), len(problems) - SHOWN_PROBLEMS
    shown = "\n".join(problems[:SHOWN_PROBLEMS])
    rest = f"and {more} more. " if more > 0 else ""
    return DataError(f"{total} error{'s' if total > 1 else ''} {where}:\n{shown}\n{rest}{hint}")
