"""Image files as stored: sizes from headers, complete decoding, duplicates. Imports PIL only when used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import file_hash
from mtl.core.types import Record
from mtl.data.base import CheckReport, DataFamily

EXIF_ORIENTATION = 274
# PIL clips these to 255 when it converts them, which turns most of a 16-bit image white.
DEEP_MODES = ("I", "F")
ALPHA_MODES = ("LA", "RGBA", "RGBX", "RGBa", "La")  # the last channel is no colour


def image_size(path: Path) -> tuple[tuple[int, int], int]:
    """Read (height, width) as stored and the EXIF orientation (1 is upright) from the header.

    Raises:
        DataError: The file is missing or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return (image.height, image.width), int(image.getexif().get(EXIF_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(path, error)) from error


def read_rgb(path: Path) -> np.ndarray:
    """Decode an image to [H, W, 3] uint8 RGB, never turned by its EXIF orientation.

    Raises:
        DataError: The file is missing, not an image, or ends early.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(DEEP_MODES):
                raise DataError(
                    f"{path}: has more than 8 bits per channel (mode {image.mode}); expected 8. Convert it with the range of "
                    "grey values that your microscope uses."
                )
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(path, error)) from error


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask to [H, W] uint8: 1 where any colour value differs from 0. Alpha says nothing about the mask.

    Reads palettes (by their colours, not their indices), 1 bit, grey of any depth, RGB and RGBA.

    Raises:
        DataError: The file is missing, not an image, or ends early.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("RGB", "RGBA", "RGBX") and any(bits > 8 for bits in getattr(image, "tag_v2", {}).get(258, ())):
                # PIL keeps the high byte only: a mask of ones would come out empty.
                raise DataError(f"{path}: has more than 8 bits per colour channel; expected 8. Save it as a grey image.")
            if image.mode == "P":
                palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                table = np.zeros(256, np.uint8)
                table[: len(palette)] = palette.any(axis=1)
                return table[np.asarray(image)]
            plain = image.mode in ("1", "L", "RGB", *ALPHA_MODES) or image.mode.startswith(DEEP_MODES)
            values = np.atleast_3d(np.asarray(image if plain else image.convert("RGB")))
            colors = values[..., :-1] if image.mode in ALPHA_MODES else values
            found = colors[..., 0] != 0
            for channel in range(1, colors.shape[2]):
                found |= colors[..., channel] != 0
            return found.view(np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(path, error)) from error


def check_images(family: DataFamily, records: list[Record], report: CheckReport) -> None:
    """Decode every image and add what is broken, and which files are identical, to the report."""
    seen: dict[str, str] = {}
    for record in records:
        try:
            family.read_image(record)
        except DataError as error:
            report.errors.append(str(error))
            continue
        content = file_hash(record.path)
        if content in seen:
            report.notes.append(f"{record.sample_id}: the image file is identical to that of {seen[content]}.")
        else:
            seen[content] = record.sample_id


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: there is no such image."
    reason = str(error).replace(str(path), path.name)
    return f"{path}: cannot be decoded ({reason}). Replace the file, or remove it with its labels."
