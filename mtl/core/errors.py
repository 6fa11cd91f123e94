"""Errors whose text is meant for the person at the keyboard.

Every message follows one form: what is wrong, what was expected, what was found, how to fix it. The command
line prints the text and exits with `exit_code`; it never shows a traceback for one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Exit status of a command that was stopped with Ctrl-C, as shells have it: 128 and the number of the signal.
INTERRUPTED = 130


class MtlError(Exception):
    """Base of all errors that end a command with one sentence instead of a traceback."""

    exit_code = 1


class ConfigError(MtlError):
    """One or several things are wrong in the configuration; `problems` holds one line for each."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MtlError):
    """Data on disk are missing, broken or contradict themselves."""

    exit_code = 3


class CheckpointError(MtlError):
    """A checkpoint or weight file is missing, unreadable or belongs to something else."""

    exit_code = 4


class TrainingError(MtlError):
    """Training cannot go on (for example a loss that is not finite, or a disk that is full)."""

    exit_code = 5


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ` Did you mean `x`?` for the valid name closest to `name`, or an empty string."""
    wanted = str(name)
    close = difflib.get_close_matches(wanted, [str(entry) for entry in valid], n=5, cutoff=0.55)
    if not close:
        return ""

    def likeness(entry: str) -> tuple[float, int]:
        # Of two names that are as close, the one that begins like the word typed (`map5`: map50, not map75).
        begins = next((i for i, (a, b) in enumerate(zip(entry, wanted, strict=False)) if a != b), len(wanted))
        return difflib.SequenceMatcher(None, entry, wanted).ratio(), begins

    return f" Did you mean `{max(close, key=likeness)}`?"


def unknown(what: str, name: str, valid: Iterable[str], where: str = "") -> str:
    """Return the sentence for a name that is not among the valid ones.

    Args:
        what: Kind of thing, for example `head`.
        name: The name that was found.
        valid: All names that would have been accepted.
        where: Config path at which the name was found.
    """
    names = sorted(str(entry) for entry in valid)
    place = f" in `{where}`" if where else ""
    return f"Unknown {what} `{name}`{place}. Expected one of: {', '.join(names)}.{nearest(name, names)}"
