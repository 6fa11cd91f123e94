"""Pictures of predictions and annotations: from the tasks of an image to what is drawn over it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Window
from mtl.drawing.layers import Layers
from mtl.drawing.paint import fit, paint, paint_heat, side_by_side, with_legend
from mtl.drawing.palette import PAPER, colours_of
from mtl.inference.prediction import Prediction, decided_tasks, study_values
from mtl.inference.selection import Hidden, narrowed_tasks
from mtl.kinds.base import TaskPrediction, mask_classes, rules_of
from mtl.metrics.base import StudyMetric


def layers_of(
    tasks: Mapping[str, Arrays],
    specs: Mapping[str, TaskSpec],
    size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    window: Window | None = None,
    study: Mapping[str, StudyMetric] | None = None,
    hidden: Hidden | None = None,
) -> Layers:
    """Turn predictions or truths (the two forms of `ImageResult.tasks`) into layers.

    What a study metric says of the image stands in the legend below the first task that it is made from.

    Args:
        tasks: By task; boxes and points in pixels of a raster of the given size.
        specs: The tasks.
        size: (height, width) of that raster.
        thresholds: By task; applied to whatever has scores or probabilities.
        window: Of the image, where the raster is the original and maps belong to the working raster.
        study: Study metrics by name.
        hidden: Classes that are left out, by task.
    """
    study, thresholds = study or {}, thresholds or {}
    values = study_values(study, tasks, thresholds)
    colours = colours_of(specs.values())  # of all classes, so that leaving some out changes none
    tasks, specs = narrowed_tasks(decided_tasks(tasks, specs, thresholds, study), specs, hidden or {})
    thin = frozenset(name for spec in specs.values() for name in spec.unremarkable)
    names = mask_classes(specs, tasks)
    layers = Layers(mask_names=names, colours=colours, unremarkable=thin, window=window)
    for task, arrays in tasks.items():
        found = TaskPrediction(specs[task], arrays, size, window, thresholds.get(task, {}))
        rules_of(specs[task]).draw(layers, found)
        for name, value in values.items():
            if value is not None and study[name].tasks[:1] == (task,):
                layers.legend.append((PAPER, f"{name} {value:.1f} {study[name].unit}".rstrip()))
    return layers


def overlay(image: np.ndarray, prediction: Prediction, longest: int = 1600, hidden: Hidden | None = None) -> np.ndarray:
    """Draw one prediction: the image with boxes, contours and peaks, the heatmap beside it, a legend below.

    Args:
        image: [H, W, C], the original, as `to_rgb` takes it.
        prediction: What was predicted for it.
        longest: Longer side of one panel in pixels.
        hidden: Classes that are left out, by task.
    """
    shown = {task: arrays for task, arrays in prediction.tasks.items() if prediction.shows(task)}
    layers = layers_of(
        shown, prediction.specs, prediction.size, prediction.thresholds, prediction.window, prediction.study_metrics, hidden
    )
    if shown.keys() != prediction.tasks.keys():
        layers.legend.append((PAPER, f"no mask ({prediction.withheld})"))
    base = fit(image, longest)
    panels = [paint(base, layers)]
    if layers.heat is not None:
        panels.append(paint_heat(base, layers))
    return with_legend(side_by_side(panels), layers.legend)


def draw_example(
    image: np.ndarray,
    tasks: Mapping[str, Arrays],
    specs: Mapping[str, TaskSpec],
    size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    longest: int = 1000,
    study: Mapping[str, StudyMetric] | None = None,
) -> np.ndarray:
    """Draw the annotation or the prediction of one image: boxes, contours and peaks, the heatmap beside it, a legend below.

    Args:
        image: [H, W, C], as `to_rgb` takes it: what the working raster shows, at any size.
        tasks: `ImageResult.tasks`; masks at any size.
        specs: The tasks.
        size: (height, width) of the raster in which boxes and points are given (`window.working_size`).
        thresholds: Decision thresholds by task; None for an annotation.
        longest: Longer side of one panel.
        study: Study metrics by name.
    """
    base = fit(image, longest)
    layers = layers_of({task: tasks[task] for task in tasks if task in specs}, specs, size, thresholds, study=study)
    panels = [paint(base, layers)]
    if layers.heat is not None:
        panels.append(paint_heat(base, layers))
    return with_legend(side_by_side(panels), layers.legend)
