"""Figures of the report. Each function returns a matplotlib figure; nothing touches a display or global state."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from mtl.core.task import KIND_METRICS, ORDINAL_METRICS, higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: distinguishable with colour-blindness; styles keep lines apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "axes.titleweight": "bold",
    "axes.grid": True, "grid.color": "#e3e3e3", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.fontsize": 8,
    "legend.framealpha": 0.8, "legend.edgecolor": "none", "lines.linewidth": 1.4, "svg.hashsalt": "mtl",
}  # fmt: skip
MAX_LINES = 4
# Columns of mixtures of experts, drawn in a figure of their own: mean weight of each expert, and how many were used.
EXPERT = re.compile(r"(?P<stage>train|val)/(?P<task>.+)/(?P<what>expert_\d+|experts_used)")

History = dict[str, np.ndarray]
Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def _styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Draw with the style of the report, leaving the settings of the process alone."""

    @functools.wraps(draw)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()


@_styled
def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same content."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def svg_uri(svg: str) -> str:
    """Return SVG text as a data URI; as an image its ids cannot clash with those of other figures on the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _line(axes: Axes, index: int, x: Any, y: Any, label: str, **more: Any) -> None:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = np.isfinite(y)
    marker = "o" if known.sum() <= 3 else ""
    style = {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": marker,
        "markersize": 3,
    }
    axes.plot(x[known], y[known], label=label, **{**style, **more})


@_styled
def training_curves(history: History, best_epoch: float | None = None) -> Figure | None:
    """Draw losses, validation metrics per task, learning rates and balancer weights over epochs.

    Args:
        history: Columns of `metrics.csv` by name; NaN where a cell is empty.
        best_epoch: Marked in every panel.
    """
    from matplotlib.ticker import MaxNLocator

    panels = _panels(history)
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = _canvas(3.3 * columns, 2.9 * rows, rows, columns)
    epochs = history["epoch"]
    for axis, (title, (lines, scale)) in zip(axes, panels.items(), strict=False):
        for index, (label, column) in enumerate(_merge_equal(lines, history).items()):
            _line(axis, index, epochs, history[column], label)
        if best_epoch is not None:
            axis.axvline(best_epoch, color="#888888", linewidth=0.8, zorder=0)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if scale == "unit":
            axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.0)
        elif scale == "log" and all(np.nanmin(history[column]) > 0 for column in lines.values()):
            _log_scale(axis)
        # Below the panel, where it hides no line.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7, frameon=False, borderaxespad=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def _panels(history: History) -> dict[str, tuple[dict[str, str], str]]:
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
    for name in sorted(filled, key=_rank):
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


@_styled
def expert_use(history: History, best_epoch: float | None = None) -> Figure | None:
    """Draw how mixtures of experts used them: the mean weight of each expert per task, and how many were used per image.

    Training images where they were watched, else validation images.

    Args:
        history: Columns of `metrics.csv` by name; NaN where a cell is empty.
        best_epoch: Marked in every panel.
    """
    from matplotlib.ticker import MaxNLocator

    weights, used = _expert_columns(history)
    if not weights:
        return None
    panels = len(weights) + bool(used)
    columns = min(4, panels)
    rows = math.ceil(panels / columns)
    figure, axes = _canvas(2.5 * columns, 2.3 * rows, rows, columns)
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
            _line(axes[len(weights)], index, epochs, values, task)
        axes[len(weights)].set(title="experts used per image", ylim=(0, max(len(own) for own in weights.values()) + 0.2))
        axes[len(weights)].legend(loc="best", fontsize=6)
    for axis in axes[:panels]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if best_epoch is not None:
            axis.axvline(best_epoch, color="#888888", linewidth=0.8)
    for axis in axes[panels:]:
        axis.set_visible(False)
    figure.legend(names.values(), names, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _expert_columns(history: History) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Sort the columns of mixtures: weight by task and expert (`expert 1`, ...), number of used experts by task."""
    weights: dict[str, dict[str, np.ndarray]] = {}
    used: dict[str, np.ndarray] = {}
    found = [match for name, values in history.items() if (match := EXPERT.fullmatch(name)) and np.isfinite(values).any()]
    watched = {match["task"] for match in found if match["stage"] == "train"}
    for match in sorted(found, key=lambda match: int("0" + "".join(filter(str.isdigit, match["what"])))):
        if (match["stage"] == "train") != (match["task"] in watched):
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
    known = [*(metric for metrics in KIND_METRICS.values() for metric in metrics), *ORDINAL_METRICS]
    metric = column.split("/")[-1]
    return known.index(metric) if metric in known else len(known)


@_styled
def precision_recall(
    curves: dict[str, dict[str, list[float]]], average: dict[str, float | None], pixels: bool = False
) -> Figure | None:
    """Draw precision over recall per class, with the area below it in the legend.

    Args:
        curves: By class, `recall` and `precision`: objects at IoU 0.5, interpolated, or pixels over falling thresholds.
        average: By class, the area (AP50 or AUPR).
        pixels: The curves are those of pixels and drawn as steps, since their area is not interpolated either.
    """
    if not curves:
        return None
    figure, (axis,) = _canvas(3.6, 3.0)
    measure, title = ("AUPR", "pixels of all images") if pixels else ("AP50", "IoU 0.5")
    for index, (name, curve) in enumerate(curves.items()):
        value, recall, precision = average.get(name), curve["recall"], curve["precision"]
        if pixels:
            known = [pair for pair in zip(recall, precision, strict=True) if None not in pair]
            recall, precision = [0.0, *(r for r, _ in known)], [known[0][1], *(p for _, p in known)]
        label = name if value is None else f"{name} ({measure} {value:.3f})"
        _line(axis, index, recall, precision, label, **({"drawstyle": "steps-pre"} if pixels else {}))
    axis.set(xlabel="recall", ylabel="precision", title=f"Precision and recall, {title}", xlim=(0, 1), ylim=(0, 1.05))
    axis.legend(loc="best")
    return figure


@_styled
def threshold_curve(curve: dict[str, list[float]], chosen: dict[str, float], measure: str) -> Figure | None:
    """Draw a measure over the decision threshold on the scored split, and mark what validation chose.

    Args:
        curve: `threshold` and one list per line.
        chosen: Threshold by name; a name that is a line is marked on that line, any other across the panel.
        measure: Label of the vertical axis.
    """
    lines = {name: values for name, values in curve.items() if name != "threshold" and any(v is not None for v in values)}
    if not lines:
        return None
    figure, (axis,) = _canvas(3.6, 3.0)
    # A class has the colour that it has in the other figures; the mean over classes takes the last one.
    index_of = {name: index for index, name in enumerate(name for name in lines if name != "macro")}
    for name, values in lines.items():
        index = index_of.get(name, len(COLOURS) - 1)
        numbers = [np.nan if value is None else value for value in values]
        _line(axis, index, curve["threshold"], numbers, name)
        if name in chosen:
            height = float(np.interp(chosen[name], curve["threshold"], numbers))
            axis.plot(chosen[name], height, "o", color=COLOURS[index % len(COLOURS)])
            axis.annotate(f"{chosen[name]:g}", (chosen[name], height), textcoords="offset points", xytext=(5, 5), fontsize=8)
    for name, value in chosen.items():
        if name not in curve:
            axis.axvline(value, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
            axis.annotate(f"chosen {value:g}", (value, 0.02), textcoords="offset points", xytext=(4, 0), fontsize=8)
    axis.set(xlabel="threshold", ylabel=measure, title=f"{measure} over threshold", xlim=(0, 1))
    axis.set_ylim(0, 1.08)
    axis.legend(loc="best")
    return figure


@_styled
def confusion(counts: list[list[int]], classes: list[str], predicted: list[str] | None = None) -> Figure | None:
    """Draw a confusion matrix: colour is the share of the true class, the text is the count and that share."""
    matrix = np.asarray(counts, np.float64)
    if matrix.sum() == 0:
        return None
    columns = predicted or classes
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, (axis,) = _canvas(1.5 + 0.95 * len(columns), 1.1 + 0.6 * len(classes))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(classes)):
        for column in range(len(columns)):
            text = f"{matrix[row, column]:,.0f}" + (f"\n{100 * share[row, column]:.1f} %" if matrix[row].sum() else "")
            colour = "white" if share[row, column] > 0.55 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true", title="Confusion")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return figure


@_styled
def agreement(pairs: dict[str, Any], unit: str, quantity: str, sign: str = "") -> Figure | None:
    """Draw predicted over true values and the Bland-Altman figure of one unit (image, patient).

    Args:
        pairs: `predicted`, `true`; `bias` and `limits` are drawn where given.
        unit: What one point is.
        quantity: What is measured.
        sign: Its unit for the axes (`%`).
    """
    true, predicted = np.asarray(pairs["true"], np.float64), np.asarray(pairs["predicted"], np.float64)
    known = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[known], predicted[known]
    if len(true) == 0:
        return None
    figure, (scatter, difference) = _canvas(7.2, 3.0, 1, 2)
    suffix = f" ({sign})" if sign else ""
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.05 * (high - low or 1.0)
    limits = (low - margin, high + margin)
    scatter.plot(limits, limits, color="#888888", linewidth=0.8)
    scatter.plot(true, predicted, "o", color=COLOURS[0], markersize=4, alpha=0.7)
    scatter.set(xlabel=f"true{suffix}", ylabel=f"predicted{suffix}", title=f"{quantity} per {unit}", xlim=limits, ylim=limits)
    difference.plot((true + predicted) / 2, predicted - true, "o", color=COLOURS[0], markersize=4, alpha=0.7)
    title = f"Bland-Altman, per {unit}"
    if pairs.get("bias") is not None:
        difference.axhline(pairs["bias"], color=COLOURS[1], linewidth=1.2)
        title += f"\nbias {pairs['bias']:+.2f}"
        spread = [limit for limit in pairs["limits"] if limit is not None]
        for limit in spread:
            difference.axhline(limit, color=COLOURS[1], linewidth=1, linestyle="--")
        if spread:
            title += f", 95 % limits {spread[0]:+.2f} … {spread[-1]:+.2f}"
    difference.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    difference.set(xlabel=f"mean of both{suffix}", ylabel=f"predicted - true{suffix}", title=title)
    return figure
