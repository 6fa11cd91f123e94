"""What a picture file is, is known before its pixels are used; what no reader takes is refused by name, everywhere alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mtl.core.errors import DataError
from mtl.data.families.tiger.files import read_tissue
from mtl.data.formats.duplicates import fingerprint, near_duplicates
from mtl.data.formats.images import image_size, read_grey, read_mask, read_rgb
from mtl.data.formats.tiff import read_directories

READERS = (image_size, read_rgb, read_grey, read_mask, read_tissue, fingerprint)
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
GREY = COLOURS[..., 0]
MARKED = GREY > 100


def refused(path: Path, readers: tuple[Callable[[Path], Any], ...] = READERS) -> str:
    """Return the sentence with which all readers refuse a file."""
    said = set()
    for reader in readers:
        with pytest.raises(DataError) as error:
            reader(path)
        said.add(str(error.value))
    (sentence,) = said
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence


def pages(path: Path, *arrays: np.ndarray, reduced: tuple[int, ...] = (), **options: Any) -> Path:
    """Write a TIFF of several pages; those whose numbers are in `reduced` say that they are smaller copies."""
    with tifffile.TiffWriter(path) as writer:
        for number, array in enumerate(arrays):
            kind = "rgb" if array.ndim == 3 else "minisblack"
            writer.write(array, subfiletype=int(number in reduced), photometric=kind, metadata=None, **options)
    return path


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_are_refused_and_never_cut_to_a_byte(suffix: str, channels: int, tmp_path: Path) -> None:
    ones = np.repeat(MARKED[..., None], channels, axis=2).astype(np.uint16)  # PIL reads it as empty
    path = tmp_path / f"ones.{suffix}"
    cv2.imwrite(str(path), ones)
    assert not np.asarray(Image.open(path))[..., :3].any()
    assert "has more than 8 bits per colour channel (16); expected 8" in refused(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
def test_grey_values_of_any_depth_are_a_mask_and_keep_all_their_bits(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    high = {np.uint32: 2**31 + 7, np.uint16: 65535, np.int16: -300, np.int32: -70_000, np.float32: 0.25}.get(dtype, 1)
    values = np.where(MARKED, high, 0).astype(dtype)
    tifffile.imwrite(path, values)
    np.testing.assert_array_equal(read_mask(path), MARKED)
    np.testing.assert_array_equal(read_grey(path), values.astype(np.float32))
    tifffile.imwrite(path, MARKED.astype(dtype))
    np.testing.assert_array_equal(read_tissue(path), MARKED)
    if dtype != np.uint8:
        with pytest.raises(DataError, match="more than 8 bits per channel"):
            read_rgb(path)


def test_a_file_of_four_pages_is_refused_with_their_number(tmp_path: Path) -> None:
    path = pages(tmp_path / "four.tif", *[COLOURS] * 4)
    assert refused(path) == (
        f"{path}: holds 4 pages (30 x 20 pixels); expected one picture. Save each page that is meant as a file of its own."
    )
    empty = pages(tmp_path / "empty_first.tif", np.zeros((20, 30), np.uint8), MARKED.astype(np.uint8))
    assert "holds 2 pages" in refused(empty)
    big = tmp_path / "big.tif"
    tifffile.imwrite(big, np.stack([GREY] * 3), bigtiff=True, photometric="minisblack")
    assert "holds 3 pages" in refused(big)


def test_a_preview_in_front_is_never_taken_for_the_picture(tmp_path: Path) -> None:
    small = np.ascontiguousarray(COLOURS[::5, ::5])
    said = pages(tmp_path / "said.tif", small, COLOURS, reduced=(0,))
    assert "its first page, 6 x 4 pixels, is the preview of another picture" in refused(said)
    unsaid = pages(tmp_path / "unsaid.tif", small, COLOURS)
    assert "holds 2 pages (6 x 4, 30 x 20 pixels)" in refused(unsaid)
    raw = tmp_path / "raw.tif"  # cameras keep the picture in a directory inside that of the preview
    with tifffile.TiffWriter(raw) as writer:
        writer.write(small, subifds=1, subfiletype=1, photometric="rgb", metadata=None)
        writer.write(COLOURS, photometric="rgb", metadata=None)
    assert "is the preview of another picture" in refused(raw)


def test_smaller_copies_behind_a_picture_do_not_make_it_several(tmp_path: Path) -> None:
    path = pages(tmp_path / "pyramid.tif", COLOURS, COLOURS[::2, ::2], COLOURS[::4, ::4], reduced=(1, 2))
    np.testing.assert_array_equal(read_rgb(path), COLOURS)
    assert image_size(path) == ((20, 30), 1)
    inside = tmp_path / "inside.tif"
    with tifffile.TiffWriter(inside) as writer:
        writer.write(COLOURS, subifds=1, photometric="rgb", metadata=None)
        writer.write(COLOURS[::2, ::2], subfiletype=1, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read_rgb(inside), COLOURS)
    assert [directory.size for directory in read_directories(inside)] == [(20, 30), (10, 15)]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused_and_single_frames_read(suffix: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"moving.{suffix}", Image.fromarray(COLOURS)
    frame.save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    assert "is an animation of 2 frames; expected one picture" in refused(path)
    frame.save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = read_rgb(path)
    assert found.shape == COLOURS.shape and (suffix == "gif" or (found == COLOURS).all())


def test_the_first_picture_of_a_phone_is_the_photograph(tmp_path: Path) -> None:
    path, picture = tmp_path / "phone.jpg", Image.fromarray(COLOURS)
    picture.save(path, format="MPO", save_all=True, append_images=[picture.resize((6, 4))], quality=95)
    picture.save(tmp_path / "plain.jpg", quality=95)
    assert image_size(path) == ((20, 30), 1)
    np.testing.assert_array_equal(read_rgb(path), read_rgb(tmp_path / "plain.jpg"))


def test_what_would_be_read_with_wrong_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.tif"
    cases: list[tuple[np.ndarray, dict[str, Any], str]] = [
        (GREY.astype(np.int8), {}, "holds signed numbers of 8 bits"),
        (GREY.astype(np.uint16), {"photometric": "miniswhite"}, "stores white as 0 in 16 bits"),
        (COLOURS, {"photometric": "cielab"}, "is stored in the colours of LAB"),
        (np.dstack([COLOURS, GREY]), {"photometric": "separated"}, "is stored in CMYK"),
        (GREY % 4, {"photometric": "palette", "colormap": np.eye(3, 256, dtype=np.uint16) * 255}, "has a palette"),
        (GREY.astype(np.float16), {}, r"is a TIFF of 1 channel of 16 bits \(floating-point numbers\)"),
        (COLOURS.astype(np.uint32), {"photometric": "rgb"}, "is a TIFF of 3 channels of 32 bits"),
    ]
    for array, options, words in cases:
        tifffile.imwrite(path, array, **options)
        said = refused(path)
        assert words.replace("\\", "") in said, said
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "ink.jpg")
    assert "is stored in CMYK" in refused(tmp_path / "ink.jpg")
    cv2.imwrite(str(tmp_path / "deep.ppm"), COLOURS.astype(np.uint16))
    assert "is a file of the format PPM; expected BMP, GIF, JPEG" in refused(tmp_path / "deep.ppm")


def test_white_as_zero_is_turned_round_where_it_can_be(tmp_path: Path) -> None:
    for values in (GREY, MARKED):
        tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
        shown = ~values if values.dtype == bool else 255 - values
        np.testing.assert_array_equal(read_mask(tmp_path / "white.tif"), shown != 0)


def test_a_mask_counts_all_16_bits_of_the_colours_of_its_palette(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[0, 1], colours[1, 2] = 40, 65535  # the first is black in 8 bits
    tifffile.imwrite(tmp_path / "mask.tif", (GREY % 3), photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), GREY % 3 > 0)


def test_numbers_that_are_none_are_refused_in_masks_and_pictures(tmp_path: Path) -> None:
    values = MARKED.astype(np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    assert "has pixels that are not numbers" in refused(tmp_path / "nan.tif", (read_grey, read_mask, read_tissue, fingerprint))


def test_deep_copies_are_found(tmp_path: Path) -> None:
    """A picture of 12 bits in 16 is not all white to the search for copies."""
    smooth = cv2.resize(COLOURS[..., :1].astype(np.float32), (240, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    other = cv2.resize(COLOURS[::-1, :, 1].astype(np.float32), (240, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    for name, picture in (("deep.tif", 16 * smooth), ("other.tif", 16 * other)):
        tifffile.imwrite(tmp_path / name, picture.astype(np.uint16))
    cv2.imwrite(str(tmp_path / "plain.png"), smooth.astype(np.uint8))
    assert near_duplicates([tmp_path / "deep.tif", tmp_path / "plain.png", tmp_path / "other.tif"]) == [0, 0, 1]


def test_damaged_directories_are_one_sentence(tmp_path: Path) -> None:
    whole = pages(tmp_path / "whole.tif", COLOURS).read_bytes()
    path = tmp_path / "cut.tif"
    for length in (4, 9, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "cannot be decoded" in refused(path, (read_rgb, read_mask, read_tissue, fingerprint))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_that_is_to_be_turned_is_refused(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[0, 0] = 255
    for tag in (1, orientation):
        tifffile.imwrite(tmp_path / f"{tag}.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, tag, True)])
    np.testing.assert_array_equal(read_rgb(tmp_path / "1.tif"), pixels)
    for read in (read_rgb, read_grey, read_mask, image_size):
        with pytest.raises(DataError, match=rf"is to be turned before it is seen \(orientation {orientation}\)"):
            read(tmp_path / f"{orientation}.tif")
