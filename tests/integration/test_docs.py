"""What docs/extending.md quotes is what the files hold, and what it tells to touch exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
QUOTES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize(("name", "text"), QUOTES, ids=[name for name, _ in QUOTES])
def test_quoted_code_stands_in_its_file(name: str, text: str) -> None:
    source, position = (ROOT / name).read_text(encoding="utf-8"), 0
    for part in text.split("\n...\n"):
        found = source.find(part.strip("\n"), position)
        assert found >= 0, f"{name} does not hold, in this order:\n{part}"
        position = found


def test_files_to_touch_exist() -> None:
    names = re.findall(r"`((?:mtl|configs|tests)/[\w/.]+\.\w+)`", PAGE)
    assert len(names) > 12 and [name for name in names if not (ROOT / name).is_file()] == []
