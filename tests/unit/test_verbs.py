"""Verbs are found by the summary of their module."""

from __future__ import annotations

import importlib
from pathlib import Path

import mtl.cli
from mtl.cli.main import usage, verbs

FOLDER = Path(mtl.cli.__file__).parent


def test_every_module_that_can_be_run_has_a_summary() -> None:
    modules = {path.stem: importlib.import_module(f"mtl.cli.{path.stem}") for path in FOLDER.glob("[a-z]*.py")}
    assert {name for name, module in modules.items() if hasattr(module, "run")} == set(verbs())
    assert {name: modules[name].SUMMARY for name in verbs()} == verbs()


def test_the_overview_shows_each_verb_with_its_summary() -> None:
    lines = [line.split(maxsplit=1) for line in usage().splitlines() if line.startswith("  ")]
    assert dict(lines) == verbs()  # type: ignore[arg-type]
