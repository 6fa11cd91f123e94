"""One picture per image with many masks: the image, its classes in words, and annotation beside prediction mask by mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl.core.raster import resize_mask
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Arrays
from mtl.drawing.paint import fit, font_of, outline, paint
from mtl.drawing.palette import INK, PAPER, colours_of
from mtl.inference.pictures import layers_of
from mtl.kinds.base import TaskPrediction, mask_classes, rules_of

COLUMNS = 4
GRID_FROM = 3  # masks; fewer are told apart in one overlay
COLOUR_SHARE = 0.7  # of the tint inside a mask, as published; the rest is the image
GAP = 6
NOT_ANNOTATED = "not annotated"

Tasks = Mapping[str, Arrays]
Specs = Mapping[str, TaskSpec]


def wants_grid(specs: Specs) -> bool:
    """Return whether a run has so many independent masks that each needs a panel of its own."""
    masks = [name for spec in specs.values() if rules_of(spec).areas and spec.multilabel for name in spec.classes]
    return len(masks) >= GRID_FROM


def draw_grid(
    image: np.ndarray, truth: Tasks, prediction: Tasks, specs: Specs, size: tuple[int, int],
    thresholds: Mapping[str, Mapping[str, float]] | None = None, panel: int = 420,
) -> np.ndarray:  # fmt: skip
    """Draw one image as a grid of four columns.

    The image, its classes and values in words, then two panels per mask (annotation, prediction: tinted and outlined) and per
    task with boxes or points. What is not annotated says so.

    Args:
        image: [H, W, 3] uint8: what the working raster shows, at any size.
        truth: `ImageResult.tasks` of the annotation; masks at any size.
        prediction: The same of the prediction.
        specs: The tasks.
        size: (height, width) of the raster in which boxes and points are given (`window.working_size`).
        thresholds: Decision thresholds by task.
        panel: Longer side of a panel in pixels.

    Returns:
        [H, W, 3] uint8.
    """
    base = _enlarge(fit(image, panel), panel)
    panels = [("image", base), ("classes", _text_panel(base, _class_lines(truth, prediction, specs, thresholds or {})))]
    names, colours = mask_classes(specs, specs), colours_of(specs.values())
    for task, spec in specs.items():
        rules, own = rules_of(spec), (thresholds or {}).get(task, {})
        if rules.areas:
            both = [
                rules.channels(TaskPrediction(spec, tasks[task], size, None, own)) if task in tasks else None
                for tasks in (truth, prediction)
            ]
            for index, name in enumerate(spec.classes):
                title = _words(name if names.count(name) == 1 else f"{task} {name}")
                for what, masks in zip(("annotation", "prediction"), both, strict=True):
                    picture = _dim(base) if masks is None else tint(base, masks[index], colours[name])
                    panels.append((f"{title}: {what}", picture))
        elif rules.finds:
            for what, tasks in (("annotation", truth), ("prediction", prediction)):
                picture = _dim(base)
                if task in tasks:
                    layers = layers_of({task: tasks[task]}, specs, size, thresholds if what == "prediction" else None)
                    layers.heat = None  # so that peaks are marked in the picture itself
                    picture = paint(base, layers)
                panels.append((f"{_words(task)}: {what}", picture))
    return _arrange(panels)


def tint(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Lay a colour over a mask [h, w] bool of any size and draw its contour in the full colour, so that specks stay visible."""
    inside = resize_mask(mask, (image.shape[0], image.shape[1]))
    mixed = image * (1 - COLOUR_SHARE) + np.asarray(colour, np.float64) * COLOUR_SHARE
    canvas = np.ascontiguousarray(np.where(inside[..., None], np.rint(mixed).astype(np.uint8), image))
    outline(canvas, inside, colour, 1)
    return canvas


def _class_lines(truth: Tasks, prediction: Tasks, specs: Specs, thresholds: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = []
    for task, spec in specs.items():
        rules = rules_of(spec)
        if rules.image_level:
            both = [
                _words(rules.words(TaskPrediction(spec, tasks[task], (0, 0), None, thresholds.get(task, {}))))
                if task in tasks
                else missing
                for tasks, missing in ((truth, NOT_ANNOTATED), (prediction, "–"))
            ]
            lines += [_words(task), f"   annotated: {both[0]}", f"   predicted: {both[1]}", ""]
    return lines or ["no image-level class"]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _enlarge(image: np.ndarray, longest: int) -> np.ndarray:
    """Enlarge a small image, so that titles fit above it."""
    import cv2

    factor = longest / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return image if factor <= 1 else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def _dim(base: np.ndarray) -> np.ndarray:
    """Return a pale copy of the image on which it says that nobody annotated it."""
    return _write(np.rint(base * 0.15 + 0.85 * 235).astype(np.uint8), [NOT_ANNOTATED], centred=True)


def _text_panel(base: np.ndarray, lines: list[str]) -> np.ndarray:
    return _write(np.full_like(base, 255), lines)


def _write(picture: np.ndarray, lines: list[str], centred: bool = False) -> np.ndarray:
    """Write lines into a picture, as large as they fit."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    size = max(8, min(round(width / 22), int(height / (1.5 * len(lines) + 1))))
    while size > 8 and max(font_of(size).getlength(line) for line in lines) > width - 2 * size:
        size -= 1
    step = 1.5 * size
    top = (height - step * len(lines)) / 2 if centred else size
    for number, line in enumerate(lines):
        place = (width / 2 if centred else size, top + step * (number + 0.5))
        draw.text(place, line, fill=INK, font=font_of(size), anchor="mm" if centred else "lm")
    return np.asarray(canvas)


def _arrange(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Put equal panels with their titles into rows of four, on white."""
    height, width = panels[0][1].shape[:2]
    strip = max(16, round(width / 16))
    rows = -(-len(panels) // COLUMNS)
    canvas = np.full((rows * (strip + height + GAP) - GAP, COLUMNS * (width + GAP) - GAP, 3), PAPER, np.uint8)
    for place, (title, picture) in enumerate(panels):
        y, x = (place // COLUMNS) * (strip + height + GAP), (place % COLUMNS) * (width + GAP)
        canvas[y : y + strip, x : x + width] = _title(title, (strip, width))
        canvas[y + strip : y + strip + height, x : x + width] = picture
    return canvas


def _title(text: str, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (size[1], size[0]), PAPER)
    letters = round(size[0] * 0.66)
    while letters > 7 and font_of(letters).getlength(text) > size[1] - 4:
        letters -= 1
    ImageDraw.Draw(strip).text((2, size[0] / 2), text, fill=INK, font=font_of(letters), anchor="lm")
    return np.asarray(strip)
