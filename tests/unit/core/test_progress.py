"""Lines that say how far a long job has come, and nothing of a short one."""

from __future__ import annotations

import io

import pytest

from mtl.core.progress import Progress, progress_of, track


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_comes_after_ten_seconds_and_then_for_every_tenth_of_the_work() -> None:
    clock, lines = Clock(), []
    progress = Progress("predicting", 100, write=lines.append, clock=clock)
    for _ in range(100):
        clock.now += 2
        progress.advance()
    progress.finish()
    assert lines[0] == "predicting: 5 of 100 (5 %), 3:10 left"
    assert lines[1] == "predicting: 15 of 100 (15 %), 2:50 left"
    assert lines[-1] == "predicting: 100 of 100 in 3:20" and len(lines) == 11


def test_slow_work_is_heard_of_every_minute_and_what_was_there_before_took_no_time() -> None:
    clock, lines = Clock(), []
    progress = Progress("preparing images", 1000, 500, write=lines.append, clock=clock)
    for _ in range(9):
        clock.now += 20
        progress.advance()
    assert lines == [
        "preparing images: 501 of 1000 (50 %), 2:46:20 left", "preparing images: 504 of 1000 (50 %), 2:45:20 left",
        "preparing images: 507 of 1000 (50 %), 2:44:20 left",
    ]  # fmt: skip


def test_a_part_has_a_count_of_its_own() -> None:
    clock, lines = Clock(), []
    whole = Progress("predicting", 2, write=lines.append, clock=clock)
    with whole.part("a.svs") as part:
        part.reach(0, 400)
        clock.now += 15
        part.reach(100)
    whole.advance()
    assert lines[:2] == ["a.svs: 100 of 400 (25 %), 0:45 left", "a.svs: 100 of 400 in 0:15"]
    assert lines[2] == "predicting: 1 of 2 (50 %), 0:15 left"


def test_short_jobs_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("reading images", "abc", 3)) == ["a", "b", "c"]
    with progress_of("predicting", 2) as progress:
        progress.advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_of("predicting [a]", 4) as progress:
        progress.advance(3)
        with progress.part("slide.svs") as part:
            part.reach(7, 9)
    assert "predicting [a]" in terminal.getvalue() and "3/4" in terminal.getvalue() and "slide.svs" in terminal.getvalue()
