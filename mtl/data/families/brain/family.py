"""Brain MRI with and without tumours: slices of BraTS volumes with tumour masks, Kaggle pictures with yes or no.

Sources: Menze et al., "The multimodal brain tumor image segmentation benchmark (BraTS)", 2015, doi 10.1109/TMI.2014.2377694;
Bakas et al., 2017, doi 10.1038/sdata.2017.117; Baid et al., 2021, arXiv:2107.02314; and the set "Brain MRI Images for Brain
Tumor Detection" (Chakrabarty, Kaggle 2019). Whole tumour, core and enhancing tumour are nested: labels {1, 2, 4}, {1, 4}, {4}.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mtl.core.errors import ConfigError, DataError, unknown
from mtl.core.family import CheckReport, DataFamily
from mtl.core.places import Place
from mtl.core.progress import track
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Record, Sample
from mtl.data.families.brain.files import CaseReader, Scan, head_box, scan_cases, state_of
from mtl.data.families.brain.folders import SETS, Case, Picture, find_folders, list_cases, picture_folder, read_pictures
from mtl.data.families.brain.tasks import MEMBERS, PRESENCE, REGIONS, TOGETHER, presence_task, region_tasks
from mtl.data.families.folders import check_usable, notes_on_copies
from mtl.data.formats.duplicates import near_duplicates
from mtl.data.formats.images import grey_channels, image_size, read_grey

logger = logging.getLogger(__name__)

STRATA = {"no_tumor": 0, "tumor": 1, "brats": 2}
# Correlation of the heads' fingerprints above which two pictures are copies. Among 200 pictures of the Kaggle set copies
# (cropped, scaled, compressed or edited anew) reach 0.85 or more and all other pairs stay below 0.52; brains are nearly
# symmetrical, so that a copy's mirror image reaches 0.74.
ALIKE = 0.75
BACKGROUND = "any value"  # what may be background; cached rasters of releases that took 0 for it are made anew


@dataclass
class _Index:
    cases: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    slices: dict[str, tuple[Case, int]] = field(default_factory=dict)  # by sample id: case and number
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@DATA_FAMILIES.register("brain")
class Brain(DataFamily):
    """Axial slices of BraTS volumes and Kaggle pictures of brains.

    All slices of a labelled case are images: evaluation looks at whole volumes. A slice with `min_tumor_pixels` is of the
    class `tumor`, one without any tumour `no_tumor`; in between it has no class and, like the tumour-free slices that are not
    chosen by a seed, is left out of training. So are slices that show hardly any brain, with tumour or without: how much brain
    there is would give the class away. Cases without labels are left out.

    Args:
        root: Folder that holds the cases and/or the pictures, itself or one or two levels down; None looks below
            `MTL_DATA_DIR/brain`, `MTL_DATA_DIR/brain_brats` and `MTL_DATA_DIR/brain_kaggle`.
        folders: By source, a folder of its own, where `root` is null; a given `root` wins.
        sets: Which of brats and kaggle to read; None takes those that are there.
        modalities: The channels of an image, out of flair, t1, t1ce and t2. One that a case lacks is blank.
        unknown_modality: Which channels a picture fills, of which nobody knows the modality: all (`repeat`), or the one named.
        min_tumor_pixels: Least number of pixels, as stored, that make a slice one with a tumour.
        tumor_free_share: Share of the tumour-free slices that training uses.
        min_brain_share: Least share of a slice that is brain, else neither training nor the class looks at it.
        slice_seed: Decides which tumour-free slices are used; a slice's lot depends on this, its case and its number only.
        group_by: Unit that a split keeps together. `patient` holds the slices of a patient together, and pictures that are
            copies of each other, found by their pixels; `file` looks at names only, so that copies may serve both training and
            test.
    """

    colours: ClassVar[dict[str, Colour]] = {
        "whole_tumor": (0, 255, 0), "tumor_core": (255, 213, 0), "enhancing_tumor": (255, 11, 85),
    }  # fmt: skip
    volume_endings: ClassVar[dict[str, tuple[str, ...]]] = {  # the names of BraTS 2023 included
        "flair": ("flair", "t2f"),
        "t1": ("t1", "t1n"),
        "t1ce": ("t1ce", "t1c", "t1gd"),
        "t2": ("t2", "t2w"),
    }
    label_endings: ClassVar[tuple[str, ...]] = ("seg",)

    def __init__(
        self,
        *,
        root: Place | None = None,
        folders: dict[str, Place | None] = {"brats": None, "kaggle": None},  # noqa: B006 (read only; the registry reads literals)
        sets: list | None = None,
        modalities: list = ["flair"],  # noqa: B006
        unknown_modality: str = "repeat",
        min_tumor_pixels: int = 100,
        tumor_free_share: float = 0.3,
        min_brain_share: float = 0.1,
        slice_seed: int = 0,
        group_by: Literal["patient", "file"] = "patient",
    ) -> None:
        self.root, self.folders, self.sets, self.group_by = root, {**dict.fromkeys(SETS), **folders}, sets, group_by
        self.modalities, self.picture_modality = tuple(modalities), unknown_modality
        self.min_tumor_pixels, self.tumor_free_share = min_tumor_pixels, tumor_free_share
        self.min_brain_share, self.slice_seed = min_brain_share, slice_seed
        endings = self.volume_endings
        problems = [unknown("set", name, SETS, "data.sets") for name in sets or [] if name not in SETS]
        problems += [unknown("source", name, SETS, "data.folders") for name in folders if name not in SETS]
        problems += [unknown("modality", name, endings, "data.modalities") for name in modalities if name not in endings]
        if sets is not None and not sets:
            problems.append("`data.sets` is empty; expected some of brats and kaggle, or null.")
        if not modalities or len(set(modalities)) != len(modalities):
            problems.append(f"`data.modalities` is {modalities}; expected at least one, each once.")
        if unknown_modality not in ("repeat", *modalities):
            problems.append(unknown("modality", unknown_modality, ["repeat", *modalities], "data.unknown_modality"))
        if min_tumor_pixels < 1:
            problems.append(f"`data.min_tumor_pixels` is {min_tumor_pixels}; expected at least 1.")
        for key, share in (("tumor_free_share", tumor_free_share), ("min_brain_share", min_brain_share)):
            if not 0 <= share <= 1:
                problems.append(f"`data.{key}` is {share}; expected a share from 0 to 1.")
        if problems:
            raise ConfigError(problems)
        self._reader = CaseReader(self.modalities)
        self._index: _Index | None = None
        self._groups: dict[str, str] | None = None

    @property
    def channels(self) -> int:
        """One per modality."""
        return len(self.modalities)

    @property
    def sources(self) -> tuple[str, ...]:
        """The chosen sets."""
        return tuple(name for name in SETS if name in (self.sets or SETS))

    @property
    def pixel_settings(self) -> str:
        """Everything but a record's own file that decides its pixels, for the cache: channels, and the files of each."""
        files = [case.modalities[name] for case in self._scan().cases for name in self.modalities if name in case.modalities]
        return f"{self.modalities} {self.picture_modality} {state_of(files)} {BACKGROUND}"

    def specs(self) -> dict[str, TaskSpec]:
        """Return the tasks of the chosen sets: each region and all together (brats), tumour or not."""
        return self.with_colours(*(region_tasks() if "brats" in self.sources else []), presence_task())

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate `patients` volumes of `fields` slices in `brats/`, and about three pictures per volume in `kaggle/`."""
        from mtl.data.families.brain.generator import generate_brain

        if kind is not None:
            raise ConfigError("`kind` chooses among variants of a layout; brain data have one. Leave it out.")
        given = {} if width is None else {"width": width}
        generate_brain(output, patients, fields, seed, overwrite=overwrite, **given)

    def locate(self) -> Path:
        """Return the folder that `root` names, or the first one in which there are cases or pictures."""
        found = self._find()
        return Path(self.root) if self.root else next(iter(found.values()))

    def records(self) -> list[Record]:
        """Index the data set, sorted by sample id. Decodes all label maps, once per machine; finds copies by their pixels."""
        index = self._scan()
        expected = f"Expected {' or '.join(SETS.values())}; cases need labels."
        check_usable("brain", self.locate(), index.problems, index.records, expected)
        groups = self._find_groups(index)
        return [replace(record, group=groups[record.sample_id]) for record in index.records]

    def notes(self) -> list[str]:
        """Return what folders and headers leave open, and which pictures are there twice."""
        index = self._scan()
        return [*index.notes, *self._copies(index)]

    def files_of(self, record: Record) -> tuple[str, ...]:
        """Return the picture, or the volumes and the labels of the case."""
        case, _ = self._scan().slices.get(record.sample_id, (None, 0))
        volumes = [] if case is None else [case.modalities[name] for name in self.modalities if name in case.modalities]
        return (record.path,) if case is None else tuple(map(str, [*volumes, case.seg]))

    def read_image(self, record: Record) -> np.ndarray:
        """Return grey values as stored, upright: [H, W, C] float32. Of a volume, in its own unit; of a picture, 0 to 255."""
        place = self._scan().slices.get(record.sample_id)
        if place is not None:
            assert record.size is not None
            return self._reader.slice(*place, record.size)
        return grey_channels(read_grey(Path(record.path)), self.modalities, self.picture_modality)

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with the masks of its slice and its class, where known, and an empty (0, 0, 3) image."""
        place = self._scan().slices.get(record.sample_id)
        masks: dict[str, np.ndarray] = {}
        if place is not None:
            assert record.size is not None
            labels = self._reader.labels(*place, record.size)
            stack = MEMBERS[:, labels]
            masks = {**dict(zip(REGIONS, stack, strict=True)), TOGETHER: np.moveaxis(stack, 0, 2)}
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            masks=masks,
            labels={"presence": float(record.class_counts["tumor"])} if record.knows("class:presence") else {},
            pixel_scale=record.pixel_scale,
        )

    def check(self) -> CheckReport:
        """Read everything, decode every volume and picture, and report copies."""
        try:
            index = self._scan()
        except DataError as error:
            return CheckReport(errors=[str(error)])
        report = CheckReport(errors=list(index.problems))
        if not index.records:
            report.errors.append(f"No labelled case and no picture below `{self.locate()}`.")
        for record in track("reading images", index.records, len(index.records)):
            try:
                self.read_image(record)
                self.read_labels(record)
            except DataError as error:
                report.errors.append(str(error))
        slices = [record for record in index.records if record.source == "brats"]
        pictures = [record for record in index.records if record.source == "kaggle"]
        report.counts = {"cases": len(index.cases), "cases without labels": len(index.unlabelled), "slices": len(slices)}
        report.counts |= {f"slices: {name}": count for name, count in _count(slices).items()}
        report.counts["slices without a class"] = sum(not record.knows("class:presence") for record in slices)
        report.counts["slices for training"] = sum(record.training for record in slices)
        report.counts |= {"pictures": len(pictures), **{f"pictures: {n}": c for n, c in _count(pictures, PRESENCE).items()}}
        try:
            report.notes += self.notes()
        except DataError:
            report.notes += [*index.notes, "Copies of pictures were not looked for, since some cannot be decoded."]
        else:
            groups = self._find_groups(index)
            report.counts["different pictures"] = len({groups[picture.sample_id] for picture in index.pictures})
        return report

    def _find(self) -> dict[str, Path]:
        """Return the folder of each chosen set that is there."""
        return find_folders(self.root, self.folders, self.sources, whole=self.sets is not None)

    def _scan(self) -> _Index:
        """List files, read headers and look at label maps, once."""
        if self._index is not None:
            return self._index
        found, index = self._find(), _Index()
        if self.root and (idle := [f"data.folders.{name}" for name, folder in self.folders.items() if folder]):
            index.notes.append(f"{' and '.join(idle)} not looked at, since data.root is given.")
        if "brats" in found:
            cases = list_cases(found["brats"], self.volume_endings, self.label_endings, self.modalities)
            index.cases, index.unlabelled = cases.labelled, cases.unlabelled
            index.problems += cases.problems
            index.notes += cases.notes
            scans, problems = scan_cases(self._reader, index.cases, self.memo)
            index.problems += problems
            for case in index.cases:
                if case.name in scans:
                    self._add_case(case, scans[case.name], index)
        if "kaggle" in found:
            folder = picture_folder(found["kaggle"])
            assert folder is not None
            index.pictures, problems, notes = read_pictures(folder)
            index.problems += problems
            index.notes += notes
            for picture in index.pictures:
                try:
                    index.records.append(_picture_record(picture))
                except DataError as error:
                    index.problems.append(str(error))
        index.records.sort(key=lambda record: record.sample_id)
        self._index = index
        return index

    def _add_case(self, case: Case, scan: Scan, index: _Index) -> None:
        """Make a record of every slice."""
        index.notes += scan.notes
        path = next(case.modalities[name] for name in self.modalities if name in case.modalities)
        size, digits = scan.size[1:], max(3, len(str(scan.size[0] - 1)))  # names sort by number
        for z in range(scan.size[0]):
            pixels = {name: sum(scan.labels[label][z] for label in values) for name, values in REGIONS.items()}
            presence = self._presence(pixels["whole_tumor"], scan.brain[z] / (size[0] * size[1]))
            labels = [f"mask:{name}" for name in (*REGIONS, TOGETHER)] + ["class:presence"] * (presence is not None)
            sample_id = f"brats/{case.name}/z{z:0{digits}d}"
            index.slices[sample_id] = (case, z)
            index.records.append(
                Record(
                    sample_id=sample_id,
                    group=case.patient if self.group_by == "patient" else case.name,
                    groups={"patient": case.patient, "file": case.name},
                    source="brats",
                    path=str(path),
                    annotation=str(case.seg),
                    size=size,
                    stratum=STRATA["brats"],
                    class_counts={name: int(count > 0) for name, count in pixels.items()} | _presence_counts(presence),
                    labels=tuple(labels),
                    training=presence == "tumor" or (presence == "no_tumor" and self._chosen(case.name, z)),
                    spacing=scan.spacing,
                    case=case.name,
                    skew=scan.skew,
                )
            )

    def _presence(self, tumor_pixels: int, brain_share: float) -> str | None:
        """Return the class of a slice, or None where it has none."""
        if brain_share < self.min_brain_share or 0 < tumor_pixels < self.min_tumor_pixels:
            return None
        return "tumor" if tumor_pixels else "no_tumor"

    def _chosen(self, case: str, z: int) -> bool:
        """Return whether a tumour-free slice trains; depends on nothing but the seed, the case and the slice."""
        lot = hashlib.sha256(f"{self.slice_seed}/{case}/{z}".encode()).digest()[:8]
        return int.from_bytes(lot) / 2**64 < self.tumor_free_share

    def _find_groups(self, index: _Index) -> dict[str, str]:
        """Return the group of each sample; looks for copies of pictures when asked for the first time."""
        if self._groups is None:
            groups = {record.sample_id: record.group for record in index.records}
            if self.group_by == "patient" and index.pictures:
                logger.info("looking for copies among %d pictures", len(index.pictures))
                names: dict[int, str] = {}
                paths = [picture.path for picture in index.pictures]
                clusters = near_duplicates(paths, ALIKE, box=head_box, mirrored=True, memo=self.memo)
                for picture, cluster in zip(index.pictures, clusters, strict=True):
                    groups[picture.sample_id] = names.setdefault(cluster, picture.sample_id)
            self._groups = groups
        return self._groups

    def _copies(self, index: _Index) -> list[str]:
        """Note copies of pictures, and those that lie in both folders."""
        groups: dict[str, list[Record]] = defaultdict(list)
        names = self._find_groups(index)
        for record in index.records:
            groups[names[record.sample_id]].append(record)
        several = [records for records in groups.values() if len(records) > 1 and records[0].source == "kaggle"]
        mixed = [records for records in several if len({record.sample_id.split("/")[1] for record in records}) > 1]
        return notes_on_copies({"Pictures that are there more than once": several, "Copies in both `yes/` and `no/`": mixed})


def _picture_record(picture: Picture) -> Record:
    presence = PRESENCE[picture.tumor]
    return Record(
        sample_id=picture.sample_id,
        group=picture.sample_id,
        source="kaggle",
        path=str(picture.path),
        size=image_size(picture.path)[0],
        groups={"file": picture.sample_id},  # nobody knows of whom it is
        stratum=STRATA[presence],
        class_counts=_presence_counts(presence),
        labels=("class:presence",),
    )


def _presence_counts(presence: str | None) -> dict[str, int]:
    return {} if presence is None else {name: int(name == presence) for name in PRESENCE}


def _count(records: list[Record], names: tuple[str, ...] = (*PRESENCE, *REGIONS)) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.class_counts)
    return {name: total[name] for name in names}
