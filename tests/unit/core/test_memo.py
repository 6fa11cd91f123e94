"""Answers about files are remembered as long as the files stay as they are, and nothing wrong is ever remembered."""

from __future__ import annotations

import os
from pathlib import Path

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


def test_the_next_run_knows_what_was_saved(root: Path, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "cache", root)
    assert memo.recall("alike", files(root)) is None
    memo.keep("alike", files(root), [0, 1])
    memo.keep("hash", files(root)[:1], "xyz")
    assert memo.recall("alike", files(root)) == [0, 1]
    assert Memo(tmp_path / "cache", root).recall("alike", files(root)) is None, "nothing is written before `save`"
    memo.save()
    again = Memo(tmp_path / "cache", root)
    assert again.recall("alike", files(root)) == [0, 1] and again.recall("hash", files(root)[:1]) == "xyz"
    assert again.recall("alike, mirrored", files(root)) is None
    assert again.recall("alike", files(root)[::-1]) is None
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json"], "nothing is left beside it"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_makes_its_answers_void(root: Path, tmp_path: Path, change: str) -> None:
    memo = Memo(tmp_path, root)
    memo.keep("alike", files(root), [0, 0])
    memo.keep("hash", files(root)[:1], "xyz")
    memo.save()
    if change == "size":
        files(root)[1].write_text("longer")
    else:
        os.utime(files(root)[1], ns=(1, 1))
    for known in (memo, Memo(tmp_path, root)):
        assert known.recall("alike", files(root)) is None and known.recall("hash", files(root)[:1]) == "xyz"
    files(root)[1].unlink()
    with pytest.raises(FileNotFoundError):
        memo.recall("alike", files(root))


def test_each_data_folder_has_its_memo_also_through_a_link(root: Path, tmp_path: Path) -> None:
    """Two folders with equal names inside are two data sets, even where sizes and times agree."""
    memo = Memo(tmp_path / "cache", root)
    memo.keep("hash", files(root)[:1], "xyz")
    memo.save()
    other = tmp_path / "other"
    root.rename(other)
    root.symlink_to(other)
    assert Memo(tmp_path / "cache", other).recall("hash", [other / "a"]) is None
    twin = tmp_path / "twin"
    twin.symlink_to(other)
    memo = Memo(tmp_path / "cache", other)
    memo.keep("hash", [other / "a"], "new")
    memo.save()
    assert Memo(tmp_path / "cache", twin).recall("hash", [twin / "a"]) == "new"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format": 1, "entr', b"\xff\xfe", b"[]", b'{"format": 99, "entries": {}}', b'{"format": 1, "entries": [1]}'],
)
def test_a_damaged_memo_counts_as_empty_and_is_replaced(root: Path, tmp_path: Path, content: bytes) -> None:
    memo = Memo(tmp_path, root)
    assert memo.path is not None
    memo.path.write_bytes(content)
    assert memo.recall("alike", files(root)) is None
    memo.keep("alike", files(root), [0, 1])
    memo.save()
    assert Memo(tmp_path, root).recall("alike", files(root)) == [0, 1]


def test_runs_that_start_together_keep_each_others_answers(root: Path, tmp_path: Path) -> None:
    first, second = Memo(tmp_path, root), Memo(tmp_path, root)
    for memo, name in ((first, "one"), (second, "two")):
        assert memo.recall(name, files(root)) is None
        memo.keep(name, files(root), name)
    first.save()
    second.save()
    known = Memo(tmp_path, root)
    assert [known.recall(name, files(root)) for name in ("one", "two")] == ["one", "two"]


def test_without_a_folder_nothing_is_written(root: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    memo = Memo(None, root)
    memo.keep("alike", files(root), [0, 1])
    memo.save()
    assert memo.recall("alike", files(root)) == [0, 1] and sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    blocked = Memo(tmp_path / "file", root)  # a folder that cannot be made
    blocked.keep("alike", files(root), [0, 1])
    blocked.save()
    assert blocked.recall("alike", files(root)) == [0, 1]
