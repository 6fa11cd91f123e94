"""Batches of noise with every label a task can have, for trying a network without data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Objects, SampleMeta, TaskBatch, Window
from mtl.data.pipeline.collate import Collate
from mtl.kinds.base import Annotations, rules_of

OBJECTS = 200  # per image: about as many cells as a smear shows
Size = tuple[int, int]


def made_up_batch(
    specs: Mapping[str, TaskSpec], labelled: Collection[str], channels: int, rows: int, size: Size, objects: int = OBJECTS
) -> TaskBatch:
    """Return a batch in which every row is labelled for the same tasks.

    Args:
        specs: The tasks by name.
        labelled: Those that have a label.
        channels: Of an image.
        rows: Number of images.
        size: (height, width) of an image.
        objects: Number of objects of an image.
    """
    random = np.random.default_rng(0)
    known = {task: rules_of(spec).target(spec, _annotations(spec, size, objects, random)) for task, spec in specs.items()}
    window = Window(0, 1, (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), size, size, size, size)
    item = {
        "image": random.standard_normal((channels, *size), np.float32),
        "targets": {task: target if task in labelled else None for task, target in known.items()},
        "present": {task: task in labelled for task in specs},
    }
    items = [item | {"meta": SampleMeta(str(row), str(row), "", window)} for row in range(rows)]
    return Collate(dict(specs), list(specs))(items)


def _annotations(spec: TaskSpec, size: Size, count: int, random: np.random.Generator) -> Annotations:
    """Return everything that any kind of task may ask for."""
    name = spec.label_name
    masks = {name: np.zeros((*size, len(spec.classes)) if spec.multilabel else size, np.uint8)}
    label = rules_of(spec).any_label(spec)
    classes = tuple(dict.fromkeys(member for members in spec.members for member in members))
    return Annotations(
        size, _objects(size, count, max(len(classes), 1), random), masks, {name: label}, classes,
        region=np.ones(size, bool),
    )  # fmt: skip


def _objects(size: Size, count: int, classes: int, random: np.random.Generator) -> Objects:
    """Return squares in random places, as wide as that many fit into the image beside each other."""
    half = max(2.0, 0.5 * float(np.sqrt(size[0] * size[1] / max(count, 1))))
    points = (random.random((count, 2)) * (size[1], size[0])).astype(np.float32)
    corners = half * np.asarray([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)
    labels = np.arange(count, dtype=np.int64) % classes
    return Objects([point + corners for point in points], labels, points, np.zeros(count, bool))
