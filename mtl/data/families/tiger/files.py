"""Folders, names and masks of the regions of TIGER, as distributed (https://tiger.grand-challenge.org/Data/).

`wsirois/roi-level-annotations/{tissue-bcss,tissue-cells}/{images,masks}/NAME.png` and `tissue-cells/tiger-coco.json`. An image
and its mask have the same name, `<slide>_[x1, y1, x2, y2].png` with the corners in pixels of the slide. Values of a mask: 0 not
annotated, 1 invasive tumour, 2 tumour-associated stroma, 3 in-situ tumour, 4 healthy glands, 5 necrosis, 6 inflamed stroma, 7
rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.core.names import normal
from mtl.data.families.folders import by_name, find_files, named_folders, unreadable_in
from mtl.data.families.tiger.coco import Listed, read_coco
from mtl.data.formats.headers import ALPHA_MODES, open_image
from mtl.data.formats.images import IMAGE_SUFFIXES, MASK_SUFFIXES, deep_values
from mtl.data.formats.tables import ImageNames, some, unmatched_rows

SETS = {"bcss": "tissue-bcss", "cells": "tissue-cells"}  # folder by name in `data.sets`
PLACES = ("", "roi-level-annotations", "wsirois/roi-level-annotations")  # below `data.root`, with the sets in it
IMAGES, MASKS, COCO = "images", "masks", "tiger-coco.json"
HIGHEST = 7  # value of a mask
EXCLUDED = 0  # value of what nobody annotated
NAME = re.compile(r"(?P<slide>.+?)_? ?\[(?P<corners>-?\d+(?:\s*,\s*-?\d+){3})\s*\]")
TCGA_PATIENT = 12  # characters: TCGA-XX-XXXX


@dataclass(frozen=True)
class Region:
    """One image file and what belongs to it.

    Attributes:
        sample_id: `<set>/<file name without suffix>`.
        set_name: Key of `SETS`.
        slide: Name of the slide that it was cut from.
        corners: (x1, y1, x2, y2) on the slide, where the name tells.
        path: Image file.
        mask: Mask file; None where the tissue is not labelled.
        listed: Its cells; None where they are not labelled.
    """

    sample_id: str
    set_name: str
    slide: str
    corners: tuple[int, int, int, int] | None
    path: Path
    mask: Path | None
    listed: Listed | None

    @property
    def tells_patient(self) -> bool:
        """Whether the name of the slide, a TCGA barcode, says of whom it is."""
        return self.slide.upper().startswith("TCGA-")

    @property
    def patient(self) -> str:
        """Name of the patient: the first part of a TCGA barcode, else the slide stands in."""
        return self.slide[:TCGA_PATIENT] if self.tells_patient else self.slide


@dataclass
class Contents:
    """What is in the folders: `problems` make the data unusable, `notes` are worth knowing, `lost` labels cannot be used."""

    regions: list[Region] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: list[LostLabels] = field(default_factory=list)
    coco: Path | None = None


def find_sets(folder: Path) -> dict[str, Path]:
    """Return the folders of the sets in a folder, one or two levels below, or the folder itself if it is a set."""
    for inner in PLACES:
        inside = named_folders(folder / inner)
        found = {name: inside[word] for name, word in SETS.items() if word in inside}
        if found:
            return found
    if IMAGES not in named_folders(folder):
        return {}
    return {"bcss" if "bcss" in normal(folder.resolve().name) else "cells": folder}


def read_contents(sets: dict[str, Path]) -> Contents:
    """List the regions of some sets with their masks and boxes; opens no image.

    Args:
        sets: As from `find_sets`.
    """
    contents = Contents()
    slides: dict[str, str] = {}
    for name, folder in sets.items():
        contents.problems += unreadable_in(folder)
        inner = named_folders(folder, contents.problems)
        if idle := [path.name for word, path in inner.items() if word not in (IMAGES, MASKS)]:
            contents.notes.append(f"{folder}: {some(idle)} not read; expected the folders {IMAGES} and {MASKS}.")
        if IMAGES not in inner:
            contents.problems.append(f"{folder}: expected a folder `{IMAGES}`, found none. Complete the data set.")
        images = _files(inner.get(IMAGES), IMAGE_SUFFIXES, contents)
        masks = _files(inner.get(MASKS), MASK_SUFFIXES, contents)
        if orphans := [path.name for stem, path in masks.items() if stem not in images]:
            why = f"there is no image for {some(orphans)} in {folder / MASKS}."
            contents.lost.append(LostLabels("masks", len(orphans), len(masks), why))
        cells = _cells(folder, images, contents) if name == "cells" else {}
        for stem, path in images.items():
            slide, corners = parse_name(path.stem)
            slide = slides.setdefault(normal(slide), slide)
            region = Region(f"{name}/{path.stem}", name, slide, corners, path, masks.get(stem), cells.get(stem))
            contents.regions.append(region)
    contents.regions.sort(key=lambda region: region.sample_id)
    return contents


def parse_name(stem: str) -> tuple[str, tuple[int, int, int, int] | None]:
    """Split the name of a region into the slide and its corners; a name without brackets is that of a slide."""
    match = NAME.fullmatch(stem)
    if match is None:
        return stem, None
    x1, y1, x2, y2 = (int(number) for number in match["corners"].split(","))
    return match["slide"], (x1, y1, x2, y2)


def read_tissue(path: Path) -> np.ndarray:
    """Decode a mask to its values: [H, W] uint8, 0 to 7.

    Reads grey values of any depth, RGB with equal channels, and palettes: by their colours if all of those are grey values,
    else by their indices.

    Raises:
        DataError: The file is missing or no image, has colours, or another value.
    """
    with open_image(path) as (image, header):
        mode = header.mode
        if header.is_deep:
            values = deep_values(image, header)
        elif mode == "P":
            values = _by_palette(image)
        else:
            values = np.asarray(image if mode in ("1", "L", "RGB", *ALPHA_MODES) else image.convert("RGB"))
    if mode in ALPHA_MODES:
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(
                f"{path}: holds colours (mode {mode}); expected grey values 0 to {HIGHEST}. Save it as a grey image."
            )
        values = values[..., 0]
    # Most masks are fine, which their extremes tell.
    whole = values.dtype.kind != "f" or bool((values == np.floor(values)).all())
    if not whole or values.min(initial=0) < 0 or values.max(initial=0) > HIGHEST:
        row, column = np.argwhere(~np.isin(values, range(HIGHEST + 1)))[0]
        raise DataError(
            f"{path}: has the value {values[row, column]:g} at ({column}, {row}); expected whole numbers from 0 to {HIGHEST}. "
            "Correct the mask."
        )
    return values.astype(np.uint8)


def tissue_summary(path: Path) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return (height, width) of a mask and the values in it. Remembered per process as long as the file does not change.

    Raises:
        DataError: As `read_tissue`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return _summary(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8192)
def _summary(path: Path, size: int, modified: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    mask = read_tissue(path)
    return (mask.shape[0], mask.shape[1]), tuple(value for value in range(HIGHEST + 1) if (mask == value).any())


def _by_palette(image: object) -> np.ndarray:
    """Return the colours of a palette image if they are grey values (a grey image that was packed), else its indices."""
    indices = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)  # type: ignore[attr-defined]
    used = palette[np.minimum(np.unique(indices), len(palette) - 1)]
    packed = (palette == palette[:, :1]).all() and used.max(initial=0) <= HIGHEST
    return palette[np.minimum(indices, len(palette) - 1), 0] if packed else indices


def _files(folder: Path | None, suffixes: frozenset[str], contents: Contents) -> dict[str, Path]:
    """Return the files of a folder by their names, without suffix and in normal form."""
    if folder is None:
        return {}
    found = find_files(folder, suffixes)
    contents.notes += found.note(folder, suffixes)
    return by_name(found.files, contents.problems)


def _cells(folder: Path, images: dict[str, Path], contents: Contents) -> dict[str, Listed]:
    """Read the boxes of a set; images that are not listed are missing."""
    found = find_files(folder, {".json"}, below=False).files
    coco = next((path for path in found if normal(path.name) == COCO), None)
    if coco is None and found:
        others = some([path.name for path in found])
        contents.problems.append(f"{folder}: there is no {COCO}, only {others}. Rename the file with the cells, or remove it.")
        return {}
    if coco is None:
        contents.notes.append(f"{folder}: there is no {COCO}, so that no cell is labelled.")
        return {}
    contents.coco = coco
    listing = read_coco(coco)
    contents.problems += listing.problems
    contents.notes += listing.notes
    names, mine, gone = ImageNames(images), dict[str, Listed](), list[str]()
    for listed in listing.images.values():
        stem = names.find(listed.name)
        if stem is None:
            gone.append(listed.name)
        elif (other := mine.setdefault(stem, listed)) is not listed:
            contents.problems.append(f"{coco}: lists `{other.name}` and `{listed.name}`, which are one image. Merge the two.")
    if gone and not mine:
        contents.problems.append(f"{coco}: none of the {len(gone)} listed images is there (first: {gone[0]}). Add them.")
    elif gone:
        contents.notes.append(f"{coco}: {some(gone)} listed, but there is no such image.")
    contents.lost += unmatched_rows("listed images", coco, gone, len(images) - len(mine), len(mine))
    if mine and len(mine) < len(images):
        contents.notes.append(f"{coco}: lists {len(mine)} of {len(images)} images; in the others nobody looked for cells.")
    contents.notes += names.note(coco)
    return mine
