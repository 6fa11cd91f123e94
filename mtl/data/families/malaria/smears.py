"""Thin blood smears with annotated cells: NIH-NLM-ThinBloodSmearsPf, as distributed.

`<root>/Point Set/<patient>/{Img,GT}` and `<root>/Polygon Set/<patient>/{Img,GT}`; the annotation of `Img/<stem>.jpg` is
`GT/<stem>.txt`: a line `<rows>,<width>,<height>`, then per cell `<id>,<label>,<comment>,<Point|Polygon>,<n>,<x1>,<y1>,...`
in pixels of the image as stored (EXIF orientation does not count). Data set: Kassim et al., "Clustering-based dual deep
learning architecture for detecting red blood cells in malaria diagnostic smears", 2020, doi 10.1109/JBHI.2020.3034863.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mtl.core.causes import listed_errors
from mtl.core.errors import ConfigError, DataError
from mtl.core.family import CheckReport, DataFamily, LostLabels, Measure
from mtl.core.names import normal
from mtl.core.places import Place
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Objects, Record, Sample
from mtl.data.families.folders import find_root, folders_in, named_folders, suggest_root, unreadable_in
from mtl.data.families.malaria.annotations import Cell, centroid, read_annotation
from mtl.data.families.malaria.files import SETS, pair_files
from mtl.data.families.malaria.parasitemia import GRADES, SEVERITY, image_labels, parasitemia, parasitemia_grade
from mtl.data.families.malaria.shapes import ELLIPSE, RECTANGLE, is_size, pair
from mtl.data.formats.images import check_images, image_size, read_rgb
from mtl.data.formats.tables import some

FIELD_SIZE = (2988, 5312)  # (height, width) of a whole field as photographed: the reference raster
CLASSES = ("Infected", "Healthy", "WBC")
TILE = re.compile(r"_r\d+c\d+$")


def field_scale(size: tuple[int, int]) -> float:
    """Guess the stored pixels per reference pixel of an image of `size` (height, width).

    An image with the proportions of a whole field (within 1 %) is a field scaled to its width; anything else is a crop at
    native resolution. A native crop that happens to be 16:9 is mistaken for a small field: set `pixel_scale` for those.
    """
    height, width = size
    proportion = (width / height) / (FIELD_SIZE[1] / FIELD_SIZE[0])
    return width / FIELD_SIZE[1] if abs(proportion - 1) <= 0.01 else 1.0


@dataclass
class _Index:
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0  # of annotation files whose image is there
    unused: int = 0  # of these, what `on_error` leaves out
    files: int = 0  # annotation files, those among them that cannot be read or fit no image


@DATA_FAMILIES.register("malaria")
class Malaria(DataFamily):
    """Thin blood smears with a point or an outline per cell (NIH-NLM-ThinBloodSmearsPf).

    Args:
        root: Folder that holds `Point Set/` and/or `Polygon Set/`; None looks below `MTL_DATA_DIR/malaria`.
        classes: Cells that `detection` and `roi` tell apart: 1 infected, 2 and healthy, 3 and white.
        group_by: Unit that a split keeps together.
        sets: Names of the sets to read; None takes those that are there.
        box_size: Side, or [width, height], of the box drawn around a red cell known by a point only, in reference pixels (a
            whole field is 5312 wide). Outlined red cells have a median extent of 144.7 x 142.8.
        white_cell_box_size: The same for white cells.
        mask_shape: What such a cell fills in masks.
        mask_size: Side, or [width, height], of that shape for every class of cell; None takes the size of the box.
        pixel_scale: Stored pixels per reference pixel; None guesses for each image, see `field_scale`.
        on_error: `raise` stops at annotations with errors; `skip` leaves the rows or images out, and each
            run says which and refuses more than `largest_loss` of them.
    """

    object_classes: ClassVar[tuple[str, ...]] = CLASSES
    colours: ClassVar[dict[str, Colour]] = {
        "Infected": (225, 25, 25), "Healthy": (30, 90, 245), "WBC": (150, 40, 190), "cell": (20, 150, 70),
    }  # fmt: skip
    unremarkable: ClassVar[tuple[str, ...]] = ("Healthy",)

    def __init__(
        self,
        *,
        root: Place | None = None,
        classes: int = 3,
        group_by: Literal["patient", "field"] = "patient",
        sets: list[str] | None = None,
        box_size: float | list[float] = 144.0,
        white_cell_box_size: float | list[float] = 235.0,
        mask_shape: Literal["ellipse", "rectangle"] = "ellipse",
        mask_size: float | list[float] | None = None,
        pixel_scale: float | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.root = root
        self.classes = classes
        self.group_by = group_by
        self.sets = sets
        self.mask_shape = mask_shape
        self.pixel_scale = pixel_scale
        self.on_error = on_error
        problems = []
        if classes not in (1, 2, 3):
            problems.append(f"`data.classes` is {classes}; expected 1 (infected), 2 (and healthy) or 3 (and white cells).")
        if pixel_scale is not None and not pixel_scale > 0:
            problems.append(f"`data.pixel_scale` is {pixel_scale}; expected a number above 0, or null.")
        sizes = {"box_size": box_size, "white_cell_box_size": white_cell_box_size, "mask_size": mask_size}
        for key, value in sizes.items():
            if value is not None and not is_size(value):
                problems.append(f"`data.{key}` is {value}; expected a positive number or [width, height].")
        if problems:
            raise ConfigError(problems)
        self._box_sizes = (pair(box_size), pair(box_size), pair(white_cell_box_size))
        self._mask_size = None if mask_size is None else pair(mask_size)
        self._index: _Index | None = None

    def specs(self) -> dict[str, TaskSpec]:
        """Return detection, segmentation (any cell) and heatmap (infected cells).

        From two classes on also roi, and what their counts say of an image: severity and parasitemia_percent.
        """
        names = CLASSES[: self.classes]
        members = tuple((name,) for name in names)
        specs = [TaskSpec("detection", "detection", names, members=members)]
        if len(names) > 1:
            specs.append(TaskSpec("roi", "roi_classification", names, members=members))
        specs.append(TaskSpec("segmentation", "segmentation", ("cell",), members=(CLASSES,)))
        specs.append(TaskSpec("heatmap", "heatmap", ("Infected",), members=(("Infected",),)))
        if len(names) > 1:
            grade, number = "severity", "parasitemia_percent"
            label = "class:{}".format
            specs.append(TaskSpec(grade, "classification", SEVERITY, label=label(grade), ordinal=True, whole_image=True))
            specs.append(TaskSpec(number, "regression", (), label=label(number), unit="%", whole_image=True))
        return self.with_colours(*specs)

    def measures(self) -> list[Measure]:
        """Return the parasitemia: all cells of a field are annotated, so that shares of them mean something."""
        axis = "parasitemia: infected red cells in % (dotted: limits of the strata)"
        return [Measure("parasitemia", "percent", parasitemia, axis, self.colours["Infected"], GRADES)]

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate smears; `kind` is `points`, `polygons` or `both`."""
        from mtl.data.families.malaria.generator import generate_malaria

        given = {key: value for key, value in {"width": width, "kind": kind}.items() if value is not None}
        generate_malaria(output, patients, fields, seed, overwrite=overwrite, **given)  # type: ignore[arg-type]

    def person_of(self, group: str) -> str:
        """Return the patient without the running number: `143C39P4thinF` here is `C39P4thinF` among the single cells."""
        return normal(group.partition("/")[0]).lstrip("0123456789")

    def locate(self) -> Path:
        """Return the folder that holds the sets."""
        wanted = self.sets or list(SETS)
        is_root = " and/or ".join(f"`{name}/`" for name in wanted)
        root = find_root(self.root, "malaria", is_root, ("NIH-NLM-ThinBloodSmearsPf", ""))
        present = named_folders(root)
        missing = [name for name in wanted if normal(name) not in present]
        if missing and (self.sets or len(missing) == len(wanted)):
            hint = suggest_root(root, lambda folder: _holds(folder, wanted))
            raise DataError(f"`{root}` holds no {' and no '.join(f'`{name}/`' for name in missing)}. {hint}")
        return root

    def records(self) -> list[Record]:
        """Index the data set, sorted by sample id. Reads annotations and image headers once, then remembers them."""
        index = self._scan()
        if index.problems and self.on_error == "raise":
            hint = "Correct the files, or leave these rows and images out with data.on_error=skip."
            raise listed_errors(f"in the annotations below `{self.locate()}`", index.problems, hint)
        if not index.records:
            raise DataError(
                f"No annotated image below `{self.locate()}`. Expected `<set>/<patient>/Img/*.jpg` with `GT/*.txt`."
            )
        return list(index.records)

    def notes(self) -> list[str]:
        """Return what the annotation files leave open, and with `on_error=skip` what is wrong with them."""
        index = self._scan()
        return [*index.notes, *(f"{problem} Left out." for problem in (index.problems if self.on_error == "skip" else ()))]

    def lost_labels(self) -> list[LostLabels]:
        """Return how many rows and files cannot be used: of unknown classes, or with errors that `on_error` leaves out."""
        index = self._scan()
        known = "Known labels: Parasitized, Uninfected, White_Blood_Cell."
        listed = ", ".join(f"{name} ({count})" for name, count in index.unknown.most_common())
        why = f"unknown labels {listed}. {known}" if listed else "unknown labels."
        return [
            LostLabels("annotated cells", sum(index.unknown.values()), index.rows, why),
            LostLabels("annotated cells", index.unused, index.rows, "rows with errors, or of images with errors."),
            LostLabels("annotation files", index.files - len(index.records), index.files, "with errors, or without an image."),
        ]

    def read_image(self, record: Record) -> np.ndarray:
        """Decode one image as stored (no EXIF rotation): [H, W, 3] uint8."""
        return read_rgb(Path(record.path))

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with its cells and an empty (0, 0, 3) image."""
        annotation = read_annotation(Path(str(record.annotation)))
        if annotation.problems and self.on_error == "raise":
            raise DataError(f"{annotation.problems[0]} Correct the file, or leave such rows out with data.on_error=skip.")
        counts = Counter(cell.label for cell in annotation.cells)
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            objects=self._objects(annotation.cells, record.pixel_scale),
            labels=dict(self._image_labels(counts)),
            pixel_scale=record.pixel_scale,
        )

    def pixel_scale_of(self, size: tuple[int, int], name: str = "") -> float:
        """Return `data.pixel_scale`, or what the proportions of the image say."""
        return self.pixel_scale or field_scale(size)

    def check(self) -> CheckReport:
        """Read everything, decode every image and collect what is wrong instead of stopping at the first."""
        try:
            self.locate()
        except DataError as error:
            return CheckReport(errors=[str(error)])
        index = self._scan()
        report = CheckReport(errors=list(index.problems), notes=list(index.notes))
        if not index.records:
            report.errors.append(f"No annotated image below `{self.locate()}`.")
        report.counts = {
            "images": len(index.records),
            "patients": len({record.groups["patient"] for record in index.records}),
            "fields": len({record.groups["field"] for record in index.records}),
            **{name: sum(record.class_counts[name] for record in index.records) for name in CLASSES},
            "cells with an outline": index.counts["outline"],
            "cells with a point": index.counts["point"],
            "unknown labels": sum(index.unknown.values()),
        }
        check_images(self, index.records, report)
        return report

    def _scan(self) -> _Index:
        """Find images and annotations, parse all annotations, compare image headers with them."""
        if self._index is not None:
            return self._index
        index, root = _Index(), self.locate()
        wanted = [normal(name) for name in self.sets or SETS]
        index.problems += unreadable_in(root)
        folders = named_folders(root, index.problems)
        if strange := [path.name for name, path in folders.items() if name not in [*map(normal, SETS), *wanted]]:
            index.notes.append(f"{root}: {some(strange)} not read; expected folders {' and '.join(SETS)}.")
        entries = []
        spelling: dict[str, str] = {}
        for set_folder in (folder for name, folder in folders.items() if name in wanted):
            index.problems += unreadable_in(set_folder)
            for folder in folders_in(set_folder):
                patient = spelling.setdefault(normal(folder.name), folder.name)
                pairs, files = pair_files(folder, index.problems, index.notes)
                index.files += files
                entries += [(set_folder.name, patient, image, truth) for image, truth in pairs]
        uses = Counter(normal(f"{patient}/{image.stem}") for _, patient, image, _ in entries)
        taken: set[str] = set()
        for set_name, patient, image, truth in entries:
            name = f"{patient}/{image.stem}"
            sample_id = f"{set_name}/{name}" if uses[normal(name)] > 1 else name
            if normal(sample_id) in taken:
                index.problems.append(f"{image}: another folder of patient {patient} in this set holds an image of this name.")
                continue
            taken.add(normal(sample_id))
            record = self._record(sample_id, patient, image, truth, index)
            if record is not None:
                index.records.append(record)
        index.records.sort(key=lambda record: record.sample_id)
        self._index = index
        return index

    def _record(self, sample_id: str, patient: str, image: Path, truth: Path, index: _Index) -> Record | None:
        annotation = read_annotation(truth)
        index.rows += annotation.rows
        if annotation.size is None:
            index.problems += annotation.problems
            index.unused += annotation.rows
            return None
        try:
            size, orientation = image_size(image)
        except DataError as error:
            index.problems.append(str(error))
            index.unused += annotation.rows
            return None
        if size != annotation.size:
            index.unused += annotation.rows
            text = "{1} x {0}".format
            turn = ""
            if size == annotation.size[::-1]:
                exif = f"; the image carries EXIF orientation {orientation}" if orientation != 1 else ""
                turn = f" They differ by a quarter turn{exif}. Coordinates must refer to the image as stored."
            index.problems.append(
                f"{truth}:1: expected the size of {image.name}, {text(*size)}, found {text(*annotation.size)}.{turn}"
            )
            return None
        # Only now: under a wrong size hundreds of coordinates would seem to lie outside.
        index.problems += annotation.problems
        index.unused += len(annotation.problems)
        if annotation.declared != annotation.rows:
            index.notes.append(f"{truth}:1: {annotation.declared} rows declared, {annotation.rows} found.")
        if annotation.repeated:
            index.notes.append(f"{truth}: {annotation.repeated} rows repeat a cell that is there already; each counts once.")
        index.unknown += annotation.unknown
        index.counts += Counter("outline" if cell.is_polygon else "point" for cell in annotation.cells)
        labels = Counter(cell.label for cell in annotation.cells)
        known = self._image_labels(labels)
        groups = {"patient": patient, "field": f"{patient}/{TILE.sub('', image.stem)}"}
        return Record(
            sample_id=sample_id,
            group=groups[self.group_by],
            source="malaria",
            path=str(image),
            annotation=str(truth),
            size=size,
            pixel_scale=self.pixel_scale_of(size),
            stratum=parasitemia_grade(labels[0], labels[1]),
            class_counts={name: labels[number] for number, name in enumerate(CLASSES)},
            groups=groups,
            labels=("objects", *(f"class:{name}" for name in known)),
            values=known,
        )

    def _image_labels(self, counts: Counter[int]) -> dict[str, float]:
        """Return the labels made from counts; none where the settings leave healthy cells out, so that there is no share."""
        return image_labels(counts[0], counts[1]) if self.classes > 1 else {}

    def _objects(self, cells: list[Cell], scale: float) -> Objects:
        outlines, masks, points = [], [], []
        for cell in cells:
            if cell.is_polygon:
                outline = mask = cell.vertices
                point = centroid(cell.vertices)
            else:
                point = cell.vertices[0].astype(np.float64)
                box_size = self._box_sizes[cell.label]
                outline = (point + ELLIPSE * box_size * scale).astype(np.float32)
                shape = RECTANGLE if self.mask_shape == "rectangle" else ELLIPSE
                mask = (point + shape * (box_size if self._mask_size is None else self._mask_size) * scale).astype(np.float32)
            outlines.append(outline)
            masks.append(mask)
            points.append(point)
        same = all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(outlines, masks, strict=True))
        return Objects(
            outlines=outlines,
            labels=np.asarray([cell.label for cell in cells], np.int64),
            points=np.asarray(points, np.float32).reshape(-1, 2),
            derived=np.asarray([not cell.is_polygon for cell in cells], bool),
            mask_outlines=None if same else masks,
            ids=np.asarray([cell.number for cell in cells], np.int64),
        )


def _holds(folder: Path, names: list[str]) -> bool:
    """Return whether a folder holds one of some folders; one that may not be listed does not."""
    return bool(named_folders(folder).keys() & set(map(normal, names)))
