"""Whole slides from the command line: a network of the suite, from files to files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import mtl
from mtl.cli.main import guarded

FILES = ["detected-lymphocytes.json", "overview.png", "til-score.json", "tissue.tif"]


@pytest.fixture
def folder(slide: Path, tmp_path: Path) -> Path:
    """A corner of the slide as `a.tif`, with its mask beside it, a broken slide and a region."""
    pixels = corner(slide)
    (tmp_path / "in").mkdir()
    mask = np.ones((100, 130), np.uint8)
    for name, image in (("a.tif", pixels), ("a_tissue.tif", mask), ("b_tissue.tif", mask)):
        save(tmp_path / "in" / name, image)
    (tmp_path / "in" / "b.svs").write_bytes((tmp_path / "in" / "a.tif").read_bytes()[:5000])
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "in" / "region.png")
    return tmp_path


def corner(slide: Path) -> np.ndarray:
    with tifffile.TiffFile(slide) as tiff:
        return np.ascontiguousarray(tiff.pages[0].asarray()[250:450, 300:560])


def save(path: Path, image: np.ndarray, unit: str = "CENTIMETER") -> None:
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    options = {"resolution": (20_000, 20_000), "resolutionunit": unit, "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, image, tile=(64, 64), photometric=photometric, **options)


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_slides_and_regions_from_the_command_line(
    slide_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={slide_checkpoint}", f"source={folder}/in", f"output={folder}/out", f"slide.tissue_masks={folder}/in"]
    assert guarded("predict", words) == 1  # one slide is broken
    said = capsys.readouterr()
    assert said.err.count("error: ") == 1 and "b.svs: cannot be read as a slide" in said.err and "Traceback" not in said.err
    assert "1 image and 1 slide predicted, 1 skipped" in said.out
    out = folder / "out"
    assert sorted(path.name for path in (out / "a").iterdir()) == FILES and not list((out / "b").glob("*"))
    # The region is the same picture: as an image and as a slide it gets the same mask and the same cells.
    region, summary = content(out / "region.json"), content(out / "a" / "til-score.json")
    mask = tifffile.imread(out / "a" / "tissue.tif")
    np.testing.assert_array_equal(mask - 1, mtl.load(slide_checkpoint, "cpu").predict(read(folder)).mask("tissue"))
    assert set(np.unique(mask)) == {1, 2, 3}
    assert summary["counts"] == region["counts"] and region["counts"]["lymphocyte"] > 0
    points = content(out / "a" / "detected-lymphocytes.json")["points"]
    found = region["tasks"]["cells"]["points"]
    assert [p["point"][0] for p in points[: len(found)]] == pytest.approx([p["point"][0] * 0.5e-3 for p in found], abs=1e-5)
    assert len(points) > len(found)
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert float(rows["a.tif"]["til_score"]) == pytest.approx(summary["til_score"])
    assert rows["a.tif"]["n_lymphocyte"] == rows["region.png"]["n_lymphocyte"] == str(region["counts"]["lymphocyte"])
    assert float(rows["region.png"]["tissue_stroma_area_ratio"]) == pytest.approx((mask == 2).mean(), abs=1e-5)

    # Again: what is finished stays, and what is new is done.
    before = (out / "a" / "til-score.json").stat().st_mtime_ns
    save(folder / "in" / "c.tif", read(folder)[:100, :100])
    save(folder / "in" / "c_tissue.tif", np.ones((50, 50), np.uint8))
    (out / ".predictions.csv.999999999.partial").write_text("killed")
    assert guarded("predict", words) == 1
    said = capsys.readouterr().out
    assert "a.tif: finished before" in said and "1 image and 1 slide predicted, 1 finished before, 1 skipped" in said
    assert not list(out.glob(".predictions.csv.*"))
    assert (out / "a" / "til-score.json").stat().st_mtime_ns == before and (out / "c" / "til-score.json").is_file()


def read(folder: Path) -> np.ndarray:
    return np.asarray(tifffile.imread(folder / "in" / "a.tif"))


def test_what_must_be_given_is_said(
    slide_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "in" / "d.tif", read(folder), unit="NONE")
    words = [f"checkpoint={slide_checkpoint}", f"source={folder}/in/d.tif", f"output={folder}/out"]
    assert guarded("predict", words) == 1 and "Set slide.spacing=<microns per pixel>" in capsys.readouterr().err
    assert guarded("predict", [*words, "slide.spacing=0.5", "overlays=false", "masks=false"]) == 0
    assert sorted(path.name for path in (folder / "out" / "d").iterdir()) == [FILES[0], FILES[2]]
    assert guarded("predict", [*words, "slide.spacings=1"]) == 2 and "Did you mean `spacing`?" in capsys.readouterr().err
    words[1] = f"source={folder}/in/a_tissue.tif"
    assert guarded("predict", words) == 3 and "is a tissue mask" in capsys.readouterr().err
    words[1] = f"source={folder}/in/a.tif"
    assert guarded("predict", [*words, f"slide.tissue_masks={folder}/nowhere"]) == 3
    assert capsys.readouterr().err.count("nowhere` is no folder") == 1
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    words[1] = f"source={folder}/in/a.tif"
    assert guarded("predict", words) == 2 and "pip install 'mtl-medical[slides]'" in capsys.readouterr().err


def test_other_networks_take_a_tiled_tiff_for_an_image(
    tiles_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={tiles_run}", f"source={folder}/in/a.tif", f"output={folder}/out"]
    assert guarded("predict", words) == 0 and (folder / "out" / "a_overlay.png").is_file()
    words[1] = f"source={folder}/in/b.svs"
    assert guarded("predict", words) == 2 and "fixed number of pixels per micron" in capsys.readouterr().err
