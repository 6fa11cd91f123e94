"""Results broken down: by source, by subgroup of patients, by volume."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.metrics.base import TaskMetric, natural
from mtl.metrics.statistics import FEW_GROUPS, GroupBootstrap, percentile_interval

# Intervals of subgroups rest on fewer resamples: there are many of them, and a rough bound is enough to judge a gap.
SUBGROUP_RESAMPLES = 200


def by_source(metric: TaskMetric, thresholds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the metrics of a task within each source, with `n` images; classes also their `confusion` [truth][predicted]."""
    found = {}
    for source in sorted({record["source"] for record in metric.records}):
        mine = np.array([record["source"] == source for record in metric.records], np.float64)
        found[source] = {"n": int(mine.sum())} | metric.compute(thresholds, mine) | metric.confusion(thresholds, mine)
    return found


def by_subgroup(metric: TaskMetric, thresholds: dict[str, float], bootstrap: GroupBootstrap) -> dict[str, Any]:
    """Break a task down by the attributes of its images.

    Args:
        metric: With records.
        thresholds: Of the task.
        bootstrap: Over the groups; its first `SUBGROUP_RESAMPLES` resamples are used, the same for all subgroups.

    Returns:
        `per_subgroup`: by attribute and value `n` images, `n_groups`, `few` (fewer than 10 groups: too small to judge), the
        metrics and their `ci95`. Attributes with one value are skipped; an image without the attribute is in none of its
        subgroups. `subgroup_gaps`: by attribute the best and the worst subgroup that is not too small by the primary metric,
        their `difference` (never negative) and its `ci95`, where there are two.
    """
    values: dict[str, set[str]] = {}
    for record in metric.records:
        for attribute, value in record.get("attributes", {}).items():
            values.setdefault(attribute, set()).add(value)
    tables, gaps = {}, {}
    for attribute in sorted(name for name, some in values.items() if len(some) > 1):
        rows, samples = {}, {}
        for value in sorted(values[attribute], key=natural):
            rows[value], samples[value] = _subgroup(metric, thresholds, bootstrap, attribute, value)
        tables[attribute] = rows
        if gap := _gap(metric, rows, samples):
            gaps[attribute] = gap
    return {"per_subgroup": tables, "subgroup_gaps": gaps}


def _subgroup(
    metric: TaskMetric, thresholds: dict[str, float], bootstrap: GroupBootstrap, attribute: str, value: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One row of the table, and the resampled metrics ([R] by name; empty where the subgroup is too small)."""
    mine = np.array([record.get("attributes", {}).get(attribute) == value for record in metric.records], np.float64)
    groups = [record["group"] for record in metric.records]
    count = len({group for group, counts in zip(groups, mine, strict=True) if counts})
    row = {"n": int(mine.sum()), "n_groups": count, "few": count < FEW_GROUPS} | metric.compute(thresholds, mine)
    if row["few"]:
        return row | {"ci95": {}}, {}
    index = bootstrap.index(groups)
    resampled = [metric.compute(thresholds, mine * counts[index]) for counts in bootstrap.counts[:SUBGROUP_RESAMPLES]]
    samples = {name: np.array([values[name] for values in resampled]) for name in (resampled[0] if resampled else ())}
    return row | {"ci95": {name: percentile_interval(found) for name, found in samples.items()}}, samples


def _gap(metric: TaskMetric, rows: dict[str, Any], samples: dict[str, dict[str, np.ndarray]]) -> dict[str, Any] | None:
    primary = metric.spec.primary_metric
    sign = 1 if metric.spec.higher_is_better() else -1
    judged = [value for value, row in rows.items() if not row["few"] and np.isfinite(row[primary])]
    if len(judged) < 2:
        return None
    judged.sort(key=lambda value: sign * rows[value][primary])
    worst, best = judged[0], judged[-1]
    known = primary in samples[best]
    interval = percentile_interval(sign * (samples[best][primary] - samples[worst][primary])) if known else None
    difference = sign * (rows[best][primary] - rows[worst][primary])
    return {"metric": primary, "best": best, "worst": worst, "difference": float(difference), "ci95": interval}


def case_tables(metrics: dict[str, TaskMetric], thresholds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the volumes by task, case and class (see `TaskMetric.case_table`); tasks without volumes are left out."""
    tables = {task: metric.case_table(thresholds[task]) for task, metric in metrics.items()}
    return {task: table for task, table in tables.items() if table}


def surface_notes(metrics: dict[str, TaskMetric], raster: str) -> tuple[dict[str, str], list[str]]:
    """Return the unit of surface distances by task, and what a reader must know of them.

    Args:
        metrics: By task.
        raster: In which masks were compared (`native`, `working`).
    """
    units: dict[str, str] = {}
    notes = []
    for task, metric in metrics.items():
        if metric.distances_in_mm is None:
            continue
        pixels = f"pixels of the {'original' if raster == 'native' else 'working'} raster"
        units[task] = "mm" if metric.distances_in_mm else pixels
        if metric.distances_in_mm and (unknown := int((~metric.stacked("hd95_mm")).sum())):
            notes.append(f"Task `{task}`: {unknown} images of unknown spacing are in no HD95, which is in millimetres.")
    return units, notes
