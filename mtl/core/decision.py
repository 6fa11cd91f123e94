"""From probabilities to classes: the one rule that metrics, predictions and figures share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl.core.errors import unknown
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays

DEFAULT_THRESHOLD = 0.5


def positive_index(spec: TaskSpec) -> int:
    """Return which of two classes is to be found: not the unremarkable one where the data name one, else the second."""
    return 0 if spec.classes[1] in spec.unremarkable and spec.classes[0] not in spec.unremarkable else 1


def positive_class(spec: TaskSpec) -> str:
    """Return the class whose probability a threshold decides on, or an empty text where the most probable class wins.

    Tasks with one of two classes per image have a threshold. Grades have none, and neither have the classes of objects: a
    threshold that serves a rare class claims too many of it, and objects are counted.
    """
    decides = spec.rules.has_decision_threshold and len(spec.classes) == 2 and not spec.ordinal
    return spec.classes[positive_index(spec)] if decides else ""


def predicted_classes(probabilities: np.ndarray, spec: TaskSpec, thresholds: Mapping[str, float]) -> np.ndarray:
    """Return the [...] int64 class that is predicted where one class per image or object is true.

    Where there is a positive class, it from its threshold on, else the most probable one. The default threshold of 0.5 is the
    most probable class too, but for a tie, which counts as the positive class.

    Args:
        probabilities: [..., C].
        spec: The task.
        thresholds: Of the task; 0.5 unless named.
    """
    values = np.asarray(probabilities, np.float64)
    if positive := positive_class(spec):
        index = positive_index(spec)
        found = values[..., index] >= thresholds.get(positive, DEFAULT_THRESHOLD)
        return np.where(found, index, 1 - index).astype(np.int64)
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


def box_probabilities(task: str) -> str:
    """Return the key under which the boxes of a detection task carry [N, C], what another task says of each of them."""
    return f"probabilities_of_{task}"


def labels_of_boxes(found: Arrays, task: str, spec: TaskSpec, thresholds: Mapping[str, float]) -> np.ndarray | None:
    """Return the [N] int64 classes that another task gives to boxes.

    Args:
        found: Of the detection task, predicted or annotated.
        task: The task that decides.
        spec: What it is.
        thresholds: Its own.

    Returns:
        The annotated classes where these are annotated boxes, which have no score; None where that task said nothing of them.
    """
    if "scores" not in found:
        return np.asarray(found["labels"], np.int64)
    key = box_probabilities(task)
    return predicted_classes(found[key], spec, thresholds) if key in found else None


def deciding_problem(specs: Mapping[str, TaskSpec], task: str, decider: str, where: str) -> str | None:
    """Return why a task cannot decide the classes of the boxes of another one; None where it can.

    Args:
        specs: Active tasks by name.
        task: The detection task.
        decider: The task that is to decide.
        where: The key that names it.
    """
    fitting = [name for name, spec in specs.items() if spec.rules.of_boxes]
    if decider not in fitting:
        return unknown("task that classifies boxes", decider, fitting or ["none"], where)
    first = next(name for name, spec in specs.items() if spec.kind == specs[task].kind)
    if task != first:
        return (
            f"`{where}` is `{decider}`, which looks at the boxes of `{first}`, not of `{task}`. Count the boxes of `{first}`."
        )
    ours, theirs = specs[task].classes, specs[decider].classes
    if ours != theirs:
        return (
            f"`{where}` is `{decider}`, which tells {', '.join(theirs)} apart; expected the classes of `{task}`: "
            f"{', '.join(ours)}. Choose data settings that give both the same classes, or set {where}=null."
        )
    return None
