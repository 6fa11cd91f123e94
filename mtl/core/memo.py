"""What was found out about the files of a data set, kept for the next run: hashes, and which files are copies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl.core.files import write_text

FORMAT = 1


class Memo:
    """Remembers answers about files as long as these keep their size and modification time.

    Its file is read whole and written whole (beside, then renamed), so that runs may start at the same time: at worst one of
    them answers a question again. A damaged or foreign file counts as empty, and one that cannot be written is done without.

    Args:
        folder: Where the file lies, beside the image cache; None remembers within this process only.
        root: Folder of the data set; files are named relative to it, and each root has a memo of its own.
    """

    def __init__(self, folder: Path | None, root: Path) -> None:
        self._root = root
        name = f"files_{_digest([str(root.resolve())])[:20]}.json"
        self.path = None if folder is None else folder / name
        self._entries: dict[str, Any] | None = None
        self._new: dict[str, Any] = {}

    def recall(self, question: str, files: Sequence[str | Path]) -> Any:
        """Return the answer to a question about files; None where there is none or a file has changed.

        Args:
            question: What was asked, with every setting that the answer depends on.
            files: What it was asked about, in this order.

        Raises:
            OSError: A file does not exist.
        """
        entry = self._known().get(self._key(question, files))
        if not isinstance(entry, dict) or entry.get("state") != _state(files):
            return None
        return entry.get("answer")

    def keep(self, question: str, files: Sequence[str | Path], answer: Any) -> None:
        """Remember an answer of plain values; `save` writes it."""
        entry = {self._key(question, files): {"state": _state(files), "answer": answer}}
        self._known().update(entry)
        self._new |= entry

    def save(self) -> None:
        """Write what is new, together with what other processes have written meanwhile."""
        if self.path is None or not self._new:
            return
        with contextlib.suppress(OSError):  # only a convenience: without it the next run asks again
            write_text(self.path, json.dumps({"format": FORMAT, "entries": {**self._read(), **self._new}}))
        self._new = {}

    def _known(self) -> dict[str, Any]:
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        entries = content.get("entries") if isinstance(content, dict) and content.get("format") == FORMAT else None
        return entries if isinstance(entries, dict) else {}

    def _key(self, question: str, files: Sequence[str | Path]) -> str:
        names = [os.path.relpath(file, self._root) for file in files]
        return f"{question}: {names[0] if len(names) == 1 else _digest(names)}"


def _state(files: Sequence[str | Path]) -> str:
    """Return what changes when one of the files changes."""
    statuses = [Path(file).stat() for file in files]
    states = [f"{status.st_size} {status.st_mtime_ns}" for status in statuses]
    return states[0] if len(states) == 1 else _digest(states)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
