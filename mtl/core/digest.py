"""Digests by which a file that changed on the disk is noticed when it is read.

A checkpoint is a zip archive whose parts carry sums that `torch.load` never looks at, so that a flipped bit becomes another
weight. Its digest is the comment of the archive: one file, which links and copies take along and other programs skip. A JSON
file has its digest as first key.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

MARK = b"mtl sha256 "
COMMENT_BYTES = len(MARK) + 64
END_OF_ARCHIVE, END_BYTES = b"PK\x05\x06", 22
IN_JSON = re.compile(r'\{"digest": "([0-9a-f]{64})",')


def append_digest(path: Path) -> None:
    """Add the digest of everything in a zip archive as its comment.

    Raises:
        ValueError: The file is no archive, or has a comment.
    """
    with path.open("rb+") as file:
        file.seek(-END_BYTES, 2)
        end = file.read()
        if not end.startswith(END_OF_ARCHIVE) or end[-2:] != b"\0\0":
            raise ValueError(f"{path} is no zip archive without a comment")
        file.seek(-2, 2)
        file.write(COMMENT_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, 2)
        file.write(MARK + digest.encode())


def has_digest(path: Path) -> bool:
    """Return whether an archive carries a digest."""
    with path.open("rb") as file:
        return _digest_at_the_end(file) is not None


def archive_damage(path: Path) -> str | None:
    """Return how an archive differs from what was written; None where it does not, and of files that are no archives.

    An archive without a digest, of an earlier release or another program, is held against the sums of its parts.
    """
    with path.open("rb") as file:
        expected = _digest_at_the_end(file)
        if expected is not None:
            file.seek(0)
            return None if _sha256(file, path.stat().st_size - COMMENT_BYTES) == expected else "its sha256 is another"
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is None and len(archive.comment) == COMMENT_BYTES:
                return "its digest cannot be read"
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        return str(error) or "its archive is broken"
    return None if broken is None else f"the sum of `{broken}` in it is another"


def _digest_at_the_end(file: BinaryIO) -> str | None:
    if file.seek(0, 2) < COMMENT_BYTES:
        return None
    file.seek(-COMMENT_BYTES, 2)
    comment = file.read()
    return comment[len(MARK) :].decode("latin-1") if comment.startswith(MARK) else None


def _sha256(file: BinaryIO, count: int) -> str:
    found, left = hashlib.sha256(), count
    while left > 0 and (block := file.read(min(left, 2**20))):
        found.update(block)
        left -= len(block)
    return found.hexdigest()


def with_digest(text: str) -> str:
    """Return the text of a JSON object with its digest as first key."""
    return f'{{"digest": "{_of_text(text)}",{text[1:]}'


def without_digest(text: str) -> str | None:
    """Return the text that `with_digest` was given, None where it was changed; a text without a digest is returned as it is."""
    found = IN_JSON.match(text)
    if found is None:
        return text
    inner = "{" + text[found.end() :]
    return inner if _of_text(inner) == found[1] else None


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
