"""The directories of a TIFF file (classic or BigTIFF): what its pictures are, read without any pixel and without a library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MOST = 256  # directories that are looked at
MOST_TAGS = 4096  # of a directory; more is no TIFF
# Numbers of tags.
KIND, OLD_KIND, WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION = 254, 255, 256, 257, 258, 262, 274
COLOUR_MAP, TILE_WIDTH, SUB_DIRECTORIES, NUMBERS = 320, 322, 330, 339
REDUCED, OLD_REDUCED = 1, 2  # a bit of KIND, a value of OLD_KIND
NUMBERS_KEPT = (KIND, OLD_KIND, WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, COLOUR_MAP, SUB_DIRECTORIES, NUMBERS)
FORMS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of values that are whole numbers, by the code of their type
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of NUMBERS


@dataclass(frozen=True)
class Directory:
    """One picture of a file.

    Attributes:
        tags: Numbers of all its tags.
        values: By tag, the whole numbers of those in `NUMBERS_KEPT`.
    """

    tags: frozenset[int]
    values: dict[int, tuple[int, ...]]

    def first(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return (self.values.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.first(HEIGHT, 0), self.first(WIDTH, 0)

    @property
    def bits(self) -> int:
        """Bits of the deepest channel."""
        return max(self.values.get(BITS) or (1,))

    @property
    def is_tiled(self) -> bool:
        """Whether it is stored in tiles."""
        return TILE_WIDTH in self.tags

    @property
    def is_reduced(self) -> bool:
        """Whether it says of itself that it is a smaller copy of another picture of the file."""
        return bool(self.first(KIND, 0) & REDUCED) or self.first(OLD_KIND, 0) == OLD_REDUCED


def read_directories(path: Path) -> list[Directory]:
    """Return the directories of a file, those inside others included; empty for a file that is no TIFF.

    Raises:
        OSError: The file cannot be read.
        ValueError: It ends early.
    """
    try:
        with path.open("rb") as file:
            return list(_directories(file))
    except (struct.error, OverflowError) as error:  # a damaged file can name any place
        raise ValueError("its directory ends early") from error


def _directories(file: BinaryIO) -> Iterator[Directory]:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    place, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    width = struct.calcsize(place)
    coming, seen = [struct.unpack_from(order + place, head, width)[0]], {0}
    while coming and len(seen) <= MOST:
        at = coming.pop(0)
        if at in seen:
            continue
        seen.add(at)
        file.seek(at)
        count = struct.unpack(order + number, file.read(struct.calcsize(number)))[0]
        if count > MOST_TAGS:
            return
        table = file.read(count * entry)
        following = struct.unpack(order + place, file.read(width))
        tags, values = set(), {}
        for start in range(0, len(table) - entry + 1, entry):
            tag, kind, length = struct.unpack_from(order + "HH" + place, table, start)
            tags.add(tag)
            if tag in NUMBERS_KEPT and kind in FORMS and 0 < length <= 2**16:
                values[tag] = _numbers(file, order, FORMS[kind], length, table[start + entry - width : start + entry], place)
        coming += [*following, *values.get(SUB_DIRECTORIES, ())[:MOST]]
        yield Directory(frozenset(tags), values)


def _numbers(file: BinaryIO, order: str, form: str, length: int, inline: bytes, place: str) -> tuple[int, ...]:
    """Return the values of a tag, which stand in its entry where they fit, else where that says."""
    needed = struct.calcsize(order + form * length)
    if needed > len(inline):
        file.seek(struct.unpack(order + place, inline)[0])
        inline = file.read(needed)
    return struct.unpack_from(order + form * length, inline)
