"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mtl.core.files import (
    PARTIAL,
    beside,
    link_or_copy,
    list_files,
    partial_beside,
    remove_stale,
    table_text,
    write_table,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def own_partial(path: Path) -> Path:
    return partial_beside(path)


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")
    with pytest.raises(KeyboardInterrupt), beside(path) as partial:
        partial.write_text("sec")
        assert names(path.parent) == [partial.name, "file.txt"]
        raise KeyboardInterrupt
    assert path.read_text() == "first" and names(path.parent) == ["file.txt"]


def test_what_the_disk_did_not_take_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "first")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "second")
    assert path.read_text() == "first" and names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    last, best = tmp_path / "last", tmp_path / "best"
    write_text(last, "old")
    link_or_copy(last, best)
    own_partial(best).hardlink_to(best)  # what a killed process left must not be written through
    if not links:
        monkeypatch.setattr(os, "link", refused)
    write_text(last, "new")
    assert best.read_text() == "old"
    with best.open() as open_before:
        link_or_copy(last, best)
        assert best.read_text() == "new" and open_before.read() == "old"
    assert names(tmp_path) == ["best", "last"]


def test_only_files_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / PARTIAL.format(name=name, process=999999999)).write_text("killed")
        own_partial(tmp_path / name).write_text("running")
    remove_stale(tmp_path / "a.csv")
    assert len(names(tmp_path)) == 3
    remove_stale(tmp_path / "*")
    assert names(tmp_path) == [own_partial(tmp_path / name).name for name in ("a.csv", "b.csv")]


def test_what_a_later_process_with_the_same_number_did_not_write_is_removed(tmp_path: Path) -> None:
    mine, old, elsewhere, abandoned = (own_partial(tmp_path / name) for name in ("a[1].csv", "b", "c", "d"))
    elsewhere, abandoned = (path.with_name(f".{path.name[1]}.other_host-1.partial") for path in (elsewhere, abandoned))
    for path in (mine, old, elsewhere, abandoned):
        path.write_text("unfinished")
    for path in (old, abandoned):
        os.utime(path, (10**9, 10**9))  # long before this process began
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".x.999999999.partial").mkdir()
    remove_stale(tmp_path / "*")
    assert names(tmp_path) == sorted([mine.name, elsewhere.name, "below"]) and names(tmp_path / "below") != []
    remove_stale(tmp_path / "*", below=True)
    assert names(tmp_path / "below") == []


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".json")  # 245 bytes
    write_text(path, "whole")
    own_partial(path).with_name(f"{own_partial(path).name.rsplit('.', 2)[0]}.999999999.partial").write_text("killed")
    remove_stale(path)
    assert names(tmp_path) == [path.name]


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*file.txt'"), beside(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/below/deep.txt'|file/below'"):
        write_text(tmp_path / "file" / "below" / "deep.txt", "")


def test_a_table_keeps_every_column(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": 'x,"y"'}, {"b": "z"}]
    write_table(tmp_path / "t.csv", rows, ("a", "b"))
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,"x,""y"""\n,z\n'
    with pytest.raises(ValueError, match="c"):
        table_text([{"c": 1}], ("a", "b"))


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("data/a.png", "data/deep/b.png", "data/.hidden.png", "elsewhere/c.png"):
        (tmp_path / path).touch()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "deep" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    found = list_files(tmp_path / "data")
    assert [path.relative_to(tmp_path / "data").as_posix() for path in found.files] == ["a.png", "deep/b.png", "linked/c.png"]
    assert [path.name for path in found.unread] == ["gone.png", "pipe.png"]
    assert list_files(tmp_path / "data", below=False).files == [tmp_path / "data" / "a.png"]
