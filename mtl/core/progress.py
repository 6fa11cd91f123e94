"""Progress of what takes longer than a few seconds: a bar in a terminal, a line now and then elsewhere.

Both go to the error output, so that what a command prints can be redirected without them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
PATIENCE = 10.0  # seconds after which the first line comes, and at least between two
SHARE = 0.1  # of the work after which the next line comes ...
LONGEST_SILENCE = 60.0  # ... and seconds after which it comes whatever was done


class Progress:
    """Counts what is done of one job.

    Args:
        title: What is being done.
        total: How many items there are; None where that is not known yet.
        done: Items that were there before.
        bars: A started `rich.progress.Progress` to draw in; None writes lines.
        write: Takes a line; None is silent.
        clock: Returns seconds.
    """

    def __init__(
        self, title: str, total: int | None = None, done: int = 0, bars: Any = None,
        write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.title, self.total, self.done = title, total, done
        self._bars, self._write, self._clock = bars, write, clock
        self._first, self._start = done, clock()
        self._last: tuple[float, int] | None = None  # when a line came, and what was done then
        self._row = bars.add_task(title, total=total, completed=done) if bars is not None else None

    def advance(self, count: int = 1) -> None:
        """Count some more items as done."""
        self.reach(self.done + count)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set how many items are done, and how many there are in all."""
        self.done, self.total = done, self.total if total is None else total
        if self._bars is not None:
            self._bars.update(self._row, completed=self.done, total=self.total)
        elif self._write is not None and self.total and self.done < self.total and self._due():
            self._last = self._clock(), self.done
            self._write(f"{self.title}: {self.done} of {self.total} ({100 * self.done // self.total} %){self._left()}")

    @contextmanager
    def part(self, title: str) -> Iterator[Progress]:
        """Count what is done of one long item, below the whole."""
        inner = Progress(title, None, 0, self._bars, self._write, self._clock)
        try:
            yield inner
        finally:
            inner.finish()
            if self._bars is not None:
                self._bars.remove_task(inner._row)

    def finish(self) -> None:
        """Write how long it took, if a line was written before."""
        if self._last is not None and self._write is not None:
            self._write(f"{self.title}: {self.done} of {self.total} in {_clock_time(self._clock() - self._start)}")

    def _due(self) -> bool:
        assert self.total is not None
        since, before = self._last or (self._start, self._first)
        waited = self._clock() - since
        return waited >= PATIENCE and (
            self._last is None or waited >= LONGEST_SILENCE or self.done - before >= SHARE * self.total
        )

    def _left(self) -> str:
        assert self.total is not None
        if self.done <= self._first:
            return ""
        seconds = (self._clock() - self._start) / (self.done - self._first) * (self.total - self.done)
        return f", {_clock_time(seconds)} left"


@contextmanager
def progress_of(title: str, total: int | None = None, done: int = 0, show: bool = True) -> Iterator[Progress]:
    """Show how far a job has come while the block runs.

    Args:
        title: What is being done.
        total: How many items there are.
        done: Items that were there before.
        show: False shows nothing.
    """
    if not show or not sys.stderr.isatty():
        progress = Progress(title, total, done, write=_line if show else None)
        yield progress
        progress.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, transient=True, console=Console(stderr=True)) as bars:
        yield Progress(title, total, done, bars)


def track(title: str, items: Iterable[Item], total: int, show: bool = True) -> Iterator[Item]:
    """Yield items and show how many of them are done.

    Args:
        title: What is being done with them.
        items: Drawn one by one.
        total: How many there are.
        show: False shows nothing.
    """
    with progress_of(title, total, show=show) as progress:
        for item in items:
            yield item
            progress.advance()


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
