"""What the kinds share that are made from annotated objects: a row per object in targets, a list of objects in files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD, box_probabilities
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Objects
from mtl.imaging.outlines import Size
from mtl.kinds.base import Annotations, RecordChange, TaskKind, TaskPrediction, TrainingStatistics, rounded

EMPTY = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "points": np.zeros((0, 2)), "ids": np.zeros(0)}
FLOATS, INTEGERS, MASKS = ("boxes", "points"), ("labels", "ids"), ("region",)


class ObjectKind(TaskKind):
    """A kind whose target has one row per annotated object of the task's classes.

    Target: dict of `boxes` [N, 4] float32, `labels` [N] int64, `points` [N, 2] float32, `ids` [N] int64 (the object's position
    in the annotation). In a batch: one such dict of tensors per image.
    """

    def chosen(self, annotations: Annotations) -> Objects:
        """Return the objects of which a raster shows enough for this kind."""
        return annotations.visible

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return the rows of the objects that belong to a class of the task."""
        if not annotations.knows(spec.label):
            return None
        mine, classes = members(spec, self.chosen(annotations), annotations.object_classes)
        return {
            "boxes": mine.boxes,
            "labels": classes,
            "points": mine.points.astype(np.float32).reshape(-1, 2),
            "ids": mine.ids.astype(np.int64),
        }

    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> list[dict[str, Any]]:
        """Return a dict of tensors per image, without objects where the label is absent."""
        return [_tensors(EMPTY if row is None else row) for row in rows]

    def truth(self, target: Any) -> Arrays:
        """Return the same rows."""
        return dict(target)


class FoundObjects(ObjectKind):
    """A kind that finds objects: predictions list them with a score, best first."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Name of the place of one object in files: `box` or `point`."""

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return the objects at the threshold: place, class and score of each."""
        kept = {key: found.arrays[key][found.kept] for key in (self.finds, "scores", "labels")}
        rows = [
            {
                self.place: [rounded(value, 2) for value in place], "class": found.spec.classes[int(label)],
                "score": rounded(score),
            }
            for place, score, label in zip(*kept.values(), strict=True)
        ]  # fmt: skip
        return {"objects" if self.finds == "boxes" else "points": rows}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return per class how many objects are annotated, are predicted at the threshold, and are predicted rightly."""
        kept = record["scores"] >= float(thresholds.get("score", DEFAULT_THRESHOLD))
        labels, hits = record["labels"][kept], record["hits"][kept] & 1  # of boxes the first bit stands for an IoU of 0.5
        found: dict[str, Any] = {f"annotated_{name}": int(n) for name, n in zip(spec.classes, record["truth"], strict=True)}
        found |= {f"predicted_{name}": int((labels == index).sum()) for index, name in enumerate(spec.classes)}
        return found | {f"hits_{name}": int(hits[labels == index].sum()) for index, name in enumerate(spec.classes)}

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Find nothing."""
        return {"nothing found": without_predictions}


def members(spec: TaskSpec, objects: Objects, object_classes: tuple[str, ...]) -> tuple[Objects, np.ndarray]:
    """Return the objects that belong to a class of a task, and [N] int64 the class of each."""
    index = spec.object_index(object_classes)
    classes = np.full(len(objects), -1, np.int64)
    for label, position in index.items():
        classes[objects.labels == label] = position
    return objects.select(classes >= 0), classes[classes >= 0]


def without_predictions(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the predicted objects of a record, with what other tasks say of them."""
    dropped = ["scores", "labels", "hits", *(key for key in record if key.startswith(box_probabilities("")))]
    return {key: record[key][:0] for key in dropped}


def _tensors(row: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {
        **{name: torch.from_numpy(np.array(row[name], np.float32)) for name in FLOATS},
        **{name: torch.from_numpy(np.array(row[name], np.int64)) for name in INTEGERS},
        **{name: torch.from_numpy(row[name]) for name in MASKS if name in row},
    }
