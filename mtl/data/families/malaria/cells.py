"""Single red cells cut from thin smears, infected or not: the NIH `cell_images` crops.

`<root>/{Parasitized,Uninfected}/<slide>_IMG_<date>_<time>_cell_<n>.png`. The slide names the patient. Source: Rajaraman et
al., "Pre-trained convolutional neural networks as feature extractors toward improved malaria parasite detection in thin blood
smear images", 2018, doi 10.7717/peerj.4568. Most patients are also in NIH-NLM-ThinBloodSmearsPf: not an independent set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mtl.core.errors import ConfigError, DataError
from mtl.core.family import CheckReport, DataFamily
from mtl.core.names import normal
from mtl.core.places import Place
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Record, Sample
from mtl.data.families.folders import find_files, find_root, named_folders, unreadable_in
from mtl.data.formats.images import IMAGE_SUFFIXES, check_images, read_rgb

CLASSES = ("Infected", "Healthy")
FOLDERS = ("Parasitized", "Uninfected")
# One patient's slides differ in what follows `thin`: C47P8thin_Original_Motic and C47P8thinOriginalOlympusCX21.
NAME = re.compile(r"(?P<slide>.+?)_(?P<photo>IMG_.+?)(_cell_\d+)?", re.IGNORECASE)
PATIENT = re.compile(r".*?thinF?", re.IGNORECASE)


def parse_name(stem: str) -> tuple[str, str] | None:
    """Read (patient, field) from a file name without suffix, or None where it follows another pattern."""
    match = NAME.fullmatch(stem)
    if match is None:
        return None
    patient = PATIENT.match(match["slide"])
    return (patient[0] if patient else match["slide"]).replace("_", ""), f"{match['slide']}/{match['photo']}"


@DATA_FAMILIES.register("malaria_cells")
class MalariaCells(DataFamily):
    """Single red cells, infected or healthy (NIH cell_images).

    Args:
        root: Folder that holds `Parasitized/` and `Uninfected/`; None looks below `MTL_DATA_DIR/malaria`.
        group_by: Unit that a split keeps together. `field` is the photograph that the crops were cut from.
    """

    colours: ClassVar[dict[str, Colour]] = {"Infected": (225, 25, 25), "Healthy": (30, 90, 245)}
    unremarkable: ClassVar[tuple[str, ...]] = ("Healthy",)

    def __init__(self, *, root: Place | None = None, group_by: Literal["patient", "field"] = "patient") -> None:
        self.root = root
        self.group_by = group_by
        self._notes: list[str] = []

    def notes(self) -> list[str]:
        """Return what lies in the folders and is not read; known once the data set is indexed."""
        return list(self._notes)

    def specs(self) -> dict[str, TaskSpec]:
        """Return the one task, `cell`."""
        return self.with_colours(TaskSpec("cell", "classification", CLASSES, label="class:cell"))

    def person_of(self, group: str) -> str:
        """Return the patient or slide, without the photograph."""
        return normal(group.partition("/")[0])

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate single-cell crops, `fields` per patient."""
        from mtl.data.families.malaria.generator import generate_malaria_cells

        idle = [name for name, value in (("width", width), ("kind", kind)) if value is not None]
        if idle:
            raise ConfigError(f"`{idle[0]}` is for whole fields; crops of single cells have neither. Leave it out.")
        generate_malaria_cells(output, patients=patients, cells=fields, seed=seed, overwrite=overwrite)

    def locate(self) -> Path:
        """Return the folder that holds the two class folders."""
        is_root = " and ".join(f"`{name}/`" for name in FOLDERS)
        candidates = ("cell_images", "cell_images/cell_images", "../malaria_cells", "../cell_images")
        root = find_root(self.root, "malaria", is_root, candidates)
        present = named_folders(root)
        missing = [name for name in FOLDERS if normal(name) not in present]
        if missing:
            nested = root / "cell_images"
            hint = f"Did you mean data.root={nested}?" if nested.is_dir() else "Set data.root to the folder that holds them."
            raise DataError(f"`{root}` holds no {' and no '.join(f'`{name}/`' for name in missing)}. {hint}")
        return root

    def records(self) -> list[Record]:
        """Index the crops by their file names, sorted by sample id; opens no file."""
        root = self.locate()
        records, strange = [], []
        for number, path in self._files(root):
            parsed = parse_name(path.stem)
            if parsed is None:
                strange.append(path)
                continue
            groups = dict(zip(("patient", "field"), parsed, strict=True))
            records.append(
                Record(
                    sample_id=f"{FOLDERS[number]}/{path.stem}",
                    group=groups[self.group_by],
                    source="malaria_cells",
                    path=str(path),
                    stratum=number,
                    class_counts={name: int(index == number) for index, name in enumerate(CLASSES)},
                    groups=groups,
                )
            )
        if strange:
            raise DataError(
                f"{len(strange)} crops below `{root}` do not name their patient, for example {strange[0].name}. Expected "
                "names like C100P61ThinF_IMG_20150918_144104_cell_162.png; rename or remove them."
            )
        if not records:
            raise DataError(f"No image in the folders Parasitized and Uninfected of `{root}`.")
        first: dict[str, Record] = {}
        for record in records:
            other = first.setdefault(normal(record.sample_id), record)
            if other is not record:
                raise DataError(f"{record.path}: has the same name as {other.path}. Rename or remove one of them.")
        return sorted(_one_spelling(records), key=lambda record: record.sample_id)

    def read_image(self, record: Record) -> np.ndarray:
        """Decode one crop: [H, W, 3] uint8, grey crops with three equal channels."""
        return read_rgb(Path(record.path))

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with its class and an empty (0, 0, 3) image."""
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            labels={"cell": float(record.stratum)},
            pixel_scale=record.pixel_scale,
        )

    def check(self) -> CheckReport:
        """Decode every crop and report what is broken or stored twice."""
        report = CheckReport()
        try:
            records = self.records()
        except DataError as error:
            report.errors.append(str(error))
            return report
        report.notes += self.notes()
        report.counts = {
            "images": len(records),
            "patients": len({record.groups["patient"] for record in records}),
            "fields": len({record.groups["field"] for record in records}),
            **{name: sum(record.class_counts[name] for record in records) for name in CLASSES},
        }
        check_images(self, records, report)
        return report

    def _files(self, root: Path) -> list[tuple[int, Path]]:
        """List (class number, image file), and note what the folders of the classes hold besides."""
        self._notes = unreadable_in(root)
        folders, files = named_folders(root), []
        for number, name in enumerate(FOLDERS):
            found = find_files(folders[normal(name)], IMAGE_SUFFIXES)
            self._notes += found.note(folders[normal(name)], IMAGE_SUFFIXES)
            files += [(number, path) for path in found.files]
        return files


def _one_spelling(records: list[Record]) -> list[Record]:
    """Give groups that differ in upper and lower case only one name: they are one patient."""
    from dataclasses import replace

    spelling: dict[str, str] = {}
    for name in sorted({name for record in records for name in (record.group, *record.groups.values())}):
        spelling.setdefault(normal(name), name)

    def unify(record: Record) -> Record:
        groups = {unit: spelling[normal(name)] for unit, name in record.groups.items()}
        return replace(record, group=spelling[normal(record.group)], groups=groups)

    return [unify(record) for record in records]
