"""Pictures of predictions and annotations: from the tasks of an image to what is drawn over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Window
from mtl.inference.prediction import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from mtl.inference.prediction import Prediction
from mtl.drawing.layers import Layers
from mtl.drawing.paint import fit, paint, paint_heat, side_by_side, with_legend
from mtl.drawing.palette import PAPER, PEAK_COLOUR, colours_of


def layers_of(
    tasks: Mapping[str, Arrays],
    specs: Mapping[str, TaskSpec],
    size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    window: Window | None = None,
) -> Layers:
    """Turn predictions or truths (the two forms of `ImageResult.tasks`) into layers.

    Args:
        tasks: By task; boxes and points in pixels of a raster of the given size.
        specs: The tasks.
        size: (height, width) of that raster.
        thresholds: By task; applied to whatever has scores or probabilities.
        window: Of the image, where the raster is the original and maps belong to the working raster.
    """
    thin = frozenset(name for spec in specs.values() for name in spec.unremarkable)
    layers = Layers(colours=colours_of(specs.values()), unremarkable=thin, window=window)
    scale = np.array([size[1], size[0]], np.float32)
    names = mask_names(tasks, specs)
    for task, arrays in tasks.items():
        spec, own = specs[task], (thresholds or {}).get(task, {})
        kept = arrays["scores"] >= own.get("score", DEFAULT_THRESHOLD) if "scores" in arrays else slice(None)
        if spec.kind == "detection":
            _add_boxes(layers, arrays["boxes"][kept].reshape(-1, 4) / np.tile(scale, 2), arrays["labels"][kept], spec)
        elif spec.kind == "points":
            width = size[1] if window is None else window.working_size[1]
            layers.dot_radius = _dot_radius(arrays) / width
            _add_dots(layers, arrays["points"][kept].reshape(-1, 2) / scale, arrays["labels"][kept], spec)
        elif spec.kind == "segmentation":
            _add_masks(layers, hard_masks(arrays, spec, own), spec, names)
        elif spec.kind in ("classification", "regression"):
            layers.legend.append((PAPER, f"{task}: {value_words(arrays, spec)}"))
        elif spec.kind == "heatmap":
            layers.points = np.concatenate([layers.points, arrays["points"][kept].reshape(-1, 2) / scale])
            layers.legend.append((PEAK_COLOUR, f"{task} {len(layers.points)}"))
            if "heatmap" in arrays:
                layers.heat = np.clip(np.asarray(arrays["heatmap"], np.float32).max(axis=0), 0.0, 1.0)
                raster = np.array(size if window is None else window.working_size)
                covered = np.array(layers.heat.shape) * float(arrays["stride"])
                layers.heat_extent = (float(covered[0] / raster[0]), float(covered[1] / raster[1]))
    return layers


def _add_boxes(layers: Layers, boxes: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> None:
    # The largest class lies at the back, so that the rare one stays visible.
    counts = np.bincount(labels.astype(np.int64), minlength=len(spec.classes))
    for index in np.argsort(-counts, kind="stable"):
        layers.boxes.append((spec.classes[index], boxes[labels == index]))
    layers.legend += [(layers.colours[name], f"{name} {counts[i]}") for i, name in enumerate(spec.classes)]
    by_name = dict(zip(spec.classes, counts, strict=True))
    cells = by_name.get("Infected", 0) + by_name.get("Healthy", 0)
    if {"Infected", "Healthy"} <= by_name.keys() and cells:
        layers.legend.append((PAPER, f"parasitemia {100 * by_name['Infected'] / cells:.1f} %"))


def _add_dots(layers: Layers, points: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> None:
    for index, name in enumerate(spec.classes):
        layers.dots.append((name, points[labels == index]))
        layers.legend.append((layers.colours[name], f"{name} {int((labels == index).sum())}"))


def _dot_radius(arrays: Arrays) -> float:
    """Return the distance below which two points would be one object; of an annotation, a quarter of a box."""
    if "radius" in arrays:
        return float(arrays["radius"])
    sides = np.asarray(arrays.get("boxes", []), np.float32).reshape(-1, 2, 2)
    return float(np.median(sides[:, 1] - sides[:, 0])) / 4 if len(sides) else 0.0


def _add_masks(layers: Layers, masks: list[np.ndarray], spec: TaskSpec, names: list[str]) -> None:
    share = 1.0
    if layers.window is not None:  # of the whole picture, although the masks show a part of it
        left, top, right, bottom = layers.window.content_box
        share = (right - left) * (bottom - top) / float(np.prod(layers.window.original_size))
    for name, mask in zip(spec.classes, masks, strict=True):
        layers.masks.append((name, mask))
        title = name if names.count(name) == 1 else f"{spec.name} {name}"
        layers.legend.append((layers.colours[name], f"{title} area {_percent(share * mask.mean())}"))


def mask_names(tasks: Iterable[str], specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return the names of all masks of some tasks, in the order in which they are drawn."""
    return [name for task in tasks if specs[task].kind == "segmentation" for name in specs[task].classes]


def hard_masks(arrays: Arrays, spec: TaskSpec, thresholds: Mapping[str, float]) -> list[np.ndarray]:
    """Return one [h, w] bool mask per class: the annotation, or the prediction at its thresholds (0.5 unless named)."""
    if "probabilities" in arrays:
        values = arrays["probabilities"]
        limits = [thresholds.get(name, DEFAULT_THRESHOLD) for name in spec.classes]
        return [v >= t for v, t in zip(values, limits, strict=True)] if spec.multilabel else _one_hot(values.argmax(0), spec)
    mask = arrays["mask"]
    return [channel > 0 for channel in mask] if spec.multilabel else _one_hot(mask, spec)


def value_words(arrays: Arrays, spec: TaskSpec) -> str:
    """Say the class of an image, with its probability where it is predicted, or its number."""
    if spec.kind == "regression":
        return f"{float(arrays['value']):.3g}"
    if "probabilities" not in arrays:
        return spec.classes[int(arrays["label"])]
    best = int(np.argmax(arrays["probabilities"]))
    return f"{spec.classes[best]} {float(arrays['probabilities'][best]):.2f}"


def _one_hot(mask: np.ndarray, spec: TaskSpec) -> list[np.ndarray]:
    return [mask == index for index in range(len(spec.classes))]


def _percent(share: float) -> str:
    """Write a share with one decimal, small ones with one digit that is not zero."""
    value = 100 * float(share)
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.1g} %"


def overlay(image: np.ndarray, prediction: Prediction, longest: int = 1600) -> np.ndarray:
    """Draw one prediction: the image with boxes, contours and peaks, the heatmap beside it, a legend below.

    Args:
        image: [H, W, C], the original, as `to_rgb` takes it.
        prediction: What was predicted for it.
        longest: Longer side of one panel in pixels.
    """
    layers = layers_of(prediction.tasks, prediction.specs, prediction.size, prediction.thresholds, prediction.window)
    base = fit(image, longest)
    panels = [paint(base, layers)]
    if layers.heat is not None:
        panels.append(paint_heat(base, layers))
    return with_legend(side_by_side(panels), layers.legend)


def draw_case(
    image: np.ndarray,
    tasks: Mapping[str, Arrays],
    specs: Mapping[str, TaskSpec],
    size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    longest: int = 1000,
) -> np.ndarray:
    """Draw the annotation or the prediction of one image: boxes, contours and peaks, the heatmap beside it, a legend below.

    Args:
        image: [H, W, C], as `to_rgb` takes it: what the working raster shows, at any size.
        tasks: `ImageResult.tasks`; masks at any size.
        specs: The tasks.
        size: (height, width) of the raster in which boxes and points are given (`window.working_size`).
        thresholds: Decision thresholds by task; None for an annotation.
        longest: Longer side of one panel.
    """
    base = fit(image, longest)
    layers = layers_of({task: tasks[task] for task in tasks if task in specs}, specs, size, thresholds)
    panels = [paint(base, layers)]
    if layers.heat is not None:
        panels.append(paint_heat(base, layers))
    return with_legend(side_by_side(panels), layers.legend)
