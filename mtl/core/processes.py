"""Which process wrote something, and whether it still runs: a number alone is given to other processes later."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
ENDS_WITH = "MTL_ENDS_WITH"  # in the environment: the process with which this one is to end
CLOCK_SLACK = 60.0  # seconds by which the clocks of files and processes may be apart


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        began: Which boot of the machine and when in it, so that no later process with this number is taken for it; empty where
            the system does not say.
    """

    host: str
    pid: int
    began: str

    @property
    def runs(self) -> bool:
        """Whether it still runs; of another machine nothing is known, and it counts as running."""
        return self.host != platform.node() or (runs(self.pid) and self.began in ("", _began(self.pid)))


def this_process() -> Process:
    """Return the process that asks."""
    return Process(platform.node(), os.getpid(), _began(os.getpid()))


def runs(pid: int) -> bool:
    """Return whether a process with this number runs on this machine; one that has ended and is not yet collected does not."""
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return _stat(pid)[:1] != ["Z"]


def wrote(pid: int, modified: float) -> bool:
    """Return whether the process that has this number now can have written a file at a time (seconds since 1970)."""
    stat, boot = _stat(pid), _boot_time()
    began = None if boot is None or len(stat) < 20 else boot + int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return began is None or began <= modified + CLOCK_SLACK


def end_with_parent() -> None:
    """Be interrupted, as by Ctrl-C, when the process ends that started this one and asked for it; Linux only."""
    parent = os.environ.pop(ENDS_WITH, None)  # what this process starts is its own business
    if parent is None or not sys.platform.startswith("linux"):
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background with it ignored
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGINT)
    if os.getppid() != int(parent):
        signal.raise_signal(signal.SIGINT)


def host_word() -> str:
    """Return the name of this machine as letters, digits and `_`, for the names of files."""
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:24] or "_"


def _began(pid: int) -> str:
    stat = _stat(pid)
    return f"{_boot()} {stat[19]}" if len(stat) >= 20 else ""


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process from its third entry on (the second, its name, may hold blanks)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@cache
def _boot_time() -> float | None:
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, StopIteration, ValueError):
        return None
