"""A flipped bit is noticed, wherever it is."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest

from mtl.core.digest import COMMENT_BYTES, append_digest, archive_damage, has_digest, with_digest, without_digest


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data", bytes(range(200)))
        file.writestr("a/more", b"more")
    return path


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_an_archive_with_a_digest_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    append_digest(path)
    content = path.read_bytes()
    assert has_digest(path) and archive_damage(path) is None
    in_the_mark = range(8 * (len(content) - COMMENT_BYTES), 8 * len(content))
    for bit in [*random.Random(1).sample(range(8 * len(content)), 150), *in_the_mark]:
        path.write_bytes(flipped(content, bit))
        assert archive_damage(path), bit
    with zipfile.ZipFile(archive(tmp_path / "a.zip")) as whole:  # one of another program is held against its own sums
        start = whole.infolist()[0].header_offset + 30 + len("a/data")
    content = path.read_bytes()
    assert archive_damage(path) is None and not has_digest(path)
    path.write_bytes(flipped(content, 8 * start + 77))
    assert archive_damage(path) == "the sum of `a/data` in it is another"


def test_a_digest_is_added_once_and_to_archives_only(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    append_digest(path)
    (tmp_path / "text").write_bytes(b"no archive, but longer than the record at the end of one")
    for wrong in (path, tmp_path / "text"):
        with pytest.raises(ValueError, match="no zip archive without a comment"):
            append_digest(wrong)
    assert archive_damage(tmp_path / "text") is None  # what it is, is for the reader to say


@pytest.mark.parametrize("indent", [None, 2])
def test_an_edited_json_text_is_noticed(indent: int | None) -> None:
    text = json.dumps({"first": 1.5, "second": ["ä", None]}, indent=indent, ensure_ascii=False)
    stored = with_digest(text)
    assert without_digest(stored) == text and without_digest(text) == text
    assert list(json.loads(stored)) == ["digest", "first", "second"]
    assert without_digest(stored.replace("1.5", "1.4")) is None
