"""Some classes only: what files and pictures leave out of a prediction, which itself stays whole.

Counts and study metrics are made from everything; leaving a class out changes no number that is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.kinds.base import first_of, rules_of

Hidden = Mapping[str, Collection[str]]  # by task, classes that are left out
BY_CLASS = ("volume_mm3", "labels", "n_slices", "slices")  # entries of a volume that have a value per class


def hidden_classes(specs: Mapping[str, TaskSpec], classes: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return by task what is left out when some classes are shown only; a task that is not named shows none of them.

    A task that states exactly one class of an image or a box stays whole, since its probabilities belong together; so do tasks
    without classes.

    Args:
        specs: The tasks, by name.
        classes: Names of classes.

    Raises:
        ConfigError: No task has such a class, or none is named.
    """
    names = [classes] if isinstance(classes, str) else list(classes)
    known = {name for spec in specs.values() for name in spec.classes}
    problems = [unknown("class", name, known, "classes") for name in names if name not in known]
    if problems or not names:
        raise ConfigError(problems or f"`classes` is empty. Expected some of: {', '.join(sorted(known))}.")
    found: dict[str, frozenset[str]] = {}
    finder = first_of(specs, specs, "boxes")
    for task, spec in specs.items():
        if not spec.classes or set(spec.classes) & set(names):
            found[task] = frozenset(set(spec.classes) - set(names)) if _independent(spec) else frozenset()
    return {task: hidden for task, hidden in found.items() if not rules_of(specs[task]).of_boxes or finder in found}


def narrowed_content(content: dict[str, Any], hidden: Hidden, counted: str | None) -> None:
    """Leave classes out of the JSON of an image or a volume, in place.

    Args:
        content: As `Prediction.to_json` and `VolumePrediction.to_json` give it.
        hidden: From `hidden_classes`.
        counted: The task that counts are of.
    """
    for name in hidden.get(counted or "", ()):
        content.get("counts", {}).pop(name, None)
    for task, entry in content["tasks"].items():
        if hidden.get(task):
            _narrow_entry(entry, hidden[task])


def hidden_columns(hidden: Hidden, counted: str | None) -> set[str]:
    """Return the columns of `predictions.csv` that belong to classes left out."""
    found = {f"n_{name}" for name in hidden.get(counted or "", ())}
    patterns = ("{0}_{1}", "{0}_p_{1}", "{0}_{1}_area_ratio", "{0}_{1}_volume_mm3", "{0}_{1}_slices")
    return found | {form.format(task, name) for task, names in hidden.items() for name in names for form in patterns}


def narrowed_tasks(
    tasks: Mapping[str, Arrays], specs: Mapping[str, TaskSpec], hidden: Hidden
) -> tuple[dict[str, Arrays], dict[str, TaskSpec]]:
    """Leave classes out of what is drawn; classes that exclude each other stay.

    Args:
        tasks: As `ImageResult.tasks`, the classes of boxes decided.
        specs: The tasks.
        hidden: From `hidden_classes`.
    """
    arrays, kept = dict(tasks), dict(specs)
    for task in tasks:
        spec, rules = specs[task], rules_of(specs[task])
        if not hidden.get(task) or (rules.areas and not spec.multilabel):
            continue
        chosen = [index for index, name in enumerate(spec.classes) if name not in hidden[task]]
        given = [key for key in ("classes", "colours", "members", "labels") if getattr(spec, key)]
        fewer: dict[str, Any] = {key: tuple(getattr(spec, key)[index] for index in chosen) for key in given}
        kept[task] = replace(spec, **fewer)
        arrays[task] = _of_objects(tasks[task], chosen) if rules.finds else _of_channels(tasks[task], chosen)
    return arrays, kept


def _independent(spec: TaskSpec) -> bool:
    """Return whether a class can be left out: objects, areas, and classes that have a threshold each."""
    rules = rules_of(spec)
    if rules.finds or rules.areas:
        return True
    return not rules.of_boxes and set(rules.metric(spec, 1.0).default_thresholds) == set(spec.classes)


def _narrow_entry(entry: dict[str, Any], names: Collection[str]) -> None:
    for key in ("objects", "points"):
        if key in entry:
            entry[key] = [row for row in entry[key] if row["class"] not in names]
    for key in BY_CLASS:
        if isinstance(entry.get(key), dict):
            entry[key] = {name: value for name, value in entry[key].items() if name not in names}
    if isinstance(entry.get("slices"), list):
        for row in entry["slices"]:
            _narrow_entry(row, names)
    if "found" in entry:
        entry["found"] = [name for name in entry["found"] if name not in names]
        entry["probabilities"] = {name: value for name, value in entry["probabilities"].items() if name not in names}
    for name in names:
        entry.pop(f"{name}_area_ratio", None)


def _of_objects(arrays: Arrays, chosen: list[int]) -> Arrays:
    rows = np.isin(arrays["labels"], chosen)
    fewer = dict(arrays) | {key: arrays[key][rows] for key in ("boxes", "points", "scores", "ids") if key in arrays}
    if "heatmap" in arrays:
        fewer["heatmap"] = arrays["heatmap"][chosen]
    return fewer | {"labels": np.searchsorted(chosen, arrays["labels"][rows])}


def _of_channels(arrays: Arrays, chosen: list[int]) -> Arrays:
    return {key: value[chosen] for key, value in arrays.items()}
