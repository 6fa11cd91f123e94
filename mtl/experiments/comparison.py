"""Runs side by side: who is better, by how much, and whether the comparison is fair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError
from mtl.core.files import table_text, write_text
from mtl.core.task import TaskSpec, higher_is_better
from mtl.evaluation.summaries import RunSummary
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.statistics import (
    GroupBootstrap,
    mean_over_runs,
    paired_intervals,
    resampled_scores,
    spread,
)
from mtl.report.comparison import Gains, comparison_text

# What must agree between arms, with the words used in the refusal.
IDENTITY = {
    "split_hash": "split", "budget": "budget (samples allowed)", "thresholds_source": "source of thresholds",
    "image_size": "image size", "resolution": "size at which masks are compared", "augmentation": "augmentation",
}  # fmt: skip
FIELDS = ("task", "metric", "arm", "seeds", "mean", "std", "min", "max", "reference", "difference", "low", "high")


def check_comparable(runs: list[RunSummary]) -> None:
    """Refuse an unfair comparison.

    Runs of one seed must share split, budget, source of thresholds, image size and augmentation; every arm must have the same
    seeds for a task; a task must have the same classes.

    Raises:
        ConfigError: One sentence that lists everything that differs.
    """
    problems = []
    for key, words in IDENTITY.items():
        for seed in sorted({run.seed for run in runs}):
            mine = [run for run in runs if run.seed == seed]
            if len({getattr(run, key) for run in mine}) > 1:
                listed = ", ".join(f"{run.name}: {getattr(run, key)}" for run in mine)
                problems.append(f"{words} ({listed})")
                break
    for task in _tasks(runs):
        seeds = {arm: tuple(run.seed for run in _having(runs, arm, task)) for arm in _arms(runs)}
        if len({tuple(sorted(found)) for found in seeds.values() if found}) > 1:
            problems.append(f"seeds of task {task} ({', '.join(f'{arm}: {list(s)}' for arm, s in seeds.items() if s)})")
        if any(len(found) != len(set(found)) for found in seeds.values()):
            problems.append(f"number of runs with task {task} for one seed")
        if len({run.evaluator.specs[task].classes for run in runs if task in run.evaluator.specs}) > 1:
            problems.append(f"classes of task {task}")
        rules = {frozenset(run.thresholds.get(task, {})) for run in runs if task in run.evaluator.specs}
        if len(rules) > 1:  # a run of an earlier release decides by the most probable class
            named = ", ".join(" and ".join(sorted(rule)) or "none" for rule in sorted(rules, key=sorted))
            problems.append(f"thresholds of task {task} ({named}; evaluate the older runs again)")
    if problems:
        raise ConfigError(f"These runs cannot be compared because they differ in: {'; '.join(problems)}.")


def comparison_table(
    runs: list[RunSummary], reference: str | None = None, *, bootstrap: int = 1000, seed: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """Compare arms over tasks and metrics.

    Per arm and metric: mean and spread over seeds, and the paired bootstrap interval over groups of the difference to the
    reference (per resample the mean over seeds on each side, so the interval speaks of patients, the spread of
    seeds). A metric of a study (parasitemia, mean over lesions) is treated like one of a task; where an arm trains tasks alone,
    it is made from its runs of a seed together. A task whose labels belong to one group has no interval.

    Args:
        runs: At least one per arm.
        reference: Arm that the others are compared with; None takes the first. Single-task runs make Δm what is usually meant.
        bootstrap: Resamples.
        seed: Of the resampling.

    Returns:
        Markdown, and one row per arm and metric with the keys `FIELDS`.

    Raises:
        ConfigError: The runs cannot be compared (see `check_comparable`), or the reference is unknown.
    """
    check_comparable(runs)
    arms = _arms(runs)
    first = reference or arms[0]
    if first not in arms:
        raise ConfigError(f"Reference arm `{first}` has no run. Expected one of: {', '.join(arms)}.")
    arms = [first, *[arm for arm in arms if arm != first]]
    whole = _joined(runs)
    values = {arm: _values([run for run in whole if run.arm == arm]) for arm in arms}
    differences = _differences(whole, arms, bootstrap, seed)
    rows = _rows(values, differences, arms)
    gains = _gains(runs, values, arms)
    return comparison_text(runs, whole, rows, gains, arms, bootstrap, _references(runs, values[arms[0]], gains)), rows


def write_comparison(
    folder: Path, runs: list[RunSummary], reference: str | None, bootstrap: int, command: str, seed: int = 0
) -> Path:
    """Write `comparison.md` (with the command that made it) and `comparison.csv`; return the path of the former."""
    markdown, rows = comparison_table(runs, reference, bootstrap=bootstrap, seed=seed)
    write_text(folder / "comparison.csv", rows_to_csv(rows))
    page = folder / "comparison.md"
    write_text(page, f"# Comparison\n\n```\n{command}\n```\n\n{markdown}")
    return page


def signed_gain(ours: float, reference: float, metric: str) -> float:
    """Return the relative gain in percent, positive where ours is better whatever the direction of the metric."""
    if not np.isfinite(ours) or not np.isfinite(reference) or reference == 0:
        return float("nan")
    return 100.0 * (ours - reference) / abs(reference) * (1 if higher_is_better(metric) else -1)


def delta_m(ours: dict[str, float], reference: dict[str, float], specs: dict[str, TaskSpec]) -> float:
    """Return Δm in percent: the mean over tasks of the signed relative gain of the primary metric.

    Source: Maninis et al., Attentive Single-Tasking of Multiple Tasks, CVPR 2019. NaN unless every task that both sides have
    is defined, and where a reference is exactly 0. A reference near 0 is not treated differently, since every remedy is another
    measure; the page of a comparison names such tasks.
    """
    gains = [signed_gain(ours[task], reference[task], specs[task].primary_metric) for task in ours if task in reference]
    return float(np.mean(gains)) if gains else float("nan")


def rows_to_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `comparison_table` as CSV text; undefined numbers are empty."""
    shown = ({key: "" if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()} for row in rows)
    return table_text(shown, FIELDS)


# -- numbers -----------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, dict[int, float]]]


def _arms(runs: list[RunSummary]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def _tasks(runs: list[RunSummary]) -> list[str]:
    return list(dict.fromkeys(task for run in runs for task in run.evaluator.specs))


def _having(runs: list[RunSummary], arm: str, task: str) -> list[RunSummary]:
    return [run for run in runs if run.arm == arm and task in run.evaluator.specs]


def _joined(runs: list[RunSummary]) -> list[RunSummary]:
    """Join the runs of an arm that share a seed, so that each has every study metric whose tasks are all there."""
    study = {name: metric for run in runs for name, metric in run.evaluator.study.items()}
    joined = []
    for arm, seed in dict.fromkeys((run.arm, run.seed) for run in runs):
        mine = [run for run in runs if (run.arm, run.seed) == (arm, seed)]
        tasks = {task for run in mine for task in run.evaluator.specs}
        # With its own settings where a run has them: arms may differ in these.
        kept = {name: metric for run in mine for name, metric in run.evaluator.study.items()}
        own = {
            name: kept.get(name, metric)
            for name, metric in study.items()
            if name in kept or (metric.tasks and tasks.issuperset(metric.tasks) and not metric.deciders)
        }
        baseline = {task: entry for run in mine for task, entry in run.baseline.items()}
        evaluator = Evaluator.joined([run.evaluator for run in mine], own)
        missing = {name: metric for name, metric in own.items() if name not in baseline}
        made = {name: metric.baseline(baseline, evaluator.metrics, float("nan")) for name, metric in missing.items()}
        joined.append(
            replace(
                mine[0],
                evaluator=evaluator,
                thresholds={task: values for run in mine for task, values in run.thresholds.items()},
                baseline=baseline | {name: entry for name, entry in made.items() if entry},
            )
        )
    return joined


def _values(runs: list[RunSummary]) -> Values:
    """By task, metric and seed."""
    found: Values = {}
    for run in sorted(runs, key=lambda run: run.seed):
        for task, metrics in run.evaluator.compute(run.thresholds).items():
            for metric, value in metrics.items():
                found.setdefault(task, {}).setdefault(metric, {})[run.seed] = value
    return found


def _differences(runs: list[RunSummary], arms: list[str], bootstrap: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired intervals of every arm against the first, by arm, task and metric."""
    resampling = GroupBootstrap([group for run in runs for group in run.evaluator.groups], bootstrap, seed)
    if len(resampling.names) < 2 or len(arms) < 2 or bootstrap < 1:
        return {}

    def samples(arm: str) -> dict[str, dict[str, np.ndarray]]:
        mine = [run for run in runs if run.arm == arm]
        steps: list[Callable[[np.ndarray], Any]] = [
            run.evaluator.compute_by_group(run.thresholds, resampling.names) for run in mine
        ]
        return mean_over_runs([resampled_scores(step, resampling) for step in steps])

    reference = samples(arms[0])
    few = {name for run in runs for name in run.evaluator.names if run.evaluator.labelled_groups(name) < 2}
    return {
        arm: {name: found for name, found in paired_intervals(samples(arm), reference).items() if name not in few}
        for arm in arms[1:]
    }


def _rows(values: dict[str, Values], differences: dict[str, Any], arms: list[str]) -> list[dict[str, Any]]:
    rows = []
    names = {(task, metric): None for arm in arms for task, metrics in values[arm].items() for metric in metrics}
    for task, metric in names:
        for arm in arms:
            by_seed = values[arm].get(task, {}).get(metric)
            if not by_seed:
                continue
            over_seeds = spread(list(by_seed.values()))
            row: dict[str, Any] = dict.fromkeys(FIELDS, "")
            row |= {"task": task, "metric": metric, "arm": arm, "seeds": over_seeds.pop("n"), **over_seeds}
            against = values[arms[0]].get(task, {}).get(metric)
            if arm != arms[0] and against:
                low, high = differences.get(arm, {}).get(task, {}).get(metric) or ("", "")
                difference = over_seeds["mean"] - spread(list(against.values()))["mean"]
                row |= {"reference": arms[0], "difference": difference, "low": low, "high": high}
            rows.append(row)
    return rows


def _gains(runs: list[RunSummary], values: dict[str, Values], arms: list[str]) -> Gains:
    """By arm: Δm per seed against the first arm, and the tasks that both have."""
    specs = {task: spec for run in runs for task, spec in run.evaluator.specs.items()}

    def primaries(arm: str, seed: int) -> dict[str, float]:
        tasks = {task: values[arm].get(task, {}).get(spec.primary_metric, {}) for task, spec in specs.items()}
        return {task: by_seed[seed] for task, by_seed in tasks.items() if seed in by_seed}

    found = {}
    for arm in arms[1:]:
        seeds = sorted({run.seed for run in runs if run.arm == arm})
        shared = [task for task in specs if task in values[arm] and task in values[arms[0]]]
        found[arm] = ([delta_m(primaries(arm, seed), primaries(arms[0], seed), specs) for seed in seeds], shared)
    return found


def _references(runs: list[RunSummary], reference: Values, gains: Gains) -> dict[str, float]:
    """By task of a gain, the smallest primary metric of the reference over its seeds."""
    specs = {task: spec for run in runs for task, spec in run.evaluator.specs.items()}
    shared = {task for _, tasks in gains.values() for task in tasks}
    return {
        task: min(map(abs, reference[task][spec.primary_metric].values())) for task, spec in specs.items() if task in shared
    }
