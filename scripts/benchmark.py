#!/usr/bin/env python
"""Measure what a task suite costs: training step, data loading, memory, precision, epochs, start-up.

    python scripts/benchmark.py task=malaria_mttl
    python scripts/benchmark.py task=malaria_mttl backbone=resnet18 'data.geometry.size=[384,384]' --sections step parts
    python scripts/benchmark.py task=malaria_mttl trainer.precision=bf16-mixed --output docs/benchmarks.md

Words with `=` are overrides as for `train.py`. Without `data.root`, synthetic images are generated into a temporary folder.
Everything that is compared is measured in turns within one process, so that a busy machine disturbs both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # this checkout, and the modules beside this file when it is imported

from benchmark_rows import Row, markdown, write_section  # noqa: E402

SECTIONS = ("step", "parts", "loading", "memory", "variants", "epoch", "startup")
# The published input is larger; this size keeps a run on two cores within minutes.
DEFAULTS = {"task": "malaria_mttl", "data.geometry.size": "[256,256]", "data.loader.batch_size": "2"}


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into options of this script and overrides of the run configuration."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as for train.py")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--repetitions", type=int, default=8, help="repetitions of each side of a comparison")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--images", type=int, default=20, help="synthetic images to generate where no data.root is given")
    parser.add_argument("--width", type=int, default=1024, help="their width in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="Markdown file whose generated section is replaced")
    options = parser.parse_intermixed_args(words)
    given = {word.partition("=")[0].lstrip("+~") for word in options.overrides}
    # An experiment brings its own task and sizes.
    defaults = {} if "experiment" in given else {key: value for key, value in DEFAULTS.items() if key not in given}
    return options, [f"{key}={value}" for key, value in defaults.items()] + options.overrides


def main(words: list[str]) -> dict[str, Any]:
    """Measure, print and return `{"command", "environment", "rows"}`."""
    options, overrides = parse(words)
    quiet_environment(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as folder:
        result = measure(options, overrides, Path(folder))
    result["command"] = shlex.join(["python", "scripts/benchmark.py", *words])
    text = markdown(result)
    print(json.dumps(result, indent=2) if options.json else text)
    if options.output:
        write_section(options.output, text)
    return result


def measure(options: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run the chosen sections; each returns rows."""
    import benchmark_processes as processes
    import benchmark_steps as steps

    from mtl.config.plan import Plan
    from mtl.runs.precision import settled

    overrides = [*overrides, f"paths.output_root={folder / 'runs'}", f"data.cache.folder={folder / 'cache'}"]
    plan = Plan.from_words(overrides)
    if plan.config.data.part.get("root") is None:
        root = steps.generate_images(plan.config.data.name, folder / "images", options.images, options.width)
        overrides.append(f"data.root={root}")
        plan = Plan.from_words(overrides)
    plan, _ = settled(plan)
    repetitions = options.repetitions
    measures: dict[str, Callable[[], list[Row]]] = {
        "step": lambda: steps.step_rows(plan, folder, repetitions),
        "parts": lambda: steps.part_rows(plan, max(3, repetitions // 2)),
        "loading": lambda: steps.loading_rows(plan, folder),
        "memory": lambda: processes.memory_rows(overrides),
        "variants": lambda: steps.variant_rows(plan, max(3, repetitions // 2)),
        "epoch": lambda: steps.epoch_rows(plan, folder),
        "startup": lambda: processes.startup_rows(overrides, folder),
    }
    rows: list[Row] = []
    for section in options.sections:
        print(f"measuring: {section}", file=sys.stderr, flush=True)
        rows += measures[section]()
    return {"environment": steps.describe(plan.config, options.threads), "rows": [row.to_dict() for row in rows]}


def quiet_environment(threads: int) -> None:
    """Set what libraries read when they are imported, here and in child processes."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for key, value in {"NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}.items():
        os.environ.setdefault(key, value)


if __name__ == "__main__":
    main(sys.argv[1:])
