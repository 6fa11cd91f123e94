"""From probabilities to classes: the one rule that metrics, predictions and figures share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl.core.task import TaskSpec

DEFAULT_THRESHOLD = 0.5


def positive_class(spec: TaskSpec) -> str:
    """Return the class whose probability a threshold decides on, or an empty text where the most probable class wins.

    Tasks with one class per image or object and two classes have a threshold, on the second one; grades have none.
    """
    return spec.classes[1] if spec.rules.exclusive and len(spec.classes) == 2 and not spec.ordinal else ""


def predicted_classes(probabilities: np.ndarray, spec: TaskSpec, thresholds: Mapping[str, float]) -> np.ndarray:
    """Return the [...] int64 class that is predicted where one class per image or object is true.

    With two classes the second one from its threshold on, else the most probable one. The default threshold of 0.5 is the most
    probable class too, but for a tie, which counts as the second class.

    Args:
        probabilities: [..., C].
        spec: The task.
        thresholds: Of the task; 0.5 unless named.
    """
    values = np.asarray(probabilities, np.float64)
    if positive := positive_class(spec):
        return (values[..., 1] >= thresholds.get(positive, DEFAULT_THRESHOLD)).astype(np.int64)
    return values.argmax(axis=-1).astype(np.int64)


def predicted_labels(probabilities: np.ndarray, spec: TaskSpec, thresholds: Mapping[str, float]) -> np.ndarray:
    """Return the [..., C] bool that is predicted where classes are independent: each from its own threshold on.

    Args:
        probabilities: [..., C].
        spec: The task.
        thresholds: By class; 0.5 unless named.
    """
    limits = np.array([thresholds.get(name, DEFAULT_THRESHOLD) for name in spec.classes])
    return np.asarray(probabilities, np.float64) >= limits
