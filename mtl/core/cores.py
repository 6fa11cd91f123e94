"""How many processor cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mtl.core.control_groups import ROOT, UNIFIED, control_groups


def usable_cores(root: Path = ROOT) -> int:
    """Return the cores that this process is bound to, or fewer where a control group grants less time; at least 1.

    Args:
        root: Where `proc` and `sys` are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([bound, *_granted(root)])))


def _granted(root: Path) -> Iterator[float]:
    """Yield how many cores' time each control group may use."""
    for version, group in control_groups("cpu", root):
        with suppress(OSError, ValueError):  # no limit (`max`), or no such group
            if version == UNIFIED:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # version 1 writes no limit as -1
                yield int(quota) / int(period)
