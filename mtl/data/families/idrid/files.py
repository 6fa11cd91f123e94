"""Folders and tables of the Indian Diabetic Retinopathy Image Dataset, as distributed: which file belongs to which image.

`<root>/{A. Segmentation,B. Disease Grading,C. Localization}/1. Original Images/{a. Training Set,b. Testing Set}/IDRiD_*.jpg`,
with `2. All Segmentation Groundtruths/<part>/<lesion>/IDRiD_NN_XX.tif` in A and CSV files below `2. Groundtruths` in B and C.
Copies of the data set rename folders and files a little, so words in their names count, not whole names. Opens no image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.tables import image_stem, number_of, read_rows, some, unmatched_rows

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
MASK_SUFFIXES = frozenset({".tif", ".tiff"})
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
    """Images of one official split of one set, by name in lower case, and the folder with what was said about them."""

    set_name: str
    name: str
    images: dict[str, Path]
    truth: Path

    def picture(self, stem: str, **labels: dict) -> Picture:
        path = self.images[stem]
        return Picture(f"{SETS[self.set_name][0]}/{self.name}/{path.stem}", self.set_name, self.name, path, **labels)


def find_sets(folder: Path) -> dict[str, Path]:
    """Return the folders of the sets in a folder, by key of `SETS`; a folder that may not be listed has none."""
    try:
        folders = _folders(folder)
    except OSError:
        return {}
    found = {}
    for name, (_, distributed, word) in SETS.items():
        alike = [path for path in folders if word in path.name.casefold() and TRUTH not in _folded(path.name)]
        exact = [path for path in alike if path.name.casefold() == distributed.casefold()]
        if exact or alike:
            found[name] = (exact or alike)[0]
    return found


def read_contents(sets: dict[str, Path]) -> Contents:
    """List the images of some sets with their labels.

    Args:
        sets: As from `find_sets`.
    """
    contents = Contents()
    readers = {"segmentation": _segmentation, "grading": _grading, "localization": _localization}
    for name, folder in sets.items():
        for part in _parts(name, folder, contents):
            contents.pictures += readers[name](part, contents)
    contents.pictures.sort(key=lambda picture: picture.sample_id)
    return contents


def _segmentation(part: _Part, contents: Contents) -> Iterator[Picture]:
    folder = next((path for path in _folders(part.truth) if part.name in path.name.casefold()), None)
    if folder is None:
        contents.problems.append(f"{part.truth}: expected a folder with `{part.name}` in its name, for the masks; found none.")
        return
    masks: dict[str, dict[str, Path]] = {stem: {} for stem in part.images}
    orphans = []
    for path in _files(folder, MASK_SUFFIXES):
        match = MASK.fullmatch(path.stem)
        if match is None or match["image"].casefold() not in masks:
            orphans.append(path.name)
            continue
        mine, code = masks[match["image"].casefold()], match["code"].upper()
        if code in mine:
            contents.problems.append(
                f"{path}: is the second {code} mask of this image, after {mine[code]}. Remove one of them."
            )
        mine[code] = path
    if orphans:
        total = len(orphans) + sum(map(len, masks.values()))
        why = f"no image and lesion of this set has the name of {some(orphans)} in {folder}."
        contents.lost.append(LostLabels("masks", len(orphans), total, why))
    if bare := [part.images[stem].stem for stem, mine in masks.items() if not mine]:
        contents.notes.append(f"{folder}: no mask at all for {some(bare)}.")
    for stem, mine in masks.items():
        yield part.picture(stem, masks=mine)


def _grading(part: _Part, contents: Contents) -> Iterator[Picture]:
    table = _table_of(part, _files(part.truth, frozenset({".csv"})), "grades", contents)
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
    for name, word in LANDMARKS.items():
        files = [
            path for path in _files(part.truth, frozenset({".csv"})) if word in str(path.relative_to(part.truth)).casefold()
        ]
        table = _table_of(part, files, f"centres of the {word}", contents)
        for line, stem, values in _rows(table, {"x": "x", "y": "y"}, part, contents):
            x, y = (number_of(text) for text in values.values())
            if x is not None and y is not None:
                points[stem][name] = (x, y)
            elif any(values.values()):
                contents.problems.append(
                    f"{table}:{line}: expected two numbers, found x `{values['x']}` and y `{values['y']}`. Correct the file."
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
    """Give line, image (name in lower case) and values of each image that is there, once."""
    if table is None:
        return
    try:
        rows = read_table(table, {"image": IMAGE_COLUMN, **columns})
    except DataError as error:
        contents.problems.append(str(error))
        return
    seen: dict[str, tuple[int, dict[str, str]]] = {}
    gone = []
    for line, values in rows:
        name = values.pop("image")
        stem = image_stem(name)
        before = seen.setdefault(stem, (line, values))
        if before[1] != values:
            contents.problems.append(f"{table}:{line}: `{name}` was listed in line {before[0]} with other values. Remove one.")
        if before[0] != line:
            continue
        if stem in part.images:
            yield line, stem, values
        elif name:
            gone.append(name)
    if gone:
        contents.notes.append(f"{table}: {some(gone)} listed, but there is no such image.")
    used = sum(stem in seen for stem in part.images)
    contents.lost += unmatched_rows("rows about images", table, gone, len(part.images) - used, used)


def _table_of(part: _Part, files: list[Path], what: str, contents: Contents) -> Path | None:
    mine = [path for path in files if part.name in path.name.casefold()]
    if len(mine) != 1:
        found = f"{mine[0].name} and {mine[1].name}" if mine else "none"
        contents.problems.append(
            f"{part.truth}: expected one CSV file with `{part.name}` in its name, for the {what}; found {found}."
        )
        return None
    return mine[0]


def _parts(set_name: str, folder: Path, contents: Contents) -> list[_Part]:
    inside = {_folded(path.name): path for path in _folders(folder)}
    pictures, truth = (next((inside[name] for name in inside if word in name), None) for word in (ORIGINALS, TRUTH))
    if pictures is None or truth is None:
        missing = "1. Original Images" if pictures is None else "2. Groundtruths"
        contents.problems.append(f"{folder}: expected a folder like `{missing}`, found none. Complete the data set.")
        return []
    found = []
    for part in PARTS:
        home = next((path for path in _folders(pictures) if part in path.name.casefold()), None)
        images: dict[str, Path] = {}
        for path in [] if home is None else _files(home, IMAGE_SUFFIXES, below=False):
            if path.stem.casefold() in images:
                contents.problems.append(
                    f"{path}: has the same name as {images[path.stem.casefold()].name}. Remove one of them."
                )
            images[path.stem.casefold()] = path
        if images:
            found.append(_Part(set_name, part, images, truth))
        else:
            contents.notes.append(f"{pictures}: holds no {part} images.")
    return found


def _folded(name: str) -> str:
    """Return a name in lower case, without spaces."""
    return "".join(name.split()).casefold()


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, suffixes: frozenset[str], below: bool = True) -> list[Path]:
    found = folder.rglob("*") if below else folder.iterdir()
    return sorted(path for path in found if path.suffix.casefold() in suffixes and not path.name.startswith("."))
