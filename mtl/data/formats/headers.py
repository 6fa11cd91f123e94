"""What an image file is, known before its pixels are used: its format, channels, bits and pages. Imports PIL only when used.

Everything that decodes an image file opens it here, so that what no reader takes is refused by one sentence everywhere: images,
masks, the search for copies and prediction alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtl.core.errors import DataError
from mtl.data.formats import tiff

if TYPE_CHECKING:
    from PIL import Image

# PIL clips these to 255 when it converts them, which turns most of a 16-bit image white.
DEEP_MODES = ("I", "F")
ALPHA_MODES = ("LA", "RGBA", "RGBX", "RGBa", "La")  # the last channel is no colour
# PIL's names; of other formats nobody here knows what PIL makes of their depth. MPO is JPEG with previews behind the picture.
FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
# PIL's names of colours that have no one meaning in RGB: how they look depends on a profile.
FOREIGN_COLOURS = {"CMYK": "CMYK, the colours of printing inks", "LAB": "the colours of LAB", "HSV": "the colours of HSV"}
PNG_DEPTH = 24  # place of the byte that holds it
SHOWN_PAGES = 4


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        path: The file.
        format: As in `FORMATS`, or another name of PIL.
        mode: PIL's name of what it decodes the file to.
        size: (height, width) as stored.
        bits: Of each channel, in the file.
        pages: (height, width) of each page, or once for each frame of an animation. Not counted are copies that say of
            themselves that they are reduced, and what a photo camera (MPO) appends to the picture, which is the first.
        preview: The page that is decoded says that it is a reduced copy.
        numbers: `tiff.UNSIGNED`, `SIGNED` or `FLOAT`.
        white_is_zero: 0 is white in the file.
        colours_of_8_bits: The palette of a TIFF, which has 16 bits, holds values of 8: PIL decodes them to black.
        turned: How a TIFF is to be turned to be upright (its tag Orientation), 1 not at all. PIL turns it unasked.
    """

    path: Path
    format: str
    mode: str
    size: tuple[int, int]
    bits: int
    pages: list[tuple[int, int]]
    preview: bool = False
    numbers: int = tiff.UNSIGNED
    white_is_zero: bool = False
    colours_of_8_bits: bool = False
    turned: int = 1

    @property
    def is_deep(self) -> bool:
        """Whether it decodes to grey values of more than 8 bits."""
        return self.mode.startswith(DEEP_MODES)

    @property
    def problem(self) -> str | None:
        """What makes the file one that no reader takes, as the rest of a sentence after its name; None where nothing does."""
        if self.format not in FORMATS:
            return f"is a file of the format {self.format}; expected {', '.join(FORMATS)}. Convert it."
        if self.preview:
            return (
                f"its first page, {_size(self.size)} pixels, is the preview of another picture. Save that picture as a file of "
                "its own."
            )
        if len(self.pages) > 1:
            return self._several
        if self.mode in FOREIGN_COLOURS:
            return f"is stored in {FOREIGN_COLOURS[self.mode]}; expected RGB, grey or a palette. Convert it to RGB."
        if self.bits > 8 and not self.is_deep:  # PIL keeps the high byte only: a mask of ones would come out empty
            return (
                f"has more than 8 bits per colour channel ({self.bits}); expected 8. Convert an image with the range of values "
                "that the recording device uses, and save a mask as a grey image."
            )
        if self.numbers == tiff.SIGNED and self.bits <= 8:  # PIL takes -1 for 255
            return "holds signed numbers of 8 bits; expected unsigned ones. Convert it."
        if self.white_is_zero and self.is_deep:  # PIL turns only shallow ones round
            return f"stores white as 0 in {self.bits} bits; expected black as 0. Invert it."
        if self.turned != 1:
            return (
                f"is to be turned before it is seen (orientation {self.turned}), but annotations belong to pixels as they are "
                "stored. Save it upright, without that tag."
            )
        if self.colours_of_8_bits:
            return "has a palette whose colours are all below 256 of 65535, so that every one is black. Save it as RGB or grey."
        return None

    @property
    def _several(self) -> str:
        if self.format != "TIFF":
            return f"is an animation of {len(self.pages)} frames; expected one picture. Save the frame that is meant."
        sizes = list(dict.fromkeys(_size(page) for page in self.pages))
        more = ", ..." if len(sizes) > SHOWN_PAGES else ""
        count = f"{len(self.pages)}{' or more' if len(self.pages) >= tiff.MOST else ''}"
        return (
            f"holds {count} pages ({', '.join(sizes[:SHOWN_PAGES])}{more} pixels); expected one picture. Save each page that "
            "is meant as a file of its own."
        )


@contextmanager
def open_image(path: Path) -> Iterator[tuple[Image.Image, Header]]:
    """Open an image file for decoding, together with its header; what goes wrong while it is decoded is one sentence, too.

    Raises:
        DataError: The file is missing, not an image, ends early, or is of a kind that no reader takes (`Header.problem`).
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            header = header_of(path, image)
            if header.problem is not None:
                raise DataError(f"{path}: {header.problem}")
            yield image, header
    except Image.UnidentifiedImageError as error:
        raise DataError(_unidentified(path, error)) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(path, error)) from error


def header_of(path: Path, image: Image.Image) -> Header:
    """Return what the file of an image that PIL has opened says of itself."""
    size = (image.height, image.width)
    name, mode = str(image.format), image.mode
    if name == "TIFF":
        first, *others = tiff.read_directories(path)
        whole = [other.size for other in others if not other.is_reduced or other.size[0] > first.size[0]]
        colours = first.values.get(tiff.COLOUR_MAP, ())
        return Header(
            path, name, mode, size, first.bits, [first.size, *whole],
            preview=first.is_reduced,
            numbers=first.first(tiff.NUMBERS, tiff.UNSIGNED),
            white_is_zero=first.first(tiff.PHOTOMETRIC, 1) == 0,
            colours_of_8_bits=mode in ("P", "PA") and 0 < max(colours, default=0) < 256,
            turned=first.first(tiff.ORIENTATION, 1),
        )  # fmt: skip
    bits = {"I": 32, "F": 32}.get(mode, 16 if mode.startswith(DEEP_MODES) else 8)
    if name == "PNG":
        with path.open("rb") as file:
            bits = file.read(PNG_DEPTH + 1)[PNG_DEPTH]
    # The other pictures of an MPO are previews, depths or the second eye of a stereo camera: the first is the photograph.
    frames = 1 if name == "MPO" else int(getattr(image, "n_frames", 1))
    return Header(path, name, mode, size, bits, [size] * frames)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _unidentified(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that PIL does not know; of a TIFF, what it holds."""
    try:
        found = tiff.read_directories(path)
    except (OSError, ValueError):
        found = []
    if not found or not all(found[0].size):
        return _unreadable(path, error)
    numbers = {tiff.SIGNED: "signed numbers", tiff.FLOAT: "floating-point numbers"}.get(
        found[0].first(tiff.NUMBERS, 1), "numbers"
    )
    channels = len(found[0].values.get(tiff.BITS, (1,)))
    return (
        f"{path}: is a TIFF of {channels} channel{'s' if channels > 1 else ''} of {found[0].bits} bits ({numbers}) or of a "
        "compression that cannot be decoded; expected grey, a palette or RGB of 8 bits per channel. Convert it."
    )


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: there is no such image."
    reason = str(error).replace(str(path), path.name)
    return f"{path}: cannot be decoded ({reason}). Replace the file, or remove it with its labels."
