"""Pictures of predictions and annotations: boxes, mask contours, heat and peaks, a legend with counts and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mtl.core.raster import content_in, resize_map, resize_mask
from mtl.core.task import TaskSpec
from mtl.core.types import Window
from mtl.inference.joiners import Arrays
from mtl.inference.prediction import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from PIL import ImageFont

    from mtl.inference.prediction import Prediction

Colour = tuple[int, int, int]
CLASS_COLOURS: dict[str, Colour] = {
    "Infected": (225, 25, 25), "Healthy": (30, 90, 245), "WBC": (150, 40, 190),
    # Retinal lesions, as published.
    "microaneurysms": (0, 255, 255), "haemorrhages": (255, 0, 255), "hard_exudates": (182, 245, 0),
    "soft_exudates": (0, 255, 0), "optic_disc": (255, 11, 85),
    # What stands out from haematoxylin and eosin.
    "tumor": (213, 94, 0), "stroma": (0, 158, 115), "other": (86, 180, 233), "lymphocyte": (255, 235, 0),
}  # fmt: skip
UNREMARKABLE = frozenset({"Healthy"})  # drawn with thin lines
# Okabe and Ito: told apart with colour-deficient sight.
PALETTE: tuple[Colour, ...] = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
MASK_COLOUR: Colour = (20, 150, 70)
PEAK_COLOUR: Colour = (0, 220, 255)
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass
class Layers:
    """What is drawn over one image, in fractions of its width and height.

    Attributes:
        boxes: (name of the class, [N, 4] boxes), back to front.
        masks: (name, [h, w] bool at any resolution).
        heat: [h, w] float in [0, 1] at any resolution, or None.
        heat_extent: (height, width) that the heat covers; its last cells may reach over the edge of the image.
        points: [N, 2].
        dots: (name of the class, [N, 2] points).
        dot_radius: Radius of a dot as a fraction of the width: the distance below which two points would be one object.
        legend: (colour, text) entries.
        window: Of an image of which masks and heat show a part only (a border was cut off); None where they cover all of it.
    """

    boxes: list[tuple[str, np.ndarray]] = field(default_factory=list)
    masks: list[tuple[str, np.ndarray]] = field(default_factory=list)
    heat: np.ndarray | None = None
    heat_extent: tuple[float, float] = (1.0, 1.0)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    dots: list[tuple[str, np.ndarray]] = field(default_factory=list)
    dot_radius: float = 0.0
    legend: list[tuple[Colour, str]] = field(default_factory=list)
    window: Window | None = None

    def region(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns that masks and heat cover in a picture of (height, width)."""
        left, top, right, bottom = (0, 0, size[1], size[0]) if self.window is None else content_in(self.window, size)
        return slice(top, bottom), slice(left, right)


def colour_of(name: str, names: tuple[str, ...] = ()) -> Colour:
    """Return the colour of a class: fixed for blood cells and retinal lesions, otherwise by its position among `names`."""
    if name in CLASS_COLOURS:
        return CLASS_COLOURS[name]
    return PALETTE[(names.index(name) if name in names else 0) % len(PALETTE)]


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
    layers, scale = Layers(window=window), np.array([size[1], size[0]], np.float32)
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
    layers.legend += [(colour_of(name, spec.classes), f"{name} {counts[i]}") for i, name in enumerate(spec.classes)]
    by_name = dict(zip(spec.classes, counts, strict=True))
    cells = by_name.get("Infected", 0) + by_name.get("Healthy", 0)
    if {"Infected", "Healthy"} <= by_name.keys() and cells:
        layers.legend.append((PAPER, f"parasitemia {100 * by_name['Infected'] / cells:.1f} %"))


def _add_dots(layers: Layers, points: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> None:
    for index, name in enumerate(spec.classes):
        layers.dots.append((name, points[labels == index]))
        layers.legend.append((colour_of(name, spec.classes), f"{name} {int((labels == index).sum())}"))


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
        layers.legend.append((_mask_colour(name, names), f"{title} area {_percent(share * mask.mean())}"))


def mask_names(tasks: Iterable[str], specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return the names of all masks of some tasks, in the order in which they are drawn; they decide the colours."""
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


def _mask_colour(name: str, names: list[str]) -> Colour:
    return MASK_COLOUR if len(names) == 1 and name not in CLASS_COLOURS else colour_of(name, tuple(names))


def _percent(share: float) -> str:
    """Write a share with one decimal, small ones with one digit that is not zero."""
    value = 100 * float(share)
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.1g} %"


# --------------------------------------------------------------------------------------------------- painting


def paint(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Draw boxes and contours over an image [H, W, 3] uint8, and points unless the heat panel has them; returns a new array."""
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thin = max(1, round(max(height, width) / 1000))
    for name, mask in layers.masks:
        outline(canvas, placed(mask, layers, (height, width)), _mask_colour(name, [n for n, _ in layers.masks]), thin)
    names = tuple(name for name, _ in layers.boxes)
    for name, boxes in layers.boxes:
        thickness = thin if name in UNREMARKABLE else 2 * thin
        for x1, y1, x2, y2 in np.rint(boxes * [width, height, width, height]).astype(int).tolist():
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colour_of(name, names), thickness)
    for name, points in layers.dots:
        _dot(canvas, points, layers.dot_radius * width, colour_of(name, tuple(name for name, _ in layers.dots)), thin)
    if layers.heat is None:
        _mark(canvas, layers.points, thin)
    return canvas


def placed(mask: np.ndarray, layers: Layers, size: tuple[int, int]) -> np.ndarray:
    """Put a mask where it belongs in a picture of (height, width); [height, width] bool."""
    result = np.zeros(size, bool)
    rows, columns = layers.region(size)
    result[rows, columns] = resize_mask(mask, (rows.stop - rows.start, columns.stop - columns.start))
    return result


def outline(canvas: np.ndarray, mask: np.ndarray, colour: Colour, width: int) -> None:
    """Draw the contours of a mask [H, W] bool into a picture of its size."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, width, cv2.LINE_AA)


def paint_heat(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Lay the heatmap over a dimmed grey image and mark its peaks."""
    import cv2

    size = (image.shape[0], image.shape[1])
    rows, columns = layers.region(size)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    covered = (round(height * layers.heat_extent[0]), round(width * layers.heat_extent[1]))
    shown = resize_map(np.asarray(layers.heat), covered)[:height, :width]
    heat = np.zeros(size, np.float32)
    heat[rows, columns] = np.pad(shown, ((0, height - shown.shape[0]), (0, width - shown.shape[1])), mode="edge")
    glow = cv2.cvtColor(cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = np.repeat(image.mean(axis=2, keepdims=True) * 0.5, 3, axis=2)
    share = np.sqrt(heat)[..., None]
    canvas = np.ascontiguousarray(np.rint(grey * (1 - share) + glow * share).astype(np.uint8))
    _mark(canvas, layers.points, max(1, round(max(size) / 1000)))
    return canvas


def _mark(canvas: np.ndarray, points: np.ndarray, thin: int) -> None:
    import cv2

    height, width = canvas.shape[:2]
    radius = max(4, round(max(height, width) / 150))  # a ring, so that what it marks stays visible
    for x, y in np.rint(points * [width, height]).astype(int).tolist():
        cv2.circle(canvas, (x, y), radius, PEAK_COLOUR, thin, cv2.LINE_AA)


def _dot(canvas: np.ndarray, points: np.ndarray, radius: float, colour: Colour, thin: int) -> None:
    """Circle points [N, 2] (fractions); where the picture is too small for circles they are spots."""
    import cv2

    height, width = canvas.shape[:2]
    size, line = (round(radius), thin) if radius >= 3 else (max(1, round(radius)), cv2.FILLED)
    for x, y in np.floor(points * [width, height]).astype(int).tolist():
        cv2.circle(canvas, (x, y), size, colour, line, cv2.LINE_AA)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Make a picture of an image: RGB as it is, of anything else the first channel that shows something, in grey.

    Args:
        image: [H, W, C]; uint8, or grey values of any unit, of which all but the brightest 0.5 % span the range of greys.

    Returns:
        [H, W, 3] uint8.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    grey = next((channel for channel in np.moveaxis(image, 2, 0) if channel.any()), image[..., 0])
    if grey.dtype != np.uint8:
        low, high = float(grey.min()), float(np.percentile(grey[grey > grey.min()], 99.5)) if np.ptp(grey) else 1.0
        grey = np.clip((grey.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Make a picture (`to_rgb`) and shrink it so that its longer side is at most `longest`; [H, W, 3] uint8."""
    import cv2

    pixels = to_rgb(image)
    factor = longest / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


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


def side_by_side(panels: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """Put pictures next to each other on white, aligned at the top."""
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, gap), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(padded, axis=1)[:, :-gap]


def with_legend(picture: np.ndarray, entries: list[tuple[Colour, str]], title: str = "") -> np.ndarray:
    """Add a white strip below a picture with a colour patch and a text for each entry; long legends take several lines."""
    from PIL import Image, ImageDraw

    size = max(11, round(picture.shape[1] / 60)) if picture.shape[1] < 1200 else 22
    font, line = font_of(size), round(size * 1.7)
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


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures at a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]
