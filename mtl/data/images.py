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
