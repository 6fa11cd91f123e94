"""One meaning per word: what of it a machine can check. The meanings stand in docs/architecture.md, under Words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEECH = ("Say", "Says", "Tell", "Tells", "Word", "Words")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
BIOLOGY = ("data/families", "inference", "metrics/til", "metrics/base", "config/verbs")  # where a name may speak of cells
PICTURES = (
    "drawing", "report", "kinds", "inference/pictures", "inference/slides/outputs", "evaluation/grid", "evaluation/pictures",
)  # fmt: skip
VOLUMES = ("data/families/brain", "data/pipeline/dataset", "core/types", "inference", "metrics", "report", "runs")
SHORT = frozenset({"cfg", "idx", "pred", "gt", "bbox", "thr", "num", "conf", "tmp", "ckpt", "arr", "msg", "cnt"})
FOREIGN = frozenset({"set_cell_anchors", "num_nodes", "num_workers", "batch_idx"})  # names of other libraries


@cache
def trees(*folders: str) -> tuple[tuple[str, ast.Module], ...]:
    """Return path, from the first folder on and without suffix, and syntax tree of each module in some folders."""
    paths = sorted(found for folder in folders for found in (ROOT / folder).rglob("*.py"))
    return tuple((path.relative_to(ROOT).with_suffix("").as_posix(), ast.parse(path.read_text())) for path in paths)


def definitions(*folders: str) -> Iterator[tuple[str, Definition]]:
    """Yield place and node of every function and class."""
    for path, tree in trees(*folders):
        yield from ((f"{path}:{node.lineno}", node) for node in ast.walk(tree) if isinstance(node, Definition))


def chosen(tree: ast.Module) -> set[str]:
    """Return the names that a module chooses itself: of functions, classes, arguments, variables and attributes."""
    nodes = list(ast.walk(tree))
    names = {node.name for node in nodes if isinstance(node, Definition)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return names - FOREIGN


def words(name: str) -> set[str]:
    """Return the words of a name, in lower case: `CaseReader` and `case_reader` have the same."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def test_docstrings_begin_with_what_is_returned() -> None:
    found = [
        f"{place} {node.name}: {text.splitlines()[0]}"
        for place, node in definitions("mtl", "scripts")
        if (text := ast.get_docstring(node)) and text.split()[0] in SPEECH
    ]
    assert not found, "write `Return whether ...`:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("word", "rooms"),
    [
        ("cell", BIOLOGY),
        ("cells", BIOLOGY),
        ("case", VOLUMES),
        ("cases", (*VOLUMES, "config/schema", "experiments/score")),
        ("plain", ("core/files",)),
    ],
)
def test_a_word_stays_in_its_rooms(word: str, rooms: tuple[str, ...]) -> None:
    found = [
        f"{path}: {name}"
        for path, tree in trees("mtl")
        if not path.removeprefix("mtl/").startswith(rooms)
        for name in sorted(chosen(tree))
        if word in words(name)
    ]
    assert not found, f"`{word}` means something else (docs/architecture.md, Words):\n" + "\n".join(found)


def test_only_pictures_are_drawn() -> None:
    found = [
        f"{place} {node.name}"
        for place, node in definitions("mtl")
        if not place.removeprefix("mtl/").startswith(PICTURES)
        and ("draw" in words(node.name) or (ast.get_docstring(node) or "").startswith(("Draw ", "Draws ")))
    ]
    assert not found, "data sets are generated, targets rendered, draws sampled:\n" + "\n".join(found)


def test_a_split_is_no_stage() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees("mtl")
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and "stage" in ast.unparse(node.left)
        and any(isinstance(side, ast.Constant) and side.value in ("train", "val") for side in node.comparators)
    ]
    assert not found, f"a stage is one of a curriculum; `train` and `val` are splits: {found}"


def test_names_are_spelled_out() -> None:
    found = [
        f"{path}: {name}" for path, tree in trees("mtl", "scripts") for name in sorted(chosen(tree)) if words(name) & SHORT
    ]
    assert not found, "\n".join(found)


def test_every_word_is_explained_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## Words")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30 and all(len(row) == 2 and row[1].strip() for row in rows)
    terms = [term.strip().removeprefix("to ") for row in rows for term in re.split(r"[,/]", row[0])]
    assert len(set(terms)) == len(terms), sorted({term for term in terms if terms.count(term) > 1})
    assert {"task", "cell", "case", "stage", "draw", "plain", "frozen", "rest", "split", "window"} <= set(terms)
