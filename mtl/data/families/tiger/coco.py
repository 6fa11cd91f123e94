"""The cell boxes of TIGER: a COCO file that lists images and, for some of them, boxes of lymphocytes and plasma cells.

A listed image without boxes holds no such cell; of an image that is not listed nobody knows. A cell belongs to the image that
its centre is in: a box whose centre lies beyond the border is left out, and one that does not reach the image is an error.
A box that is there twice is one cell. An annotation with `iscrowd` is no cell: where it lies nobody looked for single cells.
`file_name` may carry any folder, in the spelling of any system: only the name of the file counts, without case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.data.families.tiger.crowds import Box, Crowd
from mtl.data.formats.tables import base_name, image_stem, letters, read_json, some

CELL = "lymphocyte"  # how the name of the category begins; a `non-lymphocyte` is none
LEAST_CORNERS = 3  # boxes, from which on it is told that they are two corners


@dataclass
class Listed:
    """An image of the file with its boxes.

    Attributes:
        name: Name of the image file, as listed.
        size: (height, width) if given.
        boxes: (x_min, y_min, x_max, y_max) in pixels of the stored image, as they are; they may reach over its edge.
        ids: Per box, the annotation's id.
        places: Per box, its position in the file.
        crowds: Areas with many cells that nobody marked one by one.
    """

    name: str
    size: tuple[int, int] | None = None
    boxes: list[Box] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    crowds: list[Crowd] = field(default_factory=list)

    def misplaced(self, path: Path, size: tuple[int, int]) -> list[str]:
        """Return the errors of the boxes that do not belong to an image of (height, width): those that lie outside."""
        if self.size is not None and self.size != size:
            return [
                f"{path}: lists `{self.name}` with {self.size[1]} x {self.size[0]} pixels, but the image has "
                f"{size[1]} x {size[0]}. Use the image that the boxes were drawn in."
            ]
        height, width = size
        return [
            f"{path}: annotation {number}: the box around ({(left + right) / 2:g}, {(top + bottom) / 2:g}) lies outside "
            f"`{self.name}`, which is {width} x {height} pixels. Correct or remove it."
            for number, (left, top, right, bottom) in zip(self.ids, self.boxes, strict=True)
            if not (left < width and right > 0 and top < height and bottom > 0)
        ]

    def looked_at(self, path: Path, size: tuple[int, int]) -> np.ndarray | None:
        """Return [H, W] bool, True where cells were looked for in an image of (height, width); None stands for everywhere.

        Raises:
            DataError: The area of a crowd cannot be read.
        """
        if not self.crowds:
            return None
        looked = np.ones(size, bool)
        for crowd in self.crowds:
            try:
                looked &= ~crowd.area(size)
            except ValueError as error:
                raise DataError(f"{path}: annotation {crowd.number}, a crowd of `{self.name}`: {error}. Correct it.") from error
        return looked

    def leave_out(self, size: tuple[int, int]) -> int:
        """Remove the boxes whose centre no pixel of an image of (height, width) contains; return how many there were."""
        height, width = size
        kept = [
            index
            for index, (left, top, right, bottom) in enumerate(self.boxes)
            if 0 <= left + right < 2 * width and 0 <= top + bottom < 2 * height
        ]
        left_out = len(self.boxes) - len(kept)
        self.boxes = [self.boxes[index] for index in kept]
        self.ids, self.places = [self.ids[index] for index in kept], [self.places[index] for index in kept]
        return left_out


@dataclass
class Listing:
    """What a COCO file says: images by name (`mtl.data.formats.tables.image_stem`), and what is wrong or worth knowing."""

    images: dict[str, Listed] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_coco(path: Path) -> Listing:
    """Read a COCO file; what is wrong with it is collected, not raised."""
    listing = Listing()
    content = _load(path, listing)
    if content is None:
        return listing
    by_id: dict[Any, Listed] = {}
    for place, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not _is_id(entry.get("id")):
            listing.problems.append(f"{path}: images[{place}]: expected an object with `id` and `file_name`; correct the file.")
            continue
        name, number = base_name(entry["file_name"]), entry["id"]
        stem = image_stem(name)
        if number in by_id:
            listing.problems.append(
                f"{path}: image id {number} is that of `{by_id[number].name}` and of `{name}`. Give one a new id."
            )
        elif stem in listing.images:
            listing.problems.append(f"{path}: lists `{name}` twice, as image {number} too. Merge the two.")
        else:
            listing.images[stem] = Listed(name, _size(entry))
        by_id.setdefault(number, listing.images.get(stem, Listed(name)))
    _read_boxes(path, content, by_id, listing)
    return listing


def _read_boxes(path: Path, content: dict[str, Any], by_id: dict[Any, Listed], listing: Listing) -> None:
    categories, mine = _categories(path, content, listing)
    wrong = _Repeated(path, listing.problems)
    seen: dict[Any, set[Box]] = {}
    foreign = twice = 0
    for place, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            listing.problems.append(f"{path}: annotations[{place}]: expected an object; correct the file.")
            continue
        number, image, category = entry.get("id", f"at position {place}"), entry.get("image_id"), entry.get("category_id")
        box, crowd = _box(entry.get("bbox")), entry.get("iscrowd", 0)
        if not _is_id(image) or image not in by_id:
            wrong.add("image", number, f"there is no image with id {image}. Add it, or remove the box.")
        elif not _is_id(category) or category not in categories:
            known = ", ".join(map(str, categories)) or "none"
            wrong.add("category", number, f"unknown category {category}; expected one of {known}. Correct it.")
        elif crowd not in (0, 1):
            wrong.add("crowd", number, f"`iscrowd` is {crowd}; expected 0 or 1. Correct it.")
        elif not crowd and box is None:
            expected = "expected x, y, width, height with an area. Correct or remove it."
            wrong.add("box", number, f"the box is {entry.get('bbox')}; {expected}")
        elif category not in mine:
            foreign += 1
        elif crowd:
            by_id[image].crowds.append(Crowd(number, entry.get("segmentation"), box))
        elif box is not None and box in seen.setdefault(image, set()):
            twice += 1
        elif box is not None:
            seen[image].add(box)
            by_id[image].boxes.append(box)
            by_id[image].ids.append(number)
            by_id[image].places.append(place)
    wrong.tell()
    _refuse_shares(path, listing)
    _note_counts(path, listing, foreign, twice)


def _note_counts(path: Path, listing: Listing, foreign: int, twice: int) -> None:
    if foreign:
        listing.notes.append(f"{path}: {foreign} boxes of other categories are left out.")
    if twice:
        listing.notes.append(f"{path}: {twice} boxes are there more than once; each counts once.")
    if crowds := sum(len(listed.crowds) for listed in listing.images.values()):
        listing.notes.append(
            f"{path}: {crowds} crowds (iscrowd) are no cells; in their areas nobody looked for single ones, and no score does."
        )
    if listing.images and not listing.problems and not any(listed.boxes for listed in listing.images.values()):
        listing.notes.append(f"{path}: none of its {len(listing.images)} images has a box, so that all count as free of cells.")


def _refuse_shares(path: Path, listing: Listing) -> None:
    """Refuse boxes in shares of the image: all cells of an image in its first pixel."""
    found = [
        listed
        for listed in listing.images.values()
        if listed.boxes and all(max(x, y, right - x, bottom - y) <= 1 for x, y, right, bottom in listed.boxes)
    ]
    if found:
        listing.problems.append(
            f"{path}: the boxes of {some([listed.name for listed in found])} lie between 0 and 1, as shares of the image do; "
            "expected pixels. Multiply them by the size of the image."
        )
    for listed in found:
        listed.boxes, listed.ids, listed.places = [], [], []


def wrong_boxes(path: Path, found: list[tuple[Listed, tuple[int, int]]]) -> list[str]:
    """Return what is wrong with boxes, given the (height, width) of their images; those that say another thing are removed."""
    swapped = [listed for listed, size in found if _corners_meant([(listed, size)])]
    if _corners_meant(found):
        swapped = [listed for listed, _ in found if listed.boxes]
    if not swapped:
        return [problem for listed, size in found for problem in listed.misplaced(path, size)]
    for listed in swapped:
        listed.boxes, listed.ids, listed.places = [], [], []
    return [
        f"{path}: boxes of {some([listed.name for listed in swapped])} reach over the edge of the image, and all would fit if "
        "they were two corners; expected x, y, width, height. Subtract the first corner from the second."
    ]


def _corners_meant(found: list[tuple[Listed, tuple[int, int]]]) -> bool:
    """Return whether boxes can only be two corners: read as such all of several fit, else some reach over the edge.

    A single box that begins close to the corner of a small image may be right.
    """
    boxes = [(box, size) for listed, size in found for box in listed.boxes]
    fit = over = 0
    for (x, y, right, bottom), (height, width) in boxes:
        far_x, far_y = right - x, bottom - y  # what is stored behind the corner
        fit += x < far_x <= width and y < far_y <= height
        over += right > width or bottom > height
    return len(boxes) >= LEAST_CORNERS and fit == len(boxes) and over > 0


class _Repeated:
    """Errors of annotations, one sentence per kind: the first, and how many more there are.

    Args:
        path: The file.
        problems: Receives the sentences.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path, self.problems = path, problems
        self.found: dict[str, tuple[str, int]] = {}

    def add(self, kind: str, number: Any, text: str) -> None:
        first, count = self.found.get(kind, (f"{self.path}: annotation {number}: {text}", 0))
        self.found[kind] = first, count + 1

    def tell(self) -> None:
        for first, count in self.found.values():
            self.problems.append(first if count == 1 else f"{first} The same is wrong with {count - 1} more annotations.")


def _categories(path: Path, content: dict[str, Any], listing: Listing) -> tuple[list[Any], list[Any]]:
    """Return the ids of all categories, and of those that are lymphocytes, by name."""
    entries = content.get("categories", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and _is_id(entry.get("id")) for entry in entries):
        listing.problems.append(f"{path}: `categories` must be a list of objects with an `id`; correct the file.")
        entries = []
    ids = [entry["id"] for entry in entries]
    names = [str(entry.get("name")) for entry in entries]
    if len(set(ids)) < len(ids):
        listing.problems.append(f"{path}: two of the categories {', '.join(names)} have the same id. Give each its own.")
    mine = [number for number, name in zip(ids, names, strict=True) if letters(name).startswith(CELL)]
    if content["annotations"] and not mine:
        found = some(names) if names else "none"
        listing.problems.append(f"{path}: expected a category whose name begins with `{CELL}`, found {found}. Correct it.")
    return ids, mine


def _box(value: Any) -> Box | None:
    """Return the corners of [x, y, width, height]; None where it is something else or has no area."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(number) in (int, float) and math.isfinite(number) for number in value):
        return None
    x, y, width, height = value
    return (float(x), float(y), float(x + width), float(y + height)) if width > 0 and height > 0 else None


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    sides = [side for side in (height, width) if isinstance(side, int | float) and math.isfinite(side)]
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else None


def _is_id(value: Any) -> bool:
    """Return whether a value can be an id: some programs write whole numbers as 1.0, which is the same as 1 here."""
    return (isinstance(value, int | str) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _load(path: Path, listing: Listing) -> dict[str, Any] | None:
    """Parse the file; None, with a problem noted, where it is broken or something else."""
    expected = "an object with lists `images` and `annotations`"
    try:
        content = read_json(path)
    except OSError as error:
        listing.problems.append(f"{path}: cannot be read ({error.strerror}).")
        return None
    except ValueError as error:
        listing.problems.append(f"{path}: is no valid JSON, or cut off ({error}). Expected {expected}; copy the file anew.")
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "annotations")):
        listing.problems.append(f"{path}: expected {expected}; copy the file anew.")
        return None
    return content
