"""What a data family is: a reader of one data set as it lies on disk. Imports neither torch nor albumentations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from mtl.core.errors import ConfigError
from mtl.core.memo import Memo
from mtl.core.names import normal
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Record, Sample


@dataclass
class CheckReport:
    """What `mtl data check` found: `errors` make the data unusable, `notes`, with those of the family, are worth knowing."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LostLabels:
    """Labels of one sort that are there and cannot be used; above `data.largest_loss` they are an error.

    Attributes:
        what: The sort, in the plural: `boxes`.
        lost: How many could not be used.
        total: How many there are, those among them.
        why: What is the matter with them, behind a colon.
    """

    what: str
    lost: int
    total: int
    why: str

    @property
    def share(self) -> float:
        """Return the part that is lost."""
        return self.lost / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.lost} of {self.total} {self.what} cannot be used: {self.why}"


@dataclass(frozen=True)
class Measure:
    """A number that follows from the class counts of some images; `mtl data stats` tables and draws it.

    Attributes:
        name: Of the number; names its figure.
        unit: Behind its name in tables.
        value: From the records of some images to the number; NaN where it has none.
        axis: What is written at the axis of the figure.
        colour: Of the points of single images.
        limits: Values marked in the figure.
    """

    name: str
    unit: str
    value: Callable[[list[Record]], float]
    axis: str
    colour: Colour
    limits: tuple[float, ...] = ()


class DataFamily(ABC):
    """Reads one data set in its native layout.

    Sub-classes are registered with `@DATA_FAMILIES.register("name")` and take keyword-only arguments (the keys of `data.*` in
    YAML). The constructor touches no file; `records()` raises `DataError` when the folder is missing or unusable.

    What a family says about itself without any setting are constants of its class, written as literals, since some are read
    before the class is imported. What depends on settings the constructor sets.

    Attributes:
        object_classes: Names behind the labels of objects.
        microns: The reference pixel is a micron; networks for such data can be used on slides.
        colours: By class, red, green and blue. The others are drawn in colours of the palette.
        unremarkable: Classes that stand for nothing to be found: drawn with thin lines, and of two never the positive one.
        volume_endings: By modality, how the names of its volume files end (`<case>_<ending>.nii.gz`), in lower case.
        label_endings: How the names of volume files end that hold labels.
        group_by: Unit that a split keeps together, in words of results and reports.
        modalities: The channels of an image of grey values; empty for pictures in colour.
        picture_modality: Which of these channels an image fills of which nobody knows the modality, or `repeat` for all.
    """

    object_classes: ClassVar[tuple[str, ...]] = ()
    microns: ClassVar[bool] = False
    colours: ClassVar[dict[str, Colour]] = {}
    unremarkable: ClassVar[tuple[str, ...]] = ()
    volume_endings: ClassVar[dict[str, tuple[str, ...]]] = {}
    label_endings: ClassVar[tuple[str, ...]] = ()
    group_by: str = "group"
    modalities: tuple[str, ...] = ()
    picture_modality: str = "repeat"
    memo_folder: Path | None = None  # the folder of the image cache, where there is one: a family may remember things there

    @cached_property
    def memo(self) -> Memo:
        """What was found out about the files of this data set, by this run or an earlier one."""
        return Memo(self.memo_folder, self.locate())

    @property
    def channels(self) -> int:
        """Number of channels of the images: what the encoder must take."""
        return 3

    @property
    def sources(self) -> tuple[str, ...]:
        """Names that `Record.source` may have, as far as the settings tell; empty where only the records know."""
        return ()

    @property
    def pixel_settings(self) -> str:
        """What changes the pixels that `read_image` returns, besides a record's own file, for the cache; empty for nothing."""
        return ""

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

    def notes(self) -> list[str]:
        """Return what is worth knowing about the data, a sentence each, without decoding more than the index did.

        A run logs them and puts them into its results, and `mtl data check` prints them, so nobody else needs to.
        """
        return []

    def lost_labels(self) -> list[LostLabels]:
        """Return which labels are there and cannot be used: matched to no image, outside of it, of an unknown class.

        What the data set lists about images that are simply not in the folder is no label of these data.
        """
        return []

    def files_of(self, record: Record) -> tuple[str, ...]:
        """Return every file that reading the image and the labels of a sample opens."""
        return (record.path,) if record.annotation is None else (record.path, record.annotation)

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

    def measures(self) -> list[Measure]:
        """Return the numbers that tables and figures of the data set show besides counts; none unless the family has some."""
        return []

    def with_colours(self, *specs: TaskSpec) -> dict[str, TaskSpec]:
        """Return tasks by name, with the colours and thin lines of their classes."""
        return {
            spec.name: replace(
                spec,
                colours=tuple(map(self.colours.get, spec.classes)) if self.colours.keys() & set(spec.classes) else (),
                unremarkable=tuple(name for name in spec.classes if name in self.unremarkable),
            )
            for spec in specs
        }

    def known_classes(self) -> tuple[str, ...]:
        """Return every class that tasks may have, those that the settings leave out among them."""
        return self.object_classes

    def person_of(self, group: str) -> str:
        """Return the part of a group's name that related data sets share, to find a patient again in another one.

        The whole name unless the family has a rule.
        """
        return normal(group)

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate a small data set in the native layout (`mtl data synth`); families without a generator refuse.

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
