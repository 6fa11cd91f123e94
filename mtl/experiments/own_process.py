"""Training in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mtl", "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {ENDS_WITH: str(os.getpid())},
            process_group=0,
        )
        with _passed_on(process) as stopped:
            status = process.wait()
    return INTERRUPTED if stopped else status


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass signals on to the group of a process; the third one kills it. Returns those that came.

    What this process ignores (`nohup`: the end of the terminal) stays ignored, here and in that process, which inherits it.
    """
    came: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        came.append(number)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT if len(came) < 3 else signal.SIGKILL)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield came
        return
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
