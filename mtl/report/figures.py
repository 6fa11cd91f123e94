"""Figures of the report. Each function returns a matplotlib figure; nothing touches a display or global state."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from mtl.core.task import Colour
from mtl.drawing.palette import LINES, hexadecimal, on_white

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = tuple(map(hexadecimal, LINES))  # of lines that stand for no class
LONGEST_LABEL = 12  # letters that fit below a column of a confusion matrix
# They keep lines apart in grey print.
STYLES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "axes.titleweight": "bold",
    "axes.grid": True, "grid.color": "#e3e3e3", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.fontsize": 8,
    "legend.framealpha": 0.8, "legend.edgecolor": "none", "lines.linewidth": 1.4, "svg.hashsalt": "mtl",
}  # fmt: skip

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Draw with the style of the report, leaving the settings of the process alone."""

    @functools.wraps(draw)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of the given size in inches and its panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()


@styled
def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same content."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def svg_uri(svg: str) -> str:
    """Return SVG text as a data URI; as an image its ids cannot clash with those of other figures on the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def draw_line(axes: Axes, index: int, x: Any, y: Any, label: str, breaks: Sequence[float] = (), **more: Any) -> None:
    """Draw one line in the colour and style of its index, over what is not a number; few points get markers.

    Args:
        axes: Panel.
        index: Of the line.
        x: [n], rising where there are breaks.
        y: [n].
        label: For the legend.
        breaks: Places on the x axis that the line does not cross.
        more: For `Axes.plot`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = np.isfinite(y)
    x, y = x[known], y[known]
    places = np.searchsorted(x, breaks)
    parts = np.diff([0, *places, len(x)])
    marker = "o" if len(x) <= 3 or 1 in parts else ""
    style = {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": marker,
        "markersize": 3,
    }
    axes.plot(np.insert(x, places, breaks), np.insert(y, places, np.nan), label=label, **{**style, **more})


def of_class(name: str, index: int, colours: Mapping[str, Colour] | None) -> str:
    """Return the colour of a line on white: of its class, as in all other pictures, else by its index."""
    return hexadecimal(on_white(colours[name])) if colours and name in colours else COLOURS[index % len(COLOURS)]


# What a precision-recall curve is of, by the name of the area below it.
AREAS = {"AP50": "IoU 0.5", "AP": "", "AUPR": "pixels of all images"}


@styled
def precision_recall(
    curves: dict[str, dict[str, list[float]]],
    average: dict[str, float | None],
    measure: str = "AP50",
    colours: Mapping[str, Colour] | None = None,
) -> Figure | None:
    """Draw precision over recall per class, with the area below it in the legend.

    Args:
        curves: By class, `recall` and `precision`: objects, interpolated, or pixels over falling thresholds.
        average: By class, the area.
        measure: Name of the area, one of `AREAS`. Curves of pixels are drawn as steps, since their area is not interpolated.
        colours: By class.
    """
    if not curves:
        return None
    figure, (axis,) = canvas(3.6, 3.0)
    pixels, title = measure == "AUPR", AREAS[measure]
    for index, (name, curve) in enumerate(curves.items()):
        value, recall, precision = average.get(name), curve["recall"], curve["precision"]
        if pixels:
            known = [pair for pair in zip(recall, precision, strict=True) if None not in pair]
            recall, precision = [0.0, *(r for r, _ in known)], [known[0][1], *(p for _, p in known)]
        label = name if value is None else f"{name} ({measure} {value:.3f})"
        steps = "steps-pre" if pixels else "default"
        draw_line(axis, index, recall, precision, label, drawstyle=steps, color=of_class(name, index, colours))
    axis.set(xlabel="recall", ylabel="precision", title=", ".join(filter(None, ("Precision and recall", title))))
    axis.set(xlim=(0, 1), ylim=(0, 1.05))
    axis.legend(loc="best")
    return figure


@styled
def operating_curve(curves: Mapping[str, Mapping[str, Any]], colours: Mapping[str, Colour] | None = None) -> Figure | None:
    """Draw the ROC curve of each class, with the area below it in the legend, and mark where it is operated.

    Args:
        curves: By class, `false_positive_rate` and `true_positive_rate` (rising), `auroc`, and `operating_point` with both
            rates and, where a threshold decides, that `threshold`.
        colours: By class.
    """
    drawn = {name: curve for name, curve in curves.items() if curve["auroc"] is not None}
    if not drawn:
        return None
    figure, (axis,) = canvas(3.6, 3.0)
    axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    for index, (name, curve) in enumerate(drawn.items()):
        colour = of_class(name, index, colours)
        rates = curve["false_positive_rate"], curve["true_positive_rate"]
        draw_line(axis, index, *rates, f"{name} (AUROC {curve['auroc']:.3f})", color=colour)
        point = curve["operating_point"]
        place = (point["false_positive_rate"], point["true_positive_rate"])
        if None not in place:
            axis.plot(*place, "o", color=colour, markersize=5, zorder=4)
            if "threshold" in point:
                text = f"{point['threshold']:.2g}"
                axis.annotate(text, place, textcoords="offset points", xytext=(5, -8), fontsize=8)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, operated at the dot", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="lower right")
    return figure


@styled
def free_response(
    curve: dict[str, Any],
    points: dict[int, float | None],
    intervals: dict[int, list[float] | None],
    average: dict[str, float | None],
    colours: Mapping[str, Colour] | None = None,
) -> Figure | None:
    """Draw the free-response curve of each class, and mark the operating points with their intervals.

    Args:
        curve: `rate` (false positives per mm2, rising), `sensitivity` by class, `hit_radius` in microns, `area_mm2`.
        points: Sensitivity by operating point.
        intervals: 95 % interval by operating point, where there is one.
        average: By class, the mean over the operating points.
        colours: By class.
    """
    if not curve["sensitivity"]:
        return None
    figure, (axis,) = canvas(4.4, 3.0)
    for index, (name, values) in enumerate(curve["sensitivity"].items()):
        value = average.get(name)
        label = name if value is None else f"{name} (FROC {value:.3f})"
        draw_line(axis, index, curve["rate"], values, label, drawstyle="steps-post", color=of_class(name, index, colours))
    known = {rate: value for rate, value in points.items() if value is not None}
    for rate, value in known.items():
        low, high = intervals.get(rate) or (value, value)
        axis.plot([rate, rate], [low, high], color="#555555", linewidth=1, zorder=3)
    label = "operating points" + (", 95 % interval" if any(intervals.values()) else "")
    axis.plot(list(known), list(known.values()), "o", color="#000000", markersize=4, zorder=4, label=label)
    axis.set_xscale("log")
    axis.set_xticks(list(points), [str(rate) for rate in points])
    axis.minorticks_off()
    title = f"FROC, hits within {curve['hit_radius']:g} µm, {curve['area_mm2']:.3g} mm²"
    axis.set(xlabel="false positives per mm²", ylabel="sensitivity", title=title, xlim=(curve["rate"][0], curve["rate"][-1]))
    axis.set_ylim(0, 1.05)
    axis.legend(loc="best")
    return figure


@styled
def threshold_curve(
    curve: dict[str, list[float]], chosen: dict[str, float], measure: str, colours: Mapping[str, Colour] | None = None
) -> Figure | None:
    """Draw a measure over the decision threshold on the scored split, and mark what validation chose.

    Args:
        curve: `threshold` and one list per line.
        chosen: Threshold by name; a name that is a line is marked on that line, any other across the panel.
        measure: Label of the vertical axis.
        colours: By class.
    """
    lines = {name: values for name, values in curve.items() if name != "threshold" and any(v is not None for v in values)}
    if not lines:
        return None
    figure, (axis,) = canvas(3.6, 3.0)
    # What stands for all classes takes the last colour.
    index_of = {name: index for index, name in enumerate(name for name in lines if name not in ("macro", "pooled"))}
    for name, values in lines.items():
        index = index_of.get(name, len(COLOURS) - 1)
        numbers = [np.nan if value is None else value for value in values]
        color = of_class(name, index, colours)
        draw_line(axis, index, curve["threshold"], numbers, name, color=color)
        if name in chosen:
            height = float(np.interp(chosen[name], curve["threshold"], numbers))
            axis.plot(chosen[name], height, "o", color=color)
            axis.annotate(f"{chosen[name]:g}", (chosen[name], height), textcoords="offset points", xytext=(5, 5), fontsize=8)
    for name, value in chosen.items():
        if name not in curve:
            axis.axvline(value, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
            axis.annotate(f"chosen {value:g}", (value, 0.02), textcoords="offset points", xytext=(4, 0), fontsize=8)
    axis.set(xlabel="threshold", ylabel=measure, title=f"{measure} over threshold", xlim=(0, 1))
    axis.set_ylim(0, 1.08)
    axis.legend(loc="best")
    return figure


@styled
def confusion(counts: list[list[int]], classes: list[str], predicted: list[str] | None = None) -> Figure | None:
    """Draw a confusion matrix: colour is the share of the true class, the text is the count and that share."""
    matrix = np.asarray(counts, np.float64)
    if matrix.sum() == 0:
        return None
    columns = predicted or classes
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, (axis,) = canvas(1.5 + 0.95 * len(columns), 1.1 + 0.6 * len(classes))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(classes)):
        for column in range(len(columns)):
            text = f"{matrix[row, column]:,.0f}" + (f"\n{100 * share[row, column]:.1f} %" if matrix[row].sum() else "")
            colour = "white" if share[row, column] > 0.55 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    long = max(map(len, columns)) > LONGEST_LABEL
    axis.set_xticks(range(len(columns)), columns, rotation=30 if long else 0, ha="right" if long else "center")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true", title="Confusion")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return figure


@styled
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
    figure, (scatter, difference) = canvas(7.2, 3.0, 1, 2)
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
