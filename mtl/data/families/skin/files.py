"""Folders and tables of skin images in two layouts: which mask, classes and person belong to which image. Opens no image.

native: `images/{train,val,test}/NAME.jpg` (or `images/NAME.jpg`), `masks/<part>/NAME.png` where somebody drew one, and

- `labels.json`: file name -> class, or -> {attribute: class}; a class is its number or its name, null is not known;
- `classes.json` (optional): number -> name (or a list of names), or {attribute: such}; has to agree with the settings;
- `splits.json` (optional): {"train": [file names], "val": [...], "test": [...]}, each image exactly once;
- `metadata.csv` (optional): a column with the image, and any of age, sex, skin tone (Fitzpatrick), lesion id, patient id.

isic: the archives of the ISIC challenges as they unpack, in any folders: images `ISIC_*.jpg`, masks `*_segmentation.png`,
tables with diagnoses (two flags as in 2017, or one column per class) and with metadata. The folder's name tells the part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl.core.errors import nearest
from mtl.core.json_text import parse_json
from mtl.data.families.skin.tables import read_about, read_diagnoses, rows_of
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.tables import image_stem, letters, some

PARTS = ("train", "val", "test")
PART_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PART_NAMES |= {"test": "test", "testing": "test"}
ISIC_IMAGES = "ISIC_*"
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif"})  # JPEG has grey seams around what is marked
MASK_ENDING = "_segmentation"
OTHER_ENDING = "_superpixels"
Attributes = dict[str, tuple[str, ...]]


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
    """What is in the folders: `problems` make the data unusable, `notes` are worth knowing."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_Images = dict[str, tuple[Path, str | None]]  # file and part by name in lower case


def find_layout(root: Path) -> str | None:
    """Recognise the layout of a folder: `native`, `isic`, or None where it holds neither; a folder nobody may list has none."""
    try:
        if (root / "images").is_dir() and any((root / name).exists() for name in ("labels.json", "masks", "splits.json")):
            return "native"
        if any(_is_image(path) for path in root.rglob(ISIC_IMAGES)):
            return "isic"
        return "native" if (root / "images").is_dir() else None
    except OSError:
        return None


def looks_alike(folder: Path) -> bool:
    """Return whether this may be the folder that somebody meant, without looking into folders inside."""
    try:
        return (folder / "images").is_dir() or any(_is_image(path) for path in folder.glob(ISIC_IMAGES))
    except OSError:
        return False


def read_native(root: Path, attributes: Attributes) -> Contents:
    """List the images of a native folder with what is known about them.

    Args:
        root: The folder that holds `images/`.
        attributes: Class names by attribute; a label that names no attribute belongs to the first.
    """
    contents = Contents()
    images = _native_images(root / "images", contents)
    images = _split(root / "splits.json", images, contents)
    _check_classes(root / "classes.json", attributes, contents)
    labels = _labels(root / "labels.json", images, attributes, contents)
    masks = _masks(_files(root / "masks", MASK_SUFFIXES), images, contents)
    table = root / "metadata.csv"
    about: dict[str, dict[str, str]] = {}
    if table.is_file():
        about = read_about(rows_of(table, set(images), contents.problems, contents.notes), table, contents.problems)
    return _collect(contents, images, masks, labels, about)


def read_isic(root: Path, attributes: Attributes) -> Contents:
    """List the images of unpacked ISIC archives with what is known about them; arguments as for `read_native`.

    The diagnosis is the attribute `diagnosis`, or the first one.
    """
    contents = Contents()
    found = [path for path in sorted(root.rglob(ISIC_IMAGES)) if _is_image(path)]
    images = _by_name([(path, _part_of(path.relative_to(root))) for path in found], contents)
    masks = [path for path in _files(root, MASK_SUFFIXES) if path.stem.casefold().endswith(MASK_ENDING)]
    diagnosis = "diagnosis" if "diagnosis" in attributes else next(iter(attributes), None)
    labels: dict[str, dict[str, int]] = {}
    about: dict[str, dict[str, str]] = {}
    for table in _files(root, frozenset({".csv"})):
        rows = rows_of(table, set(images), contents.problems, contents.notes)
        if diagnosis is not None:
            for stem, value in read_diagnoses(rows, table, attributes[diagnosis], diagnosis, contents.problems).items():
                if labels.setdefault(stem, {diagnosis: value}) != {diagnosis: value}:
                    contents.problems.append(f"{table}: gives `{stem}` another class than an earlier table. Remove one.")
        for stem, values in read_about(rows, table, contents.problems).items():
            mine = about.setdefault(stem, {})
            if strange := [key for key in values if mine.get(key, values[key]) != values[key]]:
                contents.problems.append(f"{table}: gives `{stem}` another {strange[0]} than an earlier table. Correct one.")
            about[stem] = {**values, **mine}
    if diagnosis is not None and (bare := [path.stem for stem, (path, _) in images.items() if stem not in labels]):
        contents.notes.append(f"{root}: no table gives a {diagnosis} for {some(bare)}.")
    return _collect(contents, images, _masks(masks, images, contents), labels, about)


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
    found: list[tuple[Path, str | None]] = [(path, None) for path in _files(folder, IMAGE_SUFFIXES, below=False)]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        part = PART_NAMES.get(inner.name.casefold())
        mine = _files(inner, IMAGE_SUFFIXES)
        if part is None and mine:
            contents.problems.append(
                f"{inner}: expected the images in train, val, test or in `images` itself. Rename the folder, or move its "
                "images to `images` and name them in splits.json."
            )
        elif part is not None:
            found += [(path, part) for path in mine]
    return _by_name(found, contents)


def _by_name(found: list[tuple[Path, str | None]], contents: Contents) -> _Images:
    images: _Images = {}
    for path, part in found:
        stem = path.stem.casefold()
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
    content = _load(path, contents, dict, 'an object {"train": [names], "val": [names], "test": [names]}')
    if content is None:
        return images
    parts: dict[str, str] = {}
    for key, names in content.items():
        part = PART_NAMES.get(str(key).casefold())
        if part is None or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            contents.problems.append(f"{path}: expected lists of file names under train, val and test; found `{key}`.")
            continue
        for name in names:
            stem = image_stem(name)
            if stem not in images:
                contents.problems.append(f"{path}: names `{name}` under {key}, but there is no such image.")
            elif stem in parts:
                contents.problems.append(f"{path}: names `{name}` under {parts[stem]} and again under {key}. Remove one.")
            elif images[stem][1] not in (None, part):
                contents.problems.append(
                    f"{path}: names `{name}` under {key}, but the image lies in {images[stem][0].parent.name}. Correct one."
                )
            parts[stem] = part
    if missing := [image.name for stem, (image, _) in images.items() if stem not in parts]:
        contents.problems.append(f"{path}: does not name {some(missing)}. Name each image under train, val or test.")
    return {stem: (image, parts.get(stem, part)) for stem, (image, part) in images.items()}


def _labels(path: Path, images: _Images, attributes: Attributes, contents: Contents) -> dict[str, dict[str, int]]:
    """Read `labels.json`: class index by attribute and image."""
    if not path.is_file():
        contents.notes.append(f"{path}: there is no such file, so no image has a class.")
        return {}
    content = _load(path, contents, dict, "an object with a class per file name")
    first = next(iter(attributes), None)
    found: dict[str, dict[str, int]] = {}
    spelled: dict[str, str] = {}
    gone, idle = [], set()
    for name, value in (content or {}).items():
        stem = image_stem(name)
        if stem not in images:
            gone.append(name)
            continue
        mine: dict[str, int] = {}
        for attribute, entry in (value if isinstance(value, dict) else {first: value}).items():
            if attribute not in attributes:
                idle.add(str(attribute))
            elif entry is not None:
                try:
                    mine[attribute] = _class_index(entry, attribute, attributes[attribute])
                except ValueError as error:
                    contents.problems.append(f"{path}: `{name}`: {error}")
        if found.setdefault(stem, mine) != mine:
            contents.problems.append(f"{path}: `{name}` was there as `{spelled[stem]}` with another class. Remove one.")
        spelled.setdefault(stem, name)
    if gone:
        contents.notes.append(f"{path}: {some(gone)} named, but there is no such image.")
    if idle - {"None"}:
        contents.notes.append(f"{path}: {', '.join(sorted(idle - {'None'}))} not read; data.attributes does not name it.")
    if content and (bare := [image.name for stem, (image, _) in images.items() if stem not in found]):
        contents.notes.append(f"{path}: no class for {some(bare)}.")
    return found


def _class_index(value: Any, attribute: str, names: tuple[str, ...]) -> int:
    """Return the index of a class given by number or name.

    Raises:
        ValueError: It is neither; worded for the user.
    """
    listed = ", ".join(names)
    if isinstance(value, str):
        index = next((index for index, name in enumerate(names) if letters(name) == letters(value)), None)
        if index is None:
            hint = f"Correct it, or add it to data.attributes.{attribute}."
            raise ValueError(f"unknown {attribute} `{value}`; expected one of {listed}.{nearest(value, names)} {hint}")
        return index
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # neither infinite nor NaN
    if isinstance(value, bool) or not whole:
        raise ValueError(f"expected a number or name of a class as {attribute}, found {json.dumps(value)}. Correct it.")
    if not 0 <= value < len(names):
        hint = f"Correct it, or complete data.attributes.{attribute}."
        raise ValueError(f"{attribute} {json.dumps(value)} is out of range; expected 0 to {len(names) - 1} ({listed}). {hint}")
    return int(value)


def _check_classes(path: Path, attributes: Attributes, contents: Contents) -> None:
    """Compare `classes.json` with the settings: numbers in `labels.json` mean nothing else."""
    if not path.is_file() or not attributes:
        return
    content = _load(path, contents, (dict, list), "an object that gives each class number a name")
    if content is None:
        return
    nested = isinstance(content, dict) and all(isinstance(value, dict | list) for value in content.values())
    for attribute, stored in (content if nested else {next(iter(attributes)): content}).items():
        if attribute not in attributes:
            continue
        try:
            names = stored if isinstance(stored, list) else [stored[key] for key in sorted(stored, key=int)]
            numbered = isinstance(stored, list) or sorted(map(int, stored)) == list(range(len(stored)))
        except ValueError:
            numbered = False
        if not numbered:
            contents.problems.append(f'{path}: expected names by number from 0 on, as {{"0": "nevus", "1": "melanoma"}}.')
        elif [letters(str(name)) for name in names] != [letters(name) for name in attributes[attribute]]:
            listed = ", ".join(map(str, names))
            contents.problems.append(
                f"{path}: the classes of {attribute} are {listed}; data.attributes.{attribute} says "
                f"{', '.join(attributes[attribute])}. Set data.attributes.{attribute}=[{','.join(map(str, names))}]."
            )


def _masks(files: list[Path], images: _Images, contents: Contents) -> dict[str, Path]:
    """Return mask files by image, under the name of the image or with `_segmentation` behind it."""
    masks: dict[str, Path] = {}
    orphans = []
    for path in files:
        stem = path.stem.casefold()
        stem = stem if stem in images else stem.removesuffix(MASK_ENDING)
        if stem not in images:
            orphans.append(path.name)
        elif stem in masks:
            contents.problems.append(f"{path}: is the second mask of this image, after {masks[stem]}. Remove one of them.")
        else:
            masks[stem] = path
    if orphans:
        contents.notes.append(f"{files[0].parent}: {some(orphans)} left out: no image has such a name.")
    return masks


def _load(path: Path, contents: Contents, form: type | tuple[type, ...], expected: str) -> Any:
    """Parse a JSON file; None, with a problem noted, where it is broken or something else."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if (content.setdefault(key, value),) != (value,):  # tuples, since NaN alone differs from itself
                raise ValueError(f"`{key}` is there twice with different values")
        return content

    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        contents.problems.append(f"{path}: cannot be read ({error.strerror}).")
        return None
    except ValueError as error:
        contents.problems.append(f"{path}: is no valid JSON: {error}. Expected {expected}.")
        return None
    if not isinstance(content, form):
        contents.problems.append(f"{path}: expected {expected}; found {type(content).__name__}.")
        return None
    return content


def _part_of(path: Path) -> str | None:
    """Read the official part off the names of the folders around an image, the nearest first."""
    for folder in reversed(path.parts[:-1]):
        words = re.findall(r"[a-z]+", folder.casefold())
        part = next((PART_NAMES[word] for word in words if word in PART_NAMES), None)
        if part:
            return part
    return None


def _is_image(path: Path) -> bool:
    ending = path.stem.casefold().endswith((MASK_ENDING, OTHER_ENDING))
    return path.suffix.casefold() in IMAGE_SUFFIXES and not ending


def _files(folder: Path, suffixes: frozenset[str], below: bool = True) -> list[Path]:
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if below else folder.iterdir()
    return sorted(path for path in found if path.suffix.casefold() in suffixes and not path.name.startswith("."))
