"""The page of a comparison, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.task import higher_is_better
from mtl.metrics.statistics import group_notes, spread, task_group_notes
from mtl.report.tables import counted

if TYPE_CHECKING:
    from mtl.evaluation.summaries import RunSummary

# A relative gain over less than this says little: a change that nobody would notice is a large share of it.
SMALL = 0.05


@dataclass(frozen=True)
class Gain:
    """Δm of an arm against the reference.

    Attributes:
        per_seed: One per seed.
        tasks: Those that both have.
        interval: 95 % over groups, of the mean over seeds; None where there is none.
        missing: Why there is none.
    """

    per_seed: list[float]
    tasks: list[str]
    interval: list[float] | None = None
    missing: str = ""


Gains = dict[str, Gain]
ONE_SEED = (
    "One seed: no spread over seeds can be given. The intervals tell how much the test images matter, not whether the arms "
    "would rank alike if they were trained again; three seeds or more (`seeds=3`) do."
)


def comparison_text(
    runs: list[RunSummary], whole: list[RunSummary], rows: list[dict[str, Any]], gains: Gains, arms: list[str], bootstrap: int,
    references: dict[str, float],
) -> str:  # fmt: skip
    """Return a comparison as Markdown.

    Args:
        runs: As given.
        whole: One per arm and seed, with all of its tasks.
        rows: One per arm and metric, with the keys `FIELDS`.
        gains: By arm, Δm against the first arm.
        arms: The first is the reference.
        bootstrap: Resamples of the intervals.
        references: By task, the smallest primary metric of the reference.
    """
    groups = sorted({group for run in runs for group in run.evaluator.groups})
    group_by, one, seeds = runs[0].evaluator.group_by, runs[0], len({run.seed for run in runs})
    tasks = dict.fromkeys(task for run in runs for task in run.evaluator.specs)
    labelled = {
        task: min(run.evaluator.labelled_groups(task) for run in whole if task in run.evaluator.specs) for task in tasks
    }
    lines = [
        f"Test images of {counted(len(groups), group_by)}; {counted(seeds, 'seed')}; "
        f"budget {one.budget:,} training samples per run{_seen(runs)}; network input {one.image_size or 'as configured'}; "
        f"thresholds from {one.thresholds_source}.",
        "",
        f"Cells: mean ± standard deviation over seeds{_in_brackets(arms, bootstrap)}.",
        *(group_notes(len(groups), group_by) + task_group_notes(labelled, len(groups), group_by) if len(arms) > 1 else []),
        *([ONE_SEED] if seeds == 1 and len(arms) > 1 else []), "",
    ]  # fmt: skip
    for task in dict.fromkeys(row["task"] for row in rows):
        baselines = [mean_baseline(whole, task), mean_baseline(whole, task, "from_source")]
        lines += [*_task_table(task, [row for row in rows if row["task"] == task], arms, baselines), ""]
    if gains:
        lines += [f"### Δm against {arms[0]}", "", "| arm | Δm (%) | tasks |", "|---|---|---|"]
        lines += [
            f"| {arm} | {_mean_std(gain.per_seed, 1)}{_interval(gain)} | {', '.join(gain.tasks) or 'none'} |"
            for arm, gain in gains.items()
        ]
        lines += ["", *_gain_notes(arms[0], gains, references)]
    if shared := [note for note in one.notes if all(note in run.notes for run in runs)]:
        lines += ["", "Of all runs:", "", *(f"- {note}" for note in shared)]
    return "\n".join(lines)


def _gain_notes(reference: str, gains: Gains, references: dict[str, float]) -> list[str]:
    """Return notes where Δm has no meaning, or little."""
    lines: list[str] = []
    if any(gain.interval for gain in gains.values()):
        lines += ["In brackets the 95 % bootstrap interval of Δm over groups, paired.", ""]
    for arm, gain in gains.items():
        if gain.missing and gain.tasks and np.isfinite(gain.per_seed).all():
            lines += [f"Δm of `{arm}` has no interval over groups: {gain.missing}.", ""]
    if any(not np.isfinite(gain.per_seed).all() for gain in gains.values()):
        lines += [f"A dash: a metric of `{reference}` is 0 or undefined, and a relative gain over it has no meaning.", ""]
    if listed := ", ".join(f"{task} ({value:.3f})" for task, value in references.items() if 0 < value < SMALL):
        lines += [
            f"Δm divides by the primary metric of `{reference}`, which is small for {listed}: there a small difference is a "
            "large share. Read the table of the task.", "",
        ]  # fmt: skip
    return lines


def _in_brackets(arms: list[str], bootstrap: int) -> str:
    if len(arms) == 1:
        return ""
    interval = f"paired 95 % bootstrap interval over groups ({bootstrap} resamples)"
    return f"; in brackets the difference to `{arms[0]}` and its {interval}"


def _seen(runs: list[RunSummary]) -> str:
    """Return how many samples were really seen, where that is not the budget."""
    seen = [run.seen for run in runs if run.seen is not None]
    return f" ({min(seen):,} to {max(seen):,} seen)" if seen and (min(seen), max(seen)) != (runs[0].budget,) * 2 else ""


def mean_baseline(runs: list[RunSummary], task: str, part: str | None = None) -> dict[str, Any] | None:
    """Average the baseline of a task over the runs, since folds have different test images.

    Args:
        runs: With `baseline`.
        task: Task or study metric.
        part: What stands beside the baseline under this name (`from_source`) instead of the baseline itself.
    """
    entries = [run.baseline[task] for run in runs if task in run.baseline]
    found = [entry[part] for entry in entries if part in entry] if part else entries
    if not found:
        return None
    names = list(dict.fromkeys(entry["name"] for entry in found))
    metrics = {}
    for metric in found[0]["metrics"]:
        values = [entry["metrics"].get(metric) for entry in found]
        known = [value for value in values if value is not None and np.isfinite(value)]
        metrics[metric] = float(np.mean(known)) if known else None
    return {"name": names[0] if len(names) == 1 else f"{names[0]}, and others in other folds", "metrics": metrics}


def _task_table(task: str, rows: list[dict[str, Any]], arms: list[str], baselines: list[dict[str, Any] | None]) -> list[str]:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by_column = {(row["arm"], row["metric"]): row for row in rows}
    arrows = [f"{metric} {'↑' if higher_is_better(metric) else '↓'}" for metric in metrics]
    lines = [f"### {task}", "", f"| arm | {' | '.join(arrows)} |", "|---" * (len(metrics) + 1) + "|"]
    for arm in arms:
        if any((arm, metric) in by_column for metric in metrics):
            lines.append(f"| {arm} | {' | '.join(_mean_and_spread(by_column.get((arm, metric))) for metric in metrics)} |")
    for baseline in filter(None, baselines):
        numbers = [_number(baseline["metrics"].get(metric)) for metric in metrics]
        lines.append(f"| *baseline: {baseline['name']}* | {' | '.join(numbers)} |")
    return lines


def _mean_and_spread(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    text = _number(row["mean"]) + (f" ± {_number(row['std'])}" if np.isfinite(row["std"]) else "")
    if row["low"] != "" and np.isfinite(row["difference"]):
        text += f" ({row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}])"
    elif row["difference"] != "" and np.isfinite(row["difference"]):
        text += f" ({row['difference']:+.3f})"
    return text


def _number(value: Any, digits: int = 3) -> str:
    return "–" if value is None or value == "" or not np.isfinite(value) else f"{value:.{digits}f}"


def _interval(gain: Gain) -> str:
    return f" [{gain.interval[0]:+.1f}, {gain.interval[1]:+.1f}]" if gain.interval and np.isfinite(gain.per_seed).all() else ""


def _mean_std(values: list[float], digits: int) -> str:
    found = spread(values)
    text = "–" if not np.isfinite(found["mean"]) else f"{found['mean']:+.{digits}f}"
    return text + (f" ± {found['std']:.{digits}f}" if np.isfinite(found["std"]) else "")
