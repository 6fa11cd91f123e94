"""One process at a time writes a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mtl.core.errors import ConfigError
from mtl.core.processes import Process, runs, this_process
from mtl.runs.lock import held

HOLD = """
import sys, time
from pathlib import Path
from mtl.runs.lock import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def write(folder: Path, holder: Process) -> None:
    about = {"host": holder.host, "pid": holder.pid, "began": holder.began, "command": "mtl train name=x", "since": "today"}
    (folder / "lock.json").write_text(json.dumps(about))


def test_another_process_is_refused_by_name_and_number_until_it_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(
            ConfigError, match=rf"{tmp_path}` is being written by process {process.pid} on .*kill {process.pid}"
        ):
            held(tmp_path).__enter__()
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == process.pid
    finally:
        process.kill()
        process.wait()
    with held(tmp_path):  # killed: nobody removed its lock
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_lock_is_recognised(tmp_path: Path) -> None:
    me = this_process()
    for stale in (replace(me, pid=999999999), replace(me, pid=os.getppid(), began="another boot 17")):
        assert not stale.runs
        write(tmp_path, stale)
        with held(tmp_path):
            pass
    (tmp_path / "lock.json").write_text('{"host": "half wr')
    with held(tmp_path):
        pass
    write(tmp_path, Process("elsewhere", 7, ""))
    with pytest.raises(ConfigError, match=r"process 7 on elsewhere since today \(`mtl train name=x`\).*remove `.*lock.json`"):
        held(tmp_path).__enter__()


def test_an_error_frees_the_run_and_a_vanished_folder_is_no_second_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"):
        (tmp_path / "run" / "lock.json").unlink()
        (tmp_path / "run").rmdir()


def test_a_process_that_has_ended_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it ended, and nobody collected it yet
    assert (runs(process.pid), runs(os.getpid())) == (False, True)
    process.wait()
