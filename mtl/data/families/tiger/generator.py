"""Synthetic regions and whole slides in the native layouts of the `tiger` family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.data.families.tiger.files import COCO, EXCLUDED, IMAGES, MASKS, SETS
from mtl.data.families.tiger.painter import (
    INFLAMED,
    NOTHING,
    STROMA,
    TUMOR,
    Specimen,
    generate_region,
    generate_stain,
    without_lymphocytes,
)
from mtl.data.families.tiger.slide_generator import generate_slide
from mtl.data.families.writing import new_folder, write_image

KINDS = ("full", "partial", "slide")
LEVEL = Path("wsirois") / "roi-level-annotations"
WIDTHS = {"full": 256, "partial": 256, "slide": 2048}
SPACING = 0.5  # microns per pixel
POINT_BOX = 16  # pixels: side of the boxes around points, which all but TCGA slides have
CYCLE = 5  # regions with cells after which special ones come again
EMPTY, MASK_ONLY, UNLISTED = 1, 3, 4  # which of the cycle
STRIP = 0.12  # of a side: the part that nobody annotated
SLIDE, PLACE = range(2)  # purposes of random streams


def generate_tiger(
    output: Path, patients: int, fields: int, seed: int, width: int | None = None, kind: str = "full", overwrite: bool = False
) -> None:
    """Generate regions of slides, or whole slides.

    Slides come from three laboratories, in turn: TCGA slides (every other one), which have regions in `tissue-bcss/`, too, and
    `<number>B` and `<number>S`. In `tissue-cells/` one region in five is listed without a box, since there is no lymphocyte in
    it, and one is not listed. A third of the masks leave a strip out.

    Args:
        output: New folder; receives `wsirois/`, or `images/`, `tissue-masks/` and `truth/`.
        patients: Number of slides.
        fields: Regions per slide; of a whole slide the pieces of tissue on it.
        seed: Of everything random.
        width: Of a region or a slide in pixels; None takes 256 or 2048.
        kind: `full`: regions with cells have a mask, too. `partial`: no region has both, one in five of `tissue-cells/` has a
            mask and no cells. `slide`: whole slides.
        overwrite: Replace an earlier data set at `output`.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("kind", kind, KINDS, "kind"))
    width = WIDTHS[kind] if width is None else width
    problems = [
        f"`{name}` is {value}; expected at least {least}."
        for name, value, least in (("patients", patients, 1), ("fields", fields, 1), ("width", width, 64), ("seed", seed, 0))
        if value < least
    ]
    if problems:
        raise ConfigError(problems)
    with new_folder(Path(output), overwrite) as folder:
        if kind == "slide":
            for number in range(patients):
                path = folder / "images" / f"{_slide_name(seed, number)}.tif"
                generate_slide(path, width, seed + number, pieces=fields, laboratory=_laboratory(number))
        else:
            _Regions(folder / LEVEL, seed, width, kind == "full").generate(patients, fields)


class _Regions:
    """Writes regions; remembers what the COCO file has to list.

    Args:
        folder: Receives the sets.
        seed: Of everything random.
        width: Of a region in pixels.
        full: Regions with cells have a mask.
    """

    def __init__(self, folder: Path, seed: int, width: int, full: bool) -> None:
        self.folder, self.seed, self.width, self.full = folder, seed, width, full
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.cells = self.masks = 0  # regions so far
        for name in SETS.values():
            (folder / name / IMAGES).mkdir(parents=True)
            (folder / name / MASKS).mkdir()

    def generate(self, slides: int, fields: int) -> None:
        for number in range(slides):
            name, tcga = _slide_name(self.seed, number), number % 2 == 0
            rng = np.random.default_rng([self.seed, SLIDE, number])
            specimen = Specimen(int(rng.integers(2**31)), generate_stain(rng, _laboratory(number)))
            before = None
            for region in range(fields):
                rng = np.random.default_rng([self.seed, PLACE, number, region])
                if tcga and (number // 2 + region) % 2 == 0:
                    size = round(self.width * rng.uniform(0.75, 1.0)), self.width
                    before = _place(specimen, rng, size)
                    self._tissue_only(specimen, name, before, size)
                else:
                    side = round(self.width * 0.75) if tcga else self.width
                    # Regions of both sets overlap where a slide is in both.
                    corner = _place(specimen, rng, (side, side)) if before is None else (before[0] + side // 2, before[1])
                    before = None
                    self._with_cells(specimen, name, corner, side, tcga)
        category = {"id": 1, "name": "lymphocytes and plasma cells"}
        content = {"images": self.images, "annotations": self.annotations, "categories": [category]}
        (self.folder / SETS["cells"] / COCO).write_text(json.dumps(content), encoding="utf-8")

    def _tissue_only(self, specimen: Specimen, slide: str, corner: tuple[int, int], size: tuple[int, int]) -> None:
        image, tissue, _ = generate_region(specimen, corner, size, SPACING)
        name = _region_name(slide, corner, size)
        write_image(self.folder / SETS["bcss"] / IMAGES / name, image)
        self._mask("bcss", name, self._with_strip(tissue))

    def _with_cells(self, specimen: Specimen, slide: str, corner: tuple[int, int], side: int, tight: bool) -> None:
        special = self.cells % CYCLE
        self.cells += 1
        if special == EMPTY:
            specimen = without_lymphocytes(specimen)
        image, tissue, boxes = generate_region(specimen, corner, (side, side), SPACING)
        name = _region_name(slide, corner, (side, side))
        write_image(self.folder / SETS["cells"] / IMAGES / name, image)
        only_mask = not self.full and special == MASK_ONLY
        if self.full or only_mask:
            tissue = self._with_strip(tissue)
            self._mask("cells", name, tissue)
        if special == UNLISTED or only_mask:
            return
        number = len(self.images) + 1
        entry = {"id": number, "file_name": f"tissue-cells/{IMAGES}/{name}", "width": side, "height": side}
        self.images.append(entry)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        annotated = tissue[middle[:, 1].astype(int), middle[:, 0].astype(int)] != EXCLUDED
        half = (boxes[:, 2:] - boxes[:, :2]) / 2 if tight else np.full((len(boxes), 2), POINT_BOX / 2)
        for (x, y), (across, along) in zip(middle[annotated], half[annotated], strict=True):
            box = [round(float(value), 2) for value in (x - across, y - along, 2 * across, 2 * along)]
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})

    def _with_strip(self, tissue: np.ndarray) -> np.ndarray:
        """Leave out a strip at the left or at the bottom of every third mask."""
        self.masks += 1
        if self.masks % 3 == 2:
            width = max(1, round(STRIP * min(tissue.shape)))
            where = (slice(None), slice(width)) if self.masks % 2 else (slice(-width, None), slice(None))
            tissue = tissue.copy()
            tissue[where] = EXCLUDED
        return tissue

    def _mask(self, set_name: str, name: str, tissue: np.ndarray) -> None:
        from PIL import Image

        Image.fromarray(tissue).save(self.folder / SETS[set_name] / MASKS / name)


def _place(specimen: Specimen, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
    """Find the corner (x, y) of a region that shows tumour, stroma and lymphocytes, as regions are chosen."""
    best, corner = -1.0, (0, 0)
    for _ in range(60):
        left, top = (int(value) for value in rng.integers(2000, 60000, 2))
        x, y = (np.arange(start, start + side, 8) * SPACING for start, side in ((left, size[1]), (top, size[0])))
        share = np.bincount(specimen.tissue(x, y).ravel(), minlength=8) / (len(x) * len(y))
        score = min(share[TUMOR], 0.25) + min(share[STROMA] + share[INFLAMED], 0.25) + min(share[INFLAMED], 0.08)
        if score > best:
            best, corner = score, (left, top)
        if best > 0.57:
            break
    return corner


def _region_name(slide: str, corner: tuple[int, int], size: tuple[int, int]) -> str:
    return f"{slide}_[{corner[0]}, {corner[1]}, {corner[0] + size[1]}, {corner[1] + size[0]}].png"


def _slide_name(seed: int, number: int) -> str:
    """Name a slide like one of TCGA, or one of two hospitals."""
    if number % 2:
        return f"{100 + number}{'BS'[number // 2 % 2]}"
    rng = np.random.default_rng([seed, SLIDE, number, 1])
    groups = ("".join(f"{value:X}" for value in rng.integers(0, 16, length)) for length in (8, 4, 4, 4, 12))
    return f"TCGA-A{number // 2 % 10}-A{number:03d}-01Z-00-DX1.{'-'.join(groups)}"


def _laboratory(number: int) -> int:
    return 0 if number % 2 == 0 else 1 + number // 2 % 2


assert NOTHING == EXCLUDED  # glass is annotated by nobody
