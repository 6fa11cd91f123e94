"""Uncertainty of results: bootstrap over groups, paired differences, spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mtl.core.errors import ConfigError

Scores = dict[str, dict[str, float]]
FEW_GROUPS = 10


class GroupBootstrap:
    """Resamples whole groups (patients) with replacement, as integer weights, so that images of a patient stay together.

    Two users of the same groups, count and seed see the same resamples: that makes differences paired.

    Args:
        groups: Group names; repetitions are ignored.
        resamples: Number of resamples R.
        seed: Of the generator.
    """

    def __init__(self, groups: Sequence[str], resamples: int = 1000, seed: int = 0) -> None:
        self.names = sorted(set(groups))
        self.resamples = resamples
        size = len(self.names)
        draws = np.random.default_rng(seed).integers(0, max(size, 1), (resamples, size))
        # [R, G] how often each group was drawn.
        self.counts = np.zeros((resamples, size), np.int64)
        np.add.at(self.counts, (np.arange(resamples)[:, None], draws), 1)
        self._position = {name: index for index, name in enumerate(self.names)}

    def index(self, groups: Sequence[str]) -> np.ndarray:
        """Return the [n] position of each record's group, to look up `counts[r][index]`."""
        return np.array([self._position[group] for group in groups], np.int64)


def percentile_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> list[float] | None:
    """Return the percentile interval [low, high] over the finite values, or None where fewer than half are finite."""
    array = np.asarray(values, np.float64)
    finite = array[np.isfinite(array)]
    if len(finite) == 0 or len(finite) * 2 < len(array):
        return None
    tail = 50 * (1 - level)
    return [float(value) for value in np.percentile(finite, [tail, 100 - tail])]


def bootstrap_intervals(
    score: Callable[[np.ndarray], Scores], bootstrap: GroupBootstrap
) -> dict[str, dict[str, list[float] | None]] | None:
    """Return the 95 % interval of every metric.

    Args:
        score: Gives the scores for one weight per group, in the order of `bootstrap.names`.
        bootstrap: The resamples.

    Returns:
        By task and metric; None where a single group leaves nothing to resample.
    """
    if len(bootstrap.names) < 2 or bootstrap.resamples < 1:
        return None
    samples = resampled_scores(score, bootstrap)
    return {task: {name: percentile_interval(values) for name, values in metrics.items()} for task, metrics in samples.items()}


def resampled_scores(score: Callable[[np.ndarray], Scores], bootstrap: GroupBootstrap) -> dict[str, dict[str, np.ndarray]]:
    """Return [R] values by task and metric."""
    samples: dict[str, dict[str, list[float]]] = {}
    for counts in bootstrap.counts:
        for task, metrics in score(counts).items():
            for name, value in metrics.items():
                samples.setdefault(task, {}).setdefault(name, []).append(value)
    return {task: {name: np.asarray(values) for name, values in metrics.items()} for task, metrics in samples.items()}


def mean_over_runs(samples: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """Average the resampled values of runs (seeds) that share the resamples, over the tasks and metrics of each run."""
    collected: dict[str, dict[str, list[np.ndarray]]] = {}
    for run in samples:
        for task, metrics in run.items():
            for name, values in metrics.items():
                collected.setdefault(task, {}).setdefault(name, []).append(values)
    return {task: {name: np.mean(values, axis=0) for name, values in metrics.items()} for task, metrics in collected.items()}


def paired_intervals(
    ours: dict[str, dict[str, np.ndarray]], reference: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, list[float] | None]]:
    """Return the 95 % interval of `ours - reference` per task and metric, resample by resample."""
    return {
        task: {
            name: percentile_interval(values - reference[task][name])
            for name, values in metrics.items()
            if name in reference[task]
        }
        for task, metrics in ours.items()
        if task in reference
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (n - 1; NaN for one value), smallest, largest and number over seeds."""
    array = np.asarray(values, np.float64)
    if len(array) == 0:
        raise ConfigError("No value to average: an arm of the comparison has no finished run.")
    return {
        "mean": float(array.mean()), "std": float(array.std(ddof=1)) if len(array) > 1 else float("nan"),
        "min": float(array.min()), "max": float(array.max()), "n": len(array),
    }  # fmt: skip


def group_notes(groups: int, group_by: str) -> list[str]:
    """Return what the number of groups means for the intervals."""
    if groups < 2:
        return [f"All images belong to one {group_by}: no interval can be given."]
    if groups < FEW_GROUPS:
        return [f"Intervals rest on {groups} groups ({group_by}) only and are rough."]
    return []


def task_group_notes(counts: dict[str, int], groups: int, group_by: str) -> list[str]:
    """Return notes on tasks whose intervals rest on few groups although there are more.

    Args:
        counts: By task, the number of groups with labels for it.
        groups: Number of all groups.
        group_by: What a group is.
    """
    notes = []
    for count in sorted({count for count in counts.values() if 0 < count < min(FEW_GROUPS, groups)}):
        named = ", ".join(task for task, own in counts.items() if own == count)
        notes.append(
            f"All labels of {named} belong to one {group_by}: no interval can be given."
            if count == 1
            else f"Intervals of {named} rest on {count} groups ({group_by}) only and are rough."
        )
    return notes
