"""What the choice of a checkpoint rests on: how much of validation stands behind the monitored metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl.config.stages import Stage
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.kinds.base import rules_of
from mtl.metrics.base import StudyMetric
from mtl.metrics.statistics import FEW_GROUPS
from mtl.runs.folder import BEST

FEW_EXAMPLES = 10  # objects (or images) of a class: with fewer, its figure jumps from one validation to the next


def monitored_tasks(stage: Stage, study: Mapping[str, StudyMetric]) -> list[str]:
    """Return the tasks that the monitored metric of a stage is made from."""
    config, name = stage.config, stage.config.monitor.split("/")[1]
    if name == "score":
        return [task for task in stage.tasks if config.evaluation.score_weights.get(task, 1.0) > 0]
    if name == "loss":
        return list(stage.tasks)
    return list(study[name].tasks) if name in study else [name]


def selection_basis(
    stage: Stage, specs: Mapping[str, TaskSpec], tasks: Iterable[str], records: Sequence[Record]
) -> dict[str, Any]:
    """Count what the choice of a stage's checkpoint rests on.

    Args:
        stage: Names the metric and how it is used.
        specs: By task.
        tasks: That the metric is made from.
        records: Validation images.

    Returns:
        The entry `selection` of `metrics.json`: `monitor`, `monitor_smoothing`, `select`, `limit`
        (`trainer.limit_val_batches`), `images`, `groups`, and by task its `images`, `groups` and `classes` (objects, or images
        of an image-level class; empty where the index counts none).
    """
    found: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for task in tasks:
        spec = specs[task]
        labelled = [record for record in records if record.knows(spec.label)]
        seen |= {record.sample_id: record.group for record in labelled}
        counts = [int(count) for count in rules_of(spec).class_counts(spec, labelled)]
        found[task] = {
            "images": len(labelled),
            "groups": len({record.group for record in labelled}),
            "classes": dict(zip(spec.classes, counts, strict=True)) if any(counts) else {},
        }
    config = stage.config
    return {
        "monitor": config.monitor, "monitor_smoothing": config.monitor_smoothing, "select": config.select,
        "limit": config.trainer.limit_val_batches, "images": len(seen), "groups": len(set(seen.values())), "tasks": found,
    }  # fmt: skip


def describe_selection(basis: Mapping[str, Any], group_by: str) -> str:
    """Return one line that says what a monitored metric rests on."""
    parts = []
    for task, entry in basis["tasks"].items():
        classes = ", ".join(f"{name} {count}" for name, count in entry["classes"].items())
        parts.append(f"{task} {entry['images']} images of {entry['groups']} groups" + (f" ({classes})" if classes else ""))
    last = f"; {BEST} is the last validated epoch (select=last)" if basis["select"] == "last" else ""
    limit = basis["limit"]
    cut = "" if limit in (None, 1.0) else f", of which trainer.limit_val_batches={limit} scores a part only"
    return f"{basis['monitor']} rests on validation, groups by {group_by}: {'; '.join(parts)}{cut}{last}"


def few_examples(basis: Mapping[str, Any]) -> list[str]:
    """Return a warning, in a list, where the choice of a checkpoint rests on so little that chance may decide it."""
    rare = [
        f"{count} of {name} ({task})"
        for task, entry in basis["tasks"].items()
        for name, count in entry["classes"].items()
        if count < FEW_EXAMPLES
    ]
    small = [f"{entry['groups']} groups ({task})" for task, entry in basis["tasks"].items() if 0 < entry["groups"] < FEW_GROUPS]
    if not rare + small or basis["select"] == "last":
        return []
    return [
        f"{basis['monitor']}, which selects {BEST}, rests on few examples: {', '.join(rare + small)}. Below {FEW_EXAMPLES} "
        f"objects or images of a class, or {FEW_GROUPS} groups, chance may choose the epoch. Consider monitor_smoothing=3, "
        "select=last or evaluation.class_weighting=known, or validate on more."
    ]
