"""What kinds share that give one class to an image or a box: the entry in files, the majority as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl.core.decision import predicted_classes
from mtl.core.task import TaskSpec
from mtl.kinds.base import DIGITS, RecordChange, TrainingStatistics


def class_entry(
    probabilities: np.ndarray, spec: TaskSpec, thresholds: Mapping[str, float], digits: int | None = None
) -> dict[str, Any]:
    """Return which class is predicted: the most probable one; of two, the second from its threshold on.

    Args:
        probabilities: [C].
        spec: The task.
        thresholds: Of the task.
        digits: Decimals of the numbers; None keeps them as they are.

    Returns:
        `predicted_class_id`, `class_name`, `confidence` (its probability) and `probabilities` by class.
    """
    values = {
        name: float(p) if digits is None else round(float(p), digits)
        for name, p in zip(spec.classes, probabilities, strict=True)
    }
    chosen = int(predicted_classes(probabilities, spec, thresholds))
    name = spec.classes[chosen]
    return {"predicted_class_id": chosen, "class_name": name, "confidence": values[name], "probabilities": values}


def image_entry(
    probabilities: np.ndarray, spec: TaskSpec, thresholds: Mapping[str, float], digits: int | None = None
) -> dict[str, Any]:
    """Return `class_entry` of a whole image, with `probability_list`: the probabilities in the order of the classes."""
    entry = class_entry(probabilities, spec, thresholds, digits)
    return {**entry, "probability_list": list(entry["probabilities"].values())}


def class_columns(spec: TaskSpec) -> list[str]:
    """Return the columns of a class: its name, its probability, and that of every class."""
    return [f"{spec.name}_class_name", f"{spec.name}_confidence", *(f"{spec.name}_p_{name}" for name in spec.classes)]


def class_values(spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `class_columns` from a `class_entry`."""
    values = {f"{spec.name}_class_name": entry["class_name"], f"{spec.name}_confidence": entry["confidence"]}
    return values | {f"{spec.name}_p_{name}": value for name, value in entry["probabilities"].items()}


def scored_class(
    spec: TaskSpec, label: Any, probabilities: np.ndarray, thresholds: Mapping[str, float]
) -> dict[str, Any]:  # fmt: skip
    """Return by column the annotated class, the predicted one and the probabilities; empty where nothing was predicted."""
    annotated = {"annotated": spec.classes[int(label)]}
    if np.isnan(probabilities).any():
        return annotated
    entry = class_entry(probabilities, spec, thresholds, DIGITS)
    said = {"predicted": entry["class_name"], "confidence": entry["confidence"]}
    return annotated | said | {f"p_{name}": value for name, value in entry["probabilities"].items()}


def most_frequent(spec: TaskSpec, statistics: TrainingStatistics) -> int:
    """Return the index of the most frequent class of training; the first where nothing is known."""
    return int(np.argmax(statistics.class_counts.get(spec.name) or [1.0] * len(spec.classes)))


def majority(index: int) -> RecordChange:
    """Return a change of records in which one class is always predicted."""

    def change(record: dict[str, Any]) -> dict[str, Any]:
        certain = np.zeros_like(record["probabilities"])
        certain[..., index] = 1.0
        return {"probabilities": certain}

    return change
