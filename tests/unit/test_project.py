"""Facts that two files of the project state must agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_oldest_stack_is_the_lower_bounds():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", entry).groups() for entry in declared)  # type: ignore[union-attr]
    lines = (ROOT / ".github" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    assert bounds == dict(line.split("==") for line in lines if "==" in line)


def test_the_version_is_stated_once():
    """The build reads it from the package, as everything else does."""
    import mtl

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    source = (ROOT / settings["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'__version__ = "{mtl.__version__}"' in source
