"""Regions of breast cancer slides (H&E) with tissue masks, boxes of lymphocytes, or both: TIGER, as distributed.

Data set: https://tiger.grand-challenge.org. Tissue comes from BCSS (Amgad et al. 2019, doi 10.1093/bioinformatics/btz083),
cells from NuCLS (Amgad et al. 2022, doi 10.1093/gigascience/giac037) and the challenge itself. Files:
`mtl.data.families.tiger.files`, boxes: `mtl.data.families.tiger.coco`. The micron is the reference pixel, so that radii of
cells are given in it.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mtl.core.cores import usable_cores
from mtl.core.errors import ConfigError, DataError, unknown
from mtl.core.family import CheckReport, DataFamily, LostLabels
from mtl.core.places import Place
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import REGION, Objects, Record, Sample
from mtl.data.families.folders import check_usable, find_sets_root
from mtl.data.families.tiger.coco import Listed, wrong_boxes
from mtl.data.families.tiger.files import (
    EXCLUDED,
    HIGHEST,
    SETS,
    Contents,
    Region,
    find_sets,
    parse_name,
    read_contents,
    read_tissue,
    tissue_summary,
)
from mtl.data.formats.images import check_images, image_size, read_rgb
from mtl.data.formats.tables import some

TISSUE, CELLS, LYMPHOCYTE = "tissue", "cells", "lymphocyte"
IGNORED = 255  # in a mask: neither trained on nor scored
Size = tuple[int, int]
_Looked = tuple[Size, tuple[int, ...], list[str]]  # size, values of the mask, what is wrong


@dataclass
class _Index:
    contents: Contents = field(default_factory=Contents)
    regions: dict[str, Region] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    values: Counter[int] = field(default_factory=Counter)  # in how many masks each value occurs


@DATA_FAMILIES.register("tiger")
class Tiger(DataFamily):
    """Regions of slides with tissue masks and boxes of lymphocytes and plasma cells (TIGER).

    Two tasks: `tissue`, one class per pixel, and `cells`, points. An image without mask says nothing about tissue, one that the
    COCO file does not list nothing about cells; one that it lists without boxes has none.

    Args:
        root: Folder that holds `tissue-bcss/` and/or `tissue-cells/`, itself or as `wsirois/roi-level-annotations/`, or one of
            these; None looks below `MTL_DATA_DIR/tiger`.
        sets: Which of bcss and cells to read; None takes those that are there.
        tissue: Values of the masks by class, in the order of the classes. A class that is null does not count; what is in no
            class (0, where nobody annotated) is ignored.
        spacing: Microns per pixel of the stored images.
        spacing_of: Other spacings by pattern of the slide's name (`B*`); the first that fits counts.
        sources: Pattern of the slide's name by source; the first that fits counts, a source that is null does not. The others
            come from their set.
        group_by: Unit that a split keeps together: `slide`, or `patient` (of TCGA slides the first 12 characters).
    """

    object_classes: ClassVar[tuple[str, ...]] = (LYMPHOCYTE,)
    microns: ClassVar[bool] = True
    colours: ClassVar[dict[str, Colour]] = {  # what stands out from haematoxylin and eosin
        "tumor": (213, 94, 0), "stroma": (0, 158, 115), "other": (86, 180, 233), "lymphocyte": (255, 235, 0),
    }  # fmt: skip

    def __init__(
        self,
        *,
        root: Place | None = None,
        sets: list | None = None,
        tissue: dict = {"tumor": [1], "stroma": [2, 6], "other": [3, 4, 5, 7]},  # noqa: B006 (read only; the registry reads literals)
        spacing: float = 0.5,
        spacing_of: dict = {},  # noqa: B006
        sources: dict = {"tcga": "TCGA-*", "rumc": "*B", "jb": "*S", "consep": "CONSEP-*", "ocdc": "OCDC-*"},  # noqa: B006
        group_by: Literal["slide", "patient"] = "slide",
    ) -> None:
        self.root, self.sets, self.spacing, self.group_by = root, sets, spacing, group_by
        problems = [unknown("set", name, SETS, "data.sets") for name in sets or [] if name not in SETS]
        if sets is not None and not sets:
            problems.append("`data.sets` is empty; expected bcss, cells or both, or null.")
        given = {str(name): values for name, values in tissue.items() if values is not None}
        problems += _wrong_tissue(given)
        for key, value in (("spacing", spacing), *((f"spacing_of.{pattern}", value) for pattern, value in spacing_of.items())):
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
            if value is not None and not fits:
                problems.append(f"`data.{key}` is {value}; expected microns per pixel, above 0.")
        for name, pattern in sources.items():
            if pattern is not None and not (isinstance(pattern, str) and pattern):
                problems.append(
                    f'`data.sources.{name}` is {pattern}; expected a pattern of slide names such as "TCGA-*", or null.'
                )
        if problems:
            raise ConfigError(problems)
        self._tissue_names = tuple(map(str, tissue))
        self._tissue = {name: list(values) for name, values in given.items()}
        self._spacings = {str(pattern): float(value) for pattern, value in spacing_of.items() if value is not None}
        self._patterns = {str(name): pattern for name, pattern in sources.items() if pattern is not None}
        self._table = np.full(HIGHEST + 1, IGNORED, np.uint8)
        for number, values in enumerate(self._tissue.values()):
            self._table[values] = number
        self._index: _Index | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The named ones, and the sets."""
        return tuple(dict.fromkeys([*self._patterns, *(self.sets or SETS)]))

    def specs(self) -> dict[str, TaskSpec]:
        """Return `tissue` and, unless only bcss is read, `cells`."""
        specs = [TaskSpec(TISSUE, "segmentation", tuple(self._tissue), label=f"mask:{TISSUE}", multilabel=False)]
        if CELLS in (self.sets or SETS):
            specs.append(TaskSpec(CELLS, "points", self.object_classes, members=((LYMPHOCYTE,),)))
        return self.with_colours(*specs)

    @classmethod
    def generate(
        cls, output: Path, *, patients: int, fields: int, seed: int, width: int | None, kind: str | None, overwrite: bool
    ) -> None:
        """Generate regions in the native layout, `fields` per slide, or whole slides with `fields` pieces of tissue each."""
        from mtl.data.families.tiger.generator import generate_tiger

        given: dict[str, Any] = {key: value for key, value in (("width", width), ("kind", kind)) if value is not None}
        generate_tiger(output, patients, fields, seed, overwrite=overwrite, **given)

    def pixel_scale_of(self, size: Size, name: str = "") -> float:
        """Return stored pixels per micron: by the slide in the name of the image, if there is one."""
        return self._scale_of_slide(parse_name(name)[0])

    def known_classes(self) -> tuple[str, ...]:
        """Return the cells and every class of `data.tissue`, those that are null among them."""
        return (*self.object_classes, *self._tissue_names)

    def locate(self) -> Path:
        """Return the folder of the data set."""
        return find_sets_root(self.root, "tiger", SETS, self.sets, find_sets)

    def records(self) -> list[Record]:
        """Index the regions, sorted by sample id: names, the COCO file, headers of images and values of masks. Remembered."""
        index = self._scan()
        expected = "Expected images `tissue-bcss/images/*.png` or `tissue-cells/images/*.png`."
        check_usable("tiger", self.locate(), index.contents.problems, index.records, expected)
        return list(index.records)

    def notes(self) -> list[str]:
        """Return what the files leave open, and what is labelled."""
        index = self._scan()
        return [*index.contents.notes, *self._remarks(index)]

    def lost_labels(self) -> list[LostLabels]:
        """Return how many masks, listed images and boxes belong to no image."""
        return self._scan().contents.lost

    def read_image(self, record: Record) -> np.ndarray:
        """Decode one region as stored: [H, W, 3] uint8."""
        return read_rgb(Path(record.path))

    def read_labels(self, record: Record) -> Sample:
        """Return the sample with its tissue, its cells and, if it is not all of it, the region in which these were looked for.

        Raises:
            DataError: The mask cannot be decoded, has another size than its image, or a value that is no tissue.
        """
        region = self._scan().regions[record.sample_id]
        size = record.size or image_size(region.path)[0]
        masks = {}
        if region.mask is not None:
            native = read_tissue(region.mask)
            if problem := _wrong_size(region, size, (native.shape[0], native.shape[1])):
                raise DataError(problem)
            masks[TISSUE] = self._table[native]
            if region.listed is not None:
                masks[REGION] = (native != EXCLUDED).astype(np.uint8)
        coco = self._scan().contents.coco
        looked = None if region.listed is None or coco is None else region.listed.looked_at(coco, size)
        if looked is not None:
            masks[REGION] = masks.get(REGION, np.ones(size, np.uint8)) & looked.astype(np.uint8)
        return Sample(
            image=np.zeros((0, 0, 3), np.uint8),
            sample_id=record.sample_id,
            group=record.group,
            source=record.source,
            objects=None if region.listed is None else _objects(region.listed, size),
            masks=masks,
            pixel_scale=record.pixel_scale,
        )

    def check(self) -> CheckReport:
        """Read everything, decode every image and mask, and report what is labelled."""
        try:
            index = self._scan()
        except DataError as error:
            return CheckReport(errors=[str(error)])
        report = CheckReport(errors=list(index.contents.problems), notes=self.notes())
        if not index.records:
            report.errors.append(f"No image below `{self.locate()}`.")
        known = {label: [r for r in index.records if r.knows(label)] for label in ("objects", f"mask:{TISSUE}")}
        cells, masks = known["objects"], known[f"mask:{TISSUE}"]
        sets = Counter(record.sample_id.partition("/")[0] for record in index.records)
        report.counts = {
            "images": len(index.records),
            **{f"images of {name}": sets[name] for name in SETS if sets[name]},
            "slides": len({record.groups["slide"] for record in index.records}),
            "patients": len({index.regions[record.sample_id].patient for record in index.records}),
            "images with cell labels": len(cells),
            "of these without a cell": sum(not record.class_counts[LYMPHOCYTE] for record in cells),
            "boxes": sum(record.class_counts[LYMPHOCYTE] for record in cells),
            "images with a tissue mask": len(masks),
            **{f"masks with {name}": sum(record.class_counts[name] for record in masks) for name in self._tissue},
            "images with neither": sum(not record.labels for record in index.records),
        }
        check_images(self, index.records, report)
        return report

    def _scan(self) -> _Index:
        """List files, read the COCO file, headers of images and the values of masks, once."""
        if self._index is not None:
            return self._index
        root = self.locate()
        sets = {name: folder for name, folder in find_sets(root).items() if name in (self.sets or SETS)}
        index, left_out = _Index(read_contents(sets)), 0
        regions = index.contents.regions
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            looked = list(pool.map(_look, regions))
        sized = [(region.listed, size) for region, (size, *_) in zip(regions, looked, strict=True) if size != (0, 0)]
        if (coco := index.contents.coco) is not None:
            index.contents.problems += wrong_boxes(coco, [(listed, size) for listed, size in sized if listed is not None])
        for region, found in zip(regions, looked, strict=True):
            size, values, problems = found
            index.contents.problems += problems
            if size != (0, 0):
                left_out += 0 if region.listed is None else region.listed.leave_out(size)
                index.values.update(values)
                known = _without_unseen(region, size, index.contents)
                index.regions[region.sample_id] = known
                index.records.append(self._record(known, size, values))
        if left_out:
            boxes = left_out + sum(len(region.listed.boxes) for region in index.regions.values() if region.listed is not None)
            why = f"their centres lie beyond the border of the image ({index.contents.coco})."
            index.contents.lost.append(LostLabels("boxes", left_out, boxes, why))
        self._index = index
        return index

    def _scale_of_slide(self, slide: str) -> float:
        """Return stored pixels per micron."""
        return 1 / next((um for pattern, um in self._spacings.items() if fnmatchcase(slide, pattern)), self.spacing)

    def _record(self, region: Region, size: Size, values: tuple[int, ...]) -> Record:
        labels, counts = [], {}
        if region.listed is not None:
            labels.append("objects")
            counts[LYMPHOCYTE] = len(region.listed.boxes)
        if region.mask is not None:
            labels.append(f"mask:{TISSUE}")
            counts |= {name: int(bool(set(members) & set(values))) for name, members in self._tissue.items()}
        groups = {"slide": region.slide} | ({"patient": region.patient} if region.tells_patient else {})
        source = next((name for name, pattern in self._patterns.items() if fnmatchcase(region.slide, pattern)), region.set_name)
        return Record(
            sample_id=region.sample_id,
            group=region.patient if self.group_by == "patient" else region.slide,
            source=source,
            path=str(region.path),
            annotation=None if region.mask is None else str(region.mask),
            size=size,
            pixel_scale=self._scale_of_slide(region.slide),
            # Splits spread what is labelled: nothing, cells, tissue, both.
            stratum=(region.listed is not None) + 2 * (region.mask is not None),
            class_counts=counts,
            groups=groups,
            labels=tuple(labels),
        )

    def _remarks(self, index: _Index) -> list[str]:
        """Return what a person who trains on this has to know."""
        records, remarks = index.records, []
        tissue = [record for record in records if record.knows(f"mask:{TISSUE}")]
        cells = [record for record in records if record.knows("objects")]
        if (both := sum(record.knows("objects") for record in tissue)) == 0 and tissue and cells:
            remarks.append(
                "No image has both a tissue mask and cell labels: no score that needs both can be compared with a truth."
            )
        elif 0 < both < len(records):
            remarks.append(f"{both} of {len(records)} images have both a tissue mask and cell labels.")
        if tissue:
            for name in self._tissue:
                if not any(record.class_counts[name] for record in tissue):
                    remarks.append(f"The class {name} does not occur in any of the {len(tissue)} masks.")
        if bare := [record.sample_id for record in records if not record.labels]:
            remarks.append(
                f"Neither mask nor cell labels: {some(bare)}. Such images can be predicted, not trained on or scored."
            )
        without_corners = [name for name, region in index.regions.items() if region.corners is None]
        if without_corners:
            remarks.append(f"No [x1, y1, x2, y2] in the name, which then counts as that of the slide: {some(without_corners)}.")
        if odd := [record.sample_id for record in records if _other_extent(index.regions[record.sample_id], record.size)]:
            remarks.append(f"The size is not that of the corners in the name: {some(odd)}.")
        return remarks


def _look(region: Region) -> _Looked:
    """Read the size of an image and the values of its mask; (0, 0) where it cannot be read."""
    try:
        size = image_size(region.path)[0]
    except DataError as error:
        return (0, 0), (), [str(error)]
    if region.mask is None:
        return size, (), []
    try:
        mask_size, values = tissue_summary(region.mask)
    except DataError as error:
        return size, (), [str(error)]
    problem = _wrong_size(region, size, mask_size)
    return size, values, [problem] if problem else []


def _without_unseen(region: Region, size: Size, contents: Contents) -> Region:
    """Return a region without its list of cells where nobody looked for any, all of it being a crowd without a single box."""
    if region.listed is None or contents.coco is None:
        return region
    try:
        looked = region.listed.looked_at(contents.coco, size)
    except DataError as error:
        contents.problems.append(str(error))
        return region
    return region if looked is None or looked.any() or region.listed.boxes else replace(region, listed=None)


def _objects(listed: Listed, size: Size) -> Objects:
    """Return the cells: boxes cut at the edge of the image, points where the centres of the whole boxes are."""
    boxes = np.asarray(listed.boxes, np.float32).reshape(-1, 4)
    points = (boxes[:, :2] + boxes[:, 2:]) / 2
    cut = np.clip(boxes, 0, np.asarray([size[1], size[0], size[1], size[0]], np.float32))
    return Objects(
        outlines=[box[[[0, 1], [2, 1], [2, 3], [0, 3]]] for box in cut],
        labels=np.zeros(len(boxes), np.int64),
        points=points,
        derived=np.zeros(len(boxes), bool),
        ids=np.asarray(listed.places, np.int64),
    )


def _wrong_size(region: Region, size: Size, mask_size: Size) -> str:
    """Return the sentence for a mask that does not fit its image; empty where it does."""
    if mask_size == size:
        return ""
    return (
        f"{region.mask}: is {mask_size[1]} x {mask_size[0]} pixels; expected the size of {region.path.name}, "
        f"{size[1]} x {size[0]}. Replace the mask or the image."
    )


def _other_extent(region: Region, size: Size | None) -> bool:
    """Return whether the corners in the name of a region contradict its size."""
    if region.corners is None or size is None:
        return False
    x1, y1, x2, y2 = region.corners
    return (y2 - y1, x2 - x1) != size


def _wrong_tissue(tissue: dict[str, Any]) -> list[str]:
    """Return what is wrong with `data.tissue`."""
    problems = []
    lists = {name: values for name, values in tissue.items() if isinstance(values, list | tuple)}
    for name, values in tissue.items():
        whole = all(type(value) is int and 0 <= value <= HIGHEST for value in lists.get(name, []))
        if not whole or not lists.get(name):
            problems.append(f"`data.tissue.{name}` is {values}; expected a list of mask values from 0 to {HIGHEST}.")
    if len(tissue) < 2 or LYMPHOCYTE in tissue:
        problems.append(
            f"`data.tissue` names {', '.join(tissue) or 'no class'}; expected two classes or more, none called {LYMPHOCYTE}."
        )
    uses = Counter(str(value) for values in lists.values() for value in values)
    if twice := [value for value, count in uses.items() if count > 1]:
        problems.append(f"`data.tissue` has {', '.join(twice)} in several classes; expected each value at most once.")
    return problems
