"""Folders and tables of the Indian Diabetic Retinopathy Image Dataset, as distributed: which file belongs to which image.

`<root>/{A. Segmentation,B. Disease Grading,C. Localization}/1. Original Images/{a. Training Set,b. Testing Set}/IDRiD_*.jpg`,
with `2. All Segmentation Groundtruths/<part>/<lesion>/IDRiD_NN_XX.tif` (or `.png`, `.bmp`) in A and CSV files below
`2. Groundtruths` in B and C.
Copies of the data set rename folders and files a little, so words in their names count, not whole names. Opens no image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.core.names import normal
from mtl.data.families.folders import by_name, find_files, folders_in, unreadable, unreadable_in
from mtl.data.formats.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from mtl.data.formats.tables import ImageNames, letters, number_of, read_rows, some, unmatched_rows

# By name in `data.sets`: letter in sample ids, folder as distributed, word by which the folder is found.
SETS = {
    "segmentation": ("A", "A. Segmentation", "segmentation"),
    "grading": ("B", "B. Disease Grading", "grading"),
    "localization": ("C", "C. Localization", "locali"),
}
PARTS = ("train", "test")  # official splits, and words in the names of their folders and files
ORIGINALS, TRUTH = "originalimages", "groundtruth"  # words in the names of the folders of a set, without spaces
CODES = ("MA", "HE", "EX", "SE", "OD")  # suffixes of mask files
MASK = re.compile(rf"(?P<image>.+)_(?P<code>{'|'.join(CODES)})", re.IGNORECASE)
LESION_FOLDERS = {  # as distributed, and the word in it that copies keep
    "MA": ("1. Microaneurysms", "aneurysm"), "HE": ("2. Haemorrhages", "morrhage"), "EX": ("3. Hard Exudates", "hardexudate"),
    "SE": ("4. Soft Exudates", "softexudate"), "OD": ("5. Optic Disc", "opticdis"),
}  # fmt: skip
GRADES = {"grade": ("retinopathygrade", 4), "edema": ("riskofmacular", 2)}  # beginning of the column's name, highest value
LANDMARKS = {"optic_disc_centre": "disc", "fovea": "fovea"}  # word in the path of the CSV file
IMAGE_COLUMN = "image"  # beginning of the name of the column with the image


@dataclass(frozen=True)
class Picture:
    """One image file and what the data set says about it.

    Attributes:
        sample_id: `A/train/IDRiD_01`: the numbers restart in every set, and in B in every part.
        set_name: Key of `SETS`.
        part: Official split.
        path: Image file.
        masks: Mask file by lesion code; a code without file is missing.
        grades: Value by `grade` and `edema`; empty where the image is not listed.
        points: (x, y) in stored pixels by landmark.
    """

    sample_id: str
    set_name: str
    part: str
    path: Path
    masks: dict[str, Path] = field(default_factory=dict)
    grades: dict[str, int] = field(default_factory=dict)
    points: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Contents:
    """What is in the folders: `problems` make the data unusable, `notes` are worth knowing, `lost` labels cannot be used."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: list[LostLabels] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """Images of one official split of one set, by name in normal form, and the folder with what was said about them."""

    set_name: str
    name: str
    images: dict[str, Path]
    truth: Path

    def picture(self, stem: str, **labels: dict) -> Picture:
        path = self.images[stem]
        return Picture(f"{SETS[self.set_name][0]}/{self.name}/{path.stem}", self.set_name, self.name, path, **labels)


def find_sets(folder: Path) -> dict[str, Path]:
    """Return the folders of the sets in a folder, by key of `SETS`; a folder that may not be listed has none."""
    folders, found = folders_in(folder), {}
    for name, (_, distributed, word) in SETS.items():
        alike = [path for path in folders if word in normal(path.name) and TRUTH not in _folded(path.name)]
        exact = [path for path in alike if normal(path.name) == normal(distributed)]
        if exact or alike:
            found[name] = (exact or alike)[0]
    return found


def read_contents(sets: dict[str, Path], negative: Sequence[str] = ()) -> Contents:
    """List the images of some sets with their labels.

    Args:
        sets: As from `find_sets`.
        negative: Lesion codes of which a missing mask means that there is none: then what is not read must not be missing.
    """
    contents = Contents()
    for name, folder in sets.items():
        for part in _parts(name, folder, contents):
            if name == "segmentation":
                contents.pictures += _segmentation(part, negative, contents)
            else:
                contents.pictures += (_grading if name == "grading" else _localization)(part, contents)
    contents.pictures.sort(key=lambda picture: picture.sample_id)
    return contents


def _segmentation(part: _Part, negative: Sequence[str], contents: Contents) -> Iterator[Picture]:
    folder = next((path for path in folders_in(part.truth) if part.name in normal(path.name)), None)
    contents.problems += unreadable_in(part.truth)
    if folder is None:
        contents.problems.append(f"{part.truth}: expected a folder with `{part.name}` in its name, for the masks; found none.")
        return
    masks: dict[str, dict[str, Path]] = {stem: {} for stem in part.images}
    names, found, orphans = ImageNames(masks), find_files(folder, MASK_SUFFIXES), list[Path]()
    contents.problems += unreadable(found.unread)
    for path in found.files:
        match = MASK.fullmatch(path.stem)
        stem = None if match is None else names.find(match["image"])
        if match is None or stem is None:
            orphans.append(path)
            continue
        mine, code = masks[stem], match["code"].upper()
        if code in mine:
            contents.problems.append(
                f"{path}: is the second {code} mask of this image, after {mine[code]}. Remove one of them."
            )
        mine.setdefault(code, path)
    problems, gone, foreign = _unread_masks(orphans, found.others, masks)
    contents.problems += [*problems, *_unread_lesions(folder, part.name, masks, negative)]
    contents.notes += [f"{folder}: {some(foreign)} left out: neither an image nor a mask."] if foreign else []
    if gone:
        total = len(gone) + sum(map(len, masks.values()))
        why = f"no image and lesion of this set has the name of {some(gone)} in {folder}."
        contents.lost.append(LostLabels("masks", len(gone), total, why))
    contents.notes += names.note(folder)
    if bare := [part.images[stem].stem for stem, mine in masks.items() if not mine]:
        contents.notes.append(f"{folder}: no mask at all for {some(bare)}.")
    for stem, mine in masks.items():
        yield part.picture(stem, masks=mine)


def _unread_masks(orphans: list[Path], others: list[Path], images: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Sort the files that were not read: those of images that are there, which would be free of what these mark, are errors.

    Returns:
        What is wrong, the names of masks without an image, and those of the other files.
    """
    names, problems, gone, foreign = ImageNames(images), list[str](), list[str](), list[str]()
    for path in orphans:
        words = re.split(r"([\W_]+)", normal(path.stem))
        if any(names.find("".join(words[: 2 * count + 1])) for count in range(len(words) // 2 + 1)):
            problems.append(
                f"{path}: tells no lesion; expected {', '.join(CODES)} behind the name of the image. Rename or remove it."
            )
        else:
            gone.append(path.name)
    for path in others:
        match = MASK.fullmatch(path.stem)
        if match is not None and names.find(match["image"]) is not None:
            expected = ", ".join(sorted(MASK_SUFFIXES))
            problems.append(f"{path}: is not read; expected a mask that ends in {expected}. Convert or remove it.")
        else:
            foreign.append(path.name)
    return problems, gone, foreign


def _unread_lesions(folder: Path, part: str, masks: dict[str, dict[str, Path]], negative: Sequence[str]) -> list[str]:
    """Return what is wrong where there is neither a mask nor a folder of a lesion, so that all images would be free of it."""
    inside = [letters(path.name) for path in folders_in(folder)]
    found = []
    for code in negative:
        distributed, word = LESION_FOLDERS[code]
        known = any(code in mine for mine in masks.values()) or any(word in name or name == code.casefold() for name in inside)
        if masks and not known:
            found.append(
                f"{folder}: holds no {code} mask and no folder `{distributed}`, so that all {len(masks)} {part} images would "
                f"count as free of it. Complete the data set, set data.missing_mask.{code}=absent if nobody looked for it, or "
                "make an empty folder if no image shows it."
            )
    return found


def _grading(part: _Part, contents: Contents) -> Iterator[Picture]:
    table = _table_of(part, find_files(part.truth, {".csv"}).files, "grades", contents)
    columns = {name: column for name, (column, _) in GRADES.items()}
    listed: dict[str, dict[str, int]] = {}
    for line, stem, values in _rows(table, columns, part, contents):
        grades = {}
        for name, text in values.items():
            highest = GRADES[name][1]
            value = number_of(text)
            if value is not None and value in range(highest + 1):
                grades[name] = int(value)
            elif text:
                contents.problems.append(
                    f"{table}:{line}: expected a whole number from 0 to {highest} as {name}, found `{text}`. Correct the file."
                )
        listed[stem] = grades
    if missing := [path.stem for stem, path in part.images.items() if set(listed.get(stem, {})) != set(GRADES)]:
        contents.notes.append(f"{table}: no complete grades for {some(missing)}.")
    for stem in part.images:
        yield part.picture(stem, grades=listed.get(stem, {}))


def _localization(part: _Part, contents: Contents) -> Iterator[Picture]:
    points: dict[str, dict[str, tuple[float, float]]] = {stem: {} for stem in part.images}
    tables = find_files(part.truth, {".csv"}).files
    for name, word in LANDMARKS.items():
        files = [path for path in tables if word in normal(str(path.relative_to(part.truth)))]
        table = _table_of(part, files, f"centres of the {word}", contents)
        given: list[float] = []
        for line, stem, values in _rows(table, {"x": "x", "y": "y"}, part, contents):
            x, y = (number_of(text) for text in values.values())
            if x is not None and y is not None:
                points[stem][name] = (x, y)
                given += [x, y]
            elif any(values.values()):
                contents.problems.append(
                    f"{table}:{line}: expected two numbers, found x `{values['x']}` and y `{values['y']}`. Correct the file."
                )
        if given and all(0 <= value <= 1 for value in given):
            contents.problems.append(
                f"{table}: all centres lie between 0 and 1, as shares of the image do; expected its pixels. Convert them."
            )
    if missing := [part.images[stem].stem for stem, mine in points.items() if set(mine) != set(LANDMARKS)]:
        contents.notes.append(f"{part.truth}: not both centres are given for {some(missing)}; counts as not annotated.")
    for stem, mine in points.items():
        yield part.picture(stem, points=mine)


def read_table(path: Path, columns: dict[str, str]) -> list[tuple[int, dict[str, str]]]:
    """Read the named columns of a CSV file; spaces around names and values, empty rows and other columns do not count.

    Args:
        path: The file; its first row with any content names the columns.
        columns: By key, how the column's name begins: in lower case, without spaces.

    Returns:
        Per row its line number and the value of each key.

    Raises:
        DataError: The file cannot be read or lacks a column.
    """
    rows = read_rows(path)
    header = rows[0][1] if rows else []
    names = [_folded(name) for name in header]
    places = {
        key: next((index for index, name in enumerate(names) if name.startswith(begin)), None) for key, begin in columns.items()
    }
    if absent := [columns[key] for key, place in places.items() if place is None]:
        found = ", ".join(f"`{name}`" for name in header if name) or "none"
        raise DataError(f"{path}: expected columns whose names begin with {', '.join(absent)}; found {found[:120]}.")
    known = {key: place for key, place in places.items() if place is not None}
    return [(line, {key: row[i] if i < len(row) else "" for key, i in known.items()}) for line, row in rows[1:]]


def _rows(
    table: Path | None, columns: dict[str, str], part: _Part, contents: Contents
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Give line, image (name in normal form) and values of each image that is there, once."""
    if table is None:
        return
    try:
        rows = read_table(table, {"image": IMAGE_COLUMN, **columns})
    except DataError as error:
        contents.problems.append(str(error))
        return
    names, seen, gone = ImageNames(part.images), dict[str, tuple[int, dict[str, str]]](), list[str]()
    for line, values in rows:
        name = values.pop("image")
        stem = names.find(name)
        if stem is None:
            gone += [name] if name else []
            continue
        before = seen.setdefault(stem, (line, values))
        if before[1] != values:
            contents.problems.append(f"{table}:{line}: `{name}` was listed in line {before[0]} with other values. Remove one.")
        if before[0] == line:
            yield line, stem, values
    if gone and not seen:
        contents.problems.append(
            f"{table}: no row names an image of the {part.name} part (first: `{gone[0]}`). Correct the names, or the images."
        )
    elif gone:
        contents.notes.append(f"{table}: {some(gone)} listed, but there is no such image.")
    contents.notes += names.note(table)
    used = sum(stem in seen for stem in part.images)
    contents.lost += unmatched_rows("rows about images", table, gone, len(part.images) - used, used)


def _table_of(part: _Part, files: list[Path], what: str, contents: Contents) -> Path | None:
    mine = [path for path in files if part.name in normal(path.name)]
    if len(mine) != 1:
        others = [path.name for path in find_files(part.truth, {".csv"}).others]
        found = f"{mine[0].name} and {mine[1].name}" if mine else f"none, but {some(others)}" if others else "none"
        contents.problems.append(
            f"{part.truth}: expected one CSV file with `{part.name}` in its name, for the {what}; found {found}."
        )
        return None
    return mine[0]


def _parts(set_name: str, folder: Path, contents: Contents) -> list[_Part]:
    inside = {_folded(path.name): path for path in folders_in(folder)}
    contents.problems += unreadable_in(folder)
    pictures, truth = (next((inside[name] for name in inside if word in name), None) for word in (ORIGINALS, TRUTH))
    if pictures is None or truth is None:
        missing = "1. Original Images" if pictures is None else "2. Groundtruths"
        contents.problems.append(f"{folder}: expected a folder like `{missing}`, found none. Complete the data set.")
        return []
    found = []
    contents.problems += unreadable_in(pictures)
    for part in PARTS:
        home = next((path for path in folders_in(pictures) if part in normal(path.name)), pictures / part)
        inside_home = find_files(home, IMAGE_SUFFIXES)
        contents.notes += inside_home.note(home, IMAGE_SUFFIXES)
        images = by_name(inside_home.files, contents.problems)
        if images:
            found.append(_Part(set_name, part, images, truth))
        else:
            contents.notes.append(f"{pictures}: holds no {part} images.")
    return found


def _folded(name: str) -> str:
    """Return a name in normal form, without spaces."""
    return normal("".join(name.split()))
