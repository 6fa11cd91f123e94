"""Figures of the history of a training run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtl.core.registry import KINDS
from mtl.core.task import higher_is_better
from mtl.kinds.base import rules_named
from mtl.report.figures import COLOURS, canvas, draw_line, styled
from mtl.runs.history import History, StageSpan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 4
# Columns of mixtures of experts, drawn in a figure of their own: mean weight of each expert, and how many were used.
EXPERT = re.compile(r"(?P<split>train|val)/(?P<task>.+)/(?P<what>expert_\d+|experts_used)")
GREY = "#888888"


def _epoch_axis(axis: Axes, best_epoch: float | None, stages: Sequence[StageSpan]) -> None:
    """Label the epochs, mark the scored one, separate the stages and write their names along their first epoch."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if best_epoch is not None:
        axis.axvline(best_epoch, color=GREY, linewidth=0.8, zorder=0)
    if len(stages) < 2:
        return
    for index, stage in enumerate(stages):
        if index % 2:
            axis.axvspan(stage.first - 0.5, stage.last + 0.5, color="#f3f3f3", linewidth=0, zorder=-1)
        if index:
            axis.axvline(stage.first - 0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        axis.annotate(
            stage.name, (stage.first - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(2, -2), textcoords="offset points",
            rotation=90, ha="left", va="top", fontsize=6.5, color="#555555",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
    axis.set_xlim(stages[0].first - 0.5, stages[-1].last + 0.5)


@styled
def training_curves(
    history: History, best_epoch: float | None = None, stages: Sequence[StageSpan] = (), primaries: dict[str, str] | None = None
) -> Figure | None:
    """Draw losses, validation metrics per task, learning rates and balancer weights over epochs.

    Args:
        history: Columns by name; NaN where a cell is empty.
        best_epoch: Marked in every panel.
        stages: Their bounds are drawn in every panel.
        primaries: By task, the metric to draw first.
    """
    panels = _panels(history, primaries or {})
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = canvas(3.3 * columns, 2.9 * rows, rows, columns)
    epochs, breaks = history["epoch"], [stage.first - 0.5 for stage in stages[1:]]
    for axis, (title, (lines, scale)) in zip(axes, panels.items(), strict=False):
        for index, (label, column) in enumerate(_merge_equal(lines, history).items()):
            draw_line(axis, index, epochs, history[column], label, breaks)
        axis.set_title(title)
        _epoch_axis(axis, best_epoch, stages)
        if scale == "unit":
            axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.0)
        elif scale == "log" and all(np.nanmin(history[column]) > 0 for column in lines.values()):
            _log_scale(axis)
        # Below the panel, where it hides no line.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7, frameon=False, borderaxespad=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def _panels(history: History, primaries: dict[str, str]) -> dict[str, tuple[dict[str, str], str]]:
    """Sort the columns into panels: title to (label to column, scale of the axis)."""
    if "epoch" not in history:
        return {}
    filled = [name for name, values in history.items() if np.isfinite(values).any()]
    panels: dict[str, tuple[dict[str, str], str]] = {
        "loss": ({name: name for name in ("train/loss", "val/loss") if name in filled}, "linear"),
        "training loss per task": (
            {name.split("/")[1]: name for name in filled if re.fullmatch("train/[^/]+/loss", name)}, "log",
        ),
        "score": ({name: name for name in ("val/score",) if name in filled}, "unit"),
    }  # fmt: skip
    firsts = {f"val/{task}/{metric}" for task, metric in primaries.items()}
    for name in sorted(filled, key=lambda name: -1 if name in firsts else _rank(name)):
        parts = name.split("/")
        if parts[0] == "val" and len(parts) == 3 and higher_is_better(parts[2]) and not EXPERT.fullmatch(name):
            lines, _ = panels.setdefault(parts[1], ({}, "unit"))
            if len(lines) < MAX_LINES:
                lines[parts[2]] = name
    for prefix, title, scale in (("lr/", "learning rate", "log"), ("weight/", "balancer weight", "linear")):
        panels[title] = ({name.removeprefix(prefix): name for name in filled if name.startswith(prefix)}, scale)
    lines, _ = panels["balancer weight"]
    if len({value for name in lines.values() for value in history[name] if np.isfinite(value)}) == 1:
        del panels["balancer weight"]  # every task the same weight all the time
    return {title: panel for title, panel in panels.items() if panel[0]}


@styled
def expert_use(history: History, best_epoch: float | None = None, stages: Sequence[StageSpan] = ()) -> Figure | None:
    """Draw how mixtures of experts used them: the mean weight of each expert per task, and how many were used per image.

    Training images where they were watched, else validation images.

    Args:
        history: Columns by name; NaN where a cell is empty.
        best_epoch: Marked in every panel.
        stages: Their bounds are drawn in every panel.
    """
    weights, used = _expert_columns(history)
    if not weights:
        return None
    panels = len(weights) + bool(used)
    columns = min(4, panels)
    rows = math.ceil(panels / columns)
    figure, axes = canvas(2.5 * columns, 2.3 * rows, rows, columns)
    epochs, names = history["epoch"], {}
    for axis, (task, own) in zip(axes, weights.items(), strict=False):
        known = np.isfinite(np.stack(list(own.values()))).all(axis=0)
        # A single epoch becomes a bar.
        x = epochs[known] if known.sum() != 1 else epochs[known] + [-0.4, 0.4]
        below = np.zeros(len(x))
        for index, (name, values) in enumerate(own.items()):
            above = below + values[known]
            colour = COLOURS[index % len(COLOURS)]
            names[name] = axis.fill_between(x, below, above, color=colour, linewidth=0.5, edgecolor="white")
            below = above
        axis.set(title=task, ylabel="share of the output")
        axis.set_ylim(0, max(1.0, float(below.max(initial=0))))
    if used:
        for index, (task, values) in enumerate(used.items()):
            draw_line(axes[len(weights)], index, epochs, values, task)
        axes[len(weights)].set(title="experts used per image", ylim=(0, max(len(own) for own in weights.values()) + 0.2))
        axes[len(weights)].legend(loc="best", fontsize=6)
    for axis in axes[:panels]:
        _epoch_axis(axis, best_epoch, stages)
    for axis in axes[panels:]:
        axis.set_visible(False)
    figure.legend(names.values(), names, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _expert_columns(history: History) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Sort the columns of mixtures: weight by task and expert (`expert 1`, ...), number of used experts by task."""
    weights: dict[str, dict[str, np.ndarray]] = {}
    used: dict[str, np.ndarray] = {}
    found = [match for name, values in history.items() if (match := EXPERT.fullmatch(name)) and np.isfinite(values).any()]
    watched = {match["task"] for match in found if match["split"] == "train"}
    for match in sorted(found, key=lambda match: int("0" + "".join(filter(str.isdigit, match["what"])))):
        if (match["split"] == "train") != (match["task"] in watched):
            continue
        if match["what"] == "experts_used":
            used[match["task"]] = history[match.string]
        else:
            weights.setdefault(match["task"], {})[match["what"].replace("_", " ")] = history[match.string]
    return weights, used


def _merge_equal(lines: dict[str, str], history: History) -> dict[str, str]:
    """Draw one line where all are the same (learning rates of the parts), instead of the last one over the others."""
    columns = [history[column] for column in lines.values()]
    if len(lines) > 2 and all(np.array_equal(columns[0], other, equal_nan=True) for other in columns[1:]):
        return {"all": next(iter(lines.values()))}
    return lines


def _log_scale(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high / low < 100:  # too few decades for 10^k alone
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _rank(column: str) -> int:
    """Order metrics as their kind lists them, the primary one first; other columns keep their order behind."""
    lists, metric = [rules_named(kind).metric_class.names for kind in KINDS.names()], column.split("/")[-1]
    return min((names.index(metric) for names in lists if metric in names), default=max(map(len, lists)))
