"""Folders, names and masks of the regions of TIGER, as distributed (https://tiger.grand-challenge.org/Data/).

`wsirois/roi-level-annotations/{tissue-bcss,tissue-cells}/{images,masks}/NAME.png` and `tissue-cells/tiger-coco.json`. An image
and its mask have the same name, `<slide>_[x1, y1, x2, y2].png` with the corners in pixels of the slide. Values of a mask: 0 not
annotated, 1 invasive tumour, 2 tumour-associated stroma, 3 in-situ tumour, 4 healthy glands, 5 necrosis, 6 inflamed stroma, 7
rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.data.families.tiger.coco import Listed, read_coco
from mtl.data.formats.images import ALPHA_MODES, DEEP_MODES, IMAGE_SUFFIXES
from mtl.data.formats.tables import some, unmatched_rows

SETS = {"bcss": "tissue-bcss", "cells": "tissue-cells"}  # folder by name in `data.sets`
PLACES = ("", "roi-level-annotations", "wsirois/roi-level-annotations")  # below `data.root`, with the sets in it
IMAGES, MASKS, COCO = "images", "masks", "tiger-coco.json"
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
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
        place = folder / inner
        found = {name: path for name, word in SETS.items() if (path := _folder(place, word)) is not None}
        if found:
            return found
    if _folder(folder, IMAGES) is None:
        return {}
    return {"bcss" if "bcss" in folder.resolve().name.casefold() else "cells": folder}


def read_contents(sets: dict[str, Path]) -> Contents:
    """List the regions of some sets with their masks and boxes; opens no image.

    Args:
        sets: As from `find_sets`.
    """
    contents = Contents()
    slides: dict[str, str] = {}
    for name, folder in sets.items():
        images = _files(_folder(folder, IMAGES), IMAGE_SUFFIXES, contents)
        masks = _files(_folder(folder, MASKS), MASK_SUFFIXES, contents)
        if orphans := [path.name for stem, path in masks.items() if stem not in images]:
            why = f"there is no image for {some(orphans)} in {folder / MASKS}."
            contents.lost.append(LostLabels("masks", len(orphans), len(masks), why))
        cells = _cells(folder, images, contents) if name == "cells" else {}
        for stem, path in images.items():
            slide, corners = parse_name(path.stem)
            slide = slides.setdefault(slide.casefold(), slide)
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
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode == "P":
                values = _by_palette(image)
            elif image.mode in ("1", "L", "RGB", *ALPHA_MODES) or image.mode.startswith(DEEP_MODES):
                values = np.asarray(image)
            else:
                values = np.asarray(image.convert("RGB"))
            mode = image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}). Replace the mask, or remove it.") from error
    if mode in ALPHA_MODES:
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(
                f"{path}: holds colours (mode {mode}); expected grey values 0 to {HIGHEST}. Save it as a grey image."
            )
        values = values[..., 0]
    # Most masks are fine, which their extremes tell.
    whole = values.dtype.kind != "f" or bool(np.isfinite(values).all() and (values == np.floor(values)).all())
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


def _cells(folder: Path, images: dict[str, Path], contents: Contents) -> dict[str, Listed]:
    """Read the boxes of a set; images that are not listed are missing."""
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix.casefold() == ".json"]
    coco = next((path for path in found if path.name.casefold() == COCO), None)
    if coco is None:
        near = f" (only {some([path.name for path in found])})" if found else ""
        contents.notes.append(f"{folder}: there is no {COCO}{near}, so that no cell is labelled.")
        return {}
    contents.coco = coco
    listing = read_coco(coco)
    contents.problems += listing.problems
    contents.notes += listing.notes
    if gone := [listed.name for stem, listed in listing.images.items() if stem not in images]:
        contents.notes.append(f"{coco}: {some(gone)} listed, but there is no such image.")
        used = sum(stem in listing.images for stem in images)
        contents.lost += unmatched_rows("listed images", coco, gone, len(images) - used, used)
    return listing.images


def _files(folder: Path | None, suffixes: frozenset[str], contents: Contents) -> dict[str, Path]:
    """Map the name of each file, without suffix and case, to the file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if path.suffix.casefold() not in suffixes or path.name.startswith("."):
            continue
        first = found.setdefault(path.stem.casefold(), path)
        if first != path:
            contents.problems.append(f"{path}: has the same name as {first.name}; remove one of them.")
    return found


def _folder(parent: Path, name: str) -> Path | None:
    """Find a folder by its name, without case; one that may not be listed holds none."""
    return next((path for path in _folders(parent) if path.name.casefold() == name), None)


def _folders(parent: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return
