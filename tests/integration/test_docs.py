"""What the pages quote is what the files hold, and every path that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(?:python|yaml)\n# ((?:mtl|configs)/\S+)\n(.*?)```", flags=re.DOTALL)
BLOCKS = [block for page in PAGES.values() for block in BLOCK.findall(page)]
# Complete files that a page adds to the project; test_extending.py and test_readme.py add them to a copy.
EXAMPLES = {name for name, _ in BLOCKS if not (ROOT / name).exists()}
QUOTES = [(name, text) for name, text in BLOCKS if name not in EXAMPLES]
# Code spans that are paths of this project, or of a Python file wherever it is; `*` stands for anything.
PATH = re.compile(r"`((?:mtl|configs|tests|docs|scripts)/[\w./*]*|[\w./*]+\.py)`")
OWN = "mine/"  # what a reader would call a folder outside the project


@pytest.mark.parametrize(("name", "text"), QUOTES, ids=[name for name, _ in QUOTES])
def test_quoted_code_stands_in_its_file(name: str, text: str) -> None:
    source, position = (ROOT / name).read_text(encoding="utf-8"), 0
    for part in text.split("\n...\n"):
        found = source.find(part.strip("\n"), position)
        assert found >= 0, f"{name} does not hold, in this order:\n{part}"
        position = found


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    """From the root, from the package, or by its bare name."""
    names = {name for name in PATH.findall(PAGES[page]) if not name.startswith(OWN)} - EXAMPLES
    places = (ROOT, ROOT / "mtl")
    missing = [name for name in sorted(names) if not any(any(place.glob(name)) for place in places)]
    files = {path.name for folder in ("mtl", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")}
    assert [name for name in missing if name not in files] == []


def test_the_pages_name_paths() -> None:
    """Otherwise the test above would look for nothing."""
    assert len(PATH.findall(PAGES["docs/architecture.md"])) > 30 and len(QUOTES) > 3
