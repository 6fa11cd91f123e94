"""Tables about skin images: who and what they show, and the diagnoses of the ISIC challenges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from mtl.core.errors import DataError
from mtl.core.names import normal
from mtl.data.formats.tables import ImageNames, letters, number_of, read_rows, some, without_zeros

# Names of columns, as `mtl.data.formats.tables.letters` leaves them.
IMAGE_COLUMNS = (
    "image", "imageid", "isicid", "imagename", "filename", "file", "imagefile", "imagefilename", "filepath", "imagepath",
    "path", "img", "imgid", "imgname",
)  # fmt: skip
ABOUT_COLUMNS: dict[str, tuple[str, ...]] = {
    "age": ("ageapproximate", "ageapprox", "age"),
    "sex": ("sex", "gender"),
    "skin_tone": ("fitzpatrick", "skintone", "fitzpatrickskintype"),
    "lesion": ("lesionid", "lesionnumber"),
    "patient": (
        "patientid",
        "subjectid",
        "patient",
        "subject",
        "person",
        "personid",
        "participant",
        "participantid",
        "patientnumber",
    ),
}
NOT_GIVEN = frozenset({"", "unknown", "nan", "none", "null", "na", "n/a", "-1"})
FLAGS = ("melanoma", "seborrheickeratosis")  # neither is a nevus
ONE_HOT = {
    "mel": "melanoma", "nv": "nevus", "bcc": "basal_cell_carcinoma", "akiec": "actinic_keratosis", "ak": "actinic_keratosis",
    "bkl": "benign_keratosis", "df": "dermatofibroma", "vasc": "vascular_lesion", "scc": "squamous_cell_carcinoma",
}  # fmt: skip
UNKNOWN_CLASS = "unk"


@dataclass(frozen=True)
class ImageTable:
    """A table about images.

    Attributes:
        path: The file.
        columns: Their names, as `mtl.data.formats.tables.letters` leaves them; none where the file names no images.
        rows: Line, image and texts by column of each row about an image that is there.
        gone: Names of images that are not there.
    """

    path: Path
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class Ids:
    """Ids of patients and lesions in one spelling: what differs in case, leading zeros or a `.0` behind a number is one.

    Spreadsheets change ids in these ways, and people that are one by mistake are no harm to a split.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}
        self._others: dict[str, str] = {}  # spelling that was replaced, and by which

    def spelled(self, unit: str, text: str) -> str:
        """Return an id of a unit (`patient`, `lesion`) as it was spelled first."""
        first = self._first.setdefault((unit, without_zeros(normal(text))), text)
        if first != text:
            self._others[text] = first
        return first

    def notes(self, where: Path) -> list[str]:
        """Return a note about ids that were spelled in several ways, if there were any."""
        if not self._others:
            return []
        text, first = next(iter(self._others.items()))
        return [
            f"{where}: {len(self._others)} ids differ from another one only in case, leading zeros or `.0` (first: `{text}` "
            f"and `{first}`); they count as the same."
        ]


def read_table(path: Path, images: Collection[str], problems: list[str], notes: list[str], needed: bool = False) -> ImageTable:
    """Read a table about images; it has neither columns nor rows where there is no column with the image.

    Args:
        path: The file.
        images: Names of the images that are there, in normal form.
        problems: Receives what is wrong.
        notes: Receives what is left out.
        needed: The table has to be about these images: it is a problem if it has no such column, or no such row.
    """
    try:
        table_rows = read_rows(path)
    except DataError as error:
        problems.append(str(error))
        return ImageTable(path)
    header = [letters(name) for name in table_rows[0][1]] if table_rows else []
    place = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    if place is None:
        shown = ", ".join(f"`{name}`" for name in table_rows[0][1][:6]) if table_rows else "nothing"
        expected = f"expected a column {', '.join(IMAGE_COLUMNS[:4])} or alike, found {shown}"
        (problems if needed else notes).append(f"{path}: not read; {expected}.{' Rename one.' if needed else ''}")
        return ImageTable(path)
    wanted = {header[place], *(name for names in ABOUT_COLUMNS.values() for name in names)}
    if twice := [name for name in header if name in wanted and header.count(name) > 1]:
        problems.append(f"{path}: has several columns `{twice[0]}`. Remove or rename one of them.")
        return ImageTable(path)
    table, names = ImageTable(path, header), ImageNames(images)
    for line, row in table_rows[1:]:
        if any(row[len(header) :]):
            problems.append(
                f"{path}:{line}: has more values than there are columns, {len(header)}. Put texts with separators in quotes."
            )
            continue
        name = row[place] if place < len(row) else ""
        stem = names.find(name) if name else None
        if stem is not None:
            table.rows.append((line, stem, dict(zip(header, row, strict=False))))
        elif name:
            table.gone.append(name)
    if table.gone and not table.rows and needed:
        problems.append(without_images(table))
    elif table.gone:
        count = len(table.gone) + len(table.rows)
        notes.append(f"{path}: {some(table.gone)} of {count} rows listed, but there is no such image.")
    notes += names.note(path)
    return table


def without_images(table: ImageTable) -> str:
    """Return what is wrong with a table all of whose rows are about images that are not there."""
    first = table.gone[0]
    return (
        f"{table.path}: none of its {len(table.gone)} rows names an image that is there (first: `{first}`). Correct the names."
    )


def read_about(table: ImageTable, ids: Ids, problems: list[str], needed: bool = False) -> dict[str, dict[str, str]]:
    """Read age, sex, skin tone and ids by image, where given; arguments as for `read_table`, `ids` gives ids one spelling."""
    about: dict[str, dict[str, str]] = {}
    known = {name for names in ABOUT_COLUMNS.values() for name in names}
    if needed and table.rows and not known & set(table.columns):
        expected, found = ", ".join(names[0] for names in ABOUT_COLUMNS.values()), ", ".join(table.columns)
        problems.append(f"{table.path}: no column can be used; expected some of {expected} or alike, found {found}.")
        return {}
    for line, stem, texts in table.rows:
        values = {}
        for key, columns in ABOUT_COLUMNS.items():
            text = next((texts[column] for column in columns if column in texts), "")
            if normal(text) not in NOT_GIVEN:
                values[key] = ids.spelled(key, text) if key in ("patient", "lesion") else text
        age = number_of(values.get("age", "0"))
        if age is None or not 0 <= age < 130:
            problems.append(f"{table.path}:{line}: expected an age in years, found `{values['age']}`. Correct the file.")
            continue
        if about.setdefault(stem, values) != values:
            problems.append(f"{table.path}:{line}: `{stem}` was listed before with other values. Remove one of them.")
    return about


def diagnosis_columns(columns: Collection[str]) -> dict[str, list[str]]:
    """Return what columns mean: two flags and `neither`, or one column per class; nothing where there are no such columns."""
    one_hot = [column for column in ONE_HOT if column in columns]
    if set(FLAGS) <= set(columns):
        return {FLAGS[0]: ["melanoma"], FLAGS[1]: ["seborrheic_keratosis"], "neither": ["nv", "nevus"]}
    return {column: [column, ONE_HOT[column]] for column in one_hot} if len(one_hot) > 1 else {}


def read_diagnoses(table: ImageTable, names: tuple[str, ...], attribute: str, problems: list[str]) -> dict[str, int]:
    """Read class indices by image from a table with `diagnosis_columns`.

    Args:
        table: The table.
        names: The classes.
        attribute: What they are classes of.
        problems: Receives what is wrong.
    """
    meaning = diagnosis_columns(table.columns)
    found: dict[str, int] = {}
    unnamed: dict[str, int] = defaultdict(int)
    for line, stem, texts in table.rows:
        values = {column: number_of(texts.get(column, "")) for column in meaning if column != "neither"}
        marked = [column for column, value in values.items() if value == 1]
        if not set(values.values()) <= {0.0, 1.0} or len(marked) > 1:
            shown = ", ".join(f"{column} {texts.get(column, '') or 'nothing'}" for column in values)
            problems.append(f"{table.path}:{line}: expected zeros and at most one 1, found {shown}. Correct the file.")
            continue
        if not marked and "neither" not in meaning:
            if number_of(texts.get(UNKNOWN_CLASS, "")) != 1:
                problems.append(f"{table.path}:{line}: marks no class for `{stem}`. Correct the file.")
            continue
        column = marked[0] if marked else "neither"
        index = next((index for index, name in enumerate(names) if letters(name) in map(letters, meaning[column])), None)
        if index is None:
            unnamed[meaning[column][-1]] += 1
        elif found.setdefault(stem, index) != index:
            problems.append(f"{table.path}:{line}: `{stem}` was listed before with another class. Remove one of the rows.")
    for name, count in unnamed.items():
        problems.append(
            f"{table.path}: {count} images are {name}, but data.attributes.{attribute} is {', '.join(names)}. Add {name} to "
            "it, or remove these images."
        )
    return found
