"""Classes of skin images in JSON files: `labels.json` by image, and `classes.json`, which names their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl.core.errors import nearest
from mtl.core.family import LostLabels
from mtl.data.formats.tables import ImageNames, letters, read_json, some, unmatched_rows

Attributes = dict[str, tuple[str, ...]]


def read_labels(
    path: Path, images: Mapping[str, tuple[Path, Any]], attributes: Attributes,
    problems: list[str], notes: list[str], lost: list[LostLabels],
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Read `labels.json`: class index by attribute and image.

    Args:
        path: The file; it need not exist.
        images: Files by name in normal form, in front of something else.
        attributes: Class names by attribute; a label that names no attribute belongs to the first.
        problems: Receives what is wrong.
        notes: Receives what is left out.
        lost: Receives how many classes may be those of images under another name.
    """
    if not path.is_file():
        notes.append(f"{path}: there is no such file, so no image has a class.")
        return {}
    content = load(path, problems, dict, "an object with a class per file name")
    first = next(iter(attributes), None)
    found: dict[str, dict[str, int]] = {}
    spelled: dict[str, str] = {}
    gone, idle, known = [], set(), ImageNames(images)
    for name, value in (content or {}).items():
        stem = known.find(name)
        if stem is None:
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
                    problems.append(f"{path}: `{name}`: {error}")
        if found.setdefault(stem, mine) != mine:
            problems.append(f"{path}: `{name}` was there as `{spelled[stem]}` with another class. Remove one.")
        spelled.setdefault(stem, name)
    if gone and not found:
        problems.append(f"{path}: none of its {len(gone)} names is that of an image (first: `{gone[0]}`). Correct them.")
    elif gone:
        notes.append(f"{path}: {some(gone)} named, but there is no such image.")
        lost += unmatched_rows("classes", path, gone, len(images) - len(found), len(found))
    notes += known.note(path)
    if idle - {"None"}:
        notes.append(f"{path}: {', '.join(sorted(idle - {'None'}))} not read; data.attributes does not name it.")
    if content and (bare := [image.name for stem, (image, _) in images.items() if stem not in found]):
        notes.append(f"{path}: no class for {some(bare)}.")
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


def check_classes(path: Path, attributes: Attributes, problems: list[str]) -> None:
    """Compare `classes.json` with the settings: numbers in `labels.json` mean nothing else."""
    if not path.is_file() or not attributes:
        return
    content = load(path, problems, (dict, list), "an object that gives each class number a name")
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
            problems.append(f'{path}: expected names by number from 0 on, as {{"0": "nevus", "1": "melanoma"}}.')
        elif [letters(str(name)) for name in names] != [letters(name) for name in attributes[attribute]]:
            listed = ", ".join(map(str, names))
            problems.append(
                f"{path}: the classes of {attribute} are {listed}; data.attributes.{attribute} says "
                f"{', '.join(attributes[attribute])}. Set data.attributes.{attribute}=[{','.join(map(str, names))}]."
            )


def load(path: Path, problems: list[str], form: type | tuple[type, ...], expected: str) -> Any:
    """Parse a JSON file; None, with a problem told, where it is broken or something else."""
    try:
        content = read_json(path)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}).")
        return None
    except ValueError as error:
        problems.append(f"{path}: is no valid JSON: {error}. Expected {expected}.")
        return None
    if not isinstance(content, form):
        problems.append(f"{path}: expected {expected}; found {type(content).__name__}.")
        return None
    return content
