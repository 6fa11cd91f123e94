"""Equal causes are one line: a wrong list of classes must not fill the screen."""

from __future__ import annotations

from mtl.core.causes import by_cause, listed_errors


def test_one_cause_in_many_files_or_entries_is_one_line() -> None:
    wrong = [
        f"/d/labels.json: `ISIC_{i}.jpg`: diagnosis {i % 2 + 2} is out of range; expected 0 to 1 (a, b)." for i in range(42)
    ]
    broken = [f"/d/{name}.jpg: cannot be decoded (truncated)." for name in "xyz"]
    lines = [f"/d/t.txt:{i}: ({i}, 9.5) lies outside the image of 4 x 3 pixels." for i in (3, 7)]
    assert by_cause([*wrong, broken[0], *lines, *broken]) == [
        "42 times, first /d/labels.json: `ISIC_0.jpg`: diagnosis 2 is out of range; expected 0 to 1 (a, b).",
        "3 files, first /d/x.jpg: cannot be decoded (truncated).",
        "2 times, first /d/t.txt:3: (3, 9.5) lies outside the image of 4 x 3 pixels.",
    ]


def test_different_causes_and_sentences_without_a_place_stay() -> None:
    notes = [
        "/d/a.json: unknown class `x`.",
        "/d/b.json: unknown class `y`.",
        "Class c1 is not there.",
        "Class c2 is not there.",
    ]
    assert by_cause([*notes, *notes]) == notes


def test_numbers_of_notes_are_not_lost() -> None:
    notes = ["/d/a.txt: 3 rows repeat a cell.", "/d/b.txt: 700 rows repeat a cell.", "/d/c.txt: 3 rows repeat a cell."]
    assert by_cause(notes, numbers=False) == ["2 files, first /d/a.txt: 3 rows repeat a cell.", notes[1]]


def test_a_message_counts_errors_and_lists_causes() -> None:
    problems = [f"/d/{number}.json: unknown class `{name}`." for name in "abcdefg" for number in range(3)]
    text = str(listed_errors("below `/d`", problems, "Correct them."))
    assert text.splitlines()[0] == "21 errors below `/d`:" and len(text.splitlines()) == 7
    assert text.splitlines()[1] == "3 files, first /d/0.json: unknown class `a`."
    assert text.splitlines()[-1] == "and 2 more. Correct them."
