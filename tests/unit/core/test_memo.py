"""Answers about files are remembered as long as the files stay as they are, and nothing wrong is ever remembered."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from mtl.core.memo import Memo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def files(root: Path) -> list[Path]:
    return [root / "a", root / "b"]


def ask(memo: Memo, question: str, paths: list[Path], answer: Any = None) -> Any:
    """Ask, and save; without an answer, a question that nobody has answered yet gives None and leaves nothing."""
    if answer is None:
        memo = copy.deepcopy(memo)
    found = memo.answer(question, paths, lambda: answer, lambda value: value is not None)
    if answer is not None:
        memo.write()
    return found


def test_the_next_run_knows_what_was_saved(root: Path, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "cache", root)
    assert memo.answer("alike", files(root), lambda: [0, 1], bool) == [0, 1]
    assert memo.answer("alike", files(root), lambda: [0, 0], bool) == [0, 1]
    assert ask(Memo(tmp_path / "cache", root), "alike", files(root)) is None, "nothing is written before `save`"
    memo.write()
    ask(memo, "hash", files(root)[:1], "xyz")
    again = Memo(tmp_path / "cache", root)
    assert ask(again, "alike", files(root)) == [0, 1] and ask(again, "hash", files(root)[:1]) == "xyz"
    assert ask(again, "alike, mirrored", files(root)) is None
    assert ask(again, "alike", files(root)[::-1]) is None
    assert again.answer("alike", files(root), lambda: "new", lambda value: value == "other") == "new", "no answer at all"
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json"], "nothing is left beside it"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_makes_its_answers_void(root: Path, tmp_path: Path, change: str) -> None:
    memo = Memo(tmp_path, root)
    ask(memo, "alike", files(root), [0, 0])
    ask(memo, "hash", files(root)[:1], "xyz")
    if change == "size":
        files(root)[1].write_text("longer")
    else:
        os.utime(files(root)[1], ns=(1, 1))
    for known in (memo, Memo(tmp_path, root)):
        assert ask(known, "alike", files(root)) is None and ask(known, "hash", files(root)[:1]) == "xyz"
    files(root)[1].unlink()
    with pytest.raises(FileNotFoundError):
        ask(memo, "alike", files(root))


def test_a_file_that_changes_while_it_is_read_is_read_again(root: Path, tmp_path: Path) -> None:
    memo, path = Memo(tmp_path, root), root / "a"

    def read_while_somebody_writes() -> str:
        content = path.read_text()
        path.write_text("changed")
        return content

    assert memo.answer("content", [path], read_while_somebody_writes, bool) == "a"
    assert memo.answer("content", [path], path.read_text, bool) == "changed"


def test_each_data_folder_has_its_memo_also_through_a_link(root: Path, tmp_path: Path) -> None:
    """Two folders with equal names inside are two data sets, even where sizes and times agree."""
    ask(Memo(tmp_path / "cache", root), "hash", files(root)[:1], "xyz")
    other, link = tmp_path / "other", tmp_path / "link"
    root.rename(other)
    link.symlink_to(other)
    assert ask(Memo(tmp_path / "cache", other), "hash", [other / "a"]) is None
    ask(Memo(tmp_path / "cache", other), "hash", [other / "a"], "new")
    assert ask(Memo(tmp_path / "cache", link), "hash", [link / "a"]) == "new"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format": 1, "entr', b"\xff\xfe", b"[]", b'{"format": 99, "entries": {}}', b'{"format": 1, "entries": [1]}'],
)
def test_a_damaged_memo_counts_as_empty_and_is_replaced(root: Path, tmp_path: Path, content: bytes) -> None:
    memo = Memo(tmp_path, root)
    assert memo.path is not None
    memo.path.write_bytes(content)
    assert ask(memo, "alike", files(root)) is None
    ask(memo, "alike", files(root), [0, 1])
    assert ask(Memo(tmp_path, root), "alike", files(root)) == [0, 1]


def test_runs_that_start_together_keep_each_others_answers(root: Path, tmp_path: Path) -> None:
    first, second = Memo(tmp_path, root), Memo(tmp_path, root)
    for memo, name in ((first, "one"), (second, "two")):
        memo.answer(name, files(root), lambda name=name: name, bool)  # type: ignore[misc]
    first.write()
    second.write()
    known = Memo(tmp_path, root)
    assert [ask(known, name, files(root)) for name in ("one", "two")] == ["one", "two"]


def test_without_a_folder_nothing_is_written(root: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    memo = Memo(None, root)
    ask(memo, "alike", files(root), [0, 1])
    assert ask(memo, "alike", files(root)) == [0, 1] and sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    blocked = Memo(tmp_path / "file", root)  # a folder that cannot be made
    ask(blocked, "alike", files(root), [0, 1])
    assert ask(blocked, "alike", files(root)) == [0, 1]
