"""Pictures of predictions and annotations: boxes, mask contours, heat and peaks, a legend with counts and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtl.core.raster import resize_map, resize_mask
from mtl.core.task import Colour
from mtl.drawing.layers import Layers
from mtl.drawing.palette import INK, PAPER, PEAK_COLOUR

if TYPE_CHECKING:
    from PIL import ImageFont


def paint(image: np.ndarray, layers: Layers) -> np.ndarray:
    """Draw boxes and contours over an image [H, W, 3] uint8, and points unless the heat panel has them; returns a new array."""
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thin = max(1, round(max(height, width) / 1000))
    for name, mask in layers.masks:
        outline(canvas, placed(mask, layers, (height, width)), layers.colours[name], thin)
    for name, boxes in layers.boxes:
        thickness = thin if name in layers.unremarkable else 2 * thin
        for x1, y1, x2, y2 in np.rint(boxes * [width, height, width, height]).astype(int).tolist():
            cv2.rectangle(canvas, (x1, y1), (x2, y2), layers.colours[name], thickness)
    for name, points in layers.dots:
        _dot(canvas, points, layers.dot_radius * width, layers.colours[name], thin)
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
    red, green, blue = np.moveaxis(image, 2, 0)
    grey = (np.add(red, green, dtype=np.float64) + blue) / 3 * 0.5  # along the last axis, NumPy adds slowly
    share = np.sqrt(heat)
    mixed = (grey * (1 - share))[..., None] + glow * share[..., None]
    canvas = np.ascontiguousarray(np.rint(mixed, out=mixed).astype(np.uint8))
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
    room = picture.shape[1] - round(size * 3.4)  # beside a patch, between margins
    lines = [(colour, text) for colour, words in entries for colour, text in _wrapped(colour, words, font, room)]
    for colour, text in ([(PAPER, title)] if title else []) + lines:
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


def _wrapped(colour: Colour, text: str, font: ImageFont.FreeTypeFont, room: int) -> list[tuple[Colour, str]]:
    """Break a text between words where it is wider than there is room; only the first part has the patch."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        lines[-1:] = [longer] if not lines or font.getlength(longer) <= room else [lines[-1], word]
    return [(PAPER if number else colour, line) for number, line in enumerate(lines)]


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures at a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]
