"""Retinal photographs with lesion masks, with grades, or with landmarks: the Indian Diabetic Retinopathy Image Dataset (IDRiD).

Three sets of images, each with its own kind of label: A masks of four lesions and the optic disc (and with them which lesions
an image shows), B grades of retinopathy and
macular edema, C centres of the optic disc and the fovea. Source: Porwal et al., "Indian Diabetic Retinopathy Image Dataset
(IDRiD): a database for diabetic retinopathy screening research", 2018, doi 10.3390/data3030025. The sets share photographs
under other names, also across their official parts. No patients are published; neighbouring numbers may be two eyes of one.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mtl.core.errors import ConfigError, DataError, unknown
from mtl.core.family import CheckReport, DataFamily, LostLabels
from mtl.core.places import Place
from mtl.core.progress import track
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Objects, Record, Sample
from mtl.data.families.folders import check_usable, find_sets_root, notes_on_copies, unreadable_in
from mtl.data.families.idrid.files import CODES, LANDMARKS, SETS, Contents, Picture, find_sets, read_contents
from mtl.data.formats.duplicates import connected, near_duplicates
from mtl.data.formats.images import image_size, read_mask, read_rgb

logger = logging.getLogger(__name__)

CAMERA_WIDTH = 4288  # pixels of a photograph as taken: the reference raster
LESIONS = {  # by suffix of the mask files: task, class
    "MA": ("lesions_ma", "microaneurysms"),
    "HE": ("lesions_he", "haemorrhages"),
    "EX": ("lesions_ex", "hard_exudates"),
    "SE": ("lesions_se", "soft_exudates"),
    "OD": ("optic_disc", "optic_disc"),
}
GRADES = {
    "grade": ("no_dr", "mild_npdr", "moderate_npdr", "severe_npdr", "pdr"),
    "edema": ("no_dme", "mild_dme", "severe_dme"),
}
FINDINGS = tuple(code for code in CODES if code != "OD")  # every retina has an optic disc
# Segmented images have no grade and are a stratum of their own, so that they too are spread over training and validation. A
# photograph that is in both sets counts as one of these. Localization, which has the photographs of grading, has no say.
UNGRADED = 5
NO_SAY = 0  # the highest stratum of a group counts
CIRCLE = 24  # vertices of the outline around a landmark


@dataclass
class _Index:
    contents: Contents = field(default_factory=Contents)
    pictures: dict[str, Picture] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    groups: list[str] | None = None


@DATA_FAMILIES.register("idrid")
class Idrid(DataFamily):
    """Retinal photographs with lesion masks, grades and landmarks (IDRiD).

    Args:
        root: Folder that holds `A. Segmentation/`, `B. Disease Grading/` and/or `C. Localization/`; None looks below
            `MTL_DATA_DIR/idrid`.
        sets: Which of segmentation, grading and localization to read; None takes those that are there.
        missing_mask: By lesion code (MA, HE, EX, SE, OD), what an image without a mask file means: `negative`, free of it (as
            the data set has it for lesions), or `absent`, nobody drew it (every retina has an optic disc).
        largest_share: By lesion code, the largest share of an image that a mask may cover; more is an error, since then
            something else was read as the mask.
        group_by: Unit that a split keeps together. `photograph` finds copies by their pixels, in all sets; `image` looks at
            names only, so that copies may serve both training and test, as in the official parts.
        landmark_radius: Radius of the circle drawn around the centre of the optic disc or the fovea, in reference pixels (a
            photograph is 4288 wide). An optic disc has a radius of about 260.
    """

    object_classes: ClassVar[tuple[str, ...]] = ("optic_disc_centre", "fovea")
    colours: ClassVar[dict[str, Colour]] = {  # of the lesions, as published
        "microaneurysms": (0, 255, 255), "haemorrhages": (255, 0, 255), "hard_exudates": (182, 245, 0),
        "soft_exudates": (0, 255, 0), "optic_disc": (255, 11, 85), "optic_disc_centre": (255, 11, 85), "fovea": (31, 79, 216),
    }  # fmt: skip

    def __init__(
        self,
        *,
        root: Place | None = None,
        sets: list | None = None,
        missing_mask: dict = {"MA": "negative", "HE": "negative", "EX": "negative", "SE": "negative", "OD": "absent"},  # noqa: B006 (read only; the registry reads literals)
        largest_share: dict = {"MA": 0.05, "HE": 0.5, "EX": 0.3, "SE": 0.2, "OD": 0.15},  # noqa: B006
        group_by: Literal["photograph", "image"] = "photograph",
        landmark_radius: float = 260.0,
    ) -> None:
        self.root, self.sets, self.group_by, self.landmark_radius = root, sets, group_by, landmark_radius
        problems = [unknown("set", name, SETS, "data.sets") for name in sets or [] if name not in SETS]
        if sets is not None and not sets:
            problems.append("`data.sets` is empty; expected some of segmentation, grading and localization, or null.")
        if not landmark_radius > 0:
            problems.append(f"`data.landmark_radius` is {landmark_radius}; expected a number above 0.")
        for key, given in (("missing_mask", missing_mask), ("largest_share", largest_share)):
            problems += [unknown("lesion", code, CODES, f"data.{key}") for code in given if code not in CODES]
            problems += [
                f"`data.{key}` lacks {code}; expected a value for each of {', '.join(CODES)}."
                for code in CODES
                if code not in given
            ]
        for code, policy in missing_mask.items():
            if policy not in ("negative", "absent"):
                problems.append(f"`data.missing_mask.{code}` is {policy}; expected negative or absent.")
        for code, share in largest_share.items():
            if not (isinstance(share, int | float) and 0 < share <= 1):
                problems.append(f"`data.largest_share.{code}` is {share}; expected a share above 0, at most 1.")
        if problems:
            raise ConfigError(problems)
        self._missing = {code: str(missing_mask[code]) for code in CODES}
        self._largest = {code: float(largest_share[code]) for code in CODES}
        self._index: _Index | None = None

    def specs(self) -> dict[str, TaskSpec]:
        """Return the tasks of the chosen sets: grades, each lesion, all together, and which there are, landmarks."""
        names = [name for _, name in LESIONS.values()]
        by_set = {
            "grading": [
                TaskSpec(task, "classification", classes, label=f"class:{task}", ordinal=True)
                for task, classes in GRADES.items()
            ],
            "segmentation": [
                *(TaskSpec(task, "segmentation", (name,), label=f"mask:{task}") for task, name in LESIONS.values()),
                TaskSpec("lesions", "segmentation", tuple(names), label="mask:lesions"),
                TaskSpec(
                    "findings",
                    "multilabel_classification",
                    tuple(LESIONS[code][1] for code in FINDINGS),
                    label="class:findings",
                    whole_image=True,
                ),
            ],
            "localization": [
                TaskSpec("landmarks", "heatmap", self.object_classes, members=tuple((name,) for name in self.object_classes))
            ],
        }
        return self.with_colours(*(spec for name, specs in by_set.items() if name in (self.sets or SETS) for spec in specs))

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate retinal photographs, `fields` per person, in all three sets."""
        from mtl.data.families.idrid.generator import generate_idrid

        if kind is not None:
            raise ConfigError("`kind` chooses among variants of a layout; retinal photographs have one. Leave it out.")
        given = {} if width is None else {"width": width}
        generate_idrid(output, patients, fields, seed, overwrite=overwrite, **given)

    def pixel_scale_of(self, size: tuple[int, int], name: str = "") -> float:
        """Return the width in widths of a photograph as taken."""
        return size[1] / CAMERA_WIDTH

    def locate(self) -> Path:
        """Return the folder that holds the sets."""
        folders = {name: folder for name, (_, folder, *_) in SETS.items()}
        return find_sets_root(self.root, "idrid", folders, self.sets, find_sets, ("IDRiD", ""))

    def records(self) -> list[Record]:
        """Index the data set, sorted by sample id: tables, image headers and, to find copies, thumbnails. Remembered."""
        index = self._scan()
        expected = "Expected images `<set>/1. Original Images/<part>/*.jpg`."
        check_usable("idrid", self.locate(), index.contents.problems, index.records, expected)
        return self._grouped(index)

    def notes(self) -> list[str]:
        """Return what tables and folders leave open, which lesions nobody marked, and which photographs are there twice."""
        index = self._scan()
        return [*index.contents.notes, *self._unannotated(index), *self._copies(index)]

    def lost_labels(self) -> list[LostLabels]:
        """Return how many masks and rows of tables are about images that are not known by this name."""
        return self._scan().contents.lost

    def files_of(self, record: Record) -> tuple[str, ...]:
        """Return the photograph and its masks."""
        return (record.path, *map(str, self._scan().pictures[record.sample_id].masks.values()))

    def read_image(self, record: Record) -> np.ndarray:
        """Decode one image as stored: [H, W, 3] uint8."""
        return read_rgb(Path(record.path))

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with the labels of its set and an empty (0, 0, 3) image.

        Raises:
            DataError: A mask cannot be decoded, has another size than its image or covers more than `largest_share`.
        """
        picture = self._scan().pictures[record.sample_id]
        masks = self._masks(picture, record)
        labels: dict[str, float | np.ndarray] = {name: float(value) for name, value in picture.grades.items()}
        labels |= _findings(masks)
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            objects=self._objects(picture, record.pixel_scale),
            masks=masks,
            labels=labels,
            pixel_scale=record.pixel_scale,
        )

    def check(self) -> CheckReport:
        """Read everything, decode every image and mask, and report copies within and across sets."""
        try:
            index = self._scan()
        except DataError as error:
            return CheckReport(errors=[str(error)])
        report = CheckReport(errors=list(index.contents.problems))
        sets = Counter(record.sample_id.rpartition("/")[0] for record in index.records)
        classes: Counter[str] = Counter()
        for record in index.records:
            classes.update(record.class_counts)
        report.counts = {"images": len(index.records), **dict(sorted(sets.items())), **classes}
        if not index.records:
            report.errors.append(f"No image below `{self.locate()}`.")
        for record in track("reading images", index.records, len(index.records)):
            for read in (self.read_image, self.read_labels):
                try:
                    read(record)
                except DataError as error:
                    report.errors.append(str(error))
        try:
            report.notes += self.notes()
        except DataError:
            report.notes += [*index.contents.notes, *self._unannotated(index)]
            report.notes.append("Copies of photographs were not looked for, since some images cannot be decoded.")
        else:
            report.counts["photographs" if self.group_by == "photograph" else "groups"] = len(set(index.groups or []))
        return report

    def _scan(self) -> _Index:
        """List files, parse tables and read image headers, once."""
        if self._index is not None:
            return self._index
        root = self.locate()
        sets = {name: folder for name, folder in find_sets(root).items() if name in (self.sets or SETS)}
        contents = read_contents(sets, [code for code in CODES if self._missing[code] == "negative"])
        contents.problems += unreadable_in(root)
        index = _Index(contents)
        for picture in contents.pictures:
            try:
                size, _ = image_size(picture.path)
            except DataError as error:
                contents.problems.append(str(error))
                continue
            for name, (x, y) in picture.points.items():
                if not (0 <= x <= size[1] and 0 <= y <= size[0]):
                    contents.problems.append(
                        f"{picture.path}: the {name} is given at ({x:g}, {y:g}), but the image is {size[1]} x {size[0]} pixels."
                        " Use the images that the centres were marked in."
                    )
            index.pictures[picture.sample_id] = picture
            index.records.append(self._record(picture, size))
        self._index = index
        return index

    def _record(self, picture: Picture, size: tuple[int, int]) -> Record:
        labels, counts = [], {}
        if picture.set_name == "segmentation":
            known = self._known(picture)
            labels = [f"mask:{LESIONS[code][0]}" for code in known] + ["mask:lesions"] * (len(known) == len(CODES))
            labels += ["class:findings"] * any(code in known for code in FINDINGS)
            counts = {LESIONS[code][1]: int(code in picture.masks) for code in known}
        for task, value in picture.grades.items():
            labels.append(f"class:{task}")
            counts |= {name: int(number == value) for number, name in enumerate(GRADES[task])}
        if picture.set_name == "localization" and set(picture.points) == set(LANDMARKS):
            labels.append("objects")
            counts = dict.fromkeys(self.object_classes, 1)
        return Record(
            sample_id=picture.sample_id,
            group=picture.sample_id,
            source=f"idrid_{picture.set_name}",
            path=str(picture.path),
            size=size,
            pixel_scale=self.pixel_scale_of(size),
            stratum=picture.grades.get("grade", NO_SAY if picture.set_name == "localization" else UNGRADED),
            class_counts=counts,
            official_split=picture.part,
            labels=tuple(labels),
        )

    def _known(self, picture: Picture) -> list[str]:
        """List the lesion codes whose mask is known, a missing file included where it means that there is none."""
        return [code for code in CODES if code in picture.masks or self._missing[code] == "negative"]

    def _grouped(self, index: _Index) -> list[Record]:
        """Fill in the groups; looks for copies when asked for the first time."""
        if index.groups is None:
            records = index.records
            # The images of B and C are the same files in the data set as distributed.
            numbers = {record.sample_id: number for number, record in enumerate(records)}
            twins = {name: "B" + name[1:] for name in numbers if name[0] == "C"}
            pairs = [(numbers[twin], numbers[name]) for name, twin in twins.items() if twin in numbers]
            if self.group_by == "photograph":
                logger.info("looking for copies among %d images", len(records))
                first: dict[int, int] = {}
                clusters = near_duplicates([record.path for record in records], memo=self.memo)
                for number, cluster in enumerate(clusters):
                    pairs.append((first.setdefault(cluster, number), number))
            names: dict[int, str] = {}
            parts = connected(len(records), pairs)
            index.groups = [names.setdefault(part, record.sample_id) for part, record in zip(parts, records, strict=True)]
        return [
            replace(record, group=group, groups={self.group_by: group})
            for record, group in zip(index.records, index.groups, strict=True)
        ]

    def _masks(self, picture: Picture, record: Record) -> dict[str, np.ndarray]:
        """Decode the masks: one [H, W] per known lesion and `lesions` [H, W, 5], which share their memory."""
        if picture.set_name != "segmentation":
            return {}
        size, known = record.size or image_size(picture.path)[0], self._known(picture)
        stack = np.zeros((len(CODES), *size), np.uint8)
        for number, code in enumerate(CODES):
            if code not in picture.masks:
                continue
            path = picture.masks[code]
            mask = read_mask(path)
            if mask.shape != size:
                raise DataError(
                    f"{path}: is {mask.shape[1]} x {mask.shape[0]} pixels; expected the size of {picture.path.name}, "
                    f"{size[1]} x {size[0]}. Replace the mask or the image."
                )
            share = float(np.count_nonzero(mask)) / mask.size
            if share > self._largest[code]:
                raise DataError(
                    f"{path}: {share:.2%} of the image is marked as {LESIONS[code][1]}; expected at most "
                    f"{self._largest[code]:.2%}. Correct the mask, or raise data.largest_share.{code}."
                )
            stack[number] = mask
        masks = {LESIONS[code][0]: stack[CODES.index(code)] for code in known}
        if len(known) == len(CODES):
            masks["lesions"] = np.moveaxis(stack, 0, 2)
        return masks

    def _objects(self, picture: Picture, scale: float) -> Objects | None:
        """Return both landmarks with a circle around each, or None where they are not known."""
        if set(picture.points) != set(LANDMARKS):
            return None
        points = np.asarray([picture.points[name] for name in self.object_classes], np.float32)
        angles = np.arange(CIRCLE) * (2 * np.pi / CIRCLE)
        circle = self.landmark_radius * scale * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return Objects(
            outlines=[(point + circle).astype(np.float32) for point in points],
            labels=np.arange(len(points), dtype=np.int64),
            points=points,
            derived=np.ones(len(points), bool),
        )

    def _unannotated(self, index: _Index) -> list[str]:
        """Return a note on each lesion without a single file, since images without one count as free of it."""
        by_part: dict[str, list[Picture]] = defaultdict(list)
        for picture in index.contents.pictures:
            if picture.set_name == "segmentation":
                by_part[picture.part].append(picture)
        return [
            f"No {code} mask among the {len(pictures)} {part} images of segmentation: all of them count as free of "
            f"{LESIONS[code][1]}. If nobody looked for it, set data.missing_mask.{code}=absent."
            for part, pictures in by_part.items()
            for code in CODES
            if self._missing[code] == "negative" and not any(code in picture.masks for picture in pictures)
        ]

    def _copies(self, index: _Index) -> list[str]:
        """Note which photographs occur several times, in training and test, or with two grades."""
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in self._grouped(index):
            groups[record.group].append(record)
        several = [records for records in groups.values() if len(records) > 1]
        grades = {name: picture.grades for name, picture in index.pictures.items()}
        graded = [[record for record in records if grades[record.sample_id]] for records in several]
        return notes_on_copies({
            "Photographs that are there more than once": several,
            "Photographs that are in an official training part and in an official test part": [
                records for records in several if len({record.official_split for record in records}) > 1
            ],
            "Photographs whose copies have other grades": [
                records for records in graded if any(grades[r.sample_id] != grades[records[0].sample_id] for r in records)
            ],
        })  # fmt: skip


def _findings(masks: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    """Return `findings` [lesions]: 1 where a mask marks anything, NaN where it is not known; empty where none is."""
    names = [LESIONS[code][0] for code in FINDINGS]
    found = np.array([float(masks[name].any()) if name in masks else np.nan for name in names])
    return {} if np.isnan(found).all() else {"findings": found}
