"""What may be given to a predictor in Python, and how its pixels are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.core.names import readable
from mtl.data.formats.headers import DEEP_MODES, FOREIGN_COLOURS, header_of
from mtl.data.formats.images import EXIF_ORIENTATION, read_grey, read_rgb
from mtl.inference.images import case_files, find_images, form_of, is_case

EXPECTED = (
    "Expected the path of an image, a volume or a case folder, a PIL image, an array [height, width, channels], or a list of "
    "these"
)


@dataclass
class Input:
    """One thing to predict.

    Attributes:
        read: Returns its pixels as `Predictor.predict` takes arrays.
        name: Of its file without folder and suffix; empty where there is no file.
        case: Set where it is made of volumes, of which there are no pixels to read at once.
    """

    read: Callable[[], np.ndarray]
    name: str = ""
    case: Path | None = None


def input_of(item: Any, microns: bool, grey: bool) -> Input:
    """Look at what was given; nothing is decoded yet.

    Args:
        item: A path (text or `Path`), a PIL image or an array.
        microns: The network counts in microns, so that it knows slides.
        grey: The network takes grey values.

    Raises:
        DataError: None of these, or a path of something else.
    """
    if isinstance(item, str | Path):
        path = _entry(Path(os.path.expanduser(item)))  # noqa: PTH111 (a file may be called `~x.png`)
        form = form_of(path, microns)
        if form == "slide":
            raise DataError(
                f"{readable(path)}: is a slide, which is predicted piece by piece into files. Use `mtl predict checkpoint=... "
                f"source={readable(path)} output=<folder>`, or read a part of it and give its pixels."
            )
        case = path if form == "volume" else None
        return Input(lambda: read_pixels(path, grey), path.stem, case)
    if isinstance(item, np.ndarray):
        return Input(lambda: item)
    from PIL import Image

    if isinstance(item, Image.Image):
        return Input(lambda: _pixels(item, grey))
    raise DataError(f"{EXPECTED}; found {type(item).__name__}.")


def read_pixels(path: Path, grey: bool) -> np.ndarray:
    """Decode an image file: grey values [H, W] for a network of MR slices, else [H, W, 3].

    Raises:
        DataError: The file cannot be decoded, whatever the decoder thinks of it.
    """
    try:
        return read_grey(path) if grey else read_rgb(path)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything of a damaged file
        raise DataError(f"{path}: cannot be decoded ({type(error).__name__}: {error}). Replace the file.") from error


def _entry(path: Path) -> Path:
    """Return what a path names as one entry of `find_images`."""
    if is_case(path) and not path.exists() and path.parent.is_dir() and case_files(path):
        return path  # `<folder>/<case>`
    found = find_images(path)
    if len(found) == 1 and (found[0] == path or is_case(found[0])):
        return found[0]
    raise DataError(
        f"{readable(path)}: is a folder of {len(found)} image{'' if len(found) == 1 else 's'}, not a case. Give a list of "
        "its files, or use `mtl predict`."
    )


def _pixels(image: Any, grey: bool) -> np.ndarray:
    """Return the pixels of a PIL image as those of its file.

    Raises:
        DataError: It is of a kind that is refused as a file, too.
    """
    file = Path(os.fsdecode(getattr(image, "filename", "") or ""))
    if getattr(image, "format", None) and file.is_file():  # as opened: what PIL made of it does not tell what it was
        problem = header_of(file, image).problem
        if problem is not None:
            raise DataError(f"{readable(file)}: {problem}")
    elif ";16" in str(getattr(image, "tile", "")) or getattr(image, "tag_v2", {}).get(EXIF_ORIENTATION, 1) != 1:
        raise DataError(
            "The image, which was opened from memory, has more than 8 bits per colour channel, or is to be turned; expected 8 "
            "bits, upright. Convert it."
        )
    if image.mode in FOREIGN_COLOURS:
        raise DataError(f"The image is stored in {FOREIGN_COLOURS[image.mode]}; expected RGB or grey. Convert it.")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(f"The image has {image.n_frames} pages or frames; expected one picture. Give the one that is meant.")
    if image.mode.startswith(DEEP_MODES):
        if grey:
            return np.asarray(image, np.float32)
        raise DataError(
            f"The image has more than 8 bits per channel (mode {image.mode}); expected 8. Convert it with the range of grey "
            "values that the recording device uses."
        )
    try:
        alpha = grey and image.has_transparency_data
        return np.array(image.convert("RGBA" if alpha else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # opened, not decoded until now
        raise DataError(f"The image cannot be decoded ({error}). Replace it.") from error
