"""What `scripts/mutants.py` changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SOURCE = '''"""Text with 1 < 2."""
from math import floor  # 3


def share(part, *, whole=-2):
    for one in part:
        if one in whole and not whole <= 0:
            return -one * 0.5
'''


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """By what the change is, the changed source."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from mutants import mutants_of

    return {f"{m.line} {m.old} {m.new}": m.apply(SOURCE) for m in mutants_of("share.py", SOURCE)}


def test_operators_and_constants_change_and_nothing_else(changes: dict[str, str]) -> None:
    expected = ["5 2 (2 + 1)", "7 in not in", "7 and or", "7 not ", "7 <= <", "7 0 (0 + 1)", "8 * /", "8 0.5 (0.5 + 1)"]
    assert list(changes) == expected


def test_each_change_is_python_and_touches_one_place(changes: dict[str, str]) -> None:
    for change, source in changes.items():
        compile(source, change, "exec")
        different = [
            number for number, (a, b) in enumerate(zip(SOURCE.splitlines(), source.splitlines(), strict=True), 1) if a != b
        ]
        assert different == [int(change.split()[0])]
    assert "-one / 0.5" in changes["8 * /"] and "one in whole or not" in changes["7 and or"]


def test_rooms_and_their_tests_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from mutants import PROJECT, ROOMS

    assert all((PROJECT / path).exists() for room, tests in ROOMS.items() for path in (room, *tests))
