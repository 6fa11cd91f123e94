"""How an image becomes network inputs: working size, windows, cuts. One object decides it for training and for use.

Three rasters (see `mtl.core.types`): original -> working (resize of the whole image) -> network (a window of it, padded).
Padding lies on the right and at the bottom, so a network coordinate is a working coordinate minus the window's offset.
Imports neither torch nor, at module level, OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.core.types import Window

Mode = Literal["stretch", "letterbox", "tiles"]
MODES = ("stretch", "letterbox", "tiles")
LARGEST_STRIDE = 32
SMALL_SHARE = 0.25
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Working raster and windows of an image.

    Attributes:
        mode: `stretch` resizes the whole image to `size` and does not keep its aspect ratio; `letterbox` keeps it and pads;
            `tiles` resizes by `scale` and cuts overlapping windows.
        size: (height, width) of the network input in pixels.
        scale: tiles: network pixels per reference pixel of the data set.
        overlap: tiles: network pixels that neighbouring windows share.
        fill: Grey value or colour of padding, in the range of the working raster.
        min_visible: An object counts in a window when at least this fraction of its box lies inside.
    """

    mode: Mode = "stretch"
    size: Size = (512, 512)
    scale: float = 0.25
    overlap: int = 64
    fill: float | tuple[float, ...] = 0
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if not isinstance(self.fill, int | float):
            object.__setattr__(self, "fill", tuple(self.fill))
        problems = []
        if self.mode not in MODES:
            problems.append(unknown("mode", self.mode, MODES, "data.geometry.mode"))
        if any(length <= 0 or length % LARGEST_STRIDE for length in self.size):
            problems.append(
                f"`data.geometry.size` is {list(self.size)}; expected positive multiples of {LARGEST_STRIDE} "
                "(the largest stride)."
            )
        if self.mode == "tiles":
            if not self.scale > 0:
                problems.append(f"`data.geometry.scale` is {self.scale}; expected a number above 0.")
            if self.overlap < 0 or any(length - self.overlap <= 0 for length in self.size):
                problems.append(f"`data.geometry.overlap` is {self.overlap}; expected 0 <= overlap < {min(self.size)}.")
            elif any(step % LARGEST_STRIDE for step in self.step):
                problems.append(
                    f"`data.geometry`: size - overlap is {list(self.step)}; expected multiples of {LARGEST_STRIDE}, so that "
                    "the maps of neighbouring windows share one grid."
                )
        if not 0 <= self.min_visible <= 1:
            problems.append(f"`data.geometry.min_visible` is {self.min_visible}; expected a fraction from 0 to 1.")
        if problems:
            raise ConfigError(problems)

    @property
    def step(self) -> Size:
        """(y, x) distance between neighbouring windows in tiles mode."""
        return self.size[0] - self.overlap, self.size[1] - self.overlap

    def working_size(self, original_size: Size, pixel_scale: float = 1.0) -> Size:
        """Return (height, width) of the working raster.

        Args:
            original_size: (height, width) of the stored image.
            pixel_scale: Stored pixels per reference pixel.
        """
        if self.mode == "stretch":
            return self.size
        height, width = original_size
        if self.mode == "letterbox":
            factor = min(self.size[0] / height, self.size[1] / width)
        else:
            factor = self.scale / pixel_scale
        return max(1, round(height * factor)), max(1, round(width * factor))

    def windows(
        self, original_size: Size, pixel_scale: float = 1.0, content: tuple[int, int, int, int] | None = None
    ) -> list[Window]:
        """List the windows of an image, row by row. Together they cover it; offsets are multiples of `step`.

        Args:
            original_size: (height, width) of the stored image.
            pixel_scale: Stored pixels per reference pixel.
            content: (x_min, y_min, x_max, y_max) of the part that the working raster is to show; None is all of it.
        """
        return [window for row in self.rows(original_size, pixel_scale, content) for window in row]

    def rows(
        self, original_size: Size, pixel_scale: float = 1.0, content: tuple[int, int, int, int] | None = None
    ) -> Iterator[list[Window]]:
        """Yield the rows of `windows` one after the other; a slide has more windows than one wants to hold."""
        left, top, right, bottom = content or (0, 0, original_size[1], original_size[0])
        shown = bottom - top, right - left
        working = self.working_size(shown, pixel_scale)
        rows, columns = (
            [0] if length <= size else [step * k for k in range(-(-(length - size) // step) + 1)]
            for length, size, step in zip(working, self.size, self.step, strict=True)
        )
        scale = (working[1] / shown[1], working[0] / shown[0])
        for number, y in enumerate(rows):
            yield [
                Window(
                    index=number * len(columns) + index,
                    count=len(rows) * len(columns),
                    scale=scale,
                    offset=(float(x), float(y)),
                    pad=(0.0, 0.0),
                    valid=(min(self.size[0], working[0] - y), min(self.size[1], working[1] - x)),
                    size=self.size,
                    working_size=working,
                    original_size=original_size,
                    pixel_scale=pixel_scale,
                    content=content,
                )
                for index, x in enumerate(columns)
            ]

    def jitter(self, window: Window, rng: np.random.Generator) -> Window:
        """Move a window by up to half a step in each direction, kept inside the image (training in tiles mode)."""
        offset = []
        for axis in (1, 0):  # x, then y
            length, size, step = window.working_size[axis], self.size[axis], self.step[axis]
            shift = int(rng.integers(-(step // 2), step // 2 + 1))
            offset.append(int(np.clip(window.offset[1 - axis] + shift, 0, max(0, length - size))))
        x, y = offset
        height, width = window.working_size
        valid = (min(self.size[0], height - y), min(self.size[1], width - x))
        return replace(window, offset=(float(x), float(y)), valid=valid)

    def to_working(self, image: np.ndarray, pixel_scale: float = 1.0) -> np.ndarray:
        """Resize an image [H, W, C] (or the part of it that is shown) to its working raster; averages pixels when shrinking."""
        import cv2

        height, width = self.working_size((image.shape[0], image.shape[1]), pixel_scale)
        if image.shape[:2] == (height, width):
            return np.ascontiguousarray(image)
        shrinks = height * width < image.shape[0] * image.shape[1]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return resized.reshape(height, width, *image.shape[2:])

    def mask_to_working(self, mask: np.ndarray, window: Window, classes: bool = False) -> np.ndarray:
        """Bring a stored mask [H, W] or [H, W, K] uint8 to the working raster without mixing values.

        Shrinking a mask that marks something with ones keeps a pixel of which `SMALL_SHARE` was marked: the nearest pixel alone
        would lose most lesions that are smaller than a working pixel (microaneurysms).

        Args:
            mask: In the raster of the stored image.
            window: Any window of the image.
            classes: Each pixel holds the index of a class; then 1 is no more than 0, and the nearest pixel counts.
        """
        import cv2

        shown, working_size = window.cut(mask), window.working_size
        if shown.shape[:2] == working_size:
            return np.ascontiguousarray(shown)
        if shown.ndim == 3:  # OpenCV averages four channels at most
            return np.stack([self.mask_to_working(mask[..., k], window, classes) for k in range(mask.shape[2])], axis=2)
        size = (working_size[1], working_size[0])
        shrinks = working_size[0] * working_size[1] < shown.shape[0] * shown.shape[1]
        if shrinks and not classes and int(shown.max(initial=0)) <= 1:
            share = cv2.resize(np.ascontiguousarray(shown) * np.uint8(255), size, interpolation=cv2.INTER_AREA)
            return (share >= 255 * SMALL_SHARE).astype(np.uint8)
        return cv2.resize(np.ascontiguousarray(shown), size, interpolation=cv2.INTER_NEAREST_EXACT)

    def crop(self, working: np.ndarray, window: Window, fill: float | tuple[float, ...] | None = None) -> np.ndarray:
        """Cut a window out of the working raster and pad it.

        Args:
            working: [H, W] or [H, W, C].
            window: From `windows` or `jitter`.
            fill: Value of the padding; None takes `self.fill`.

        Returns:
            [*size] or [*size, C], a new array.
        """
        x, y = int(window.offset[0]), int(window.offset[1])
        height, width = window.valid
        content = working[y : y + height, x : x + width]
        if (height, width) == self.size:
            return content.copy()
        padded = np.empty((*self.size, *working.shape[2:]), working.dtype)
        padded[...] = self.fill if fill is None else fill
        padded[:height, :width] = content
        return padded

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as stored in checkpoints; the same keys as `data.geometry`."""
        return {
            "mode": self.mode, "size": list(self.size), "scale": self.scale, "overlap": self.overlap,
            "fill": list(self.fill) if isinstance(self.fill, tuple) else self.fill, "min_visible": self.min_visible,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """Rebuild from `to_dict` or from `data.geometry`."""
        return cls(**{**values, "size": tuple(values["size"])} if "size" in values else values)
