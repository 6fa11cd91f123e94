"""Tables about skin images: who and what they show, and the diagnoses of the ISIC challenges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
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
Row = tuple[int, str, dict[str, str]]  # line, image and texts by column


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


def rows_of(table: Path, images: Collection[str], problems: list[str], notes: list[str], needed: bool = False) -> list[Row]:
    """Read the rows of a table that are about an image; none where the table has no column with the image.

    Args:
        table: The file.
        images: Names of the images that are there, in normal form.
        problems: Receives what is wrong.
        notes: Receives what is left out.
        needed: The table has to be about these images: it is a problem if it has no such column, or no such row.
    """
    try:
        table_rows = read_rows(table)
    except DataError as error:
        problems.append(str(error))
        return []
    header = [letters(name) for name in table_rows[0][1]] if table_rows else []
    place = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    if place is None:
        shown = ", ".join(f"`{name}`" for name in table_rows[0][1][:6]) if table_rows else "nothing"
        expected = f"expected a column {', '.join(IMAGE_COLUMNS[:4])} or alike, found {shown}"
        (problems if needed else notes).append(f"{table}: not read; {expected}.{' Rename one.' if needed else ''}")
        return []
    wanted = {header[place], *(name for names in ABOUT_COLUMNS.values() for name in names)}
    if twice := [name for name in header if name in wanted and header.count(name) > 1]:
        problems.append(f"{table}: has several columns `{twice[0]}`. Remove or rename one of them.")
        return []
    rows, gone, names = [], [], ImageNames(images)
    for line, row in table_rows[1:]:
        if any(row[len(header) :]):
            problems.append(
                f"{table}:{line}: has more values than there are columns, {len(header)}. Put texts with separators in quotes."
            )
            continue
        name = row[place] if place < len(row) else ""
        stem = names.find(name) if name else None
        if stem is not None:
            rows.append((line, stem, dict(zip(header, row, strict=False))))
        elif name:
            gone.append(name)
    if gone and not rows and needed:
        problems.append(
            f"{table}: none of its {len(gone)} rows names an image that is there (first: `{gone[0]}`). Correct the names."
        )
    elif gone:
        notes.append(f"{table}: {some(gone)} of {len(gone) + len(rows)} rows listed, but there is no such image.")
    notes += names.note(table)
    return rows


def read_about(rows: list[Row], table: Path, ids: Ids, problems: list[str], needed: bool = False) -> dict[str, dict[str, str]]:
    """Read age, sex, skin tone and ids by image, where given; arguments as for `rows_of`, `ids` gives ids one spelling."""
    about: dict[str, dict[str, str]] = {}
    known = {name for names in ABOUT_COLUMNS.values() for name in names}
    if needed and rows and not known & set(rows[0][2]):
        expected = ", ".join(names[0] for names in ABOUT_COLUMNS.values())
        problems.append(f"{table}: no column can be used; expected some of {expected} or alike, found {', '.join(rows[0][2])}.")
        return {}
    for line, stem, texts in rows:
        found = {}
        for key, columns in ABOUT_COLUMNS.items():
            text = next((texts[column] for column in columns if column in texts), "")
            if normal(text) not in NOT_GIVEN:
                found[key] = ids.spelled(key, text) if key in ("patient", "lesion") else text
        age = number_of(found.get("age", "0"))
        if age is None or not 0 <= age < 130:
            problems.append(f"{table}:{line}: expected an age in years, found `{found['age']}`. Correct the file.")
            continue
        if about.setdefault(stem, found) != found:
            problems.append(f"{table}:{line}: `{stem}` was listed before with other values. Remove one of them.")
    return about


def read_diagnoses(rows: list[Row], table: Path, names: tuple[str, ...], attribute: str, problems: list[str]) -> dict[str, int]:
    """Read class indices from two flags or from one column per class; nothing where the table has neither.

    Args:
        rows: From `rows_of`.
        table: The file.
        names: The classes.
        attribute: What they are classes of.
        problems: Receives what is wrong.
    """
    columns = set(rows[0][2]) if rows else set()
    one_hot = [column for column in ONE_HOT if column in columns]
    if set(FLAGS) <= columns:
        meaning = {FLAGS[0]: ["melanoma"], FLAGS[1]: ["seborrheic_keratosis"], "neither": ["nv", "nevus"]}
    elif len(one_hot) > 1:
        meaning = {column: [column, ONE_HOT[column]] for column in one_hot}
    else:
        return {}
    found: dict[str, int] = {}
    unnamed: dict[str, int] = defaultdict(int)
    for line, stem, texts in rows:
        values = {column: number_of(texts.get(column, "")) for column in meaning if column != "neither"}
        marked = [column for column, value in values.items() if value == 1]
        if not set(values.values()) <= {0.0, 1.0} or len(marked) > 1:
            shown = ", ".join(f"{column} {texts.get(column, '') or 'nothing'}" for column in values)
            problems.append(f"{table}:{line}: expected zeros and at most one 1, found {shown}. Correct the file.")
            continue
        if not marked and "neither" not in meaning:
            if number_of(texts.get(UNKNOWN_CLASS, "")) != 1:
                problems.append(f"{table}:{line}: marks no class for `{stem}`. Correct the file.")
            continue
        column = marked[0] if marked else "neither"
        index = next((index for index, name in enumerate(names) if letters(name) in map(letters, meaning[column])), None)
        if index is None:
            unnamed[meaning[column][-1]] += 1
        elif found.setdefault(stem, index) != index:
            problems.append(f"{table}:{line}: `{stem}` was listed before with another class. Remove one of the rows.")
    for name, count in unnamed.items():
        problems.append(
            f"{table}: {count} images are {name}, but data.attributes.{attribute} is {', '.join(names)}. Add {name} to it, or "
            "remove these images."
        )
    return found
