"""Measurements that need a process of their own: peak memory, import and start-up time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmark_rows import Row, spread

HERE = Path(__file__).resolve()
MEMORY_VARIANTS = {
    "as configured": [],
    "32-true": ["trainer.precision=32-true", "runtime.channels_last=false"],
    "gradient checkpointing": ["backbone.gradient_checkpointing=true"],
}
# Runs the real command up to the end of its first optimizer step.
FIRST_STEP = """
import os, sys, time
import mtl.cli.main, mtl.cli.train

def stop(module, *arguments):
    if module.device.type == "cuda":
        import torch
        torch.cuda.synchronize()
    print("FIRST_STEP", time.time(), flush=True)
    os._exit(0)

train = mtl.cli.train._train
def hooked(plan):
    plan.family.locate()
    from mtl.training.module import MultiTaskModule
    MultiTaskModule.on_train_batch_end = stop
    return train(plan)

mtl.cli.train._train = hooked
mtl.cli.main.main("train")
"""


# -- memory ----------------------------------------------------------------------------------------------------------------


def memory_rows(overrides: list[str]) -> list[Row]:
    """Measure the peak memory that training steps add to a process that holds the model, per setting."""
    rows = []
    for name, extra in MEMORY_VARIANTS.items():
        taken = {word.partition("=")[0] for word in extra}
        words = [word for word in overrides if word.partition("=")[0] not in taken] + extra
        output = subprocess.run([sys.executable, str(HERE), *words], capture_output=True, text=True, env=child_environment())
        if output.returncode:
            print(f"memory ({name}) was not measured: {output.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        found = json.loads(output.stdout.splitlines()[-1])
        note = f"{found['kind']}; {found['before']:.0f} MiB before the step"
        rows.append(Row("peak memory of a step", name, found["added"], "MiB", note))
    return rows


def measure_memory(overrides: list[str]) -> dict[str, Any]:
    """Take two training steps in this process and return what they added to its peak, in MiB."""
    import benchmark_steps as steps
    import torch
    from benchmark_plans import build_module, first_batch, plan_of

    from mtl.core.allocator import keep_freed_memory

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    plan = plan_of(overrides)
    module = build_module(plan)
    batch = first_batch(plan, module.model)
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as folder:
        watch = MemoryWatch()
        steps.run_trainer(plan, module, Path(folder), lambda trainer: steps.Relay(batch, watch.start(trainer), steps.Limit(0)))
    return watch.stop()


class MemoryWatch:
    """What is added to the memory of this process between two moments, in MiB."""

    def __init__(self) -> None:
        self.device: Any = None
        self.before = 0.0
        self.found: dict[str, Any] = {}

    def start(self, trainer: Any) -> Any:
        """Begin, as the Trainer was built; return its device."""
        self.device = trainer.strategy.root_device
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            _reset_peak()
            self.before = resident_memory()
        return self.device

    def stop(self) -> dict[str, Any]:
        """Return `added`, `before`, `peak` and the `kind` of memory."""
        if self.device.type == "cuda":
            import torch

            peak, kind = torch.cuda.max_memory_allocated() / 2**20, "CUDA allocations"
        else:
            peak, kind = peak_memory(), "resident set"
        self.found = {"added": peak - self.before, "before": self.before, "peak": peak, "kind": kind}
        return self.found


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts at what is resident now


def _status(key: str) -> float | None:
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) / 1024 if match else None


def resident_memory() -> float:
    return _status("VmRSS") or peak_memory()


def peak_memory() -> float:
    unit = 2**20 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# -- start-up --------------------------------------------------------------------------------------------------------------


def startup_rows(overrides: list[str], folder: Path) -> list[Row]:
    """Time commands from the start of the process to their answer."""
    python = [sys.executable, "-m", "mtl"]
    nowhere = [word for word in overrides if not word.startswith("data.root=")] + [f"data.root={folder / 'nowhere'}"]
    commands = {
        "`mtl --help`": ([*python, "--help"], 0),
        "misspelt key": ([*python, "train", *overrides, "optimizer.lrr=1"], 2),
        "unknown task": ([*python, "train", "task=no_such_suite"], 2),
        "missing data folder": ([*python, "train", *nowhere], 3),
        "`import mtl.training.fit`": ([sys.executable, "-c", "import mtl.training.fit"], 0),
    }
    rows = []
    for name, (command, status) in commands.items():
        seconds = [_timed(command, status) for _ in range(3)]
        rows.append(Row("start-up", name, statistics.median(seconds), "s", f"{spread(seconds, 2)}; exit status {status}"))
    seconds = [_first_step([*overrides, f"paths.run_dir={folder / f'start{number}'}"]) for number in range(2)]
    rows.append(Row("start-up", "end of the first training step", min(seconds), "s", f"{spread(seconds, 2)}; lowest shown"))
    return rows


def _timed(command: list[str], status: int) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    seconds = time.perf_counter() - started
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}, expected {status}:\n{done.stderr[-2000:]}")
    return seconds


def _first_step(overrides: list[str]) -> float:
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, *overrides], capture_output=True, text=True, env=child_environment()
    )
    found = re.search(r"FIRST_STEP ([\d.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"no training step was made:\n{done.stderr[-2000:]}")
    return float(found[1]) - started


def child_environment() -> dict[str, str]:
    """Let children find the package of this checkout, wherever the script was started."""
    root = str(HERE.parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


if __name__ == "__main__":
    print(json.dumps(measure_memory(sys.argv[1:])))
