from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import split_config
from PIL import Image
from tiger_tools import (
    BOTH,
    EMPTY,
    MASKED,
    NEITHER,
    SIZE,
    TCGA,
    box,
    dataset_of,
    image,
    put_coco,
    put_image,
    put_mask,
    read,
    refusal,
    stripes,
)

from mtl.cli.data import run
from mtl.config.compose import compose
from mtl.config.data_schema import DataConfig
from mtl.config.load import build_family, check_data
from mtl.core.errors import ConfigError, DataError
from mtl.core.types import REGION
from mtl.data.families.tiger.family import Tiger
from mtl.data.families.tiger.files import parse_name, read_tissue
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.splits import hash_records, make_split
from mtl.imaging.preprocessing import Preprocessing

# -- what is labelled --------------------------------------------------------------------------------------------------


def test_every_case_of_labels(folder: Path) -> None:
    family, records = read(folder)
    assert list(records) == [f"bcss/{TCGA}", *(f"cells/{name}" for name in (BOTH, EMPTY, NEITHER, MASKED))]
    tissue, both, empty, neither, masked = records.values()
    assert [record.labels for record in records.values()] == [
        ("mask:tissue",), ("objects", "mask:tissue"), ("objects",), (), ("mask:tissue",),
    ]  # fmt: skip
    assert [record.stratum for record in records.values()] == [2, 3, 1, 0, 2]
    assert tissue.class_counts == {"tumor": 1, "stroma": 0, "other": 1}
    assert both.class_counts == {"lymphocyte": 2, "tumor": 1, "stroma": 1, "other": 1}
    assert empty.class_counts == {"lymphocyte": 0} and neither.class_counts == {}
    samples = {name: family.read_labels(record) for name, record in records.items()}
    assert [samples[name].objects is None for name in records] == [True, False, False, True, True]
    empty_objects = samples[f"cells/{EMPTY}"].objects
    assert empty_objects is not None and empty_objects.points.shape == (0, 2) and empty_objects.boxes.shape == (0, 4)
    np.testing.assert_array_equal(np.unique(samples[f"cells/{BOTH}"].masks["tissue"]), [0, 1, 2, 255])
    np.testing.assert_array_equal(samples[f"cells/{BOTH}"].masks["tissue"], stripes((255, 0, 1, 1, 2)))
    # Where nobody annotated, nobody looked for cells; without a mask they were looked for everywhere.
    np.testing.assert_array_equal(samples[f"cells/{BOTH}"].masks[REGION], stripes((0, 1, 1, 1, 1)))
    assert all(REGION not in samples[name].masks for name in records if name != both.sample_id)
    assert family.read_image(masked).shape == (*SIZE, 3)


def test_specs_and_absence_in_batches(folder: Path) -> None:
    family, _ = read(folder)
    specs = family.specs()
    assert specs["tissue"].classes == ("tumor", "stroma", "other") and not specs["tissue"].multilabel
    assert specs["cells"].kind == "points" and specs["cells"].classes == ("lymphocyte",)
    dataset = dataset_of(family)
    present = [dataset[index]["present"] for index in range(5)]
    assert [row["tissue"] for row in present] == [True, True, False, False, True]
    assert [row["cells"] for row in present] == [False, True, True, False, False]
    target = dataset[1]["targets"]["tissue"]
    assert (target[:, 60:] == 255).all() and (target[40:] == 255).all() and (target[:40, 12:24] == 0).all()
    assert len(dataset[2]["targets"]["cells"]["points"]) == 0
    assert list(Tiger(root=str(folder), sets=["bcss"]).specs()) == ["tissue"]


def test_truth_knows_where_cells_were_looked_for(folder: Path) -> None:
    family, _ = read(folder)
    dataset = dataset_of(family)
    both, empty = dataset.truth(f"cells/{BOTH}").tasks, dataset.truth(f"cells/{EMPTY}").tasks
    np.testing.assert_array_equal(both["cells"]["region"], stripes((0, 1, 1, 1, 1)) > 0)
    assert empty["cells"]["region"].all() and empty["cells"]["region"].shape == SIZE and "tissue" not in empty
    # The area needs the mask also where only the cells are scored.
    alone = dataset_of(family, tasks=["cells"]).truth(f"cells/{BOTH}").tasks
    np.testing.assert_array_equal(alone["cells"]["region"], both["cells"]["region"])
    assert dataset.truth(f"cells/{NEITHER}").tasks == {}


def test_images_without_labels_are_split_but_neither_trained_on_nor_scored(regions: Path) -> None:
    data, problems = check_data(compose("data_tool", ["data=tiger", f"data.root={regions}", "data.sets=[cells]"])[0]["data"])
    assert not problems
    section = DataConfig.model_validate(data)
    family = build_family(section)
    preprocessing = Preprocessing.from_config(data["geometry"], data["preprocessing"])
    module = MultiTaskDataModule(family, family.specs(), preprocessing, section, ["cells"], records=family.records())
    used = {record.sample_id for some in module.records_by_split.values() for record in some}
    assert len(module.split) == 13 and len(used) == 11
    assert used == {record.sample_id for record in module.records if record.knows("objects")}


# -- masks -------------------------------------------------------------------------------------------------------------


def packed(values: np.ndarray) -> Image.Image:
    """Return a grey mask as an optimiser stores it: indices into a short palette of grey values."""
    found, indices = np.unique(values, return_inverse=True)
    picture = Image.fromarray(indices.reshape(values.shape).astype(np.uint8), "P")
    picture.putpalette(np.repeat(found, 3).astype(np.uint8).tobytes())
    return picture


def painted(values: np.ndarray) -> Image.Image:
    """Return a mask whose palette shows each value in a colour of its own."""
    picture = Image.fromarray(values, "P")
    picture.putpalette(bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 1, 1, 1, 7, 7, 7, 200, 100, 0]))
    return picture


def deep(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


def coloured(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(values[..., None], 3, axis=2))


def with_alpha(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([values, values, values, np.full_like(values, 255)]))


@pytest.mark.parametrize("form", [packed, painted, deep, coloured, with_alpha])
def test_forms_of_masks(folder: Path, form: Any) -> None:
    values = stripes((0, 1, 2, 6, 7))
    path = folder / "tissue-cells" / "masks" / f"{BOTH}.png"
    form(values).save(path)
    np.testing.assert_array_equal(read_tissue(path), values)
    family, records = read(folder)
    masks = family.read_labels(records[f"cells/{BOTH}"]).masks
    np.testing.assert_array_equal(masks["tissue"], stripes((255, 0, 1, 1, 2)))


def test_wrong_masks(folder: Path) -> None:
    family, records = read(folder)
    path = folder / "tissue-cells" / "masks" / f"{BOTH}.png"
    put_mask(path, values=(1, 2, 9))
    assert f"{path}: has the value 9 at (40, 0); expected whole numbers from 0 to 7" in refusal(folder)
    with pytest.raises(DataError, match="has the value 9"):  # replaced after the index was made
        family.read_labels(records[f"cells/{BOTH}"])
    Image.fromarray(np.where(stripes((1, 2)) == 2, 258, 1).astype(np.uint16)).save(path)  # its low byte is 2
    assert "has the value 258" in refusal(folder)
    Image.fromarray(np.dstack([stripes((1, 2)), stripes((1, 1)), stripes((1, 2))])).save(path)
    assert "holds colours (mode RGB)" in refusal(folder)
    put_mask(path, size=(30, 60))
    assert f"is 60 x 30 pixels; expected the size of {BOTH}.png, 60 x 40" in refusal(folder)
    with pytest.raises(DataError, match="is 60 x 30 pixels"):
        family.read_labels(records[f"cells/{BOTH}"])
    path.write_bytes(b"no mask")
    assert f"{path}: cannot be decoded" in refusal(folder)
    assert len(Tiger(root=str(folder)).check().errors) == 1
    put_mask(path)
    put_mask(path.with_suffix(".tif"))
    assert "has the same name as" in refusal(folder)


def test_the_class_map(folder: Path) -> None:
    two = {"tumor": [1], "stroma": None, "other": [0, 2, 3, 4, 5, 6, 7]}
    family, records = read(folder, tissue=two)
    assert family.specs()["tissue"].classes == ("tumor", "other")
    sample = family.read_labels(records[f"cells/{BOTH}"])
    np.testing.assert_array_equal(sample.masks["tissue"], stripes((1, 0, 1, 1, 1)))
    # What nobody annotated may count as a class of tissue; cells were not looked for there all the same.
    np.testing.assert_array_equal(sample.masks[REGION], stripes((0, 1, 1, 1, 1)))
    assert records[f"cells/{MASKED}"].class_counts == {"tumor": 0, "other": 1}


def test_two_classes_keep_their_shares_when_a_mask_shrinks(folder: Path) -> None:
    """Class 1 must not win wherever it covers a quarter of a pixel, as lesions do."""
    path = folder / "tissue-cells" / "masks" / f"{MASKED}.png"
    fine = (np.arange(SIZE[1]) % 4 == 1).astype(np.uint8)[None].repeat(SIZE[0], 0)  # one column in four is tumour
    Image.fromarray(2 - fine).save(path)
    family, _ = read(folder, tissue={"other": [2], "tumor": [1]}, spacing=0.25)
    dataset = dataset_of(family)
    mask = dataset.truth(f"cells/{MASKED}").tasks["tissue"]["mask"]
    assert mask.shape == (20, 30) and mask.mean() in (0.0, 0.5)  # the nearest pixel: every second column, or none


# -- names, spacing, split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "slide", "corners"),
    [
        (TCGA, "TCGA-A1-A0SK-01Z-00-DX1.A44D70FA", (100, 200, 160, 240)),
        ("100B_[35129,6567,36429,7757]", "100B", (35129, 6567, 36429, 7757)),
        ("114S [1, 2, 3, 4]", "114S", (1, 2, 3, 4)),
        ("OCDC-1009009_r35c8_[352, 32, 608, 288]", "OCDC-1009009_r35c8", (352, 32, 608, 288)),
        ("plain name", "plain name", None),
        ("odd_[1, 2, 3]", "odd_[1, 2, 3]", None),
    ],
)
def test_names(stem: str, slide: str, corners: tuple[int, ...] | None) -> None:
    assert parse_name(stem) == (slide, corners)


def test_slides_patients_and_sources(folder: Path) -> None:
    second = TCGA.replace("DX1.A44D70FA", "DX2.0000").replace("[100", "[110")
    put_image(folder / "tissue-cells" / "images" / f"{second}.png")
    put_image(folder / "tissue-cells" / "images" / f"{TCGA.replace('[100, 200', '[120, 210')}.png")
    put_image(folder / "tissue-cells" / "images" / "biopsy.png")
    _, records = read(folder)
    by_slide = {name: record.group for name, record in records.items()}
    # Regions of both sets that may overlap lie on one slide.
    assert (
        by_slide[f"bcss/{TCGA}"] == by_slide[f"cells/{TCGA.replace('[100, 200', '[120, 210')}"] != by_slide[f"cells/{second}"]
    )
    assert records["cells/biopsy"].groups == {"slide": "biopsy"}  # nobody says of whom it is
    _, by_patient = read(folder, group_by="patient")
    assert by_patient[f"bcss/{TCGA}"].group == by_patient[f"cells/{second}"].group == "TCGA-A1-A0SK"
    sources = {name: record.source for name, record in records.items()}
    assert [sources[f"cells/{name}"] for name in (BOTH, NEITHER, second, "biopsy")] == ["rumc", "jb", "tcga", "cells"]
    family, others = read(folder, sources={"tcga": None, "mine": "bio*"})
    assert [others[name].source for name in (f"bcss/{TCGA}", "cells/biopsy", f"cells/{BOTH}")] == ["bcss", "mine", "cells"]
    assert family.sources == ("mine", "bcss", "cells")
    notes = " ".join(Tiger(root=str(folder)).check().notes)
    assert "No [x1, y1, x2, y2] in the name" in notes and "biopsy" in notes
    assert "The size is not that of the corners in the name" in notes


def test_spacing_decides_where_points_land(folder: Path, tmp_path: Path) -> None:
    """A region stored with twice as many pixels per micron gives the same points, boxes and tissue to the network."""
    cells = tmp_path / "fine" / "tissue-cells"
    (cells / "images").mkdir(parents=True)
    (cells / "masks").mkdir()
    for name, resample in (("images", Image.Resampling.BICUBIC), ("masks", Image.Resampling.NEAREST)):
        stored = Image.open(folder / "tissue-cells" / name / f"{BOTH}.png")
        stored.resize((2 * SIZE[1], 2 * SIZE[0]), resample).save(cells / name / f"{BOTH}.png")
    fine_boxes = [box(1, 1, 40, 20, 32, 32), box(2, 1, 100, 60, 32, 32)]
    put_coco(cells.parent, [{"id": 1, "file_name": f"{BOTH}.png"}], fine_boxes)
    fine = dataset_of(read(cells.parent, spacing_of={"10*": 0.25, "100B": 1.0})[0])
    coarse = dataset_of(read(folder)[0])
    name = f"cells/{BOTH}"
    assert fine.records[0].pixel_scale == 4.0 and Tiger(spacing=0.25).pixel_scale_of(SIZE) == 4.0
    a, b = (dataset[number] for dataset, number in ((fine, 0), (coarse, 1)))
    for key in ("points", "boxes", "labels"):
        np.testing.assert_allclose(a["targets"]["cells"][key], b["targets"]["cells"][key], atol=1e-4)
    np.testing.assert_array_equal(a["targets"]["tissue"], b["targets"]["tissue"])
    assert np.abs(a["image"] - b["image"]).mean() < 0.2 * np.abs(b["image"] - b["image"].mean()).mean()
    assert a["meta"].window.working_pixels_per_reference == b["meta"].window.working_pixels_per_reference == (2.0, 2.0)
    np.testing.assert_array_equal(fine.truth(name).tasks["cells"]["region"], coarse.truth(name).tasks["cells"]["region"])


def test_the_spacing_of_a_slide_is_that_of_its_files() -> None:
    family = Tiger(spacing_of={"10*": 0.25, "100B": 1.0})
    assert family.pixel_scale_of(SIZE, BOTH) == family.pixel_scale_of(SIZE, "100B") == 4.0
    assert family.pixel_scale_of(SIZE, TCGA) == family.pixel_scale_of(SIZE) == 2.0


def test_slides_stay_together_in_folds(regions: Path) -> None:
    for group_by in ("slide", "patient"):
        records = hash_records(Tiger(root=str(regions), group_by=group_by).records())
        tested = []
        for fold in range(3):
            split = make_split(records, split_config(scheme="kfold", folds=3, fold=fold))
            for record in records:
                assert split[record.sample_id] == split[next(r.sample_id for r in records if r.group == record.group)]
            tested += [name for name, part in split.items() if part == "test"]
        assert sorted(tested) == [record.sample_id for record in records]


# -- places and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["tiger", "tiger/wsirois", "tiger/wsirois/roi-level-annotations"])
def test_the_root_may_be_any_level(folder: Path, level: str, tmp_path: Path) -> None:
    assert len(read(tmp_path / level)[1]) == 5


def test_one_set(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(read(folder / "tissue-bcss")[1]) == [f"bcss/{TCGA}"]
    assert len(read(folder / "tissue-cells")[1]) == 4 == len(read(folder, sets=["cells"])[1])
    (folder / "tissue-bcss").rename(folder / "elsewhere")
    assert len(read(folder)[1]) == 4
    assert "holds no `tissue-bcss/`" in refusal(folder, sets=["bcss"])
    monkeypatch.setenv("MTL_DATA_DIR", str(tmp_path))
    assert len(Tiger().records()) == 4
    assert f"Did you mean data.root={folder / 'tissue-cells'}" in refusal(folder / "tissue-cells" / "images")
    with pytest.raises(DataError, match="does not exist"):
        Tiger(root=str(tmp_path / "gone")).locate()
    (folder / "tissue-cells" / "images" / f"{BOTH.lower()}.png").write_bytes(b"")
    assert "has the same name as" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sets": ["cell"]}, "Did you mean `cells`?"),
        ({"sets": []}, "`data.sets` is empty"),
        ({"tissue": {"tumor": [1], "other": [8]}}, "`data.tissue.other` is [8]"),
        ({"tissue": {"tumor": [1], "other": []}}, "`data.tissue.other` is []"),
        ({"tissue": {"tumor": [1], "other": [1, 2]}}, "has 1 in several classes"),
        ({"tissue": {"tumor": [1], "other": None}}, "expected two classes or more"),
        ({"tissue": {"tumor": [1], "lymphocyte": [2]}}, "none called lymphocyte"),
        ({"tissue": {"tumor": 1, "other": [2]}}, "`data.tissue.tumor` is 1; expected a list"),
        ({"tissue": {"tumor": "abc", "other": [2]}}, "`data.tissue.tumor` is abc; expected a list"),
        ({"sources": {"tcga": ["a"]}}, "`data.sources.tcga` is ['a']; expected a pattern"),
        ({"sources": {"tcga": True}}, "`data.sources.tcga` is True"),
        ({"spacing": True}, "`data.spacing` is True; expected microns per pixel"),
        ({"spacing_of": {"100*": True}}, "`data.spacing_of.100*` is True"),
        ({"spacing": 0.0}, "`data.spacing` is 0.0"),
        ({"spacing_of": {"100*": -1}}, "`data.spacing_of.100*` is -1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Tiger(**settings)
    assert says in str(error.value) and len(error.value.problems) == 1


def test_true_is_no_number() -> None:
    _, problems = check_data(compose("data_tool", ["data=tiger", "data.spacing=true"])[0]["data"])
    assert problems == ["`data.spacing` is `True`. Input should be a number."]


def test_check_stats_and_show(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "tiger", f"data.root={folder}"]) == 0
    text = capsys.readouterr().out
    for line in ("images: 5", "images with cell labels: 2", "of these without a cell: 1", "boxes: 2", "masks with stroma: 2"):
        assert line in text
    assert "Neither mask nor cell labels: cells/114S_[5, 5, 65, 45]" in text and "1 of 5 images have both" in text
    for tool, files in (("stats", 5), ("show", 5)):
        assert run([tool, "tiger", f"data.root={folder}", f"output={tmp_path / tool}"]) == 0
        assert len(list((tmp_path / tool).iterdir())) == files
    put_coco(folder, [image(7, EMPTY)], [])
    assert any("No image has both" in note for note in Tiger(root=str(folder)).check().notes)


def test_only_headers_of_images_are_read_before_they_are_needed(folder: Path) -> None:
    path = folder / "tissue-cells" / "images" / f"{NEITHER}.png"
    path.write_bytes(path.read_bytes()[:400])
    family, records = read(folder)
    assert records[f"cells/{NEITHER}"].size == SIZE
    assert [f"{path}: cannot be decoded" in error for error in family.check().errors] == [True]


def test_patterns_can_be_given_on_the_command_line(folder: Path) -> None:
    words = ["data=tiger", f"data.root={folder}", "data.spacing_of={100*:0.25}", "data.sources={jb:null}"]
    data, problems = check_data(compose("data_tool", words)[0]["data"])
    assert not problems and data["spacing_of"] == {"100*": 0.25} and data["sources"]["tcga"] == "TCGA-*"
    assert data["sources"]["jb"] is None


# -- real regions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(real_data: Path) -> Tiger:
    if not (real_data / "tiger").is_dir():
        pytest.skip("MTL_DATA_DIR holds no `tiger`: no real regions here")
    return Tiger(root=str(real_data / "tiger"))


def test_real_regions_are_counted_as_their_files_say(real: Tiger) -> None:
    folder = real.locate() / "wsirois" / "roi-level-annotations" / "tissue-cells"
    content = json.loads((folder / "tiger-coco.json").read_text())
    report = real.check()
    assert report.errors == []
    with_boxes = {entry["image_id"] for entry in content["annotations"]}
    expected = {
        "images": len(list((folder / "images").iterdir())),
        "images with cell labels": len(content["images"]),
        "of these without a cell": len(content["images"]) - len(with_boxes),
        "boxes": len(content["annotations"]),
        "images with a tissue mask": len(list((folder / "masks").iterdir())),
    }
    assert list(expected.values()) == [71, 46, 6, 2034, 16]
    assert report.counts["images with neither"] == 9 and expected.items() <= report.counts.items()
    assert any("No image has both" in note for note in report.notes)
    assert any("The class stroma does not occur" in note for note in report.notes)
    sources = [record.source for record in real.records()]
    assert {name: sources.count(name) for name in set(sources)} == {"consep": 46, "ocdc": 16, "tcga": 8, "rumc": 1}


def test_real_boxes_lie_on_dark_nuclei(real: Tiger) -> None:
    """Moved boxes must fit worse, else they are not where the cells are."""
    here, there = [], []
    for record in [record for record in real.records() if record.class_counts.get("lymphocyte", 0) > 20][:8]:
        grey, objects = real.read_image(record).mean(axis=2), real.read_labels(record).objects
        assert objects is not None
        columns, rows = np.floor(objects.points).astype(int).T
        here.append(grey[rows, columns].mean() - grey.mean())
        there.append(grey[(rows + 8) % grey.shape[0], (columns + 8) % grey.shape[1]].mean() - grey.mean())
    assert np.mean(here) < -40 and np.mean(here) < np.mean(there) - 30
