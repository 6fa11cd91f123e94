"""Folders and tables of skin images in two layouts: which mask, classes and person belong to which image. Opens no image.

native: `images/{train,val,test}/NAME.jpg` (or `images/NAME.jpg`), `masks/<part>/NAME.png` where somebody drew one, and

- `labels.json`: file name -> class, or -> {attribute: class}; a class is its number or its name, null is not known;
- `classes.json` (optional): number -> name (or a list of names), or {attribute: such}; has to agree with the settings;
- `splits.json` (optional): {"train": [file names], "val": [...], "test": [...]}, each image exactly once;
- `metadata.csv` (optional): a column with the image, and any of age, sex, skin tone (Fitzpatrick), lesion id, patient id.

isic: the archives of the ISIC challenges as they unpack, in any folders: images `ISIC_*.jpg`, masks `*_segmentation.png`,
tables (.csv, .tsv) with diagnoses (two flags as in 2017, or one column per class) and with metadata. The folder's name tells
the part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mtl.core.family import LostLabels
from mtl.core.files import list_files
from mtl.core.names import normal
from mtl.data.families.folders import Found, find_files, folders_in, unreadable, unreadable_in
from mtl.data.families.skin.labels import Attributes, check_classes, load, read_labels
from mtl.data.families.skin.tables import (
    Ids,
    ImageTable,
    diagnosis_columns,
    read_about,
    read_diagnoses,
    read_table,
    without_images,
)
from mtl.data.formats.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from mtl.data.formats.tables import ImageNames, some, unmatched_rows

PARTS = ("train", "val", "test")
PART_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PART_NAMES |= {"test": "test", "testing": "test"}
ISIC_START = "ISIC_"  # of the names of images
ISIC_TABLES = frozenset({".csv", ".tsv"})
MASK_ENDING = "_segmentation"
OTHER_ENDING = "_superpixels"
NATIVE = ("labels.json", "classes.json", "splits.json", "metadata.csv")
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".xls", ".xlsx", ".ods"})


@dataclass(frozen=True)
class Picture:
    """One image file and what the data set says about it.

    Attributes:
        sample_id: File name without suffix.
        path: Image file.
        part: Official part, if any.
        mask: Mask file; None where nobody drew one.
        classes: Class index by attribute, where known.
        about: `age`, `sex`, `skin_tone`, `lesion`, `patient`, where given.
    """

    sample_id: str
    path: Path
    part: str | None = None
    mask: Path | None = None
    classes: dict[str, int] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


@dataclass
class Contents:
    """What is in the folders: `problems` make the data unusable, `notes` are worth knowing, `lost` labels cannot be used."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: list[LostLabels] = field(default_factory=list)


_Images = dict[str, tuple[Path, str | None]]  # file and part by name in normal form


def find_layout(root: Path) -> str | None:
    """Recognise the layout of a folder: `native`, `isic`, or None where it holds neither; a folder nobody may list has none."""
    try:
        if (root / "images").is_dir() and any((root / name).exists() for name in ("labels.json", "masks", "splits.json")):
            return "native"
        if any(_is_of_isic(path) and _is_image(path) for path in list_files(root).files):
            return "isic"
        return "native" if (root / "images").is_dir() else None
    except OSError:
        return None


def looks_alike(folder: Path) -> bool:
    """Return whether this may be the folder that somebody meant, without looking into folders inside."""
    try:
        return (folder / "images").is_dir() or any(_is_of_isic(path) and _is_image(path) for path in folder.iterdir())
    except OSError:
        return False


def read_native(root: Path, attributes: Attributes) -> Contents:
    """List the images of a native folder with what is known about them.

    Args:
        root: The folder that holds `images/`.
        attributes: Class names by attribute; a label that names no attribute belongs to the first.
    """
    contents = Contents()
    table = _native_files(root, contents)
    images = _native_images(root / "images", contents)
    images = _split(table["splits.json"], images, contents)
    check_classes(table["classes.json"], attributes, contents.problems)
    labels = read_labels(table["labels.json"], images, attributes, contents.problems, contents.notes, contents.lost)
    found = find_files(root / "masks", MASK_SUFFIXES)
    contents.notes += found.note(root / "masks", MASK_SUFFIXES)
    masks = _masks(found.files, images, contents)
    about: dict[str, dict[str, str]] = {}
    if table["metadata.csv"].is_file():
        ids = Ids()
        metadata = read_table(table["metadata.csv"], images, contents.problems, contents.notes, needed=True)
        about = read_about(metadata, ids, contents.problems, needed=True)
        contents.notes += [*ids.notes(table["metadata.csv"]), *_missing_rows(table["metadata.csv"], images, about)]
    return _collect(contents, images, masks, labels, about)


def _missing_rows(table: Path, images: _Images, about: dict[str, dict[str, str]]) -> list[str]:
    """Return notes about images of which a table says nothing, or not whom they show although it does of others."""
    notes = []
    if bare := [path.name for stem, (path, _) in images.items() if stem not in about]:
        notes.append(f"{table}: no row for {some(bare)}.")
    for unit in ("patient", "lesion"):
        known = sum(unit in values for values in about.values())
        if 0 < known < len(images):
            notes.append(f"{table}: gives the {unit} of {known} of {len(images)} images.")
    return notes


def _native_files(root: Path, contents: Contents) -> dict[str, Path]:
    """Return the files with labels by the names they should have, whatever their case; note tables and folders not read."""
    contents.problems += unreadable_in(root)
    files: dict[str, Path] = {}
    for path in list_files(root, below=False).files:
        if (first := files.setdefault(normal(path.name), path)) != path and normal(path.name) in NATIVE:
            contents.problems.append(f"{path}: has the same name as {first.name}. Remove one of them.")
    idle = [path.name for name, path in files.items() if path.suffix.casefold() in TABLE_SUFFIXES and name not in NATIVE]
    idle += [path.name for path in folders_in(root) if path.name not in ("images", "masks")]
    if idle:
        contents.notes.append(f"{root}: {some(idle)} not read; expected images, masks and {', '.join(NATIVE)}.")
    return {name: files.get(name, root / name) for name in NATIVE}


def read_isic(root: Path, attributes: Attributes) -> Contents:
    """List the images of unpacked ISIC archives with what is known about them; arguments as for `read_native`.

    The diagnosis is the attribute `diagnosis`, or the first one.
    """
    contents = Contents()
    found = list_files(root)
    contents.problems += unreadable(found.unread)
    mine = [path for path in found.files if _is_of_isic(path) and _is_image(path)]
    images = _by_name([(path, _part_of(path.relative_to(root))) for path in mine], contents)
    masks = [path for path in found.files if _ends_in_mask(path) and path.suffix.casefold() in MASK_SUFFIXES]
    tables = [path for path in found.files if path.suffix.casefold() in ISIC_TABLES]
    read = {*mine, *masks, *tables}
    contents.notes += _left_out(root, [path for path in found.files if path not in read])
    diagnosis = "diagnosis" if "diagnosis" in attributes else next(iter(attributes), None)
    labels: dict[str, dict[str, int]] = {}
    about: dict[str, dict[str, str]] = {}
    ids = Ids()
    listed = [read_table(path, images, contents.problems, contents.notes) for path in tables]
    if diagnosis is not None:
        labels = _diagnoses(root, listed, images, diagnosis, attributes[diagnosis], contents)
    for table in listed:
        for stem, values in read_about(table, ids, contents.problems).items():
            before = about.setdefault(stem, {})
            if strange := [key for key in values if before.get(key, values[key]) != values[key]]:
                text = f"gives `{stem}` another {strange[0]} than an earlier table. Correct one."
                contents.problems.append(f"{table.path}: {text}")
            about[stem] = {**values, **before}
    contents.notes += ids.notes(root)
    return _collect(contents, images, _masks(masks, images, contents), labels, about)


def _left_out(root: Path, files: list[Path]) -> list[str]:
    """Return notes about files of the ISIC layout that are not read although they may be images, masks or tables."""
    tables = [path.name for path in files if path.suffix.casefold() in TABLE_SUFFIXES]
    files = [path for path in files if path.suffix.casefold() not in TABLE_SUFFIXES]
    others = [path.name for path in files if _is_image(path)]
    strange = [path.name for path in files if _is_of_isic(path) and not normal(path.stem).endswith(OTHER_ENDING)]
    notes = [f"{root}: {some(tables)} not read; expected tables that end in .csv or .tsv."] if tables else []
    notes += [f"{root}: {some(others)} left out; expected images named {ISIC_START}*."] if others else []
    return [*notes, *([f"{root}: {some(strange)} left out: neither an image nor a mask."] if strange else [])]


def _diagnoses(
    root: Path, tables: list[ImageTable], images: _Images, attribute: str, names: tuple[str, ...], contents: Contents
) -> dict[str, dict[str, int]]:
    """Return the diagnoses by image. Tables of parts that are not there are fine, unless images go without one."""
    labels: dict[str, dict[str, int]] = {}
    mine = [table for table in tables if diagnosis_columns(table.columns)]
    for table in mine:
        for stem, value in read_diagnoses(table, names, attribute, contents.problems).items():
            if labels.setdefault(stem, {attribute: value}) != {attribute: value}:
                contents.problems.append(f"{table.path}: gives `{stem}` another class than an earlier table. Remove one.")
    listed = {stem for table in mine for _, stem, _ in table.rows}
    if strange := [table for table in mine if table.gone]:
        if listed:
            where = strange[0].path if len(strange) == 1 else root
            gone = list(dict.fromkeys(name for table in strange for name in table.gone))
            contents.lost += unmatched_rows("diagnoses", where, gone, len(images) - len(listed), len(listed))
        elif images:
            contents.problems += map(without_images, strange)
    if bare := [path.stem for stem, (path, _) in images.items() if stem not in labels]:
        contents.notes.append(f"{root}: no table gives a {attribute} for {some(bare)}.")
    return labels


def _collect(
    contents: Contents,
    images: _Images,
    masks: dict[str, Path],
    labels: dict[str, dict[str, int]],
    about: dict[str, dict[str, str]],
) -> Contents:
    contents.pictures = [
        Picture(path.stem, path, part, masks.get(stem), labels.get(stem, {}), about.get(stem, {}))
        for stem, (path, part) in sorted(images.items(), key=lambda entry: entry[1][0].stem)
    ]
    return contents


def _native_images(folder: Path, contents: Contents) -> _Images:
    if not folder.is_dir():
        contents.problems.append(f"{folder}: there is no such folder; expected the images in it.")
        return {}
    here = find_files(folder, IMAGE_SUFFIXES, below=False)
    contents.notes += here.note(folder, IMAGE_SUFFIXES)
    found: list[tuple[Path, str | None]] = [(path, None) for path in here.files]
    for inner in folders_in(folder):
        part = PART_NAMES.get(normal(inner.name))
        mine = find_files(inner, IMAGE_SUFFIXES)
        if part is None and mine != Found():
            contents.problems.append(
                f"{inner}: expected the images in train, val, test or in `images` itself. Rename the folder, or move its "
                "images to `images` and name them in splits.json."
            )
        elif part is not None:
            contents.notes += mine.note(inner, IMAGE_SUFFIXES)
            found += [(path, part) for path in mine.files]
    return _by_name(found, contents)


def _by_name(found: list[tuple[Path, str | None]], contents: Contents) -> _Images:
    images: _Images = {}
    for path, part in found:
        stem = normal(path.stem)
        if stem in images:
            contents.problems.append(
                f"{path}: has the same name as {images[stem][0]}, and labels go by names. Rename or remove one of them."
            )
        images.setdefault(stem, (path, part))
    return images


def _split(path: Path, images: _Images, contents: Contents) -> _Images:
    """Apply `splits.json` where there is one."""
    if not path.is_file():
        return images
    content = load(path, contents.problems, dict, 'an object {"train": [names], "val": [names], "test": [names]}')
    if content is None:
        return images
    parts, known = dict[str, str](), ImageNames(images)
    for key, names in content.items():
        part = PART_NAMES.get(normal(str(key)))
        if part is None or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            contents.problems.append(f"{path}: expected lists of file names under train, val and test; found `{key}`.")
            continue
        for name in names:
            stem = known.find(name)
            if stem is None:
                contents.problems.append(f"{path}: names `{name}` under {key}, but there is no such image.")
            elif stem in parts:
                contents.problems.append(f"{path}: names `{name}` under {parts[stem]} and again under {key}. Remove one.")
            elif images[stem][1] not in (None, part):
                contents.problems.append(
                    f"{path}: names `{name}` under {key}, but the image lies in {images[stem][0].parent.name}. Correct one."
                )
            if stem is not None:
                parts[stem] = part
    contents.notes += known.note(path)
    if missing := [image.name for stem, (image, _) in images.items() if stem not in parts]:
        contents.problems.append(f"{path}: does not name {some(missing)}. Name each image under train, val or test.")
    return {stem: (image, parts.get(stem, part)) for stem, (image, part) in images.items()}


def _masks(files: list[Path], images: _Images, contents: Contents) -> dict[str, Path]:
    """Return mask files by image, under the name of the image or with `_segmentation` behind it."""
    masks: dict[str, Path] = {}
    orphans, names = [], ImageNames(images)
    for path in files:
        stem = names.find(path.stem) or names.find(normal(path.stem).removesuffix(MASK_ENDING))
        if stem is None:
            orphans.append(path.name)
        elif stem in masks:
            contents.problems.append(f"{path}: is the second mask of this image, after {masks[stem]}. Remove one of them.")
        else:
            masks[stem] = path
    if orphans:
        why = f"no image has the name of {some(orphans)} in {files[0].parent}."
        contents.lost.append(LostLabels("masks", len(orphans), len(files), why))
    if files:
        contents.notes += names.note(files[0].parent)
    return masks


def _part_of(path: Path) -> str | None:
    """Read the official part off the names of the folders around an image, the nearest first."""
    for folder in reversed(path.parts[:-1]):
        words = re.findall(r"[a-z]+", normal(folder))
        part = next((PART_NAMES[word] for word in words if word in PART_NAMES), None)
        if part:
            return part
    return None


def _is_image(path: Path) -> bool:
    ending = normal(path.stem).endswith((MASK_ENDING, OTHER_ENDING))
    return path.suffix.casefold() in IMAGE_SUFFIXES and not ending


def _ends_in_mask(path: Path) -> bool:
    return normal(path.stem).endswith(MASK_ENDING)


def _is_of_isic(path: Path) -> bool:
    return normal(path.name).startswith(normal(ISIC_START))
