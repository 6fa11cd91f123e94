"""What was found out about the files of a data set, kept for the next run: hashes, and which files are copies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtl.core.digest import with_digest, without_digest
from mtl.core.files import write_text
from mtl.core.json_text import parse_json

FORMAT = 1
Answer = TypeVar("Answer")


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

    def answer(
        self, question: str, files: Sequence[str | Path], find: Callable[[], Answer], valid: Callable[[Any], bool]
    ) -> Answer:
        """Return the answer to a question about files: the remembered one, or a new one, which is remembered.

        Args:
            question: What is asked, with every setting that the answer depends on.
            files: What it is asked about, in this order.
            find: Finds the answer, a plain value.
            valid: Tells whether a remembered value can be an answer at all.

        Raises:
            OSError: A file does not exist.
        """
        key, state = self._key(question, files), _state(files)  # before reading: who changes a file meanwhile voids the answer
        if self._entries is None:
            self._entries = self._read()
        entry = self._entries.get(key)
        if isinstance(entry, dict) and entry.get("state") == state and valid(entry.get("answer")):
            known: Answer = entry["answer"]
            return known
        found = find()
        self._entries[key] = self._new[key] = {"state": state, "answer": found}
        return found

    def write(self) -> None:
        """Write new answers, together with what other processes have written meanwhile."""
        if self.path is None or not self._new:
            return
        with contextlib.suppress(OSError):  # only a convenience: without it the next run asks again
            write_text(self.path, with_digest(json.dumps({"format": FORMAT, "entries": {**self._read(), **self._new}})))
        self._new = {}

    def _read(self) -> dict[str, Any]:
        try:
            text = without_digest(self.path.read_text(encoding="utf-8")) if self.path else None
            content = parse_json(text or "{}")
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
