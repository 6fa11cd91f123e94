from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import split_config
from PIL import Image

from mtl.core.errors import ConfigError, DataError
from mtl.core.types import Record
from mtl.data.families.idrid.family import Idrid
from mtl.data.families.idrid.files import read_table
from mtl.data.formats.images import read_mask
from mtl.data.pipeline.dataset import SampleDataset
from mtl.data.pipeline.splits import hash_records, make_split
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing

SIZE = (48, 72)
MASKS = "A. Segmentation/2. All Segmentation Groundtruths"
TRAINING = "B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
DISC = "C. Localization/2. Groundtruths/1. Optic Disc Center Location/IDRiD_OD_Center_Training Set_Markups.csv"
FOVEA = "C. Localization/2. Groundtruths/2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv"
HEADER = "Image name,Retinopathy grade,Risk of macular edema ,,,,"
POLICY = {"MA": "negative", "HE": "negative", "EX": "negative", "SE": "negative", "OD": "absent"}


def put_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1]).save(path, quality=95)


def square(side: int = 6, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[10 : 10 + side, 20 : 20 + side] = 1
    return mask


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def put_mask(root: Path, name: str, mask: np.ndarray | Image.Image, part: str = "a. Training Set") -> Path:
    folder = {"MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates"}
    path = root / MASKS / part / folder.get(name[-2:], "5. Optic Disc") / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    (mask if isinstance(mask, Image.Image) else palette(mask)).save(path)
    return path


def put_table(root: Path, name: str, *lines: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two segmented, three graded, two localised images; numbers start again in every set and part."""
    root = tmp_path / "IDRiD"
    for seed, name in enumerate(("a. Training Set/IDRiD_01", "b. Testing Set/IDRiD_55")):
        put_image(root / "A. Segmentation/1. Original Images" / f"{name}.jpg", seed)
        for code in ("MA", "HE", "EX", "SE", "OD"):
            path = put_mask(root, f"{name[-8:]}_{code}", square(1 if code == "MA" else 6), name.split("/")[0])
            if (seed, code) == (0, "SE"):
                path.unlink()  # the folder stays: no training image has any
    for seed, name in enumerate(("a. Training Set/IDRiD_001", "a. Training Set/IDRiD_002", "b. Testing Set/IDRiD_001"), 10):
        put_image(root / "B. Disease Grading/1. Original Images" / f"{name}.jpg", seed)
    put_table(root, TRAINING, HEADER, "IDRiD_001,3,2,,,,", ",,,,,,", "IDRiD_002 ,0,0,,,,", "")
    put_table(root, TRAINING.replace("a. ", "b. ").replace("Train", "Test"), HEADER[:-4], "IDRiD_001,1,0")
    for seed, part in enumerate(("a. Training Set", "b. Testing Set"), 20):
        put_image(root / "C. Localization/1. Original Images" / part / "IDRiD_001.jpg", seed)
    for name, row in ((DISC, "IDRiD_001,50,20.5"), (FOVEA, "IDRiD_001,30,24")):
        for word in ("Training", "Testing"):
            put_table(
                root, name.replace("Training", word), "Image No,X- Coordinate,Y - Coordinate,,,", f"{row},,,", ",,,,,", ",,,,,"
            )
    return root


def read(folder: Path, **settings: Any) -> tuple[Idrid, dict[str, Record]]:
    family = Idrid(root=str(folder), **settings)
    return family, {record.sample_id: record for record in family.records()}


# -- what is there -----------------------------------------------------------------------------------------------------


def test_ids_labels_and_parts(folder: Path) -> None:
    family, records = read(folder)
    assert list(records) == [
        "A/test/IDRiD_55", "A/train/IDRiD_01", "B/test/IDRiD_001", "B/train/IDRiD_001", "B/train/IDRiD_002",
        "C/test/IDRiD_001", "C/train/IDRiD_001",
    ]  # fmt: skip
    assert all(record.official_split == name.split("/")[1] for name, record in records.items())
    assert [record.source[6:] for record in records.values()] == ["segmentation"] * 2 + ["grading"] * 3 + ["localization"] * 2
    one, segmented, marked = (records[name] for name in ("B/train/IDRiD_001", "A/train/IDRiD_01", "C/train/IDRiD_001"))
    assert one.labels == ("class:grade", "class:edema") and one.size == SIZE and one.pixel_scale == 72 / 4288
    # The trailing space in the header is no part of the column's name, and the same number is another image in the test part.
    assert family.read_labels(one).labels == {"grade": 3.0, "edema": 2.0}
    assert family.read_labels(records["B/test/IDRiD_001"]).labels == {"grade": 1.0, "edema": 0.0}
    assert [records[name].stratum for name in ("B/train/IDRiD_001", "B/train/IDRiD_002", "A/train/IDRiD_01")] == [3, 0, 5]
    assert one.class_counts["severe_npdr"] == one.class_counts["severe_dme"] == 1 and sum(one.class_counts.values()) == 2
    names = ("lesions_ma", "lesions_he", "lesions_ex", "lesions_se", "optic_disc", "lesions")
    assert segmented.labels == (*(f"mask:{name}" for name in names), "class:findings")
    assert segmented.class_counts == {
        "microaneurysms": 1, "haemorrhages": 1, "hard_exudates": 1, "soft_exudates": 0, "optic_disc": 1,
    }  # fmt: skip
    assert marked.labels == ("objects",) and marked.class_counts == {"optic_disc_centre": 1, "fovea": 1}
    for record in records.values():
        sample = family.read_labels(record)
        known = {f"mask:{name}" for name in sample.masks} | {f"class:{name}" for name in sample.labels}
        assert known | ({"objects"} if sample.objects is not None else set()) == set(record.labels or ())
        assert family.read_image(record).shape == (*SIZE, 3)


def test_tasks(folder: Path) -> None:
    specs = Idrid(root=str(folder)).specs()
    assert list(specs) == [
        "grade", "edema", "lesions_ma", "lesions_he", "lesions_ex", "lesions_se", "optic_disc", "lesions", "findings",
        "landmarks",
    ]  # fmt: skip
    assert specs["grade"].ordinal and len(specs["grade"].classes) == 5 and specs["edema"].classes[2] == "severe_dme"
    assert specs["lesions"].classes == tuple(specs[name].classes[0] for name in list(specs)[2:7])
    assert specs["landmarks"].kind == "heatmap" and specs["landmarks"].label == "objects"
    assert list(Idrid(sets=["grading"]).specs()) == ["grade", "edema"]


def test_findings_are_the_lesions_of_an_image_as_far_as_they_are_known(folder: Path) -> None:
    spec = Idrid(root=str(folder)).specs()["findings"]
    assert spec.kind == "multilabel_classification" and spec.whole_image
    assert spec.classes == ("microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates")
    family, records = read(folder)
    name = "A/train/IDRiD_01"
    np.testing.assert_array_equal(family.read_labels(records[name]).labels["findings"], [1, 1, 1, 0])
    assert "findings" not in family.read_labels(records["B/train/IDRiD_001"]).labels
    unsure = {"MA": "negative", "HE": "negative", "EX": "absent", "SE": "absent", "OD": "absent"}
    family, records = read(folder, missing_mask=unsure)
    np.testing.assert_array_equal(family.read_labels(records[name]).labels["findings"], [1, 1, 1, np.nan])
    assert records[name].knows("class:findings")
    # An empty mask says that there is nothing, and no mask at all that nothing is known.
    path = next(folder.rglob("IDRiD_01_MA.tif"))
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    assert read(folder)[0].read_labels(records[name]).labels["findings"][0] == 0  # type: ignore[index]
    for mask in folder.rglob("IDRiD_01_*.tif"):
        mask.unlink()
    family, records = read(folder, missing_mask=dict.fromkeys(unsure, "absent"))
    assert not records[name].knows("class:findings") and "findings" not in family.read_labels(records[name]).labels


def test_sets(folder: Path) -> None:
    assert {name[0] for name in read(folder, sets=["grading", "segmentation"])[1]} == {"A", "B"}
    shutil.rmtree(folder / "A. Segmentation")
    assert {name[0] for name in read(folder)[1]} == {"B", "C"}
    with pytest.raises(DataError, match=r"holds no `A\. Segmentation/`"):
        Idrid(root=str(folder), sets=["segmentation"]).locate()


def test_place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"Did you mean data.root={folder}"):
        Idrid(root=str(tmp_path)).records()
    with pytest.raises(DataError, match=f"Did you mean data.root={folder}"):
        Idrid(root=str(folder / "A. Segmentation")).records()
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "idrid")
    monkeypatch.setenv("MTL_DATA_DIR", str(tmp_path / "data"))
    assert len(Idrid().records()) == 7
    (tmp_path / "data" / "idrid").rename(tmp_path / "IDRiD")
    (tmp_path / "data" / "idrid").mkdir()
    (tmp_path / "IDRiD").rename(tmp_path / "data" / "idrid" / "IDRiD")
    assert len(Idrid().records()) == 7


def test_renamed_copies(folder: Path) -> None:
    """Copies of the data set rename folders, suffixes and columns a little."""
    (folder / "A. Segmentation").rename(folder / "segmentation")
    masks = folder / "segmentation" / "2. All Segmentation Groundtruths"
    masks.rename(masks.with_name("2. All segmentation ground truths"))
    path = next(folder.rglob("IDRiD_01_EX.tif"))
    path.rename(path.with_name("IDRiD_01_ex.TIFF"))
    (path.parent / "Thumbs.db").write_bytes(b"x")
    (path.parent / "._IDRiD_01_EX.tif").write_bytes(b"x")
    table = (folder / TRAINING).read_text().replace("edema ", "edema").replace("IDRiD_001", "IDRiD_001.jpg")
    (folder / TRAINING).with_name("train.csv").write_text("﻿" + table)
    (folder / TRAINING).unlink()
    family, records = read(folder)
    assert family.read_labels(records["A/train/IDRiD_01"]).masks["lesions_ex"].sum() == 36
    assert records["B/train/IDRiD_001"].stratum == 3


# -- masks -------------------------------------------------------------------------------------------------------------


def test_every_kind_of_mask_reads_alike(folder: Path) -> None:
    """Alpha says nothing: with an opaque alpha channel the mask equals the palette version."""
    mask = square()
    red = np.zeros((*SIZE, 4), np.uint8)
    red[mask > 0, 0], red[..., 3] = 255, 255
    hidden = red.copy()
    hidden[..., 3] = 0
    swapped = Image.fromarray(1 - mask)  # index 1 is black here: colours count, not indices
    swapped.putpalette([255, 0, 0, 0, 0, 0])
    kinds = {
        "palette": palette(mask),
        "rgba": Image.fromarray(red),
        "transparent": Image.fromarray(hidden),
        "rgb": Image.fromarray(red[..., :3]),
        "blue": Image.fromarray(np.ascontiguousarray(red[..., 2::-1])),
        "bit": Image.fromarray(mask * 255).convert("1"),
        "grey": Image.fromarray(mask),
        "grey and alpha": Image.fromarray(np.dstack([mask, np.full_like(mask, 255)])),
        "deep": Image.fromarray(mask.astype(np.uint16)),
        "swapped": swapped,
    }
    for name, image in kinds.items():
        path = put_mask(folder, "IDRiD_01_EX", image)
        assert np.array_equal(read_mask(path), mask), name
        family, records = read(folder, sets=["segmentation"])
        assert np.array_equal(family.read_labels(records["A/train/IDRiD_01"]).masks["lesions_ex"], mask), name


def test_deep_colours_are_refused(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "deep.tif"), np.dstack([square()] * 3).astype(np.uint16))
    with pytest.raises(DataError, match=r"deep\.tif: has more than 8 bits per colour channel"):
        read_mask(tmp_path / "deep.tif")
    (tmp_path / "cut.tif").write_bytes(put_mask(tmp_path, "IDRiD_01_EX", square()).read_bytes()[:200])
    with pytest.raises(DataError, match=r"cut\.tif: cannot be decoded"):
        read_mask(tmp_path / "cut.tif")


def test_missing_masks_follow_the_policy(folder: Path) -> None:
    family, records = read(folder)
    masks = family.read_labels(records["A/train/IDRiD_01"]).masks
    assert masks["lesions_se"].shape == SIZE and not masks["lesions_se"].any()
    assert masks["lesions"].shape == (*SIZE, 5)
    assert np.array_equal(masks["lesions"][..., 2], masks["lesions_ex"]) and masks["lesions"][..., 2].sum() == 36

    family, records = read(folder, missing_mask={**POLICY, "SE": "absent"})
    record = records["A/train/IDRiD_01"]
    sample = family.read_labels(record)
    assert set(sample.masks) == {"lesions_ma", "lesions_he", "lesions_ex", "optic_disc"}
    assert not record.knows("mask:lesions_se") and not record.knows("mask:lesions")
    assert "soft_exudates" not in record.class_counts
    assert records["A/test/IDRiD_55"].knows("mask:lesions")

    next(folder.rglob("IDRiD_01_OD.tif")).unlink()
    family, records = read(folder)
    assert set(family.read_labels(records["A/train/IDRiD_01"]).masks) == {
        "lesions_ma", "lesions_he", "lesions_ex", "lesions_se",
    }  # fmt: skip
    family, records = read(folder, missing_mask={**POLICY, "OD": "negative"})
    assert not family.read_labels(records["A/train/IDRiD_01"]).masks["optic_disc"].any()


def test_a_mask_that_covers_too_much_names_its_file(folder: Path) -> None:
    path = put_mask(folder, "IDRiD_01_EX", np.ones(SIZE, np.uint8))
    family, records = read(folder)
    with pytest.raises(DataError, match=r"IDRiD_01_EX\.tif: 100\.00% of the image is marked as hard_exudates"):
        family.read_labels(records["A/train/IDRiD_01"])
    report = family.check()
    assert len(report.errors) == 1 and str(path) in report.errors[0] and "data.largest_share.EX" in report.errors[0]
    family, records = read(folder, largest_share={"MA": 1.0, "HE": 1.0, "EX": 1.0, "SE": 1.0, "OD": 1.0})
    assert family.read_labels(records["A/train/IDRiD_01"]).masks["lesions_ex"].all()


def test_a_mask_of_another_size_is_an_error(folder: Path) -> None:
    put_mask(folder, "IDRiD_01_HE", square(size=(96, 144)))
    family, records = read(folder)
    with pytest.raises(DataError, match=r"IDRiD_01_HE\.tif: is 144 x 96 pixels; expected the size of IDRiD_01\.jpg, 72 x 48"):
        family.read_labels(records["A/train/IDRiD_01"])


def test_lesions_without_a_single_file_are_pointed_out(folder: Path) -> None:
    family, _ = read(folder, sets=["segmentation"])
    assert sum("No SE mask among the 1 train images" in note for note in family.notes()) == 1
    assert not any(
        "No SE mask" in note for note in Idrid(root=str(folder), missing_mask={**POLICY, "SE": "absent"}).check().notes
    )


def test_strange_masks(folder: Path) -> None:
    put_mask(folder, "IDRiD_77_EX", square())
    shutil.copyfile(next(folder.rglob("IDRiD_01_EX.tif")), folder / MASKS / "a. Training Set" / "IDRiD_01_EX.tif")
    family = Idrid(root=str(folder))
    report = family.check()
    (lost,) = family.lost_labels()
    assert (lost.lost, lost.what) == (
        1,
        "masks",
    ) and "no image and lesion of this set has the name of IDRiD_77_EX.tif" in lost.why
    assert len(report.errors) == 1 and "is the second EX mask of this image" in report.errors[0]


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("IDRiD_001,5,0", "csv:2: expected a whole number from 0 to 4 as grade, found `5`"),
        ("IDRiD_001,1,3", "csv:2: expected a whole number from 0 to 2 as edema, found `3`"),
        ("IDRiD_001,-1,0", "csv:2: .* found `-1`"),
        ("IDRiD_001,1.5,0", "csv:2: .* found `1.5`"),
        ("IDRiD_001,nan,0", "csv:2: .* found `nan`"),
        ("IDRiD_001,mild,0", "csv:2: .* found `mild`"),
    ],
)
def test_impossible_grades(folder: Path, row: str, message: str) -> None:
    put_table(folder, TRAINING, HEADER, row)
    with pytest.raises(DataError, match=message):
        Idrid(root=str(folder)).records()


def test_listed_twice(folder: Path) -> None:
    put_table(folder, TRAINING, HEADER, "IDRiD_001,3,2", "IDRiD_001,3,2,,,", "IDRiD_002,0,0")
    assert read(folder)[1]["B/train/IDRiD_001"].stratum == 3
    put_table(folder, TRAINING, HEADER, "IDRiD_001,3,2", "IDRiD_002,0,0", "IDRiD_001,2,2")
    with pytest.raises(DataError, match="csv:4: `IDRiD_001` was listed in line 2 with other values"):
        Idrid(root=str(folder)).records()


def test_images_and_rows_that_do_not_meet(folder: Path) -> None:
    put_table(folder, TRAINING, HEADER, "IDRiD_001,3,", "IDRiD_007,4,1")
    family, records = read(folder)
    assert records["B/train/IDRiD_001"].labels == ("class:grade",) and records["B/train/IDRiD_002"].labels == ()
    assert records["B/train/IDRiD_002"].stratum == 5 and not records["B/train/IDRiD_002"].knows("class:grade")
    assert family.read_labels(records["B/train/IDRiD_002"]).labels == {}
    assert "B/train/IDRiD_007" not in records
    notes = family.check().notes
    assert any("IDRiD_007 listed, but there is no such image" in note for note in notes)
    assert any("no complete grades for 2 entries (first: IDRiD_001)" in note for note in notes)


def test_tables_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    put_table(folder, TRAINING, "Image name,Grade", "IDRiD_001,3")
    with pytest.raises(DataError, match="begin with retinopathygrade, riskofmacular; found `Image name`, `Grade`"):
        Idrid(root=str(folder)).records()
    (folder / TRAINING).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no CSV file"):
        Idrid(root=str(folder)).records()
    (folder / TRAINING).unlink()
    with pytest.raises(DataError, match="expected one CSV file with `train` in its name, for the grades; found none"):
        Idrid(root=str(folder)).records()
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="found none"):
        read_table(tmp_path / "empty.csv", {"image": "image"})


# -- landmarks ---------------------------------------------------------------------------------------------------------


def test_landmarks(folder: Path) -> None:
    family, records = read(folder, landmark_radius=400.0)
    objects = family.read_labels(records["C/train/IDRiD_001"]).objects
    assert objects is not None and family.object_classes == ("optic_disc_centre", "fovea")
    assert objects.points.tolist() == [[50.0, 20.5], [30.0, 24.0]] and objects.labels.tolist() == [0, 1]
    assert objects.derived.all()
    radius = 400 * 72 / 4288
    assert objects.boxes == pytest.approx(
        np.asarray([[x - radius, y - radius, x + radius, y + radius] for x, y in objects.points]), abs=1e-4
    )


def test_half_a_pair_of_landmarks_is_none(folder: Path) -> None:
    put_table(folder, FOVEA, "Image No,X- Coordinate,Y - Coordinate,,,", "IDRiD_001,,,,,")
    family, records = read(folder)
    assert records["C/train/IDRiD_001"].labels == ()
    assert family.read_labels(records["C/train/IDRiD_001"]).objects is None
    assert records["C/test/IDRiD_001"].labels == ("objects",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("IDRiD_001,3000,20", r"the fovea is given at \(3000, 20\), but the image is 72 x 48"),
        ("IDRiD_001,here,20", "csv:2: expected two numbers, found x `here` and y `20`"),
        ("IDRiD_001,30", "csv:2: expected two numbers, found x `30` and y ``"),
    ],
)
def test_impossible_landmarks(folder: Path, row: str, message: str) -> None:
    put_table(folder, FOVEA, "Image No,X- Coordinate,Y - Coordinate,,,", row)
    with pytest.raises(DataError, match=message):
        Idrid(root=str(folder)).records()


# -- groups and splits -------------------------------------------------------------------------------------------------


def test_copies_share_a_group(folder: Path) -> None:
    """The test image of A is also a training image of B, smaller; C has other files under the names of B."""
    source = folder / "A. Segmentation/1. Original Images/b. Testing Set/IDRiD_55.jpg"
    copy = folder / "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_002.jpg"
    with Image.open(source) as image:
        image.resize((60, 40)).save(copy, quality=85)
    _, records = read(folder)
    groups = {name: record.group for name, record in records.items()}
    assert groups["B/train/IDRiD_002"] == groups["A/test/IDRiD_55"] == "A/test/IDRiD_55"
    assert groups["C/train/IDRiD_001"] == groups["B/train/IDRiD_001"] == "B/train/IDRiD_001"
    assert len(set(groups.values())) == 4
    assert all(record.groups == {"photograph": record.group} for record in records.values())
    by_name = {name: record.group for name, record in read(folder, group_by="image")[1].items()}
    assert by_name["B/train/IDRiD_002"] == "B/train/IDRiD_002" and by_name["C/test/IDRiD_001"] == "B/test/IDRiD_001"
    report = Idrid(root=str(folder)).check()
    assert report.counts["photographs"] == 4 and report.counts["B/train"] == 2 and report.counts["severe_npdr"] == 1
    text = "in an official training part and in an official test part: 1 (A/test/IDRiD_55 = B/train/IDRiD_002)."
    assert any(note.endswith(text) for note in report.notes)
    assert Idrid().person_of("B/train/IDRiD_001") != Idrid().person_of("B/train/IDRiD_002")


def test_copies_with_other_grades_are_reported(folder: Path) -> None:
    home = folder / "B. Disease Grading/1. Original Images/a. Training Set"
    shutil.copyfile(home / "IDRiD_001.jpg", home / "IDRiD_002.jpg")
    notes = Idrid(root=str(folder)).check().notes
    assert "Photographs whose copies have other grades: 1 (B/train/IDRiD_001 = B/train/IDRiD_002)." in notes


def test_official_split(retinas: Path) -> None:
    _, records = read(retinas)
    split = make_split(hash_records(list(records.values())), split_config(scheme="official", ratios=[0.7, 0.15, 0.15]))
    assert all(split[name] == "test" for name, record in records.items() if record.official_split == "test")
    tested = {record.group for name, record in records.items() if split[name] == "test"}
    assert not any(record.group in tested for name, record in records.items() if split[name] in ("train", "val"))
    for name in ("train", "val"):
        sources = {record.source for key, record in records.items() if split[key] == name}
        assert {"idrid_segmentation", "idrid_grading"} <= sources


def test_localization_leaves_the_strata_to_grades(retinas: Path) -> None:
    """Every graded photograph is in localization too: its group keeps the stratum of its grade."""
    strata = {}
    for sets in (None, ["segmentation", "grading"]):
        groups: dict[str, int] = {}
        for record in read(retinas, sets=sets)[1].values():
            groups[record.group] = max(groups.get(record.group, 0), record.stratum)
        strata[sets is None] = sorted(groups.values())
    assert strata[True] == strata[False] and len(set(strata[True])) > 3


def test_broken_images(folder: Path) -> None:
    path = folder / "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_002.jpg"
    path.write_bytes(path.read_bytes()[:400])
    report = Idrid(root=str(folder)).check()
    assert len(report.errors) == 1 and "IDRiD_002.jpg: cannot be decoded" in report.errors[0]
    with pytest.raises(DataError, match=r"IDRiD_002\.jpg: cannot be decoded"):
        Idrid(root=str(folder)).records()
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 error below `.*`:\n.*IDRiD_002\.jpg: cannot be decoded"):
        Idrid(root=str(folder)).records()


# -- settings and use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": ["A"]}, "Unknown set `A`"),
        ({"sets": []}, "`data.sets` is empty"),
        ({"missing_mask": {**POLICY, "XX": "absent"}}, "Unknown lesion `XX`"),
        ({"missing_mask": {"MA": "absent"}}, "`data.missing_mask` lacks SE"),
        ({"missing_mask": {**POLICY, "SE": "ignore"}}, "expected negative or absent"),
        ({"largest_share": {"MA": 0, "HE": 1, "EX": 1, "SE": 1, "OD": 1}}, "`data.largest_share.MA` is 0"),
        ({"landmark_radius": 0.0}, "`data.landmark_radius` is 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Idrid(**settings)


@pytest.mark.parametrize(
    "damage", [lambda root: shutil.rmtree(root / MASKS), lambda root: shutil.rmtree(root / MASKS / "a. Training Set")]
)
def test_masks_that_are_gone_are_no_negatives(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(DataError, match="expected a folder"):
        Idrid(root=str(folder)).records()


def test_network_inputs(retinas: Path) -> None:
    """Each source is present for its own tasks only; the stacked masks equal the single ones."""
    family = Idrid(root=str(retinas))
    preprocessing = Preprocessing(Geometry(mode="letterbox", size=(64, 96)))
    dataset = SampleDataset(family, family.records(), family.specs(), preprocessing)
    present = {}
    for index, record in enumerate(dataset.records):
        item = dataset[index]
        present.setdefault(record.source, set()).update(name for name, known in item["present"].items() if known)
        assert all(item["present"][name] == record.knows(spec.label) for name, spec in family.specs().items())
        if record.source == "idrid_segmentation":
            single = [item["targets"][name][0] for name in list(family.specs())[2:7]]
            assert np.array_equal(np.stack(single), item["targets"]["lesions"])
    assert present == {
        "idrid_segmentation": {"lesions_ma", "lesions_he", "lesions_ex", "lesions_se", "optic_disc", "lesions", "findings"},
        "idrid_grading": {"grade", "edema"},
        "idrid_localization": {"landmarks"},
    }


def test_real_images(real_data: Path) -> None:
    root = real_data / "idrid" / "IDRiD"
    if not root.is_dir():
        pytest.skip("IDRiD is not among the real data")
    family = Idrid(root=str(root))
    records = family.records()
    sources = [record.source for record in records]
    assert sources.count("idrid_segmentation") == 18 and sources.count("idrid_grading") == 124
    assert len({record.group for record in records}) == 142 - 15
    counts = {name: sum(r.class_counts.get(name, 0) for r in records) for name in ("microaneurysms", "soft_exudates", "pdr")}
    assert counts == {"microaneurysms": 18, "soft_exudates": 6, "pdr": 25}
    without = next(record for record in records if record.class_counts.get("soft_exudates") == 0)
    masks = family.read_labels(without).masks
    assert masks["lesions"].shape == (949, 1429, 5) and not masks["lesions_se"].any()
    assert 0.01 < masks["optic_disc"].mean() < 0.05
    assert without.pixel_scale == pytest.approx(1 / 3, rel=0.01)


# -- what is not read --------------------------------------------------------------------------------------------------


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        Idrid(root=str(folder), **settings).records()
    return str(error.value)


def test_linked_folders_are_read_like_others(folder: Path, tmp_path: Path) -> None:
    lesions = folder / MASKS / "a. Training Set" / "3. Hard Exudates"
    images = folder / "A. Segmentation/1. Original Images/a. Training Set"
    for place in (lesions, images):
        shutil.move(place, tmp_path / place.name)
        place.symlink_to(tmp_path / place.name)
    (tmp_path / lesions.name / "again").symlink_to(folder)  # leads back
    (tmp_path / images.name / "folder.jpg").mkdir()
    put_image(tmp_path / "store" / "IDRiD_02.jpg", 30)
    (tmp_path / images.name / "second").symlink_to(tmp_path / "store")
    family, records = read(folder, sets=["segmentation"])
    assert list(records) == ["A/test/IDRiD_55", "A/train/IDRiD_01", "A/train/IDRiD_02"]
    assert records["A/train/IDRiD_01"].class_counts["hard_exudates"] == 1
    assert family.read_labels(records["A/train/IDRiD_01"]).masks["lesions_ex"].sum() == 36


def test_a_lesion_without_folder_or_with_a_broken_one_is_an_error(folder: Path, tmp_path: Path) -> None:
    lesions = folder / MASKS / "a. Training Set" / "3. Hard Exudates"
    lesions.rename(tmp_path / "store")
    text = refusal(folder)
    assert "holds no EX mask and no folder `3. Hard Exudates`, so that all 1 train images would count as free of it" in text
    assert len(read(folder, missing_mask={**POLICY, "EX": "absent"})[1]) == 7
    lesions.symlink_to(tmp_path / "nowhere")
    assert "3. Hard Exudates: cannot be read: it is a link that leads nowhere" in refusal(folder)
    lesions.unlink()
    lesions.mkdir()
    assert any("No EX mask among the 1 train images" in note for note in Idrid(root=str(folder)).check().notes)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("IDRiD_01_EX.jpg", "is not read; expected a mask that ends in .bmp, .png, .tif, .tiff"),
        ("IDRiD_01_EX.gif", "is not read"),
        ("IDRiD_01_exudates.tif", "tells no lesion; expected MA, HE, EX, SE, OD behind the name of the image"),
        ("IDRiD_01.tif", "tells no lesion"),
        ("IDRiD_01_EX (1).tif", "tells no lesion"),
    ],
)
def test_masks_of_an_image_that_are_not_read_are_errors(folder: Path, name: str, says: str) -> None:
    path = next(folder.rglob("IDRiD_01_EX.tif"))
    path.rename(path.with_name(name))
    text = refusal(folder)
    assert f"{name}: {says}" in text and text.startswith("1 error")


def test_masks_of_other_formats_and_spellings_are_read(folder: Path) -> None:
    path = next(folder.rglob("IDRiD_01_EX.tif"))
    with Image.open(path) as image:
        image.convert("L").save(path.with_name("IDRiD_1_EX.png"))
    path.unlink()
    (path.parent / "notes.txt").write_text("")
    family, records = read(folder)
    assert family.read_labels(records["A/train/IDRiD_01"]).masks["lesions_ex"].sum() == 36
    notes = " ".join(family.check().notes)
    assert "1 names fit an image only without leading zeros (first: `IDRiD_1` for `idrid_01`)" in notes
    assert "notes.txt left out" in notes


def test_two_images_of_one_name_are_an_error_that_names_both(folder: Path) -> None:
    put_image(folder / "B. Disease Grading/1. Original Images/a. Training Set/idrid_001.png", 40)
    assert "idrid_001.png: has the same name as IDRiD_001.jpg" in refusal(folder)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_with_other_separators(folder: Path, separator: str) -> None:
    rows = [HEADER[:-4], "IDRiD_1,3.0,2", '"IDRiD_002.jpg",0,0']
    put_table(folder, TRAINING, *(row.replace(",", separator) for row in rows))
    records = read(folder)[1]
    assert [records[f"B/train/IDRiD_00{n}"].stratum for n in (1, 2)] == [3, 0]


def test_a_table_about_other_images_is_an_error(folder: Path) -> None:
    put_table(folder, TRAINING, HEADER, "img1,3,2", "img2,0,0")
    assert "no row names an image of the train part (first: `img1`)" in refusal(folder)
    (folder / TRAINING).rename((folder / TRAINING).with_suffix(".xlsx"))
    assert "for the grades; found none, but a. IDRiD_Disease Grading_Training Labels.xlsx" in refusal(folder)


def test_centres_in_shares_of_the_image_are_refused(folder: Path) -> None:
    put_table(folder, FOVEA, "Image No,X- Coordinate,Y - Coordinate,,,", "IDRiD_001,0.45,0.5")
    assert "all centres lie between 0 and 1, as shares of the image do" in refusal(folder)
