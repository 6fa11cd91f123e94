"""The cell boxes of TIGER: a COCO file that lists images and, for some of them, boxes of lymphocytes and plasma cells.

A listed image without boxes holds no such cell; of an image that is not listed nobody knows. A cell belongs to the image that
its centre is in: a box whose centre lies beyond the border is left out, and one that does not reach the image is an error.
`file_name` may carry any folder, in the spelling of any system: only the name of the file counts, without case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl.core.json_text import parse_json
from mtl.data.formats.tables import image_stem, letters, some

CELL = "lymphocyte"  # in the name of the category, where there are several


@dataclass
class Listed:
    """An image of the file with its boxes.

    Attributes:
        name: Name of the image file, as listed.
        size: (height, width) if given.
        boxes: (x_min, y_min, x_max, y_max) in pixels of the stored image, as they are; they may reach over its edge.
        ids: Per box, the annotation's id.
        places: Per box, its position in the file.
    """

    name: str
    size: tuple[int, int] | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

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


def base_name(name: str) -> str:
    """Return the name of a file without its folders, which may be written with slashes or backslashes."""
    return name.replace("\\", "/").rpartition("/")[2].strip()


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
    foreign = 0
    for place, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            listing.problems.append(f"{path}: annotations[{place}]: expected an object; correct the file.")
            continue
        number, image, category = entry.get("id", f"at position {place}"), entry.get("image_id"), entry.get("category_id")
        if not _is_id(image) or image not in by_id:
            listing.problems.append(
                f"{path}: annotation {number}: there is no image with id {image}. Add it, or remove the box."
            )
        elif not _is_id(category) or category not in categories:
            known = ", ".join(map(str, categories))
            listing.problems.append(
                f"{path}: annotation {number}: unknown category {category}; expected one of {known}. Correct it."
            )
        elif (box := _box(entry.get("bbox"))) is None:
            listing.problems.append(
                f"{path}: annotation {number}: the box is {entry.get('bbox')}; expected x, y, width, height with an area. "
                "Correct or remove it."
            )
        elif category not in mine:
            foreign += 1
        else:
            by_id[image].boxes.append(box)
            by_id[image].ids.append(number)
            by_id[image].places.append(place)
    if foreign:
        listing.notes.append(f"{path}: {foreign} boxes of other categories are left out.")
    if twice := sum(len(listed.boxes) - len(set(listed.boxes)) for listed in listing.images.values()):
        listing.notes.append(f"{path}: {twice} boxes are there more than once.")


def _categories(path: Path, content: dict[str, Any], listing: Listing) -> tuple[list[Any], list[Any]]:
    """Return the ids of all categories, and of those that are lymphocytes: the only one, or by name."""
    entries = content.get("categories")
    if entries is None:
        return [1], [1]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and _is_id(entry.get("id")) for entry in entries):
        listing.problems.append(f"{path}: `categories` must be a list of objects with an `id`; correct the file.")
        return [1], [1]
    ids = [entry["id"] for entry in entries]
    mine = ids if len(ids) == 1 else [entry["id"] for entry in entries if CELL in letters(str(entry.get("name", "")))]
    if content["annotations"] and not mine:
        names = some([str(entry.get("name")) for entry in entries]) if entries else "none"
        listing.problems.append(f"{path}: expected a category with `{CELL}` in its name; found {names}. Correct the names.")
    return ids, mine


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """Return the corners of [x, y, width, height]; None where it is something else or has no area."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in value):
        return None
    x, y, width, height = value
    return (float(x), float(y), float(x + width), float(y + height)) if width > 0 and height > 0 else None


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (int(height), int(width)) if isinstance(height, int | float) and isinstance(width, int | float) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _load(path: Path, listing: Listing) -> dict[str, Any] | None:
    """Parse the file; None, with a problem noted, where it is broken or something else."""
    expected = "an object with lists `images` and `annotations`"
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
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
