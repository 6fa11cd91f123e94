"""Tables about skin images: who and what they show, and the diagnoses of the ISIC challenges."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from mtl.core.errors import DataError
from mtl.data.formats.tables import image_stem, letters, number_of, read_rows, some

# Names of columns, in lower case and without anything but letters and digits.
IMAGE_COLUMNS = ("image", "imageid", "isicid", "imagename")
ABOUT_COLUMNS = {
    "age": ("ageapproximate", "ageapprox", "age"),
    "sex": ("sex", "gender"),
    "skin_tone": ("fitzpatrick", "skintone", "fitzpatrickskintype"),
    "lesion": ("lesionid",),
    "patient": ("patientid", "subjectid"),
}
NOT_GIVEN = frozenset({"", "unknown", "nan", "none", "null", "na", "n/a", "-1"})
FLAGS = ("melanoma", "seborrheickeratosis")  # neither is a nevus
ONE_HOT = {
    "mel": "melanoma", "nv": "nevus", "bcc": "basal_cell_carcinoma", "akiec": "actinic_keratosis", "ak": "actinic_keratosis",
    "bkl": "benign_keratosis", "df": "dermatofibroma", "vasc": "vascular_lesion", "scc": "squamous_cell_carcinoma",
}  # fmt: skip
UNKNOWN_CLASS = "unk"
Row = tuple[int, str, dict[str, str]]  # line, image and texts by column


def rows_of(table: Path, images: set[str], problems: list[str], notes: list[str]) -> list[Row]:
    """Read the rows of a table that are about an image; none where the table has no column with the image.

    Args:
        table: The file.
        images: Names of the images that are there, in lower case.
        problems: Receives what is wrong.
        notes: Receives what is left out.
    """
    try:
        table_rows = read_rows(table)
    except DataError as error:
        problems.append(str(error))
        return []
    header = [letters(name) for name in table_rows[0][1]] if table_rows else []
    place = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    if place is None:
        found = ", ".join(f"`{name}`" for name in table_rows[0][1][:6]) if table_rows else "nothing"
        notes.append(f"{table}: not read; expected a column {', '.join(IMAGE_COLUMNS)}, found {found}.")
        return []
    rows, gone = [], []
    for line, row in table_rows[1:]:
        values = dict(zip(header, row, strict=False))
        stem = image_stem(row[place] if place < len(row) else "")
        if stem in images:
            rows.append((line, stem, values))
        elif stem:
            gone.append(row[place])
    if gone:
        notes.append(f"{table}: {some(gone)} listed, but there is no such image.")
    return rows


def read_about(rows: list[Row], table: Path, problems: list[str]) -> dict[str, dict[str, str]]:
    """Read age, sex, skin tone and ids by image, where given; arguments as for `rows_of`."""
    about: dict[str, dict[str, str]] = {}
    for line, stem, texts in rows:
        found = {}
        for key, columns in ABOUT_COLUMNS.items():
            text = next((texts[column] for column in columns if column in texts), "")
            if text.casefold() not in NOT_GIVEN:
                found[key] = text
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
