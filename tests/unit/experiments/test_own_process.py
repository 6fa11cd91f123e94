"""What a comparison trains ends with the comparison, however that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl.core.processes import runs

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
