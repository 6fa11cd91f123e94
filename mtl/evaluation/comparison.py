"""`mtl compare`: train the arms of a comparison under the same conditions and table them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mtl.config.load import load_run_config
from mtl.core.errors import ConfigError, TrainingError
from mtl.core.files import file_hash

if TYPE_CHECKING:
    from mtl.evaluation.compare import RunSummary

# Differences between two configurations that do not make them different runs.
VOLATILE = ("resume", "name", "paths")


@dataclass(frozen=True)
class Run:
    """One training run of a comparison."""

    arm: str
    task: str | None  # the only task of a single-task twin
    seed: int
    folder: Path
    overrides: tuple[str, ...]


def compare(
    suite: str,
    seeds: int | list[int],
    arms: str | list[str] | dict[str, list[str]],
    overrides: list[str],
    name: str | None,
    output_root: str,
    reference: str | None,
    bootstrap: int,
) -> Path:
    """Train what is missing, then write `comparison.md` and `comparison.csv`.

    A finished run is reused, an interrupted one is resumed, so the same command can be repeated until everything is there.

    Args:
        suite: Task suite (`task=`).
        seeds: How many seeds (0, 1, ...), or which.
        arms: Named override sets; `mtl` is the suite as it is, `stl` each of its tasks alone.
        overrides: Given to every run.
        name: Folder below `output_root`; None takes the suite.
        output_root: Where comparisons live.
        reference: Arm the others are compared with; None takes `stl` if it is among them, else the first.
        bootstrap: Resamples of the paired intervals.

    Returns:
        Path of `comparison.md`.

    Raises:
        ConfigError: The arms do not compose, or differ in what a comparison must hold equal.
        TrainingError: A run failed; its log is named.
    """
    from mtl.evaluation.compare import write_comparison

    folder = Path(output_root) / (name or suite)
    arm_overrides = _arm_overrides(arms)
    runs = _plan(suite, seeds, arm_overrides, overrides, folder)
    configs = {run: load_run_config(list(run.overrides)) for run in runs}
    console = Console()
    for index, run in enumerate(runs):
        started = time.monotonic()
        state = _bring_up_to_date(run, configs[run])
        place = run.folder.relative_to(folder)
        console.print(f"[{index + 1}/{len(runs)}] {place}: {state} ({time.monotonic() - started:.0f} s)", markup=False)
    summaries = [load_run(run.arm, run.seed, run.folder) for run in runs]
    base = reference or ("stl" if "stl" in arm_overrides else next(iter(arm_overrides)))
    command = f"mtl compare suite={suite} " + " ".join(_quoted(overrides, arms, seeds, name))
    write_comparison(folder, summaries, base, bootstrap, command.strip())
    console.print(str(folder / "comparison.md"), markup=False)
    return folder / "comparison.md"


def load_run(arm: str, seed: int, folder: Path) -> RunSummary:
    """Read a finished run for a comparison."""
    from mtl.evaluation.compare import RunSummary
    from mtl.evaluation.metrics_file import load_records, read_metrics
    from mtl.training.build import build_evaluator

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = read_metrics(folder / "metrics.json")
    records = load_records(folder / "predictions" / "records.json")
    evaluator = build_evaluator(config, records["specs"])
    evaluator.extend(records)
    data = config["data"]
    return RunSummary(
        arm=arm,
        seed=seed,
        evaluator=evaluator,
        thresholds=metrics["thresholds"],
        split_hash=file_hash(folder / "split.csv")[:12],
        budget=metrics["budget"],
        image_size=json.dumps(data["geometry"], sort_keys=True),
        augmentation=json.dumps(data["augmentation"], sort_keys=True),
        baseline=metrics["baseline"],
    )


def _arm_overrides(arms: str | list[str] | dict[str, list[str]]) -> dict[str, list[str]]:
    if isinstance(arms, dict):
        return {name: list(extra or []) for name, extra in arms.items()}
    names = [arms] if isinstance(arms, str) else arms
    wrong = [name for name in names if name not in ("mtl", "stl")]
    if wrong:
        raise ConfigError(
            f"Arm `{wrong[0]}` has no overrides. Expected mtl, stl, or a mapping: arms={{{wrong[0]}:[balancer=uncertainty]}}."
        )
    return {name: [] for name in names}


def _plan(suite: str, seeds: int | list[int], arms: dict[str, list[str]], overrides: list[str], folder: Path) -> list[Run]:
    tasks = load_run_config([f"task={suite}", *overrides])["tasks"]
    runs = []
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        for arm, extra in arms.items():
            for task in tasks if arm == "stl" else [None]:
                place = folder / arm / (task or "") / f"seed{seed}"
                words = [f"task={suite}", *overrides, *extra, f"seed={seed}", f"paths.run_dir={place}"]
                runs.append(Run(arm, task, seed, place, (*words, *([f"tasks=[{task}]"] if task else []))))
    return runs


def _bring_up_to_date(run: Run, config: dict[str, Any]) -> str:
    """Train a run unless it is finished; resume it where it stopped."""
    stored = run.folder / "config.json"
    if stored.is_file():
        before = json.loads(stored.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(config))
        changed = [key for key in now if key not in VOLATILE and now[key] != before.get(key)]
        if changed:
            raise ConfigError(
                f"`{run.folder}` was trained with other settings ({', '.join(changed)} differ). Use another name= for this "
                "comparison, or remove that folder."
            )
        if (run.folder / "metrics.json").is_file():
            return "finished before"
        words, state = [f"resume={run.folder}"], "resumed"
    else:
        words, state = list(run.overrides), "trained"
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "output.txt"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "mtl", "train", *words], stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1]
        raise TrainingError(
            f"The run `{run.folder}` failed with status {done.returncode}: {last}. See `{log}`; repeat the command to go on."
        )
    return state


def _quoted(overrides: list[str], arms: Any, seeds: Any, name: str | None) -> list[str]:
    """Repeat the settings as shell words, for the page that documents the comparison."""

    def inner(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{inner(entry)}" for key, entry in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(inner(entry) for entry in value) + "]"
        text = str(value)
        return f'"{text}"' if any(sign in text for sign in "=,[]{}: ") else text

    words = [f"seeds={inner(seeds)}", f"arms={inner(arms)}", f"overrides={inner(overrides)}"]
    return [shlex.quote(word) for word in [*words, *([f"name={name}"] if name else [])]]
