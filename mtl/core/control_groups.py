"""The control groups around this process, in which an administrator, a container or a batch system limits it. Linux only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNIFIED = ""  # what version 2 of the hierarchy calls its one controller


def control_groups(controller: str, root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """Yield the folder of each group around this process with its version: `UNIFIED`, or the controller of version 1.

    Args:
        controller: Of version 1, as `memory`.
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, place = (*line.split(":", 2), "", "")[:3]
        version = controller if controller in controllers.split(",") else controllers
        if version in (UNIFIED, controller):
            folder = root / "sys/fs/cgroup" / version
            # Inside a container the path may be that of the host; the group itself is then the top one.
            parents = [Path(place.lstrip("/")), *Path(place.lstrip("/")).parents]
            for group in {folder / parent for parent in [*parents, Path()]}:
                yield version, group
