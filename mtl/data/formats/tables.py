"""CSV files as data sets bring them: texts without spaces around them, image names without case and suffix."""

from __future__ import annotations

import csv
from pathlib import Path

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.core.names import normal
from mtl.data.formats.images import IMAGE_SUFFIXES


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read line number and texts, stripped, of each row that is not empty.

    Raises:
        DataError: The file cannot be read, or is no CSV file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, [text.strip() for text in row]) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV file ({error}). Replace it by the one of the data set.") from error


def image_stem(name: str) -> str:
    """Return the name of an image in its normal form, without the suffix of an image file."""
    return normal(Path(name).stem if Path(name).suffix.casefold() in IMAGE_SUFFIXES else name)


def number_of(text: str) -> float | None:
    """Return the number that a text holds; None where it holds none, or one that is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # neither infinite nor NaN


def some(names: list[str]) -> str:
    """Return a list of names as words of a note: the only one, or how many and the first."""
    return names[0] if len(names) == 1 else f"{len(names)} entries (first: {names[0]})"


def unmatched_rows(what: str, table: Path, gone: list[str], bare: int, used: int) -> list[LostLabels]:
    """Return what a table loses because names of images differ; nothing where each image has its row.

    A table may list images that are simply not here, as in a part of a data set. Only as many rows as there are images without
    one may be theirs under another name.

    Args:
        what: The labels, in the plural.
        table: The file.
        gone: Names that it lists without an image.
        bare: Images that it does not list.
        used: Images that it lists.
    """
    lost = min(len(gone), bare)
    if not lost:
        return []
    why = f"{table} names them otherwise than any image ({some(gone)}), and as many images have none."
    return [LostLabels(what, lost, used + lost, why)]


def letters(name: str) -> str:
    """Return letters and digits of a name, in normal form: what is left when people spell columns and classes differently."""
    return "".join(letter for letter in normal(name) if letter.isalnum())
