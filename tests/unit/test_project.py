"""Facts that two files of the project state must agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from mtl.core.distribution import DISTRIBUTION, install_command

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


# Commands that would install what somebody else calls `mtl`.
FOREIGN = re.compile(r"(pip|uv|pipx)3?\s+(pip\s+)?install\s[^\n#`]*?(?<![\w./-])['\"]?mtl(?![\w-])|[\"']mtl\[")


def test_the_name_of_the_distribution_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION != "mtl"
    extras = project["optional-dependencies"]
    assert any(entry.startswith(f"{DISTRIBUTION}[") for entry in extras["dev"])
    assert install_command("slides") == f"pip install '{DISTRIBUTION}[slides]'" and "slides" in extras


@pytest.mark.parametrize(
    "text",
    [
        "pip install mtl",
        "pip install -U mtl",
        "pip install 'mtl[slides]'",
        "`pip install mtl[slides]`",
        "pip install -q x mtl",
        '"mtl[dev]"',
    ],
)
def test_commands_for_the_foreign_package_are_recognised(text: str):
    assert FOREIGN.search(text)


@pytest.mark.parametrize(
    "text", [install_command(), install_command("slides"), "pip install -e '.[dev]'", "pip install torch # for mtl"]
)
def test_commands_for_ours_are_not(text: str):
    assert not FOREIGN.search(text)


def test_no_file_tells_to_install_the_foreign_package():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    found = []
    for name in listed.stdout.splitlines():
        if name == Path(__file__).relative_to(ROOT).as_posix() or not (ROOT / name).is_file():
            continue
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert not found
