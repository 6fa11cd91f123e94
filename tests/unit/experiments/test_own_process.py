"""What a comparison trains ends with the comparison, however that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from mtl.core.processes import runs
from mtl.experiments import own_process

CHILD = """#!{python}
import os, sys, time
from mtl.core.processes import end_with_parent

end_with_parent()
print(os.getpid(), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""
PARENT = """
import sys, types
from pathlib import Path
from mtl.experiments import own_process

own_process.sys = types.SimpleNamespace(executable=sys.argv[1])
sys.exit(own_process.train_in_own_process([], Path(sys.argv[2])))
"""


def until(true: object) -> None:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.02)
    assert true()  # type: ignore[operator]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_training_ends_with_the_comparison(number: int, tmp_path: Path) -> None:
    if number == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process that its parent was killed")
    child, log = tmp_path / "child", tmp_path / "output.txt"
    child.write_text(CHILD.format(python=sys.executable))
    child.chmod(0o755)
    words = [sys.executable, "-c", PARENT, str(child), str(log)]
    parent = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])})
    until(lambda: log.is_file() and log.read_text().endswith("\n"))
    pid = int(log.read_text())
    parent.send_signal(number)
    assert parent.wait(20) == (-number if number == signal.SIGKILL else 130)
    until(lambda: not runs(pid))
    assert log.read_text().splitlines()[1:] == ["interrupted"]


@pytest.mark.parametrize(("terminal", "status"), [(signal.SIG_DFL, 130), (signal.SIG_IGN, 7)])
def test_a_comparison_under_nohup_outlives_its_terminal(
    terminal: signal.Handlers, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nkill -HUP $PPID\nexit 7\n")
    child.chmod(0o755)
    monkeypatch.setattr(own_process, "sys", types.SimpleNamespace(executable=str(child)))
    before = signal.signal(signal.SIGHUP, terminal)
    try:
        assert own_process.train_in_own_process([], tmp_path / "output.txt") == status
        assert signal.getsignal(signal.SIGHUP) is terminal
    finally:
        signal.signal(signal.SIGHUP, before)
