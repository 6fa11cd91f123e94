"""Tables of the report: by task, class, source, subgroup, volume and stage."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from mtl.core.task import higher_is_better
from mtl.metrics.breakdown import SUBGROUP_RESAMPLES
from mtl.metrics.classification import BINARY_METRICS
from mtl.metrics.points import FALSE_POSITIVES_PER_MM2
from mtl.metrics.statistics import FEW_GROUPS
from mtl.runs.results import main_metrics

LABELS = {
    "map": "mAP (IoU .50:.95)", "map50": "mAP50", "map75": "mAP75", "f1_macro": "F1, macro over classes",
    "f1_pooled": "F1, all classes pooled", "precision_pooled": "precision, pooled", "recall_pooled": "recall, pooled",
    "count_mae": "count error per image (MAE)", "dice_per_image": "Dice, mean over images",
    "iou_per_image": "IoU, mean over images", "dice_pooled": "Dice, pixels pooled", "iou_pooled": "IoU, pixels pooled",
    "dice_nonempty": "Dice where annotated", "iou_nonempty": "IoU where annotated", "dice_per_case": "Dice, mean over cases",
    "iou_per_case": "IoU, mean over cases", "mae_volume_mm3": "volume error per case (mm³)",
    "hd95_per_image": "HD95, mean over images", "hd95_per_case": "HD95, mean over cases", "hd95": "HD95", "dice": "Dice",
    "iou": "IoU", "peak_f1": "peak F1", "peak_precision": "peak precision",
    "peak_recall": "peak recall", "mse": "map MSE", "mae": "MAE", "rmse": "RMSE", "pearson": "Pearson r",
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "ap": "AP",
    "quadratic_kappa": "quadratic weighted kappa", "aupr": "AUPR, pixels pooled",
    "ap_macro": "mAP, mean over classes", "auroc_macro": "AUROC, mean over classes", "f1_micro": "F1, all entries pooled",
    "exact_match": "all known classes right", "r2": "R²", "positives": "positive", "threshold": "threshold",
    "ap50": "AP50", "ap75": "AP75", "n": "n", "f1": "F1", "precision": "precision", "recall": "recall",
    "volume_predicted_mm3": "predicted (mm³)", "volume_annotated_mm3": "annotated (mm³)",
    "til_score": "TIL score", "froc": "FROC, mean of six sensitivities", "per_mm2": "annotated per mm²",
    **{f"sensitivity_at_{rate}": f"sensitivity at {rate} FP/mm²" for rate in FALSE_POSITIVES_PER_MM2},
}  # fmt: skip
# What a table by source shows of two-class tasks, in this order.
BY_SOURCE = (*BINARY_METRICS, "balanced_accuracy", "auroc", "accuracy", "f1_macro")
LONG = 20  # rows; longer tables are folded


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title: Heading.
        head: Names of the columns.
        rows: Cells: text or numbers.
        names: How many columns hold names, which stand to the left.
        soft: Rows to be set back (baselines), by position.
        note: A sentence below.
    """

    title: str
    head: list[str]
    rows: list[list[Any]]
    names: int = 1
    soft: set[int] = field(default_factory=set)
    note: str = ""

    @property
    def folded(self) -> bool:
        """Is it too long to stand open?"""
        return len(self.rows) > LONG


def number(value: Any, digits: int = 3) -> str:
    """Write a number with a fixed count of digits, whole numbers as they are, text as it is, a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def label(name: str) -> str:
    """Return the words for a metric; study metrics carry their unit behind an underscore."""
    if name in LABELS:
        return LABELS[name]
    first, _, unit = name.partition("_")
    return f"{LABELS[first]} per {unit}" if first in LABELS and unit else name.replace("_", " ")


def labels(names: list[str]) -> list[str]:
    """Return the words for the metrics of one table; `ap` is the mean over overlaps where AP50 stands beside it (boxes)."""
    return ["AP (IoU .50:.95)" if name == "ap" and "ap50" in names else label(name) for name in names]


def arrow(name: str) -> str:
    """Return the direction of a metric as an arrow."""
    return "↑" if higher_is_better(name) else "↓"


def code(text: str) -> str:
    """Set what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def task_tables(entry: dict[str, Any], baseline: dict[str, Any] | None, per_task: dict[str, Any]) -> list[Table]:
    """Return the tables of one task or study metric.

    Args:
        entry: Of `metrics.json`.
        baseline: Of the same task.
        per_task: What a study metric is made from, by task.
    """
    tables = [_table_of("Per task", "task", per_task), _table_of("Per class", "class", entry.get("per_class") or {})]
    sources = entry.get("per_source") or {}
    if len(sources) > 1:
        tables += _source_tables(entry, sources, (baseline or {}).get("from_source"))
    gaps = entry.get("subgroup_gaps") or {}
    for attribute, rows in (entry.get("per_subgroup") or {}).items():
        tables.append(_subgroup_table(attribute, rows, list(entry["ci95"]), gaps.get(attribute)))
    return [table for table in tables if table and table.rows]


def _table_of(title: str, first: str, rows: dict[str, dict[str, Any]]) -> Table:
    columns = list(next(iter(rows.values()), {}))
    lines = [[name, *(row.get(column) for column in columns)] for name, row in rows.items()]
    return Table(title, [first, *labels(columns)], lines)


def _source_tables(entry: dict[str, Any], sources: dict[str, Any], guess: dict[str, Any] | None) -> list[Table]:
    """By source and in total: the metrics, what the source alone gives, and for classes the confusion."""
    names = list(entry["ci95"])
    if "confusion" in entry:
        names = [name for name in BY_SOURCE if name in names] + [name for name in names if name not in BY_SOURCE]
    parts = {**sources, "all": entry}
    rows: list[list[Any]] = [[source, row["n"], *(row.get(name) for name in names)] for source, row in parts.items()]
    soft, count = set(), len(rows)
    if guess:
        inside = {**guess["per_source"], "all": guess["metrics"]}
        rows += [
            [f"{source}: source alone", "", *(inside[source].get(name) for name in names)]
            for source in parts
            if source in inside
        ]
        soft = set(range(count, len(rows)))
    tables = [Table("Per source", ["source", "n", *map(label, names)], rows, soft=soft)]
    if "confusion" in entry:
        classes = list(entry["per_class"])
        widest = max(len(row["confusion"][0]) for row in parts.values())
        predicted = [f"predicted {name}" for name in [*classes, "nothing"][:widest]]
        counts = [
            [source, name, *line, *[0] * (widest - len(line))]
            for source, row in parts.items()
            for name, line in zip(classes, row["confusion"], strict=True)
        ]
        tables.append(Table("Confusion per source", ["source", "annotated", *predicted], counts, names=2))
    return tables


def _subgroup_table(attribute: str, rows: dict[str, Any], names: list[str], gap: dict[str, Any] | None) -> Table:
    """One row per subgroup: the primary metric with its interval and the other main metrics."""
    primary, others = names[0], main_metrics(names)[1:]
    words = attribute.replace("_", " ")
    head = [words, "n", "groups", f"{label(primary)} {arrow(primary)}", "95 % interval", *map(label, others)]
    lines = [
        [f"{value}*" if row["few"] else value, row["n"], row["n_groups"], row.get(primary),
         interval_text(row["ci95"].get(primary)), *(row.get(name) for name in others)]
        for value, row in rows.items()
    ]  # fmt: skip
    notes = []
    if any(row["few"] for row in rows.values()):
        notes.append(f"* Fewer than {FEW_GROUPS} groups: too few to judge.")
    if any(row["ci95"].get(primary) for row in rows.values()):
        notes.append(f"Intervals: {SUBGROUP_RESAMPLES} resamples at most.")
    if gap:
        between = f" [{interval_text(gap['ci95'])}]" if gap["ci95"] else ""
        notes.append(
            f"Largest gap of {label(gap['metric'])} between subgroups that are large enough: {number(gap['difference'])}"
            f"{between} ({gap['best']} over {gap['worst']})."
        )
    else:
        notes.append("Fewer than two subgroups are large enough to compare.")
    return Table(f"By {words}", head, lines, note=" ".join(notes))


def counted(count: Any, what: str) -> str:
    """Write a number of things."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def interval_text(interval: list[float] | None) -> str:
    """Write an interval."""
    return f"{number(interval[0])} – {number(interval[1])}" if interval else "–"


def case_table(table: dict[str, dict[str, dict[str, Any]]], unit: str | None) -> Table:
    """Return the volumes of one task, the worst first.

    Args:
        table: By case and class.
        unit: Of HD95.
    """
    found = [(case, name, row) for case, classes in table.items() for name, row in classes.items()]
    found.sort(key=lambda entry: entry[2]["dice"] if entry[2]["dice"] is not None else -1.0)
    several = len({name for _, name, _ in found}) > 1
    columns = list(found[0][2]) if found else []
    words = [f"{label(column)} ({unit})" if column == "hd95" and unit else label(column) for column in columns]
    rows = [
        [case, *([name] if several else []), *(_whole(row[column]) if "mm3" in column else row[column] for column in columns)]
        for case, name, row in found
    ]
    return Table("Per case", ["case", *(["class"] if several else []), *words], rows, names=1 + several)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def stage_table(metrics: dict[str, Any]) -> Table | None:
    """Return what each stage of a curriculum reached: per task and metric the value after it and the change by it.

    Args:
        metrics: Content of `metrics.json`; `stages` holds by name `epochs`, `tasks` trained so far and `metrics` by task.
    """
    stages = metrics.get("stages") or {}
    if not stages:
        return None
    rows = []
    for task, entry in metrics["tasks"].items():
        for name in main_metrics(entry["ci95"]):
            texts, before = [], None
            for stage in stages.values():
                value = (stage["metrics"].get(task) or {}).get(name) if task in stage["tasks"] else None
                texts.append(_with_change(value, before, ((stage.get("ci95") or {}).get(task) or {}).get(name)))
                before = value
            if any(text != "–" for text in texts):
                rows.append([task, f"{label(name)} {arrow(name)}", *texts])
    head = [f"{name} ({stage['epochs']} epochs)" for name, stage in stages.items()]
    note = "In round brackets the change from the stage before; a dash where the task was not trained yet."
    return Table("After each stage", ["task", "metric", *head], rows, names=2, note=note)


def _with_change(value: float | None, before: float | None, interval: list[float] | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    spread = f" [{interval_text(interval)}]" if interval else ""
    change = f" ({value - before:+.3f})" if before is not None and math.isfinite(before) else ""
    return number(value) + spread + change
