"""What the operating system refuses, in a sentence: full and read-only disks, missing permissions, files that are folders."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Refused for reasons the user can do something about.
REFUSALS = {
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENOENT", "ENOSPC",
        "ENOTDIR", "EPERM", "EROFS", "ESTALE",
    )
}  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_TEXT = "Make room, or choose another place, and repeat the command."


def is_refusal(error: OSError) -> bool:
    """Return whether an error needs no traceback: the system refused something, and it is known what or why."""
    return error.errno in FULL or (error.errno in REFUSALS and error.filename is not None)


def sentence(error: OSError) -> str:
    """Return what was refused, why, what is kept (its notes) and what to do."""
    where = "A file" if error.filename is None else f"`{error.filename}`"
    kept = " ".join(getattr(error, "__notes__", []))
    if error.errno in FULL:
        # What is kept may end in a command, which nothing may follow.
        rest = [kept, FULL_TEXT] if kept.endswith(".") else [FULL_TEXT, kept]
        return " ".join(filter(None, [f"{where} could not be written: {error.strerror}.", *rest]))
    remedy = "Choose another path, or change what lies there; MTL_TRACEBACK=1 shows where this came from."
    return " ".join(filter(None, [f"{where} cannot be read or written: {error.strerror}.", kept, remedy]))


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Note on an error of the system what is kept of the work inside; asked when it happens."""
    try:
        yield
    except OSError as error:
        error.add_note(what())
        raise


def free_bytes(folder: Path) -> int | str:
    """Return the free room of a disk; of a folder that is gone it is not known."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "unknown"
