"""What limits the cores of a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtl.core.cores import usable_cores


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_least_of_what_is_bound_and_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert usable_cores(tmp_path) == 12
    write(
        tmp_path,
        **{
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/cpu.max": "350000 100000\n",
        },
    )
    assert usable_cores(tmp_path) == 3  # half a core more loads nothing beside a step
    write(tmp_path, **{"sys/fs/cgroup/user/cpu.max": "50000 100000\n"})
    assert usable_cores(tmp_path) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 7}, raising=False)
    write(tmp_path, **{"sys/fs/cgroup/user/cpu.max": "800000 100000\n"})
    assert usable_cores(tmp_path) == 2


def test_first_version_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    group = "sys/fs/cgroup/cpu"
    write(
        tmp_path,
        **{
            "proc/self/cgroup": "7:cpuset:/\n4:cpu,cpuacct:/docker/abc\n",
            f"{group}/cpu.cfs_quota_us": "-1\n",
            f"{group}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_cores(tmp_path) == 12
    write(tmp_path, **{f"{group}/cpu.cfs_quota_us": "400000\n"})
    assert usable_cores(tmp_path) == 4
