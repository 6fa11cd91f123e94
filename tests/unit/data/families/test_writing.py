"""What generators may replace: only what carries their mark, and nothing that was added to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl.core.errors import DataError
from mtl.data.families.writing import MARK, new_folder


def generate(output: Path, text: str = "one", overwrite: bool = True) -> None:
    with new_folder(output, overwrite) as folder:
        (folder / "Point Set" / "Img").mkdir(parents=True)
        (folder / "Point Set" / "Img" / "a.jpg").write_text(text)
        (folder / "labels.json").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_generated_folder_is_replaced_whole(tmp_path: Path) -> None:
    generate(tmp_path / "out", "one")
    (tmp_path / "out" / ".DS_Store").write_text("of a file manager")
    generate(tmp_path / "out", "two")
    assert {name: text for name, text in contents(tmp_path / "out").items() if name != MARK} == {
        "Point Set/Img/a.jpg": "two", "labels.json": "two",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_real_data_set_of_the_same_layout_is_kept(tmp_path: Path) -> None:
    generate(tmp_path / "real")
    (tmp_path / "real" / MARK).unlink()
    before = contents(tmp_path / "real")
    with pytest.raises(DataError, match=r"was not made by this command.*`Point Set/Img/a\.jpg`.*remove it by hand"):
        generate(tmp_path / "real", "two")
    (tmp_path / "real" / MARK).write_text("[]")  # of something else
    with pytest.raises(DataError, match="was not made by this command"):
        generate(tmp_path / "real", "two")
    assert contents(tmp_path / "real") == {**before, MARK: "[]"}


@pytest.mark.parametrize("name", ["notes.txt", "Point Set/Img/mine.jpg", "Point Set/.mine", "labels.json"])
def test_what_was_added_or_changed_is_kept(tmp_path: Path, name: str) -> None:
    generate(tmp_path / "out")
    (tmp_path / "out" / name).write_text("years of work")
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=f"`{name}`, added or changed"):
        generate(tmp_path / "out", "two")
    assert contents(tmp_path / "out") == before


def test_links_are_neither_followed_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "mine.jpg").write_text("years of work")
    generate(tmp_path / "out")
    (tmp_path / "out" / "Point Set" / "more").symlink_to(tmp_path / "photographs")
    with pytest.raises(DataError, match="`Point Set/more`, added"):
        generate(tmp_path / "out", "two")
    (tmp_path / "out" / "Point Set" / "more").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    generate(tmp_path / "link", "two")  # what it leads to was generated
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "out")["labels.json"] == "two"
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="leads nowhere"):
        generate(tmp_path / "broken")


def test_folders_without_a_file_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "Point Set").mkdir(parents=True)
    with pytest.raises(DataError, match="exists already"):
        generate(tmp_path / "out", overwrite=False)
    generate(tmp_path / "out")
    assert (tmp_path / "out" / "labels.json").is_file()
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(DataError, match="was not made by this command"):
        generate(tmp_path / "file")


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    generate(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", overwrite=True):
        _ = 1 / 0
    assert contents(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]
