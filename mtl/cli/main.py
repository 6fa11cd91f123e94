"""The command line: picks the verb, keeps start-up fast, turns errors into sentences.

Torch and the other heavy libraries are imported by the verbs, after the words on the command line have been checked.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

from mtl.core.errors import MtlError, nearest
from mtl.core.version import __version__

VERBS = {
    "train": "train a task suite: mtl train task=malaria_mttl backbone=resnet50",
    "evaluate": "score a checkpoint: mtl evaluate checkpoint=<file> [data.root=<folder>] [split=test|val|all]",
    "predict": "use a checkpoint on images: mtl predict checkpoint=<file> source=<image|folder|glob> output=<folder>",
    "describe": "print the network a configuration builds: mtl describe task=malaria_mttl [--json]",
    "compare": "train and table several arms: mtl compare suite=malaria_mttl seeds=3 arms=[mtl,stl]",
    "data": "look after data: mtl data synth|check|stats|show|prepare <family> [key=value ...]",
}
HYDRA_FLAGS = (
    "-m",
    "--multirun",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
    "--shell-completion",
    "-sc",
    "--package",
    "-p",
)
# What the operating system refuses for reasons the user can do something about.
REFUSALS = {
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENOENT", "ENOSPC",
        "ENOTDIR", "EPERM", "EROFS", "ESTALE",
    )
}  # fmt: skip


def main(verb: str | None = None) -> None:
    """Run a verb with the words of `sys.argv` and exit with its status.

    Args:
        verb: Given by the root scripts; the console script takes it from the first word.
    """
    words = sys.argv[1:]
    if verb is None:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            sys.exit(0)
        verb, words = words[0], words[1:]
    if verb == "--version":
        print(f"mtl {__version__}")
        sys.exit(0)
    if verb not in VERBS:
        print(f"Unknown command `{verb}`. Expected one of: {', '.join(VERBS)}.{nearest(verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(guarded(verb, words))


def guarded(verb: str, words: list[str]) -> int:
    """Run a verb; an error meant for the user becomes its text and an exit status."""
    try:
        return int(importlib.import_module(f"mtl.cli.{verb}").run(words) or 0)
    except MtlError as error:
        print("error: " + without_traceback(str(error)).replace("\n", "\nerror: "), file=sys.stderr)
        if os.environ.get("MTL_TRACEBACK"):
            raise
        return error.exit_code
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None or os.environ.get("MTL_TRACEBACK"):
            raise
        print(
            f"error: `{error.filename}` cannot be read or written: {error.strerror}. Choose another path, or change what lies "
            "there; MTL_TRACEBACK=1 shows where this came from.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def without_traceback(text: str) -> str:
    """Return the message alone of an error that came out of a data loading process, where torch wraps a traceback around it."""
    if "Original Traceback (most recent call last):" not in text:
        return text
    # Errors can be chained; the last one is what was raised. Its message begins on the first line that is not indented.
    lines = text.rpartition("Traceback (most recent call last):")[2].strip("\n").splitlines()
    first = next((number for number, line in enumerate(lines) if line[:1].strip()), 0)
    return "\n".join([lines[first].partition("Error: ")[2] or lines[first], *lines[first + 1 :]]).strip()


def usage() -> str:
    """Return the overview of all verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["mtl: multi-task learning on medical images", "", "usage: mtl <command> [key=value ...]", "", *lines, "",
         "`mtl <command> --help` lists what a command understands. MTL_TRACEBACK=1 shows where an error came from."]
    )  # fmt: skip
