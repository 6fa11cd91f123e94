"""Small builders of images for metric tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl.core.types import ImageResult, Window


def result(name: str, group: str = "p0", source: str = "s", scale: float = 1.0, **tasks: dict[str, Any]) -> ImageResult:
    window = Window(0, 1, (scale, scale), (0, 0), (0, 0), (64, 64), (64, 64), (64, 64), (64, 64))
    arrays = {task: {key: np.asarray(value) for key, value in entry.items()} for task, entry in tasks.items()}
    return ImageResult(name, group, source, window, arrays)


def random_boxes(generator: np.random.Generator, count: int, extent: float = 400.0) -> np.ndarray:
    corner = generator.uniform(0, extent, (count, 2))
    return np.concatenate([corner, corner + generator.uniform(10, 40, (count, 2))], axis=1).astype(np.float32)


def detections(generator: np.random.Generator, count: int, classes: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """Noisy copies of random annotations plus as many false alarms: (prediction, truth)."""
    boxes, labels = random_boxes(generator, count), generator.integers(0, classes, count)
    moved = boxes + generator.normal(0, 2.5, boxes.shape).astype(np.float32)
    guess = np.where(generator.random(count) < 0.85, labels, generator.integers(0, classes, count))
    scores = np.concatenate([generator.uniform(0.2, 1.0, count), generator.uniform(0.0, 0.7, count)]).astype(np.float32)
    prediction = {
        "boxes": np.concatenate([moved, random_boxes(generator, count)]),
        "labels": np.concatenate([guess, generator.integers(0, classes, count)]),
        "scores": scores,
    }
    return prediction, {"boxes": boxes, "labels": labels}


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def build() -> dict[str, Any]:
    return {"result": result, "detections": detections, "random_boxes": random_boxes}
