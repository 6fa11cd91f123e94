"""Tables and JSON files as data sets bring them: texts without spaces around them, images by their names in normal form."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtl.core.errors import DataError
from mtl.core.family import LostLabels
from mtl.core.json_text import parse_json
from mtl.core.names import normal
from mtl.data.formats.images import IMAGE_SUFFIXES

SEPARATORS = (",", ";", "\t")
QUOTED = re.compile(r'"[^"]*"')
NUMBER = re.compile(r"\d+")


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read line number and texts, stripped, of each row of a CSV file that is not empty.

    What separates the columns is what occurs most often in the first row: comma, semicolon or tab. A line `sep=;` before it, as
    spreadsheets write it, decides.

    Raises:
        DataError: The file cannot be read, is no CSV file, or its first row has two separators equally often.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = file.readlines()
        skipped = next((number for number, line in enumerate(lines) if line.strip(' \t\r\n,;"')), 0)
        declared = re.fullmatch(r"sep=([,;\t])", lines[skipped].strip(" \r\n")) if lines else None
        skipped += declared is not None
        separator = declared[1] if declared else _separator(path, lines[skipped] if lines[skipped:] else "")
        return list(_rows(path, lines, skipped, separator))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV file ({error}). Replace it by the one of the data set.") from error


def _rows(path: Path, lines: list[str], skipped: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader, read = csv.reader(lines[skipped:], delimiter=separator, strict=True), skipped
    try:
        for row in reader:
            read = reader.line_num + skipped
            if any(map(str.strip, row)):
                yield read, [text.strip() for text in row]
    except csv.Error as error:  # without `strict`, all rows behind a quotation mark that is not closed would be one cell
        raise DataError(
            f"{path}:{read + 1}: this row is no CSV ({error}); expected each quotation mark to be closed. Correct the file."
        ) from error


def _separator(path: Path, header: str) -> str:
    """Return what separates the columns of a header; a comma where nothing does.

    Raises:
        DataError: Two of them occur equally often.
    """
    bare = QUOTED.sub("", header)
    (first, most), (second, next_most), *_ = Counter({sign: bare.count(sign) for sign in SEPARATORS}).most_common()
    if most and most == next_most:
        raise DataError(
            f"{path}: the first row has {most} of {first!r} and as many of {second!r}; expected one separator of columns. "
            "Put names that contain the other one in quotes."
        )
    return first if most else SEPARATORS[0]


def read_json(path: Path) -> Any:
    """Parse a JSON file in which no object has a key twice with different values, of which the last would win unseen.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such JSON.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if (content.setdefault(key, value),) != (value,):  # tuples, since NaN alone differs from itself
                raise ValueError(f"`{key}` is there twice with different values")
        return content

    return parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)


def base_name(name: str) -> str:
    """Return the name of a file without its folders, which may be written with slashes or backslashes."""
    return name.replace("\\", "/").rpartition("/")[2].strip()


def image_stem(name: str) -> str:
    """Return the name of an image in its normal form, without folders and the suffix of an image file."""
    base = base_name(name)
    return normal(Path(base).stem if Path(base).suffix.casefold() in IMAGE_SUFFIXES else base)


def without_zeros(name: str) -> str:
    """Return a name without the zeros before its numbers, which spreadsheets leave out, and without `.0` behind a whole one."""
    return NUMBER.sub(lambda found: found[0].lstrip("0") or "0", re.sub(r"^(\d+)\.0+$", r"\1", name))


class ImageNames:
    """Finds images by the names that tables give them.

    Args:
        stems: Of the images that are there, in normal form.

    Attributes:
        loosened: Names by image that only fit without leading zeros, as written.
    """

    def __init__(self, stems: Iterable[str]) -> None:
        self._stems = set(stems)
        self._loose: dict[str, list[str]] = {}
        for stem in self._stems:
            self._loose.setdefault(without_zeros(stem), []).append(stem)
        self.loosened: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """Return the image that a name means: the one of this name, or else the only one but for leading zeros."""
        stem = image_stem(name)
        if stem in self._stems:
            return stem
        alike = self._loose.get(without_zeros(stem), [])
        if len(alike) != 1:
            return None
        self.loosened.setdefault(alike[0], name)
        return alike[0]

    def note(self, where: Path) -> list[str]:
        """Return a note about names that only fitted without leading zeros, if there were any."""
        if not self.loosened:
            return []
        stem, name = next(iter(self.loosened.items()))
        return [
            f"{where}: {len(self.loosened)} names fit an image only without leading zeros (first: `{name}` for `{stem}`); such "
            "zeros were ignored."
        ]


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
