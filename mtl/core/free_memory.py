"""How much memory this machine, and what limits this process, have left. Linux only; elsewhere nothing is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mtl.core.control_groups import ROOT, UNIFIED, control_groups

# By version of the hierarchy: file of the limit, file of what is used, and what of that can be given back at once.
FILES = {
    UNIFIED: ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still take: what is free on the machine, and in every control group around it.

    Args:
        root: Where `proc` and `sys` are.
    """
    found = [*_machine(root), *_groups(root)]
    return min(found) if found else None


def _machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        yield _fields(root / "proc/meminfo")["MemAvailable:"] * 1024


def _groups(root: Path) -> Iterator[int]:
    for version, group in control_groups("memory", root):
        limit, used, spare = FILES[version]
        with suppress(OSError, ValueError):  # no limit (`max`), or no such group
            free = int((group / limit).read_text()) - int((group / used).read_text())
            yield max(0, free + _spare(group / "memory.stat", spare))


def _spare(file: Path, key: str) -> int:
    with suppress(OSError, ValueError):
        return _fields(file).get(key, 0)
    return 0


def _fields(file: Path) -> dict[str, int]:
    rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
