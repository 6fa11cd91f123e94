"""Training in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl.core.errors import INTERRUPTED
from mtl.core.processes import ENDS_WITH

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def train_in_own_process(words: list[str], log: Path) -> int:
    """Train in a process of its own, so that no run inherits anything from another.

    What is to stop this process stops that one, too: signals are passed on as Ctrl-C to it and its ranks, and where this
    process is killed outright the system tells it (`end_with_parent`).

    Returns:
        Its exit status; `INTERRUPTED` where it was stopped in this way.
    """
    with log.open("a", encoding="utf-8") as output, _passed_on() as stop:
        process = subprocess.Popen(
            [sys.executable, "-m", "mtl", "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {ENDS_WITH: str(os.getpid())},
            process_group=0,
        )
        stop.process = process
        if stop.came:  # before there was a process to pass it on to
            stop.pass_on()
        status = process.wait()
    return INTERRUPTED if stop.came else status


@dataclass
class _Stop:
    """What came to stop a training.

    Attributes:
        process: The training, once it is there.
        came: The signals.
    """

    process: subprocess.Popen[bytes] | None = None
    came: list[int] = field(default_factory=list)

    def handle(self, number: int, frame: Any) -> None:
        """Take note of a signal and pass it on."""
        self.came.append(number)
        self.pass_on()

    def pass_on(self) -> None:
        """Interrupt the group of the process; the third signal kills it."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT if len(self.came) < 3 else signal.SIGKILL)


@contextmanager
def _passed_on() -> Iterator[_Stop]:
    """Pass signals on to a process that is about to start: one that comes before may not end this process without it.

    What this process ignores (`nohup`: the end of the terminal) stays ignored, here and in that process, which inherits it.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield stop
        return
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
