#!/usr/bin/env python
"""Measure what task suites cost: training step, data loading, memory, precision, epochs, start-up.

    python scripts/benchmark.py task=malaria_mttl
    python scripts/benchmark.py task=malaria_mttl backbone=resnet18 'data.geometry.size=[384,384]' --sections step parts
    python scripts/benchmark.py task=skin_mtl --sections step --beside "python peer/train.py --time" --beside-images 8
    python scripts/benchmark.py --all --output docs/benchmarks.md
    python scripts/benchmark.py task=skin_mtl experiment=published/skin_b0

Words with `=` are overrides as for `train.py`. With `--all`, or with several words `task=` and `experiment=`, there is one
table with a row for each, and the other words are for all of them. Without `data.root`, synthetic images are generated into a
temporary folder. Everything that is compared is measured in turns, so that a busy machine disturbs both sides alike.
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
    """Split the command line into options of this script, `subjects` among them, and overrides of the run configuration."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as for train.py")
    parser.add_argument("--all", action="store_true", help="one table of all suites and experiments")
    parser.add_argument("--sections", nargs="+", choices=(*SECTIONS, "overview"), default=list(SECTIONS), help="of one suite")
    parser.add_argument("--repetitions", type=int, default=8, help="repetitions of each side of a comparison")
    parser.add_argument("--seconds", type=float, default=12.0, help="in the table of many, the most that a comparison takes")
    parser.add_argument("--beside", metavar="COMMAND", help="prints seconds per training step last; timed in turns with ours")
    parser.add_argument("--beside-images", type=int, metavar="N", help="images per step of that command (default: as ours)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--images", type=int, default=20, help="synthetic images to generate where no data.root is given")
    parser.add_argument("--width", type=int, help="their width in pixels (default: that of the generator)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="Markdown file whose generated section is replaced")
    options = parser.parse_intermixed_args(words)
    if options.beside_images is not None and (options.beside is None or options.beside_images < 1):
        parser.error("--beside-images is for --beside, and at least 1")
    named = [word for word in options.overrides if word.partition("=")[0] in ("task", "experiment")]
    options.subjects = named if options.all or len(named) > 1 else []
    if options.all or options.subjects:
        if options.beside:
            parser.error("--beside is for one suite: name one task= or experiment=")
        return options, [word for word in options.overrides if word not in named]
    given = {word.partition("=")[0].lstrip("+~") for word in options.overrides}
    # An experiment brings its own task and sizes.
    defaults = {} if "experiment" in given else {key: value for key, value in DEFAULTS.items() if key not in given}
    return options, [f"{key}={value}" for key, value in defaults.items()] + options.overrides


def main(words: list[str]) -> dict[str, Any]:
    """Measure, print and return `{"command", "environment", "rows"}`, or `"suites"` instead of rows."""
    options, overrides = parse(words)
    quiet_environment(options.threads)
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as folder:
        many = options.all or options.subjects
        result = (measure_many if many else measure)(options, overrides, Path(folder))
    result["command"] = shlex.join(["python", "scripts/benchmark.py", *words])
    text = markdown(result)
    print(json.dumps(result, indent=2) if options.json else text)
    if options.output:
        write_section(options.output, text, section_of(options))
    return result


def section_of(options: argparse.Namespace) -> str:
    """Name the section of a page that a result replaces: that of all suites, or that of the one."""
    if options.all or options.subjects:
        return "scripts/benchmark.py"
    named = [word for word in options.overrides if word.partition("=")[0] in ("task", "experiment")]
    return " ".join(["scripts/benchmark.py", *(named or [f"task={DEFAULTS['task']}"])])


def measure(options: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run the chosen sections for one suite; each returns rows."""
    import benchmark_epochs as epochs
    import benchmark_processes as processes
    import benchmark_steps as steps
    import torch
    from benchmark_peer import Peer
    from benchmark_plans import describe, generate_images, plan_of
    from benchmark_suites import overview_rows

    torch.set_num_threads(options.threads)
    overrides = [*overrides, f"paths.output_root={folder / 'runs'}", f"data.cache.folder={folder / 'cache'}"]
    plan = plan_of(overrides)
    if plan.config.data.part.get("root") is None:
        root = generate_images(plan.config.data.name, folder / "images", options.images, options.width)
        overrides.append(f"data.root={root}")
        plan = plan_of(overrides)
    repetitions = options.repetitions
    measures: dict[str, Callable[[], list[Row]]] = {
        "step": lambda: steps.step_rows(plan, folder, repetitions),
        "parts": lambda: steps.part_rows(plan, folder, max(3, repetitions // 2)),
        "loading": lambda: epochs.loading_rows(plan),
        "memory": lambda: processes.memory_rows(overrides),
        "variants": lambda: steps.variant_rows(plan, folder, max(3, repetitions // 2)),
        "epoch": lambda: epochs.epoch_rows(plan, folder),
        "startup": lambda: processes.startup_rows(overrides, folder),
        "overview": lambda: overview_rows(plan, folder, repetitions, options.seconds),
        "peer": lambda: steps.peer_rows(plan, folder, repetitions, Peer(options.beside, options.beside_images)),
    }
    rows: list[Row] = []
    for section in [*options.sections, *(["peer"] if options.beside else [])]:
        print(f"measuring: {section}", file=sys.stderr, flush=True)
        rows += measures[section]()
    return {"environment": describe(plan.config, options.threads), "rows": [row.to_dict() for row in rows]}


def measure_many(options: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Measure several suites, each in a process of its own."""
    from dataclasses import asdict

    import torch
    from benchmark_plans import conditions, generate_images
    from benchmark_suites import every_subject, measure_all, overview

    subjects = every_subject() if options.all else options.subjects
    measured = measure_all(options, subjects, overrides, folder, generate_images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = {"time": f"{sum(entry.seconds for entry in measured):.0f} s for all"}
    return {
        "environment": conditions(device, options.threads) | seconds,
        "suites": [asdict(entry) for entry in measured],
        "table": overview(measured),
    }


def quiet_environment(threads: int) -> None:
    """Set what libraries read when they are imported, here and in child processes, and what every command of mtl sets."""
    from mtl.core.allocator import keep_freed_memory

    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for key, value in {"NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}.items():
        os.environ.setdefault(key, value)


def run(words: list[str]) -> int:
    """Measure; say in a sentence why that cannot be done."""
    from benchmark_peer import PeerError

    from mtl.core.errors import MtlError

    try:
        main(words)
    except (MtlError, PeerError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
