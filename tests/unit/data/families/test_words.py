"""Families speak of their own things: no message of one names what only another one has."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtl
from mtl.cli.main import guarded
from mtl.core.registry import DATA_FAMILIES

PACKAGE = Path(mtl.__file__).parent
# By folder of a family: what nobody else's images show.
THINGS = {
    "malaria": r"malaria|smears?|parasit\w*|red cells?|white cells?|infected|blood",
    "idrid": r"idrid|retinas?|retinal|fundus|exudates?|optic disc|fovea|macular?",
    "brain": r"brains?|MR|MRI|brats\w*|modality|modalities|skulls?",
    "skin": r"skin|dermoscop\w*|melanoma|nevus|isic\w*",
    "tiger": r"tiger|lymphocytes?|stroma|til|biops\w*",
}
FAMILIES = {"malaria": "malaria", "malaria_cells": "malaria", **{name: name for name in ("idrid", "brain", "skin", "tiger")}}
SMALL = {"malaria": ["width=320"], "malaria_cells": []} | {key: ["width=96"] for key in ("idrid", "skin", "brain", "tiger")}


def foreign(text: str, folder: str) -> list[str]:
    """Return words in a text that name things of other families."""
    others = "|".join(words for name, words in THINGS.items() if name != folder)
    return re.findall(rf"(?<![\w./])(?:{others})(?![\w/])", text, re.IGNORECASE)


def sentences(path: Path) -> Iterator[str]:
    """Yield the strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_every_family_is_looked_at() -> None:
    assert set(FAMILIES) == set(DATA_FAMILIES.names())
    folders = {path.name for path in (PACKAGE / "data" / "families").iterdir() if (path / "__init__.py").is_file()}
    assert set(THINGS) == folders
    assert foreign("`kind` chooses what experts drew on smears", "brain") and not foreign("smears of red cells", "malaria")


@pytest.mark.parametrize("folder", THINGS)
def test_no_sentence_of_a_family_names_the_things_of_another(folder: str) -> None:
    for path in sorted((PACKAGE / "data" / "families" / folder).rglob("*.py")):
        assert {text: found for text in sentences(path) if (found := foreign(text, folder))} == {}, path


def test_what_families_share_names_the_things_of_none() -> None:
    shared = [*(PACKAGE / "data" / "families").glob("*.py"), *(PACKAGE / "data" / "pipeline").glob("*.py")]
    for path in sorted([*shared, PACKAGE / "core" / "family.py", PACKAGE / "report" / "data_pages.py"]):
        assert {text: found for text in sentences(path) if (found := foreign(text, ""))} == {}, path


@pytest.mark.parametrize("name", FAMILIES)
def test_the_data_tools_speak_of_the_family_only(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def said(*words: str) -> str:
        with caplog.at_level(logging.INFO):
            guarded("data", [*words])
        printed = capsys.readouterr()
        found = "\n".join([printed.out, printed.err, *caplog.messages]).replace(str(tmp_path), "")
        caplog.clear()
        return found

    drawn, empty = tmp_path / "drawn", tmp_path / "empty"
    empty.mkdir()
    texts = [
        said("synth", name, f"output={drawn}", "patients=4", "fields=2", *SMALL[name]),
        said("synth", name, f"output={drawn}", *SMALL[name]),
        said("synth", name, f"output={tmp_path / 'other'}", "kind=nonsense"),
        said("synth", name, f"output={tmp_path / 'other'}", "patients=0"),
        said("check", name, f"data.root={drawn}"),
        said("check", name, f"data.root={empty}"),
        said("check", name, f"data.root={tmp_path / 'missing'}"),
        said("stats", name, f"data.root={drawn}", f"output={tmp_path / 'stats'}"),
        said("stats", name, f"data.root={empty}", f"output={tmp_path / 'stats'}"),
        said("show", name, f"data.root={drawn}", f"output={tmp_path / 'show'}", "count=1"),
    ]
    texts += [path.read_text(encoding="utf-8") for path in (tmp_path / "stats").glob("*.csv")]
    texts += [path.name for folder in ("stats", "show") for path in (tmp_path / folder).iterdir()]
    assert all(texts) and len(texts) > 12
    assert {text: found for text in texts if (found := foreign(text, FAMILIES[name]))} == {}
