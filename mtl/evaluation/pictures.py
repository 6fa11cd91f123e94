"""Annotation and prediction of one image as pictures: for the report, and for loggers during training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult
from mtl.evaluation.grid import draw_grid, wants_grid
from mtl.inference.pictures import draw_example
from mtl.kinds.base import rules_of
from mtl.metrics.base import StudyMetric


def draw_pair(
    image: np.ndarray,
    truth: ImageResult,
    prediction: ImageResult,
    specs: Mapping[str, TaskSpec],
    thresholds: Mapping[str, Mapping[str, float]],
    longest: int,
    study: Mapping[str, StudyMetric] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw what is annotated and what is predicted.

    Args:
        image: [H, W, 3] uint8: what the working raster shows, at any size.
        truth: The annotation; masks at any size.
        prediction: Of the same image.
        specs: The tasks.
        thresholds: Decision thresholds by task.
        longest: Longer side of one panel.
        study: Study metrics by name.

    Returns:
        The prediction, and the annotation; None where one picture shows both, as a grid does where there are many masks.
    """
    size = prediction.window.working_size
    if wants_grid(specs):
        return draw_grid(image, truth.tasks, prediction.tasks, specs, size, thresholds), None
    # What is needed to draw the annotation like the prediction, so that both show the same panels.
    annotated = {
        task: rules_of(specs[task]).reference(specs[task], arrays, prediction.tasks[task])
        if task in prediction.tasks
        else arrays
        for task, arrays in truth.tasks.items()
    }
    return (
        draw_example(image, prediction.tasks, specs, size, thresholds, longest, study),
        draw_example(image, annotated, specs, truth.window.working_size, None, longest, study),
    )
