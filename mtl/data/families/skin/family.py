"""Skin images with classes and, for some, lesion masks: dermoscopy of the ISIC challenges, or photographs of one's own.

Sources: Codella et al., "Skin lesion analysis toward melanoma detection: a challenge at the 2017 International Symposium on
Biomedical Imaging (ISBI)", 2018, arXiv:1710.05006; Tschandl et al., "The HAM10000 dataset", 2018, doi 10.1038/sdata.2018.161.
Where nobody drew a mask it is absent: such an image says nothing about where a lesion is, least of all that there is none.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mtl.core.errors import ConfigError, DataError
from mtl.core.family import CheckReport, DataFamily, LostLabels
from mtl.core.names import normal
from mtl.core.places import Place
from mtl.core.progress import track
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Record, Sample
from mtl.data.families.folders import check_usable, find_root, notes_on_copies, suggest_root
from mtl.data.families.skin.files import Contents, Picture, find_layout, looks_alike, read_isic, read_native
from mtl.data.families.skin.labels import Attributes
from mtl.data.formats.duplicates import connected, near_duplicates
from mtl.data.formats.images import image_size, read_mask, read_rgb
from mtl.data.formats.tables import letters, number_of

logger = logging.getLogger(__name__)

LESION = "lesion"
UNITS = ("patient", "lesion")  # ids by which images belong together, the widest first
SOURCE_OF = {"native": "skin", "isic": "isic"}  # by layout
# Correlation of fingerprints above which two images show the same photograph. Among 614 dermoscopic images one pair is a copy
# in other colours (0.97); all others stay below 0.8, as long as the dark rim of the dermoscope is left out.
ALIKE = 0.9
SEXES = {"m": "male", "f": "female"}
# Tasks become modules of a network, which has these attributes already.
RESERVED = frozenset({
    "apply", "buffers", "children", "clear", "compile", "cpu", "cuda", "double", "eval", "float", "forward", "half", "items",
    "keys", "modules", "parameters", "pop", "to", "train", "training", "type", "update", "values",
})  # fmt: skip


@dataclass
class _Index:
    layout: str = ""
    contents: Contents = field(default_factory=Contents)
    pictures: dict[str, Picture] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    turned: int = 0  # images with an EXIF orientation
    groups: list[str] | None = None


@DATA_FAMILIES.register("skin")
class Skin(DataFamily):
    """Skin images with one class per attribute and, for some, a mask of the lesion.

    The files of both layouts are described in `mtl.data.families.skin.files`. Where there is no official test part, the
    official validation part serves as the test set and validation is cut from training: what chooses checkpoints and thresholds
    must not be what is reported.

    Args:
        root: Folder of the images; None looks below `MTL_DATA_DIR/skin`.
        layout: `native`, `isic`, or `auto`: native where there is `images/` with its labels, isic where images are named
            `ISIC_*`.
        attributes: Class names by attribute, in the order of their numbers; each attribute is a classification task of its own.
            An attribute that is null does not count.
        group_by: Unit that a split keeps together. `patient` joins what shares a patient id, a lesion id or the photograph
            (copies are found by their pixels), `lesion` what shares a lesion id or the photograph; `image` looks at names only.
        age_bands: Years at which a new band of the subgroup `age` begins.
    """

    colours: ClassVar[dict[str, Colour]] = {"lesion": (20, 150, 70)}

    def __init__(
        self,
        *,
        root: Place | None = None,
        layout: Literal["auto", "native", "isic"] = "auto",
        attributes: dict = {"diagnosis": ["nevus", "melanoma", "seborrheic_keratosis"]},  # noqa: B006 (read only; the registry reads literals)
        group_by: Literal["patient", "lesion", "image"] = "patient",
        age_bands: list = [40, 60],  # noqa: B006
    ) -> None:
        self.root, self.layout, self.group_by = root, layout, group_by
        problems = [problem for name, names in attributes.items() for problem in _wrong_attribute(name, names)]
        whole = all(isinstance(bound, int) and not isinstance(bound, bool) and bound > 0 for bound in age_bands)
        if not whole or sorted(set(age_bands)) != list(age_bands):
            problems.append(f"`data.age_bands` is {list(age_bands)}; expected whole years above 0, ascending, as [40, 60].")
        if problems:
            raise ConfigError(problems)
        self.attributes: Attributes = {
            str(name): tuple(map(str, names)) for name, names in attributes.items() if names is not None
        }
        self.age_bands = [int(bound) for bound in age_bands]
        every = Counter([LESION, *(name for names in self.attributes.values() for name in names)])
        # Two attributes may both know `normal`; counts of classes go by name.
        self._count_names = {
            (attribute, name): name if every[name] == 1 else f"{attribute}.{name}"
            for attribute, names in self.attributes.items()
            for name in names
        }
        self._index: _Index | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """One source per layout."""
        return tuple(SOURCE_OF.values()) if self.layout == "auto" else (SOURCE_OF[self.layout],)

    def specs(self) -> dict[str, TaskSpec]:
        """Return a classification task per attribute, and `lesion`."""
        specs = [
            TaskSpec(
                attribute, "classification", names, label=f"class:{attribute}",
                members=tuple((self._count_names[attribute, name],) for name in names),
            )
            for attribute, names in self.attributes.items()
        ]  # fmt: skip
        specs.append(TaskSpec(LESION, "segmentation", (LESION,), label=f"mask:{LESION}"))
        return self.with_colours(*specs)

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate skin lesions in the native layout, `fields` pictures per patient, two of each lesion."""
        from mtl.data.families.skin.generator import generate_skin

        given: dict[str, Any] = {key: value for key, value in (("width", width), ("kind", kind)) if value is not None}
        generate_skin(output, patients, fields, seed, overwrite=overwrite, **given)

    def locate(self) -> Path:
        """Return the folder of the images."""
        root = find_root(self.root, "skin", "`images/` and `labels.json`, or unpacked ISIC archives")
        found = find_layout(root)
        if found is None or (self.layout == "native" and not (root / "images").is_dir()):
            expected = "no `images/`" if self.layout == "native" else "neither `images/` nor images named ISIC_*"
            raise DataError(f"`{root}` holds {expected}. {suggest_root(root, looks_alike, levels=1)}")
        return root

    def records(self) -> list[Record]:
        """Index the images, sorted by sample id: tables, headers of images and masks and, to find copies, thumbnails."""
        index = self._scan()
        expected = "Expected images `images/train/*.jpg` or `ISIC_*.jpg`."
        check_usable("skin", self.locate(), index.contents.problems, index.records, expected)
        return self._grouped(index)

    def notes(self) -> list[str]:
        """Return what tables and folders leave open, for how many images each label is known, and which are copies."""
        index = self._scan()
        return [*index.contents.notes, *self._remarks(index), *self._copies(index)]

    def lost_labels(self) -> list[LostLabels]:
        """Return how many classes and masks are about images that are not known by this name."""
        return self._scan().contents.lost

    def files_of(self, record: Record) -> tuple[str, ...]:
        """Return the image and its mask."""
        mask = self._scan().pictures[record.sample_id].mask
        return (record.path,) if mask is None else (record.path, str(mask))

    def read_image(self, record: Record) -> np.ndarray:
        """Decode one image as stored: [H, W, 3] uint8."""
        return read_rgb(Path(record.path))

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with its classes and its mask, and an empty (0, 0, 3) image.

        Raises:
            DataError: The mask cannot be decoded or has another size than its image.
        """
        picture = self._scan().pictures[record.sample_id]
        masks = {}
        if picture.mask is not None:
            mask = read_mask(picture.mask)
            _check_size(picture, record.size or image_size(picture.path)[0], (mask.shape[0], mask.shape[1]))
            masks[LESION] = mask
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            masks=masks,
            labels={name: float(value) for name, value in picture.classes.items()},
        )

    def check(self) -> CheckReport:
        """Read everything, decode every image and mask, and report copies and suspicious masks."""
        try:
            index = self._scan()
        except DataError as error:
            return CheckReport(errors=[str(error)])
        report = CheckReport(errors=list(index.contents.problems))
        if not index.records:
            report.errors.append(f"No image below `{self.locate()}`.")
        report.counts = self._counts(index)
        for record in track("reading images", index.records, len(index.records)):
            try:
                self.read_image(record)
                mask = self.read_labels(record).masks.get(LESION)
            except DataError as error:
                if str(error) not in report.errors:
                    report.errors.append(str(error))
                continue
            if mask is not None and mask.min() == mask.max():
                covers = "the whole image" if mask.max() else "nothing"
                report.notes.append(f"{index.pictures[record.sample_id].mask}: marks {covers}.")
        try:
            report.notes += self.notes()
        except DataError:
            report.notes += [*index.contents.notes, *self._remarks(index)]
            report.notes.append("Copies of photographs were not looked for, since some images cannot be decoded.")
        else:
            report.counts["groups"] = len(set(index.groups or []))
        return report

    def _scan(self) -> _Index:
        """List files, parse tables and read the headers of images and masks, once."""
        if self._index is not None:
            return self._index
        root = self.locate()
        layout = str(find_layout(root)) if self.layout == "auto" else self.layout
        contents = (read_native if layout == "native" else read_isic)(root, self.attributes)
        index = _Index(layout, contents)
        tested = any(picture.part == "test" for picture in contents.pictures)
        for picture in contents.pictures:
            try:
                size, orientation = image_size(picture.path)
            except DataError as error:
                contents.problems.append(str(error))
                continue
            if picture.mask is not None:
                try:
                    _check_size(picture, size, image_size(picture.mask)[0])
                except DataError as error:
                    contents.problems.append(str(error))
            index.turned += orientation != 1
            index.pictures[picture.sample_id] = picture
            part = "test" if picture.part == "val" and not tested else picture.part
            index.records.append(self._record(picture, size, part, SOURCE_OF[layout]))
        self._index = index
        return index

    def _record(self, picture: Picture, size: tuple[int, int], part: str | None, source: str) -> Record:
        labels = [f"class:{name}" for name in picture.classes]
        counts = {
            self._count_names[attribute, name]: int(number == value)
            for attribute, value in picture.classes.items()
            for number, name in enumerate(self.attributes[attribute])
        }
        if picture.mask is not None:
            labels.append(f"mask:{LESION}")
            counts[LESION] = 1
        ids: dict[str, str] = {unit: picture.about[unit] for unit in UNITS if unit in picture.about}
        return Record(
            sample_id=picture.sample_id,
            group=picture.sample_id,
            source=source,
            path=str(picture.path),
            size=size,
            stratum=self._stratum(picture),
            class_counts=counts,
            groups={**ids, "image": picture.sample_id},
            official_split=part,
            labels=tuple(labels),
            attributes=self._subgroups(picture.about),
        )

    def _stratum(self, picture: Picture) -> int:
        """Number strata by the class of the first attribute; images with a mask are strata of their own, since they are few."""
        attribute = next(iter(self.attributes), None)
        names: tuple[str, ...] = () if attribute is None else self.attributes[attribute]
        value = picture.classes.get(str(attribute), len(names))
        return value + (0 if picture.mask is None else len(names) + 1)

    def _subgroups(self, about: dict[str, str]) -> dict[str, str]:
        """Return what tables break results down by, as far as it is given."""
        found = {}
        if "age" in about and self.age_bands:
            age, bounds = number_of(about["age"]) or 0.0, self.age_bands
            names = [*(f"{low}-{high - 1}" for low, high in pairwise([0, *bounds])), f"{bounds[-1]}+"]
            found["age"] = names[sum(age >= bound for bound in bounds)]
        if "sex" in about:
            found["sex"] = SEXES.get(normal(about["sex"]), normal(about["sex"]))
        if "skin_tone" in about:
            found["skin_tone"] = about["skin_tone"].removesuffix(".0")
        return found

    def _grouped(self, index: _Index) -> list[Record]:
        """Fill in the groups; looks for copies when asked for the first time."""
        if index.groups is None:
            records = index.records
            units = UNITS[UNITS.index(self.group_by) :] if self.group_by in UNITS else ()
            first: dict[tuple[str, str], int] = {}
            pairs = [
                (first.setdefault((unit, record.groups[unit]), number), number)
                for number, record in enumerate(records)
                for unit in units
                if unit in record.groups
            ]
            if self.group_by != "image":
                logger.info("looking for copies among %d images", len(records))
                clusters = near_duplicates([record.path for record in records], ALIKE, memo=self.memo)
                pairs += [(first.setdefault(("copy", str(one)), number), number) for number, one in enumerate(clusters)]
            names: dict[int, str] = {}
            for part, record in zip(connected(len(records), pairs), records, strict=True):
                index.groups = [*(index.groups or []), names.setdefault(part, _group_name(record, units))]
        return [replace(record, group=group) for record, group in zip(index.records, index.groups or [], strict=True)]

    def _remarks(self, index: _Index) -> list[str]:
        """Return what a person who trains on this has to know."""
        remarks, parts = [], {picture.part for picture in index.pictures.values()}
        if "val" in parts and "test" not in parts:
            remarks.append(
                "There is no official test part: with split.scheme=official the official validation part is the test set, and "
                "validation is cut from training, so that nothing is chosen on what is reported."
            )
        for label in (*(f"class:{name}" for name in self.attributes), f"mask:{LESION}"):
            known = sum(record.knows(label) for record in index.records)
            if known < len(index.records):
                remarks.append(
                    f"{label.partition(':')[2]}: known for {known} of {len(index.records)} images, absent elsewhere."
                )
        ids = [unit for unit in UNITS if any(unit in record.groups for record in index.records)]
        if not ids and self.group_by != "image":
            remarks.append("No patient or lesion ids: images count as different people unless they show the same photograph.")
        if index.turned:
            remarks.append(f"{index.turned} images carry an EXIF orientation, which does not count: masks fit stored pixels.")
        return remarks

    def _counts(self, index: _Index) -> dict[str, int]:
        counts: Counter[str] = Counter({"images": len(index.records)})
        counts.update(f"{picture.part or 'without part'}" for picture in index.pictures.values())
        for record in index.records:
            counts.update(record.class_counts)
        for key in ("age", "sex", "skin_tone"):
            if known := sum(key in record.attributes for record in index.records):
                counts[f"with {key.replace('_', ' ')}"] = known
        return dict(counts)

    def _copies(self, index: _Index) -> list[str]:
        """Note which groups have several images, and which of these lie in several official parts."""
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in self._grouped(index):
            groups[record.group].append(record)
        several = [records for records in groups.values() if len(records) > 1]
        mixed = [records for records in several if len({record.official_split for record in records}) > 1]
        return notes_on_copies({"Groups of more than one image": several, "Groups in several official parts": mixed})


def _group_name(record: Record, units: tuple[str, ...]) -> str:
    """Name a group after the first of its images: by the widest id that the image has."""
    unit = next((unit for unit in units if unit in record.groups), None)
    return record.sample_id if unit is None else f"{unit} {record.groups[unit]}"


def _check_size(picture: Picture, size: tuple[int, int], mask_size: tuple[int, int]) -> None:
    """Refuse a mask whose (height, width) is not that of its image."""
    if mask_size != size:
        raise DataError(
            f"{picture.mask}: is {mask_size[1]} x {mask_size[0]} pixels; expected the size of {picture.path.name}, "
            f"{size[1]} x {size[0]}. Replace the mask or the image."
        )


def _wrong_attribute(name: str, names: Any) -> list[str]:
    """Return what is wrong with one entry of `data.attributes`."""
    problems = []
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)):
        problems.append(f"`data.attributes` names `{name}`; expected letters, digits and underscores. Choose another name.")
    elif name == LESION or name in RESERVED:
        taken = "the task of the masks" if name == LESION else "a word with a meaning in networks"
        problems.append(f"`data.attributes` names `{name}`, which is {taken}. Choose another name, as in `skin_{name}`.")
    if names is None:
        return problems
    strings = isinstance(names, list | tuple) and all(isinstance(entry, str) and entry for entry in names)
    if not strings or len({letters(entry) for entry in names}) != len(names) or len(names) < 2:
        problems.append(
            f"`data.attributes.{name}` is {names}; expected at least two different class names, in quotes if need be."
        )
    return problems
