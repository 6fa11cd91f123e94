"""Image files as stored: sizes from headers, complete decoding, duplicates. Files are opened by `mtl.data.formats.headers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtl.core.errors import DataError
from mtl.core.family import CheckReport, DataFamily
from mtl.core.files import file_hash
from mtl.core.progress import track
from mtl.core.types import Record
from mtl.data.formats.headers import ALPHA_MODES, Header, open_image
from mtl.data.formats.tiff import COLOUR_MAP, UNSIGNED

if TYPE_CHECKING:
    from PIL import Image


EXIF_ORIENTATION = 274


def image_size(path: Path) -> tuple[tuple[int, int], int]:
    """Read (height, width) as stored and the EXIF orientation (1 is upright) from the header.

    Raises:
        DataError: The file is missing, not an image, or of a kind that no reader takes.
    """
    with open_image(path) as (image, header):
        # Of a PNG file, PIL decodes the pixels to look for EXIF behind them, where hardly anybody writes it.
        exif = image.getexif() if header.format != "PNG" or "exif" in image.info else {}
        return header.size, int(exif.get(EXIF_ORIENTATION, 1))


def read_rgb(path: Path) -> np.ndarray:
    """Decode an image to [H, W, 3] uint8 RGB, never turned by its EXIF orientation.

    Grey is repeated, a palette looked up; of colours with alpha the stored ones are taken, hidden or not.

    Raises:
        DataError: The file is missing, not an image, ends early, or is of a kind that is not read as colours.
    """
    with open_image(path) as (image, header):
        if header.is_deep:
            raise DataError(
                f"{path}: has more than 8 bits per channel (mode {header.mode}); expected 8. Convert it with the range of "
                "grey values that the recording device uses."
            )
        return np.array(image.convert("RGB"))


def read_grey(path: Path) -> np.ndarray:
    """Decode a picture to its grey values [H, W] float32, never turned by its EXIF orientation.

    Colours become their luma, 0 to 255; what alpha hides is black. Grey values of more than 8 bits stay as stored.

    Raises:
        DataError: The file is missing, not an image, ends early, holds values that are no numbers, or is of a kind that is not
            read.
    """
    with open_image(path) as (image, header):
        return deep_values(image, header).astype(np.float32) if header.is_deep else _luma(image)


def deep_values(image: Image.Image, header: Header) -> np.ndarray:
    """Decode the grey values of a file that has more than 8 bits: [H, W], as stored.

    Raises:
        DataError: Some are no numbers.
    """
    values = np.asarray(image)
    if values.dtype == np.int32 and header.bits == 32 and header.numbers == UNSIGNED:
        values = values.view(np.uint32)  # PIL knows signed ones only
    if not np.isfinite(values).all():
        raise DataError(f"{header.path}: has pixels that are not numbers (NaN or infinite). Replace the file.")
    return values


def grey_values(image: np.ndarray) -> np.ndarray:
    """Turn an image array into grey values [H, W] float32, as `read_grey` does with a file.

    Args:
        image: [H, W] or [H, W, 1] of any type, or [H, W, 3] RGB or [H, W, 4] RGBA uint8.

    Raises:
        DataError: Another shape or type, or values that are no numbers.
    """
    from PIL import Image

    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8 and array.size:
        return _luma(Image.fromarray(np.ascontiguousarray(array)))
    grey = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if grey.ndim != 2 or not grey.size or grey.dtype.kind not in "buif" or not np.isfinite(grey).all():
        raise DataError(
            f"Expected finite grey values [height, width], or a picture [height, width, 3 or 4] of uint8; found shape "
            f"{list(array.shape)} of {array.dtype}."
        )
    return grey.astype(np.float32)


def _luma(image: Image.Image) -> np.ndarray:
    grey = np.array(image.convert("L"), np.float32)
    if image.has_transparency_data:
        grey *= np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255.0
    return grey


def grey_channels(grey: np.ndarray, modalities: Sequence[str], modality: str = "repeat") -> np.ndarray:
    """Make the image of a network for MR slices from one grey picture: its own channel is filled, missing ones are blank.

    Args:
        grey: [H, W].
        modalities: Names of the channels.
        modality: What the picture is; `repeat` fills all channels, for a picture of which nobody knows.

    Returns:
        [H, W, channels] float32.
    """
    image = np.zeros((*grey.shape, len(modalities)), np.float32)
    for channel, name in enumerate(modalities):
        if modality in ("repeat", name):
            image[..., channel] = grey
    return image


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask to [H, W] uint8: 1 where any colour value differs from 0. Alpha says nothing about the mask.

    Reads palettes (by their colours, not their indices), 1 bit, grey of any depth, RGB and RGBA.

    Raises:
        DataError: The file is missing, not an image, ends early, holds values that are no numbers, or is of a kind that is not
            read.
    """
    with open_image(path) as (image, header):
        if header.is_deep:
            return (deep_values(image, header) != 0).view(np.uint8)
        if image.mode == "P":
            palette = _palette(image)
            table = np.zeros(256, np.uint8)
            table[: len(palette)] = palette.any(axis=1)
            return table[np.asarray(image)]
        values = np.atleast_3d(np.asarray(image if image.mode in ("1", "L", "RGB", *ALPHA_MODES) else image.convert("RGB")))
        colors = values[..., :-1] if image.mode in ALPHA_MODES else values
        found = colors[..., 0] != 0
        for channel in range(1, colors.shape[2]):
            found |= colors[..., channel] != 0
        return found.view(np.uint8)


def _palette(image: Image.Image) -> np.ndarray:
    """Return the colours of a palette, [n, 3]: of a TIFF all 16 bits, of which PIL keeps the high byte."""
    deep = getattr(image, "tag_v2", {}).get(COLOUR_MAP)
    return np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3) if deep is None else np.reshape(deep, (3, -1)).T


def check_images(family: DataFamily, records: list[Record], report: CheckReport) -> None:
    """Decode every image and add what is broken, and which files are identical, to the report."""
    seen: dict[str, str] = {}
    for record in track("reading images", records, len(records)):
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


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
# JPEG has grey seams around what is marked, and what writes a GIF may renumber its values.
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
