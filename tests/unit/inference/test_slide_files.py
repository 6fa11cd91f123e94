"""Slides on disk: what is one, what it says of itself, and reading any part of it at any scale."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_tools import generate, save

from mtl.core.errors import ConfigError, DataError
from mtl.data.formats.slides import ScannerSlide, TiledTiff, described_spacing, is_slide, is_tissue_mask, open_slide
from mtl.imaging.stain import estimate
from mtl.inference.images import find_images, is_case
from mtl.inference.result_names import output_names
from mtl.inference.slides.raster import Resized, Tissue, array_reader, overview, sample, tissue_by_colour, tissue_from_file


def test_what_counts_as_a_slide(tmp_path: Path) -> None:
    image = generate(100, 130)
    assert is_slide(save(tmp_path / "tiled.tif", image)) and is_slide(save(tmp_path / "big.tiff", image, bigtiff=True))
    assert is_slide(save(tmp_path / "motorola.tif", image, byteorder=">"))
    assert not is_slide(save(tmp_path / "strips.tif", image, tile=0))
    Image.fromarray(image).save(tmp_path / "plain.png")
    (tmp_path / "text.tif").write_text("II no picture")
    (tmp_path / "short.tif").write_bytes(b"II*\0")
    assert not any(is_slide(tmp_path / name) for name in ("plain.png", "text.tif", "short.tif", "nowhere.tif"))
    assert is_slide(tmp_path / "scan.SVS")
    assert is_tissue_mask(save(tmp_path / "tiled_tissue.tif", image[..., 0])) and not is_tissue_mask(tmp_path / "tiled.tif")


def test_the_largest_tiled_picture_of_a_file_is_the_slide(tmp_path: Path) -> None:
    image = generate(128, 192)
    options = {"photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER"}
    for name, byteorder, big in (("a.tif", "<", False), ("b.tif", ">", True)):
        with tifffile.TiffWriter(tmp_path / name, byteorder=byteorder, bigtiff=big) as writer:
            writer.write(image[:32, :32], resolution=(500, 500), **options)  # a label in strips comes first
            writer.write(image, tile=(64, 64), resolution=(20_000, 20_000), **options)
        assert is_slide(tmp_path / name)
        with open_slide(tmp_path / name) as slide:
            assert slide.levels == [(128, 192)] and slide.spacing == pytest.approx((0.5, 0.5))
            np.testing.assert_array_equal(slide.read(0, 0, 192, 128), image)
    with tifffile.TiffWriter(tmp_path / "sub.tif") as writer:  # smaller copies in directories of their own
        writer.write(image, tile=(64, 64), subifds=2, **options)
        for step in (2, 4):
            writer.write(image[::step, ::step], tile=(32, 32), subfiletype=1, **options)
    with open_slide(tmp_path / "sub.tif") as slide:
        assert slide.levels == [(128, 192), (64, 96), (32, 48)]
    with tifffile.TiffWriter(tmp_path / "inner.tif") as writer:
        writer.write(image, subifds=1, **options)
        writer.write(image[::2, ::2], tile=(32, 32), subfiletype=1, **options)
    assert is_slide(tmp_path / "inner.tif")
    endless = bytearray(b"II*\0" + (8).to_bytes(4, "little") + bytes(2) + (8).to_bytes(4, "little"))
    (tmp_path / "endless.tif").write_bytes(endless)
    assert not is_slide(tmp_path / "endless.tif")


def test_masks_in_strips_are_masks_where_their_slide_is_among_the_files(tmp_path: Path) -> None:
    image = generate(64, 64)
    for name in ("a.tif", "images/b.tif"):
        save(tmp_path / name, image)
    for name in ("a_tissue.tif", "masks/b_tissue.tif", "c_tissue.tif"):
        save(tmp_path / name, image[..., 0], tile=0)
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a.tif", "c_tissue.tif", "images/b.tif"]
    with pytest.raises(DataError, match="is a tissue mask"):
        find_images(tmp_path / "a_tissue.tif")


def test_folders_name_slides_but_not_their_masks(tmp_path: Path) -> None:
    image = generate(64, 64)
    for name in ("images/b.tif", "images/a.svs", "c.tiff"):
        save(tmp_path / name, image)
    save(tmp_path / "masks" / "b_tissue.tif", image[..., 0])
    save(tmp_path / "d_tissue.tif", image, tile=0)  # not in tiles: an image like any other
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["c.tiff", "d_tissue.tif", "images/a.svs", "images/b.tif"] and not any(map(is_case, find_images(tmp_path)))
    with pytest.raises(DataError, match="is a tissue mask"):
        find_images(tmp_path / "masks" / "b_tissue.tif")
    with pytest.raises(DataError, match="holds no image"):
        find_images(tmp_path / "masks")
    names = output_names([Path("x/a.svs"), Path("x/a.tif"), Path("y/b.ndpi")])
    assert names == {Path("x/a.svs"): "a_svs", Path("x/a.tif"): "a_tif", Path("y/b.ndpi"): "b"}


@pytest.mark.parametrize(
    "options", [{}, {"compression": "jpeg"}, {"tile": 32, "bigtiff": True}, {"compression": "lzw", "byteorder": ">"}], ids=str
)
def test_any_rectangle_is_what_decoding_all_gives(tmp_path: Path, options: dict) -> None:
    path = save(tmp_path / "slide.tif", generate(150, 210), **options)
    whole = tifffile.imread(path)
    with open_slide(path) as slide:
        assert slide.size == (150, 210) and slide.spacing == pytest.approx((0.5, 0.5))
        for x, y, width, height in ((0, 0, 210, 150), (63, 60, 5, 70), (64, 64, 64, 64), (209, 149, 1, 1), (10, 100, 200, 50)):
            np.testing.assert_array_equal(slide.read(x, y, width, height), whole[y : y + height, x : x + width])


def test_tiles_that_are_not_stored_are_glass_and_alpha_is_dropped(tmp_path: Path) -> None:
    def tiles():
        yield np.full((64, 64, 3), 9, np.uint8)
        yield None  # sparse

    with tifffile.TiffWriter(tmp_path / "sparse.tif") as writer:
        writer.write(tiles(), shape=(64, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb", compression="zlib")
    with open_slide(tmp_path / "sparse.tif") as slide:
        pixels = slide.read(60, 0, 8, 1)
        assert pixels[0, :4].tolist() == [[9] * 3] * 4 and pixels[0, 4:].tolist() == [[255] * 3] * 4
    clear = np.dstack([generate(64, 64), np.full((64, 64), 7, np.uint8)])
    with open_slide(save(tmp_path / "rgba.tif", clear, extrasamples=["unassalpha"])) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 64, 64), clear[..., :3])


def test_pyramids_are_found_marked_or_not(tmp_path: Path) -> None:
    image = generate(256, 384)
    for name, marked in (("marked.tif", 1), ("bare.tif", 0)):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for level, step in enumerate((1, 2, 4)):
                writer.write(
                    image[::step, ::step], tile=(64, 64), photometric="rgb", metadata=None,
                    subfiletype=marked if level else 0, resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
                )  # fmt: skip
            writer.write(image[:64, :64], tile=(64, 64), photometric="rgb", metadata=None)  # a label, no level
        with open_slide(tmp_path / name) as slide:
            assert slide.levels == [(256, 384), (128, 192), (64, 96)] and slide.spacing == pytest.approx((0.5, 0.5))
            np.testing.assert_array_equal(slide.read(5, 7, 40, 30, level=1), image[14:74:2, 10:90:2])
            assert [slide.level_for(size) for size in ((200, 300), (128, 192), (100, 100), (10, 10))] == [0, 1, 1, 2]


@pytest.mark.parametrize(("unit", "value", "um"), [("INCH", 50_800, 0.5), ("CENTIMETER", 40_000, 0.25), ("MILLIMETER", 500, 2)])
def test_spacing_by_units(tmp_path: Path, unit: str, value: float, um: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", generate(64, 64), tile=(64, 64), resolution=(value, value), resolutionunit=unit)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.spacing == pytest.approx((um, um))


def test_a_resolution_for_screens_says_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "none.tif", generate(64, 64), tile=(64, 64))
    printer = tmp_path / "printer.tif"
    tifffile.imwrite(printer, generate(64, 64), tile=(64, 64), resolution=(300, 300), resolutionunit="INCH")
    for path in (save(tmp_path / "screen.tif", generate(64, 64), spacing=None), tmp_path / "none.tif", printer):
        with open_slide(path) as slide:
            assert slide.spacing is None


@pytest.mark.parametrize(
    ("description", "um"),
    [
        ("Aperio Image Library v1|AppMag = 20|MPP = 0.4990|Left = 2", 0.499),
        ("MPP = unknown", None),
        ("MPP = 85", None),
        ('<OME><Pixels SizeX="64" PhysicalSizeX="0.25" PhysicalSizeY="0.25"/></OME>', 0.25),
        (
            '<o:Pixels SizeX="64" PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY=".25" PhysicalSizeYUnit="um">',
            0.25,
        ),
        ('<Pixels SizeX="64" PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1">', None),
        ('<Pixels SizeX="32" PhysicalSizeX="0.25" PhysicalSizeY="0.25">', None),  # of another picture
    ],
)
def test_spacing_by_descriptions(description: str, um: float | None) -> None:
    assert described_spacing(description, description, 64) == (None if um is None else pytest.approx((um, um)))


def test_descriptions_say_the_spacing_where_tags_do_not(tmp_path: Path) -> None:
    for spacing, um in ((None, 0.25), (0.5, 0.5)):
        with open_slide(save(tmp_path / "a.tif", generate(64, 64), spacing=spacing, description="x|MPP = 0.25|y")) as slide:
            assert slide.spacing == pytest.approx((um, um))
    facts = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "\u00b5m", "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "b.ome.tif", generate(64, 64), tile=(64, 64), photometric="rgb", metadata=facts)
    with open_slide(tmp_path / "b.ome.tif") as slide:
        assert slide.spacing == pytest.approx((0.25, 0.25))


def test_formats_of_scanners_go_through_tiffslide(tmp_path: Path) -> None:
    image = generate(300, 200)
    path = save(tmp_path / "scan.svs", image)
    with open_slide(path) as slide:
        assert isinstance(slide, ScannerSlide) and slide.size == (300, 200) and slide.spacing == pytest.approx((0.5, 0.5))
        np.testing.assert_array_equal(slide.read(20, 30, 100, 250), image[30:280, 20:120])
    (tmp_path / "scan.ndpi").write_bytes(b"\xff\xd8 no tiff")
    with pytest.raises(DataError, match=r"scan\.ndpi: cannot be read as a slide"):
        open_slide(tmp_path / "scan.ndpi")
    assert not is_slide(tmp_path / "mirax.mrxs")


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "half.tif", generate(200, 200), compression=None)
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"half\.tif: cannot be read as a slide"), open_slide(path) as slide:
        slide.read(0, 0, 200, 200)
    deep = save(tmp_path / "deep.tif", generate(64, 64).astype(np.uint16))
    grey = save(tmp_path / "grey.tif", generate(64, 64)[..., 0])
    inks = save(tmp_path / "inks.tif", np.dstack([generate(64, 64), generate(64, 64)[..., 0]]), photometric="separated")
    raw = save(tmp_path / "raw.tif", generate(64, 64), photometric="ycbcr")
    for wrong in (deep, grey, inks, raw):
        with pytest.raises(DataError, match="expected a tiled picture in RGB of 8 bits"):
            open_slide(wrong)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ConfigError, match=r"`imagecodecs` is not installed. Run: pip install 'mtl-medical\[slides\]'"):
        open_slide(save(tmp_path / "a.tif", generate(64, 64), compression=None))


# -- other scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(75, 105), (61, 83), (149, 210), (200, 300), (150, 210)])
def test_a_part_of_a_resized_slide_is_that_part_of_the_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    image = generate(150, 210)
    with open_slide(save(tmp_path / "slide.tif", image)) as slide:
        raster = Resized(slide, size)
        whole = raster.read(0, 0, size[1], size[0])
        for x, y, width, height in ((0, 0, 40, 40), (33, 21, 17, 30), (size[1] - 9, size[0] - 8, 9, 8)):
            np.testing.assert_array_equal(raster.read(x, y, width, height), whole[y : y + height, x : x + width])
        shrinks = size[0] < 150
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        assert np.abs(whole.astype(int) - expected).max() <= 1


def test_the_overview_is_the_same_with_and_without_a_pyramid(tmp_path: Path) -> None:
    image = np.repeat(np.repeat(generate(128, 192), 4, axis=0), 4, axis=1)
    with open_slide(save(tmp_path / "flat.tif", image)) as slide:
        flat = overview(slide, (64, 96))
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        for step in (1, 4):
            writer.write(image[::step, ::step], tile=(64, 64), photometric="rgb", subfiletype=int(step > 1), metadata=None)
    with open_slide(tmp_path / "pyramid.tif") as slide:
        np.testing.assert_array_equal(overview(slide, (64, 96)), flat)
    assert flat.shape == (64, 96, 3) and abs(float(flat.mean()) - float(image.mean())) < 0.5


# -- tissue ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tile": 64}, {"tile": 0}, {"tile": 0, "compression": None}])
@pytest.mark.parametrize("factor", [1, 4])
def test_tissue_masks_of_any_scale(tmp_path: Path, factor: int, options: dict) -> None:
    small = np.zeros((256 // factor, 384 // factor), np.uint8)
    small[80 // factor : 160 // factor, 200 // factor :] = 1
    path = save(tmp_path / "a_tissue.tif", small, **options)
    with open_slide(save(tmp_path / "a.tif", generate(256, 384))) as slide:
        tissue, close = tissue_from_file(path, slide, (256, 384))
        full = np.kron(small, np.ones((factor, factor), int)) > 0
        np.testing.assert_array_equal(tissue.within(0, 0, 384, 256), full)
        np.testing.assert_array_equal(tissue.within(190, 70, 33, 50), full[70:120, 190:223])
        points = np.array([[201.0, 81.0], [199.0, 81.0], [384.0, 159.0]], np.float32)
        assert tissue.at(points).tolist() == [True, False, True] and tissue.at(points[:0]).shape == (0,)
        close()
        other = save(tmp_path / "b_tissue.tif", np.ones((64, 64), np.uint8))
        with pytest.raises(DataError, match="does not cover"):
            tissue_from_file(other, slide, (256, 384))
        (tmp_path / "c_tissue.tif").write_text("nothing")
        with pytest.raises(DataError, match="cannot be read as a tissue mask"):
            tissue_from_file(tmp_path / "c_tissue.tif", slide, (256, 384))


def test_masks_of_any_depth_count_alike_and_colours_are_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.zeros((64, 64), np.uint16)
    deep[:, 32:] = 256
    closed = []
    close = TiledTiff.close
    monkeypatch.setattr(TiledTiff, "close", lambda self: (closed.append(self.path.name), close(self))[1])
    with open_slide(save(tmp_path / "a.tif", generate(128, 128))) as slide:
        for tile in (64, 0):
            tissue, close_mask = tissue_from_file(save(tmp_path / "a_tissue.tif", deep, tile=tile), slide, (128, 128))
            inside = tissue.within(0, 0, 128, 128)
            assert inside[:, 64:].all() and not inside[:, :64].any()
            close_mask()
            for wrong in (generate(64, 64), deep.astype(np.float32)):
                with pytest.raises(DataError, match="one whole number per pixel"):
                    tissue_from_file(save(tmp_path / "b_tissue.tif", wrong, tile=tile), slide, (128, 128))
        closed.clear()
        with pytest.raises(DataError, match="does not cover"):
            tissue_from_file(save(tmp_path / "c_tissue.tif", np.ones((64, 128), np.uint8)), slide, (128, 128))
        assert closed == ["c_tissue.tif"]


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_sample_stains_like_the_whole_slide_and_the_overview_does_not(tmp_path: Path, method: str) -> None:
    image = np.tile(generate(256, 256, dots=375), (4, 4, 1))

    def distance(estimated: dict, expected: dict) -> float:
        return max(float(np.abs(np.subtract(estimated[key], expected[key])).max()) for key in expected if key != "density")

    with open_slide(save(tmp_path / "a.tif", image)) as slide:
        raster = Resized(slide, slide.size)
        tissue = tissue_by_colour(overview(slide, (64, 64)), 0.05, slide.size)
        mosaic, small = sample(raster, tissue, (64, 64)), overview(slide, (64, 64))  # 16 times smaller
        assert mosaic.shape == (64, 1024, 3)
        np.testing.assert_array_equal(mosaic, sample(raster, tissue, (64, 64)))
        expected = estimate(image, method)
        assert distance(estimate(mosaic, method), expected) < 0.12
        assert distance(estimate(small, method), expected) > 0.3
        np.testing.assert_array_equal(sample(raster, tissue, (256, 256)), image)  # small enough to be looked at whole


def test_a_mask_says_where_another_raster_shows_tissue() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[5:, 10:] = 1
    tissue = Tissue((10, 20), array_reader(mask), (33, 66))  # 3.3 pixels per square
    inside = tissue.within(0, 0, 66, 33)
    assert not inside[:16].any() and inside[17:, 34:].all() and not inside[:, :32].any()


def test_tissue_by_colour() -> None:
    image = generate(200, 300)
    image[:, 280:] = 0  # what the scanner left out
    found = tissue_by_colour(image, 0.05, (200, 300)).within(0, 0, 300, 200)
    assert found[:, :200].all() and not found[:, 250:275].any() and not found[:, 285:].any()
    strict = tissue_by_colour(image, 0.8, (200, 300)).within(0, 0, 300, 200)
    assert strict.sum() < found.sum() / 2


def test_several_pictures_are_no_pyramid(tmp_path: Path) -> None:
    image, other = generate(256, 384), np.ascontiguousarray(generate(128, 192, seed=9)[:, ::-1])
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}

    def write(name: str, *pictures: np.ndarray) -> Path:
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for picture in pictures:
                writer.write(picture, **options)
        return tmp_path / name

    for name, *pictures in (("fields.tif", image, image[::-1], image), ("sizes.tif", image[:200, :300], image)):
        with pytest.raises(
            DataError, match=rf"{name}: holds {len(pictures)} pictures \(384 x 256, .*; expected one and smaller"
        ):
            open_slide(write(name, *pictures))
    with pytest.raises(DataError, match=r"its picture of 192 x 128 pixels shows something else than that of 384 x 256"):
        open_slide(write("half.tif", image, other))
    with open_slide(write("copy.tif", image, image[::2, ::2])) as slide:
        assert slide.levels == [(256, 384), (128, 192)]


def test_a_tissue_mask_of_several_pages_is_refused(tmp_path: Path) -> None:
    mask = np.ones((64, 64), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a_tissue.tif") as writer:
        for page in (np.zeros_like(mask), mask):
            writer.write(page, photometric="minisblack", metadata=None)
    with open_slide(save(tmp_path / "a.tif", generate(64, 64))) as slide, pytest.raises(DataError, match="holds 2 pages"):
        tissue_from_file(tmp_path / "a_tissue.tif", slide, (64, 64))
