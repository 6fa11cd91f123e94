"""What is said of a whole case, from what is said of each of its slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl.core.decision import positive_class
from mtl.core.task import TaskSpec
from mtl.kinds.base import DIGITS


def verdict_of(spec: TaskSpec, statements: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what a task with one of two classes per slice says of a case; None of other tasks, and of a blank case.

    A case has the positive class as soon as one slice has it, at the threshold of the task.

    Args:
        spec: The task.
        statements: By slice that shows something, the entry of its class (`mtl.kinds.classes.class_entry`).

    Returns:
        `class_name`; of the positive class `highest_probability`, the `slice` that has it, `mean_probability` over the slices,
        and `slice_share`, the share of the slices that are positive.
    """
    positive = positive_class(spec)
    if not positive or not statements:
        return None
    numbers = list(statements)
    probabilities = np.array([statements[number]["probabilities"][positive] for number in numbers])
    stated = np.array([statements[number]["class_name"] == positive for number in numbers])
    other = next(name for name in spec.classes if name != positive)
    best = int(probabilities.argmax())
    return {
        "class_name": positive if stated.any() else other,
        "highest_probability": round(float(probabilities[best]), DIGITS),
        "slice": numbers[best],
        "mean_probability": round(float(probabilities.mean()), DIGITS),
        "slice_share": round(float(stated.mean()), DIGITS),
    }


def verdict_columns(spec: TaskSpec) -> list[str]:
    """Return the columns of a verdict in `predictions.csv`; none for tasks that give none."""
    positive = positive_class(spec)
    return [f"{spec.name}_case", f"{spec.name}_highest_p_{positive}", f"{spec.name}_mean_p_{positive}"] if positive else []


def verdict_values(spec: TaskSpec, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `verdict_columns`."""
    said = (verdict["class_name"], verdict["highest_probability"], verdict["mean_probability"])
    return dict(zip(verdict_columns(spec), said, strict=True))
