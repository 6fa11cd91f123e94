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
from mtl.metrics.base import ratio
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.statistics import (
    GroupBootstrap,
    mean_over_runs,
    paired_intervals,
    percentile_interval,
    resampled_scores,
    spread,
)
from mtl.report.comparison import Gain, Gains, comparison_text

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
    samples = _resampled(whole, bootstrap, seed) if len(arms) > 1 else {}
    few = [name for run in whole for name in run.evaluator.names if run.evaluator.labelled_groups(name) < 2]
    rows = _rows(values, _differences(samples, arms, few), arms)
    gains = _gains(runs, values, arms, samples, few)
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


def signed_gain(ours: Any, reference: Any, metric: str) -> np.ndarray:
    """Return the relative gain in percent, positive where ours is better whatever the direction of the metric.

    Of numbers or of arrays of them; NaN where one side is not finite or the reference is 0.
    """
    gain = 100.0 * ratio(np.subtract(ours, reference), np.abs(reference)) * (1 if higher_is_better(metric) else -1)
    return np.where(np.isfinite(gain), gain, np.nan)


def delta_m(ours: dict[str, float], reference: dict[str, float], specs: dict[str, TaskSpec]) -> float:
    """Return Δm in percent: the mean over tasks of the signed relative gain of the primary metric.

    Source: Maninis et al., Attentive Single-Tasking of Multiple Tasks, CVPR 2019. NaN unless every task that both sides have
    is defined, and where a reference is exactly 0. A reference near 0 is not treated differently, since every remedy is another
    measure; the page of a comparison names such tasks.
    """
    gains = [float(signed_gain(ours[task], reference[task], specs[task].primary_metric)) for task in ours if task in reference]
    return float(np.mean(gains)) if gains else float("nan")


def rows_to_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `comparison_table` as CSV text; undefined numbers are empty."""
    shown = ({key: "" if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()} for row in rows)
    return table_text(shown, FIELDS)


# -- numbers -----------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, dict[int, float]]]
Resampled = dict[str, dict[str, np.ndarray]]
Samples = dict[str, dict[int, Resampled]]


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


def _resampled(runs: list[RunSummary], bootstrap: int, seed: int) -> Samples:
    """By arm and seed, what every metric is in each resample of the groups; empty where there is nothing to resample."""
    resampling = GroupBootstrap([group for run in runs for group in run.evaluator.groups], bootstrap, seed)
    found: Samples = {}
    if len(resampling.names) < 2 or bootstrap < 1:
        return found
    for run in runs:
        step: Callable[[np.ndarray], Any] = run.evaluator.compute_by_group(run.thresholds, resampling.names)
        found.setdefault(run.arm, {})[run.seed] = resampled_scores(step, resampling)
    return found


def _differences(samples: Samples, arms: list[str], few: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired intervals of every arm against the first, by arm, task and metric; none for tasks with labels of one group."""
    if not samples:
        return {}
    means = {arm: mean_over_runs(list(samples[arm].values())) for arm in arms}
    return {
        arm: {name: found for name, found in paired_intervals(means[arm], means[arms[0]]).items() if name not in few}
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


def _gains(runs: list[RunSummary], values: dict[str, Values], arms: list[str], samples: Samples, few: list[str]) -> Gains:
    """By arm: Δm per seed against the first arm, its interval, and the tasks that both have."""
    specs = {task: spec for run in runs for task, spec in run.evaluator.specs.items()}

    def primaries(arm: str, seed: int) -> dict[str, float]:
        tasks = {task: values[arm].get(task, {}).get(spec.primary_metric, {}) for task, spec in specs.items()}
        return {task: by_seed[seed] for task, by_seed in tasks.items() if seed in by_seed}

    found = {}
    for arm in arms[1:]:
        seeds = sorted({run.seed for run in runs if run.arm == arm})
        shared = {task: specs[task].primary_metric for task in specs if task in values[arm] and task in values[arms[0]]}
        per_seed = [delta_m(primaries(arm, seed), primaries(arms[0], seed), specs) for seed in seeds]
        if lonely := [task for task in shared if task in few]:
            interval, missing = None, f"the labels of {', '.join(lonely)} belong to one group"
        elif not samples:
            interval, missing = None, "there is one group only, or bootstrap=0"
        else:
            interval = _gain_interval(samples[arm], samples[arms[0]], shared)
            missing = "" if interval else "it is not defined in most resamples"
        found[arm] = Gain(per_seed, list(shared), interval, missing)
    return found


def _gain_interval(
    ours: dict[int, Resampled], reference: dict[int, Resampled], primaries: dict[str, str]
) -> list[float] | None:
    """Return the 95 % interval of Δm over groups: per resample the mean over seeds, and in each seed the mean over tasks.

    Args:
        ours: By seed.
        reference: By seed.
        primaries: Metric by task.
    """
    per_seed = []
    for seed in ours.keys() & reference.keys():
        sides = ours[seed], reference[seed]
        gains = [
            signed_gain(sides[0][task][metric], sides[1][task][metric], metric)
            for task, metric in primaries.items()
            if all(task in side for side in sides)
        ]
        if gains:
            per_seed.append(np.mean(gains, axis=0))
    return percentile_interval(np.mean(per_seed, axis=0)) if per_seed else None


def _references(runs: list[RunSummary], reference: Values, gains: Gains) -> dict[str, float]:
    """By task of a gain, the smallest primary metric of the reference over its seeds."""
    specs = {task: spec for run in runs for task, spec in run.evaluator.specs.items()}
    shared = {task for gain in gains.values() for task in gain.tasks}
    return {
        task: min(map(abs, reference[task][spec.primary_metric].values())) for task, spec in specs.items() if task in shared
    }
