"""Pictures of predictions and annotations: boxes, mask contours, heat and peaks, a legend with counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mtl.core.task import TaskSpec
from mtl.inference.tiling import Arrays

if TYPE_CHECKING:
    from PIL import ImageFont

    from mtl.inference.predictor import Prediction

Colour = tuple[int, int, int]
CLASS_COLOURS: dict[str, Colour] = {"Infected": (225, 25, 25), "Healthy": (30, 90, 245), "WBC": (150, 40, 190)}
UNREMARKABLE = frozenset({"Healthy"})  # drawn with thin lines
# Okabe and Ito: told apart with colour-deficient sight.
PALETTE: tuple[Colour, ...] = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
MASK_COLOUR: Colour = (20, 150, 70)
PEAK_COLOUR: Colour = (0, 220, 255)
INK, PAPER = (30, 30, 30), (255, 255, 255)
DEFAULT_THRESHOLD = 0.5


@dataclass
class Layers:
    """What is drawn over one image, in fractions of its width and height.

    Attributes:
        boxes: (name of the class, [N, 4] boxes), back to front.
        masks: (name, [h, w] bool at any resolution).
        heat: [h, w] float in [0, 1] at any resolution, or None.
        heat_extent: (height, width) that the heat covers; its last cells may reach over the edge of the image.
        points: [N, 2].
        legend: (colour, text) entries.
    """

    boxes: list[tuple[str, np.ndarray]] = field(default_factory=list)
    masks: list[tuple[str, np.ndarray]] = field(default_factory=list)
    heat: np.ndarray | None = None
    heat_extent: tuple[float, float] = (1.0, 1.0)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    legend: list[tuple[Colour, str]] = field(default_factory=list)


def colour_of(name: str, names: tuple[str, ...] = ()) -> Colour:
    """Return the colour of a class: fixed for blood cells, otherwise by its position among `names`."""
    if name in CLASS_COLOURS:
        return CLASS_COLOURS[name]
    return PALETTE[(names.index(name) if name in names else 0) % len(PALETTE)]


def layers_of(
    tasks: Mapping[str, Arrays],
    specs: Mapping[str, TaskSpec],
    size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    working_size: tuple[int, int] | None = None,
) -> Layers:
    """Turn predictions or truths (the two forms of `ImageResult.tasks`) into layers.

    Args:
        tasks: By task; boxes and points in pixels of a raster of the given size.
        specs: The tasks.
        size: (height, width) of that raster.
        thresholds: By task; applied to whatever has scores or probabilities.
        working_size: (height, width) of the raster that maps belong to, where it differs from `size`.
    """
    layers, scale = Layers(), np.array([size[1], size[0]], np.float32)
    for task, arrays in tasks.items():
        spec, own = specs[task], (thresholds or {}).get(task, {})
        kept = arrays["scores"] >= own.get("score", DEFAULT_THRESHOLD) if "scores" in arrays else slice(None)
        if spec.kind == "detection":
            _add_boxes(layers, arrays["boxes"][kept].reshape(-1, 4) / np.tile(scale, 2), arrays["labels"][kept], spec)
        elif spec.kind == "segmentation":
            _add_masks(layers, arrays, spec, own)
        elif spec.kind == "heatmap":
            layers.points = np.concatenate([layers.points, arrays["points"][kept].reshape(-1, 2) / scale])
            layers.legend.append((PEAK_COLOUR, f"{task} {len(layers.points)}"))
            if "heatmap" in arrays:
                layers.heat = np.clip(np.asarray(arrays["heatmap"], np.float32).max(axis=0), 0.0, 1.0)
                covered, raster = np.array(layers.heat.shape) * float(arrays["stride"]), np.array(working_size or size)
                layers.heat_extent = (float(covered[0] / raster[0]), float(covered[1] / raster[1]))
    return layers


def _add_boxes(layers: Layers, boxes: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> None:
    # The largest class lies at the back, so that the rare one stays visible.
    counts = np.bincount(labels.astype(np.int64), minlength=len(spec.classes))
    for index in np.argsort(-counts, kind="stable"):
        layers.boxes.append((spec.classes[index], boxes[labels == index]))
    layers.legend += [(colour_of(name, spec.classes), f"{name} {counts[i]}") for i, name in enumerate(spec.classes)]
    by_name = dict(zip(spec.classes, counts, strict=True))
    cells = by_name.get("Infected", 0) + by_name.get("Healthy", 0)
    if {"Infected", "Healthy"} <= by_name.keys() and cells:
        layers.legend.append((PAPER, f"parasitemia {100 * by_name['Infected'] / cells:.1f} %"))


def _add_masks(layers: Layers, arrays: Arrays, spec: TaskSpec, thresholds: Mapping[str, float]) -> None:
    if "probabilities" in arrays:
        values = arrays["probabilities"]
        limits = [thresholds.get(name, DEFAULT_THRESHOLD) for name in spec.classes]
        hard = [v >= t for v, t in zip(values, limits, strict=True)] if spec.multilabel else _one_hot(values.argmax(0), spec)
    else:
        mask = arrays["mask"]
        hard = [channel > 0 for channel in mask] if spec.multilabel else _one_hot(mask, spec)
    for name, channel in zip(spec.classes, hard, strict=True):
        layers.masks.append((name, channel))
        layers.legend.append((_mask_colour(name, spec.classes), f"{name} area {100 * channel.mean():.1f} %"))


def _one_hot(mask: np.ndarray, spec: TaskSpec) -> list[np.ndarray]:
    return [mask == index for index in range(len(spec.classes))]


def _mask_colour(name: str, names: tuple[str, ...]) -> Colour:
    return MASK_COLOUR if len(names) == 1 else colour_of(name, names)


# --------------------------------------------------------------------------------------------------- painting


def paint(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Draw boxes and contours over an image [H, W, 3] uint8, and points unless the heat panel has them; returns a new array."""
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thin = max(1, round(max(height, width) / 1000))
    for name, mask in layers.masks:
        large = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, _mask_colour(name, tuple(n for n, _ in layers.masks)), thin, cv2.LINE_AA)
    names = tuple(name for name, _ in layers.boxes)
    for name, boxes in layers.boxes:
        thickness = thin if name in UNREMARKABLE else 2 * thin
        for x1, y1, x2, y2 in np.rint(boxes * [width, height, width, height]).astype(int).tolist():
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colour_of(name, names), thickness)
    if layers.heat is None:
        _mark(canvas, layers.points, thin)
    return canvas


def paint_heat(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Lay the heatmap over a dimmed grey image and mark its peaks."""
    import cv2

    height, width = image.shape[:2]
    covered = (round(width * layers.heat_extent[1]), round(height * layers.heat_extent[0]))
    heat = cv2.resize(np.asarray(layers.heat, np.float32), covered, interpolation=cv2.INTER_LINEAR)[:height, :width]
    heat = np.pad(heat, ((0, height - heat.shape[0]), (0, width - heat.shape[1])), mode="edge")
    glow = cv2.cvtColor(cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = np.repeat(image.mean(axis=2, keepdims=True) * 0.5, 3, axis=2)
    share = np.sqrt(heat)[..., None]
    canvas = np.ascontiguousarray(np.rint(grey * (1 - share) + glow * share).astype(np.uint8))
    _mark(canvas, layers.points, max(1, round(max(height, width) / 1000)))
    return canvas


def _mark(canvas: np.ndarray, points: np.ndarray, thin: int) -> None:
    import cv2

    height, width = canvas.shape[:2]
    radius = max(4, round(max(height, width) / 150))  # a ring, so that what it marks stays visible
    for x, y in np.rint(points * [width, height]).astype(int).tolist():
        cv2.circle(canvas, (x, y), radius, PEAK_COLOUR, thin, cv2.LINE_AA)


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrink an image so that its longer side is at most `longest`; [H, W, 3] uint8."""
    import cv2

    pixels = np.repeat(image, 3, axis=2) if image.ndim == 3 and image.shape[2] == 1 else image
    factor = longest / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def overlay(image: np.ndarray, prediction: Prediction, longest: int = 1600) -> np.ndarray:
    """Draw one prediction: the image with boxes, contours and peaks, the heatmap beside it, a legend below.

    Args:
        image: [H, W, 3] uint8, the original.
        prediction: What was predicted for it.
        longest: Longer side of one panel in pixels.
    """
    layers = layers_of(
        prediction.tasks, prediction.specs, prediction.size, prediction.thresholds, prediction.window.working_size
    )
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
        image: [H, W, 3] uint8: the original or the working raster.
        tasks: `ImageResult.tasks`.
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


def side_by_side(panels: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """Put pictures next to each other on white, aligned at the top."""
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, gap), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(padded, axis=1)[:, :-gap]


def with_legend(picture: np.ndarray, entries: list[tuple[Colour, str]], title: str = "") -> np.ndarray:
    """Add a white strip below a picture with a colour patch and a text for each entry; long legends take several lines."""
    from PIL import Image, ImageDraw

    size = max(11, round(picture.shape[1] / 60)) if picture.shape[1] < 1200 else 22
    font, line = _font(size), round(size * 1.7)
    places, x, y = [], size, 0
    for colour, text in ([(PAPER, title)] if title else []) + entries:
        patch = 0 if colour == PAPER else round(size * 1.4)
        length = patch + round(font.getlength(text)) + 2 * size
        if x + length > picture.shape[1] and x > size:
            x, y = size, y + line
        places.append((x, y, patch, colour, text))
        x += length
    strip = Image.new("RGB", (picture.shape[1], y + line), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, patch, colour, text in places:
        if patch:
            top = y + (line - size) // 2
            draw.rectangle((x, top, x + size, top + size), fill=colour)
        draw.text((x + patch, y + line // 2), text, fill=INK, font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(strip)], axis=0)


def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]
