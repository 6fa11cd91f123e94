from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl.cli.data import run
from mtl.core.errors import ConfigError, DataError
from mtl.data.families.tiger.family import Tiger
from mtl.data.families.tiger.generator import generate_tiger
from mtl.data.families.tiger.painter import (
    INFLAMED,
    NECROSIS,
    NOTHING,
    REST,
    STROMA,
    TUMOR,
    Specimen,
    generate_region,
    generate_stain,
    without_lymphocytes,
)
from mtl.data.families.writing import MARK
from mtl.data.formats.images import read_rgb

SIDE = 384


def specimen(seed: int = 5) -> Specimen:
    return Specimen(seed, generate_stain(np.random.default_rng(1), 0))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# -- tissue ------------------------------------------------------------------------------------------------------------


def test_any_part_fits_the_whole() -> None:
    """Tissue and cells are functions of the place, so that a slide can be drawn tile by tile."""
    whole, mask, boxes = generate_region(specimen(), (3000, 5000), (SIDE, SIDE))
    part, part_mask, part_boxes = generate_region(specimen(), (3100, 5060), (200, 150))
    np.testing.assert_array_equal(part_mask, mask[60:260, 100:250])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    mine = ((middle >= [100, 60]) & (middle < [250, 260])).all(axis=1)
    np.testing.assert_allclose(sorted(map(tuple, part_boxes)), sorted(map(tuple, boxes[mine] - [100, 60, 100, 60])), atol=1e-9)
    # Noise is that of the tile; everything else is the same, up to its edges.
    gap = np.abs(part.astype(int) - whole[60:260, 100:250])
    assert np.percentile(gap, 99) < 25 and gap[:4].mean() < 8 and np.median(gap) <= 5
    again = generate_region(specimen(), (3000, 5000), (SIDE, SIDE))[0]
    np.testing.assert_array_equal(again, whole)
    assert (generate_region(specimen(6), (3000, 5000), (SIDE, SIDE))[1] != mask).any()


def test_another_spacing_shows_the_same_tissue() -> None:
    _, mask, boxes = generate_region(specimen(), (3000, 5000), (SIDE, SIDE), 0.5)
    image, fine, fine_boxes = generate_region(specimen(), (6000, 10000), (2 * SIDE, 2 * SIDE), 0.25)
    assert image.shape == (2 * SIDE, 2 * SIDE, 3) and (fine[::2, ::2] == mask).mean() > 0.98
    np.testing.assert_allclose(sorted(map(tuple, fine_boxes / 2)), sorted(map(tuple, boxes)), atol=1e-6)


def test_lymphocytes_are_dark_where_they_are_said_to_be() -> None:
    image, mask, boxes = generate_region(specimen(), (5000, 8000), (512, 512))
    red = image[..., 0].astype(float)
    columns, rows = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int).T
    assert len(boxes) > 40 and red[rows, columns].max() < 120
    elsewhere = red[(rows + 20) % 512, (columns + 20) % 512]
    assert np.median(elsewhere) > red[rows, columns].max() + 30
    assert 11 < np.median(boxes[:, 2:] - boxes[:, :2]) < 16  # 5.5 to 8 microns
    assert set(mask[rows, columns]) <= {TUMOR, STROMA, NECROSIS, INFLAMED}
    assert len(generate_region(without_lymphocytes(specimen()), (5000, 8000), (512, 512))[2]) == 0


def test_lymphocytes_touch_but_do_not_hide_each_other() -> None:
    _, _, boxes = generate_region(specimen(), (5000, 8000), (512, 512))
    middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 4, (boxes[:, 2:] - boxes[:, :2]).mean(axis=1) / 4  # microns
    distance = np.hypot(*(middle[:, None] - middle).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 5.0  # further apart than a hit radius
    assert (distance < radius[:, None] + radius + 0.5).any(axis=1).mean() > 0.15


def test_tissues_look_different() -> None:
    """Mean and deviation of the colours tell classes apart, so that a network can learn them."""
    image, mask, _ = generate_region(specimen(), (3000, 5000), (768, 768))
    colours = {value: image[mask == value].astype(float) for value in (TUMOR, STROMA, REST)}
    assert all(len(some) > 2000 for some in colours.values())
    means = {value: some.mean(axis=0) for value, some in colours.items()}
    assert np.abs(means[TUMOR] - means[STROMA]).max() > 15 and np.abs(means[REST] - means[STROMA]).max() > 25
    # Tumour is the bluest: nuclei and cytoplasm.
    assert means[TUMOR][2] - means[TUMOR][0] > means[STROMA][2] - means[STROMA][0] + 8


# -- regions -----------------------------------------------------------------------------------------------------------


def test_native_layout(regions: Path) -> None:
    family = Tiger(root=str(regions))
    report = family.check()
    assert report.errors == []
    assert {name: report.counts[name] for name in ("images", "images of bcss", "images of cells", "slides")} == {
        "images": 18, "images of bcss": 5, "images of cells": 13, "slides": 6,
    }  # fmt: skip
    assert report.counts["images with cell labels"] == 11 and report.counts["of these without a cell"] >= 3
    assert report.counts["images with a tissue mask"] == 18 and report.counts["images with neither"] == 0
    assert min(report.counts[f"masks with {name}"] for name in ("tumor", "stroma", "other")) > 0
    records = family.records()
    assert {record.source for record in records} == {"tcga", "rumc", "jb"}
    assert {record.source for record in records if record.sample_id.startswith("bcss/")} == {"tcga"}
    assert not any("corners" in note or "size" in note for note in report.notes)
    excluded = [
        record for record in records if record.knows("objects") and not family.read_labels(record).masks["region"].all()
    ]
    assert excluded
    for record in excluded:
        sample = family.read_labels(record)
        assert sample.objects is not None
        columns, rows = np.floor(sample.objects.points).astype(int).T
        assert sample.masks["region"][rows, columns].all()  # nobody looked in the strip


def test_boxes_are_tight_or_of_one_size(regions: Path) -> None:
    content = json.loads(next(regions.rglob("tiger-coco.json")).read_text())
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    sides = {"TCGA": set(), "other": set()}
    for entry in content["annotations"]:
        sides["TCGA" if "TCGA" in names[entry["image_id"]] else "other"].add(entry["bbox"][2])
    assert sides["other"] == {16} and len(sides["TCGA"]) > 3 and max(sides["TCGA"]) < 16


def test_regions_of_both_sets_overlap(regions: Path) -> None:
    """Such pixels are in two images, which only the slide keeps together."""
    family = Tiger(root=str(regions))
    family.records()
    index = family._scan()
    some = [region for region in index.regions.values() if region.corners is not None]

    def overlap(a: Any, b: Any) -> bool:
        return a.corners[0] < b.corners[2] and b.corners[0] < a.corners[2] and a.corners[1] < b.corners[3] > b.corners[1]

    pairs = [(a, b) for a in some for b in some if a.set_name != b.set_name and a.slide == b.slide and overlap(a, b)]
    assert pairs


def test_partial_labels(tmp_path: Path) -> None:
    generate_tiger(tmp_path / "out", patients=4, fields=3, seed=1, width=64, kind="partial")
    records = Tiger(root=str(tmp_path / "out")).records()
    known = [(record.sample_id.partition("/")[0], record.labels) for record in records]
    assert {("cells", ("objects",)), ("cells", ("mask:tissue",)), ("cells", ()), ("bcss", ("mask:tissue",))} == set(known)


def test_seeds(tmp_path: Path) -> None:
    for name, patients, seed in (("a", 2, 1), ("b", 2, 1), ("c", 2, 2), ("d", 3, 1)):
        generate_tiger(tmp_path / name, patients, 1, seed, width=64)
    images = {name: {key: value for key, value in files(tmp_path / name).items() if key.endswith(".png")} for name in "abcd"}
    assert images["a"] == images["b"] and set(images["a"].values()).isdisjoint(images["c"].values())
    assert images["a"].items() <= images["d"].items()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        generate_tiger(tmp_path / "out", 0, 0, -1, width=8)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="Did you mean `slide`"):
        generate_tiger(tmp_path / "out", 1, 1, 0, kind="slides")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="Nothing is replaced"):
        generate_tiger(tmp_path / "mine", 1, 1, 0, width=64, overwrite=True)


# -- slides ------------------------------------------------------------------------------------------------------------


def test_a_slide_and_its_truth(slide: Path) -> None:
    import tifffile

    folder = slide.parent.parent
    truth = json.loads((folder / "truth" / "105S.json").read_text())
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        assert page.is_tiled and page.shape == (700, 900, 3) and (page.tilelength, page.tilewidth) == (256, 256)
        levels = [level.shape[:2] for level in file.series[0].levels]
        assert levels == [(700, 900), (175, 225)]
        assert page.tags["XResolution"].value == (20000, 1) and page.tags["ResolutionUnit"].value == 3  # per centimetre
        image, small = file.asarray(), file.series[0].levels[1].asarray()
    np.testing.assert_allclose(small.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=3)
    tissue = tifffile.imread(folder / "tissue-masks" / "105S_tissue.tif")
    classes = tifffile.imread(folder / "truth" / "105S_classes.tif")
    np.testing.assert_array_equal(tissue, (classes != NOTHING).astype(np.uint8))
    assert tissue.shape == (700, 900) and 0.2 < tissue.mean() < 0.9
    assert image[classes == NOTHING].mean() > 235 and image[classes == STROMA].mean() < 215
    points = np.asarray(truth["points"]) / truth["spacing"]
    columns, rows = np.floor(points).astype(int).T
    assert len(points) > 30 and tissue[rows, columns].all()
    assert image[rows, columns, 0].max() < 140  # dark, also after JPEG
    area = {int(value): share for value, share in truth["area_mm2"].items()}
    assert area[STROMA] == pytest.approx((classes == STROMA).sum() * 0.25e-6)


def test_tiles_do_not_show(slide: Path, tmp_path: Path) -> None:
    """Other tiles, the same slide: only noise and compression differ."""
    import tifffile

    from mtl.data.families.tiger.slide_generator import generate_slide

    other = generate_slide(tmp_path / "images" / "105S.tif", (700, 900), seed=3, tile=512, pyramid=False)
    truths = [json.loads((path.parent.parent / "truth" / "105S.json").read_text()) for path in (slide, other)]
    assert sorted(truths[0].pop("points")) == sorted(truths[1].pop("points")) and truths[0] == truths[1]
    a, b = (tifffile.imread(path).astype(int) for path in (slide, other))
    assert np.abs(a - b).mean() < 7
    across = np.abs(np.diff(a, axis=1)).mean(axis=(0, 2))
    assert across[[255, 511, 767]].max() < 1.6 * np.median(across[15::16])  # JPEG has blocks of 16
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "105S.json", "105S.tif", "105S_classes.tif", "105S_tissue.tif",
    ]  # fmt: skip


def test_slides_on_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="slides need the extra `slides`")
    out = tmp_path / "slides"
    words = ["synth", "tiger", f"output={out}", "kind=slide", "patients=2", "fields=2", "width=256", "seed=4"]
    assert run(words) == 0
    assert sorted(path.name for path in out.iterdir()) == [MARK, "images", "tissue-masks", "truth"]
    images = sorted(path.stem for path in (out / "images").iterdir())
    assert images[0] == "101B" and images[1].startswith("TCGA-A0-A000")
    assert sorted(path.name for path in (out / "tissue-masks").iterdir()) == [f"{name}_tissue.tif" for name in images]
    assert run([*words, "overwrite=true"]) == 0
    assert read_rgb(out / "images" / "101B.tif").shape == (256, 256, 3)


def test_pieces_of_tissue(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="slides need the extra `slides`")
    from mtl.data.families.tiger.slide_generator import generate_slide

    counts = []
    for pieces in (1, 4):
        generate_slide(tmp_path / "images" / f"{pieces}.tif", 192, 1, pieces=pieces, spacing=4.0)
        mask = tifffile.imread(tmp_path / "tissue-masks" / f"{pieces}_tissue.tif")
        counts.append(int(np.count_nonzero(np.diff(mask[48].astype(int)) == 1)))
    assert counts == [1, 2]
    with pytest.raises(ConfigError, match="a spacing above 0"):
        generate_slide(tmp_path / "images" / "x.tif", 192, 1, spacing=0)
