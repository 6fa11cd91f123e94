"""The command line: picks the verb, keeps start-up fast, turns errors into sentences.

Torch and the other heavy libraries are imported by the verbs, after the words on the command line have been checked.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from functools import cache
from pathlib import Path

from mtl.core.allocator import keep_freed_memory
from mtl.core.disk import is_refusal, sentence
from mtl.core.errors import INTERRUPTED, MtlError, nearest
from mtl.core.version import __version__


@cache
def verbs() -> dict[str, str]:
    """Return what each verb does: the `SUMMARY` of its module, read from the source, since importing them all takes long."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SUMMARY"]:
                found[path.stem] = str(ast.literal_eval(node.value))
    return found


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
    if verb not in verbs():
        print(f"Unknown command `{verb}`. Expected one of: {', '.join(verbs())}.{nearest(verb, verbs())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(guarded(verb, words))


def guarded(verb: str, words: list[str]) -> int:
    """Run a verb; an error meant for the user becomes its text and an exit status."""
    keep_freed_memory()
    try:
        return int(importlib.import_module(f"mtl.cli.{verb}").run(words) or 0)
    except MtlError as error:
        print("error: " + without_traceback(str(error)).replace("\n", "\nerror: "), file=sys.stderr)
        if os.environ.get("MTL_TRACEBACK"):
            raise
        return error.exit_code
    except OSError as error:
        if not is_refusal(error) or os.environ.get("MTL_TRACEBACK"):
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


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
    width = max(map(len, verbs()))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in verbs().items()]
    return "\n".join(
        ["mtl: multi-task learning on medical images", "", "usage: mtl <command> [key=value ...]", "", *lines, "",
         "`mtl <command> --help` lists what a command understands. MTL_TRACEBACK=1 shows where an error came from."]
    )  # fmt: skip
