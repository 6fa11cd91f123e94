"""Change one operator or constant of the code that decides numbers, and see whether its tests notice.

    python scripts/mutants.py --count 24 --seed 0
    python scripts/mutants.py --at mtl/imaging/geometry.py:180 --at mtl/metrics/segmentation.py:269

Each change is made in a copy of the project, one at a time, and only the tests of its room are run. A change that no test
notices is a missing test, or one that nobody could see (`>` for `>=` where both sides are never equal): it takes a person.
"""

from __future__ import annotations

import argparse
import ast
import io
import keyword
import random
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
COPIED = ("mtl", "configs", "tests", "scripts", "docs", "pyproject.toml", "README.md", "train.py", "evaluate.py", "predict.py")
# What decides numbers, and the tests that are to notice.
ROOMS = {
    "mtl/metrics": ["tests/unit/metrics"],
    "mtl/losses": ["tests/unit/losses", "tests/unit/heads"],
    "mtl/kinds": ["tests/unit/metrics", "tests/unit/data/pipeline", "tests/unit/evaluation"],
    "mtl/data/pipeline/splits.py": ["tests/unit/data/pipeline"],
    "mtl/data/pipeline/sampling.py": ["tests/unit/data/pipeline"],
    "mtl/imaging": ["tests/unit/imaging", "tests/unit/data/pipeline"],
    "mtl/balancing": ["tests/unit/balancing"],
    "mtl/experiments/comparison.py": ["tests/unit/experiments"],
}
SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "/", "/": "*", "//": "/",
    "and": "or", "or": "and", "not": "", "in": "not in", "min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip
BINARY_ONLY = ("+", "-", "*", "/", "//")  # elsewhere a sign, or the mark of keyword-only arguments


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: The file, below the project.
        line, column: Where the word stands.
        old, new: The word, and what takes its place.
    """

    path: str
    line: int
    column: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column + 1}  {self.old} -> {self.new or 'nothing'}"

    def apply(self, source: str) -> str:
        """Return the source with the change."""
        lines = source.splitlines(keepends=True)
        text = lines[self.line - 1]
        lines[self.line - 1] = text[: self.column] + self.new + text[self.column + len(self.old) :]
        return "".join(lines)


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """List every change of a file; texts, comments and imports stay."""
    before: tokenize.TokenInfo | None = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        new = None
        if token.type == tokenize.NUMBER:
            new = f"({token.string} + 1)"
        elif token.type in (tokenize.OP, tokenize.NAME) and token.string in SWAPS:
            new = SWAPS[token.string] if token.string not in BINARY_ONLY or _ends_an_operand(before) else None
        if new is not None and not token.line.lstrip().startswith(("import ", "from ", "@")):
            mutant = Mutant(path, *token.start, token.string, new)
            if token.string != "in" or _is_python(mutant.apply(source)):  # not the `in` of a loop
                yield mutant
        before = token


def _ends_an_operand(token: tokenize.TokenInfo | None) -> bool:
    if token is None or keyword.iskeyword(token.string):
        return False
    return token.type in (tokenize.NAME, tokenize.NUMBER) or token.string in (")", "]")


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def all_mutants() -> list[Mutant]:
    """List every change of every file in `ROOMS`."""
    files = {file for room in ROOMS for file in ([PROJECT / room] if room.endswith(".py") else (PROJECT / room).glob("*.py"))}
    found = ((file.relative_to(PROJECT).as_posix(), file.read_text(encoding="utf-8")) for file in sorted(files))
    return [mutant for path, source in found for mutant in mutants_of(path, source)]


def tests_of(path: str) -> list[str]:
    """Return the tests that are to notice a change of a file."""
    return next(tests for room, tests in ROOMS.items() if path == room or path.startswith(f"{room}/"))


def passes(project: Path, tests: list[str], limit: float | None = None) -> bool:
    """Return whether tests pass in a copy of the project; those that hang do not."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=project, capture_output=True, timeout=limit, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def noticed(project: Path, mutant: Mutant) -> bool:
    """Make a change in a copy of the project, run its tests, and undo it."""
    path = project / mutant.path
    source = path.read_text(encoding="utf-8")
    path.write_text(mutant.apply(source), encoding="utf-8")
    try:
        return not passes(project, tests_of(mutant.path), limit=600)
    finally:
        path.write_text(source, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run a sample of changes; the status is 1 where the tests fail without any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--at", action="append", default=[], metavar="FILE:LINE", help="every change of this line instead")
    options = parser.parse_args(arguments)
    every = all_mutants()
    chosen = [mutant for mutant in every if f"{mutant.path}:{mutant.line}" in options.at]
    if not options.at:
        chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    if not chosen:
        sys.exit(f"No operator or constant at {', '.join(options.at)}. Expected FILE:LINE of a file in {', '.join(ROOMS)}.")
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        project = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (PROJECT / part).is_dir() else shutil.copy2
            copy(PROJECT / part, project / part)
        tests = sorted({test for mutant in chosen for test in tests_of(mutant.path)})
        if not passes(project, tests):
            sys.exit("The tests fail without any change. Mend them first.")
        missed = []
        for mutant in chosen:
            found = noticed(project, mutant)
            print("noticed" if found else "MISSED ", mutant, flush=True)
            missed += [] if found else [mutant]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} changes noticed (out of {len(every)} that are possible).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
