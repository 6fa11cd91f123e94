"""One meaning per word: what of it a machine can check (the meanings are in docs/architecture.md, under Words)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEECH = ("Say", "Says", "Tell", "Tells", "Word", "Words")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the syntax tree of each module in some folders."""
    for path in sorted(found for folder in folders for found in (ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Yield all functions and classes of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, Definition))


def test_docstrings_say_what_is_returned() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}: {text.splitlines()[0]}"
        for path, tree in trees("mtl", "scripts")
        for node in definitions(tree)
        if (text := ast.get_docstring(node)) and text.split()[0] in SPEECH
    ]
    assert not found, "begin with what is returned (`Return whether ...`):\n" + "\n".join(found)
