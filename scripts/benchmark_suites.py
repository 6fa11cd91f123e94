"""One table for many suites: each is measured in a process of its own, so that one that fails is a row with its reason."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark_processes import MemoryWatch, child_environment
from benchmark_rows import Row, spread

from mtl.config.compose import choices
from mtl.config.plan import Plan
from mtl.core.errors import MtlError

# Height, width and images per batch by data family, so that a step takes seconds; words on the command line win.
SIZES = {
    "brain": ("[256,256]", 4),
    "idrid": ("[352,544]", 2),
    "malaria": ("[512,512]", 1),
    "malaria_cells": ("[128,128]", 16),
    "skin": ("[224,224]", 8),
    "tiger": ("[256,256]", 2),
}
SECTION = "overview"
FP32, SHIPPED = "fp32", "as configured"
RATIO, PROCESSOR, MEMORY = "ratio to a bare loop", "the same by processor time", "peak memory"
LOADER, VALIDATION = "loader", "validation"


def every_subject() -> list[str]:
    """List all suites and all experiments, as words of the command line."""
    return [*(f"task={name}" for name in choices("task")), *(f"experiment={name}" for name in choices("experiment"))]


# -- one suite, in this process --------------------------------------------------------------------------------------------


def overview_rows(plan: Plan, folder: Path, repetitions: int, seconds: float) -> list[Row]:
    """Measure what the table has of one suite.

    Args:
        plan: Of the suite.
        folder: For runs.
        repetitions: The most rounds of a comparison.
        seconds: After which a comparison ends, however few rounds it had.
    """
    from benchmark_bare import in_channels_last
    from benchmark_epochs import loading_rate, validation_cost, where_loaded
    from benchmark_plans import build_datamodule, build_module, first_batch, in_fp32, trainer_for
    from benchmark_steps import Limit, Relay, beside_bare_loop, ratios, run_trainer

    limit, watch = Limit(repetitions, seconds), MemoryWatch()
    module = build_module(plan)
    batch = first_batch(plan, module.model)
    watch.start(trainer_for(plan, folder / "memory", []))
    relay = beside_bare_loop(plan, folder / "step", limit, after_warm_up=watch.stop)
    labelled = [task for task in module.stage.tasks if bool(batch.present[task].any())]
    channels = ", channels_last" if in_channels_last(module.model) else ""
    note = f"{relay.precision}{channels}; {len(labelled)} of {len(module.stage.tasks)} tasks labelled"
    wall, processor = ratios(relay, "bare"), ratios(relay, "bare", processor=True)
    rows = [Row(SECTION, SHIPPED, statistics.median(relay.wall["ours"]) / len(batch), "s / image", note)]
    single = in_fp32(plan)
    plain = run_trainer(
        single, build_module(single), folder / "fp32", lambda trainer: Relay(batch, relay.device, Limit(2), relay.block)
    )
    rows += [
        Row(SECTION, FP32, statistics.median(plain.wall["ours"]) / len(batch), "s / image"),
        Row(SECTION, RATIO, statistics.median(wall), "", spread(wall)),
        Row(SECTION, PROCESSOR, statistics.median(processor), "", spread(processor)),
        Row(SECTION, MEMORY, watch.found["peak"] / 1024, "GiB", f"{watch.found['kind']} of the process"),
    ]
    cost, windows = validation_cost(plan, folder / "validation", batches=3)
    loader = build_datamodule(plan, module.model).train_dataloader()
    loading_rate(loader, seconds=0.0)  # the first batch also reads labels, and starts workers
    rate, _ = loading_rate(loader, seconds=3.0)
    return [
        *rows,
        Row(SECTION, VALIDATION, cost, "s / window", f"{windows} windows"),
        Row(SECTION, LOADER, rate, "images / s", where_loaded(loader)),
    ]


# -- all of them, each in a process of its own -----------------------------------------------------------------------------


@dataclass
class Measured:
    """A row of the table.

    Attributes:
        subject: The word that selects it: `task=skin_mtl`.
        size: Of an image, and images per batch.
        rows: By name, as `overview_rows` made them.
        reason: Why there are none.
        seconds: What measuring it took.
    """

    subject: str
    size: str = ""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


def measure_all(
    options: argparse.Namespace, subjects: list[str], overrides: list[str], folder: Path, generate: Callable[..., Path]
) -> list[Measured]:
    """Measure suites and experiments one after the other; the data of a family are generated once."""
    found = []
    for number, subject in enumerate(subjects):
        print(f"measuring: {subject} ({number + 1} of {len(subjects)})", file=sys.stderr, flush=True)
        started, measured = time.perf_counter(), Measured(subject)
        try:
            words = planned(measured, overrides, options, folder, generate)
            measured.rows = {row["what"]: row for row in measure_one(words, options)}
        except (MtlError, RuntimeError) as error:
            measured.reason = " ".join(str(error).split())
        measured.seconds = time.perf_counter() - started
        found.append(measured)
    return found


def planned(
    measured: Measured, overrides: list[str], options: argparse.Namespace, folder: Path, generate: Callable[..., Path]
) -> list[str]:
    """Return the words that describe the run of one suite, with the sizes and the data of its family where none are given."""
    plan = Plan.from_words([measured.subject, *without_sizes(overrides)])
    family, geometry = plan.config.data.name, plan.config.data.geometry
    size, batch = SIZES.get(family, (None, None))
    defaults = {"data.geometry.size": size, "data.loader.batch_size": batch}
    given = dict(word.split("=", 1) for word in overrides)
    chosen = json.loads(given.get("data.geometry.size") or size or str(list(geometry.size)))
    if geometry.mode == "tiles" and geometry.overlap >= min(chosen):
        defaults["data.geometry.overlap"] = 0  # the windows are smaller than what they were to share
    words = [measured.subject]
    words += [f"{key}={value}" for key, value in defaults.items() if value is not None and key not in given]
    if plan.config.data.part.get("root") is None:
        words.append(f"data.root={generate(family, folder / 'data' / family, options.images, options.width)}")
    words += overrides
    config = Plan.from_words(words).config
    measured.size = f"{' x '.join(map(str, config.data.geometry.size))}, {config.data.loader.batch_size}"
    return words


def without_sizes(words: list[str]) -> list[str]:
    """Return the words but the size of images, which may not suit the overlap of windows that a suite sets."""
    return [word for word in words if not word.startswith("data.geometry.size=")]


def measure_one(words: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one suite in a process of its own.

    Raises:
        RuntimeError: It failed; with the last line that it wrote.
    """
    script = Path(__file__).resolve().parent / "benchmark.py"
    flags = ["--sections", SECTION, "--json", "--threads", options.threads, "--repetitions", options.repetitions]
    flags += ["--seconds", options.seconds]
    command = [sys.executable, str(script), *words, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"killed by signal {-done.returncode}" if done.returncode < 0 else said)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def overview(measured: list[Measured]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| suite | px, batch | fp32 s/image | as configured s/image | precision | ratio to a bare loop | by processor time "
        "| peak GiB | loader images/s | validation s/window |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for entry in measured:
        if entry.reason:
            lines.append(f"| {entry.subject} | {entry.size} | not measured: {entry.reason.replace('|', '/')} ||||||||")
            continue
        value = {what: row["value"] for what, row in entry.rows.items()}
        note = {what: row["note"] for what, row in entry.rows.items()}
        quartiles = {what: note[what].replace("quartiles ", "").replace(" to ", "-") for what in (RATIO, PROCESSOR)}
        lines.append(
            f"| {entry.subject} | {entry.size} | {value[FP32]:.3f} | {value[SHIPPED]:.3f} | {note[SHIPPED]} "
            f"| {value[RATIO]:.3f} ({quartiles[RATIO]}) | {value[PROCESSOR]:.3f} ({quartiles[PROCESSOR]}) "
            f"| {value[MEMORY]:.2f} | {value[LOADER]:.0f} ({note[LOADER]}) | {value[VALIDATION]:.3f} |"
        )
    return lines
