from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import split_config
from PIL import Image
from torch import nn

from mtl.core.errors import ConfigError, DataError
from mtl.core.types import Record
from mtl.data.families.idrid import files as idrid_files
from mtl.data.families.skin import files as skin_files
from mtl.data.families.skin.family import RESERVED, Skin
from mtl.data.families.tiger import files as tiger_files
from mtl.data.formats.images import MASK_SUFFIXES
from mtl.data.pipeline.dataset import SampleDataset
from mtl.data.pipeline.splits import check_split, hash_records, make_split
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing

SIZE = (48, 64)
TWO = {"skin_type": ["normal", "dry", "oily"], "diagnosis": ["nevus", "melanoma", "seborrheic_keratosis"]}


def put_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1]).save(path, quality=95)
    return path


def put_mask(path: Path, size: tuple[int, int] = SIZE, value: slice = slice(10, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[value, value] = 255
    Image.fromarray(mask).save(path)
    return path


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images for training and two for validation, three masks, plain labels."""
    root = tmp_path / "skin"
    for number in range(8):
        put_image(root / "images" / ("train" if number < 6 else "val") / f"image_{number}.jpg", number)
    put_mask(root / "masks" / "train" / "image_1.png")
    put_mask(root / "masks" / "train" / "image_2_segmentation.png")
    put_mask(root / "masks" / "val" / "image_6.png", value=slice(0, 0))
    put(root / "labels.json", {f"image_{number}.jpg": number % 3 for number in range(8)})
    return root


def read(folder: Path, **settings: Any) -> tuple[Skin, dict[str, Record]]:
    family = Skin(root=str(folder), **settings)
    return family, {record.sample_id: record for record in family.records()}


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        Skin(root=str(folder), **settings).records()
    return str(error.value)


# -- native layout -----------------------------------------------------------------------------------------------------


def test_ids_classes_and_masks(folder: Path) -> None:
    family, records = read(folder)
    assert list(records) == [f"image_{number}" for number in range(8)]
    assert {record.source for record in records.values()} == {"skin"} == set(Skin(layout="native").sources)
    one, bare, empty = records["image_1"], records["image_0"], records["image_6"]
    assert one.labels == ("class:diagnosis", "mask:lesion") and one.size == SIZE
    assert one.class_counts == {"nevus": 0, "melanoma": 1, "seborrheic_keratosis": 0, "lesion": 1}
    assert family.read_labels(one).labels == {"diagnosis": 1.0}
    assert family.read_labels(one).masks["lesion"].sum() == 100 and family.read_image(one).shape == (*SIZE, 3)
    # No file is no label; a file that marks nothing is one.
    assert bare.labels == ("class:diagnosis",) and family.read_labels(bare).masks == {}
    assert not family.read_labels(empty).masks["lesion"].any() and empty.knows("mask:lesion")
    # Masked images are strata of their own, by class.
    assert [records[f"image_{number}"].stratum for number in (0, 1, 2, 3, 5)] == [0, 5, 6, 0, 2]
    specs = family.specs()
    assert list(specs) == ["diagnosis", "lesion"] and specs["lesion"].kind == "segmentation" and specs["lesion"].multilabel


def test_absent_masks_are_absent_in_batches(folder: Path) -> None:
    family, records = read(folder)
    config = {"mode": "stretch", "size": [32, 32]}
    preprocessing = Preprocessing(Geometry(**config), mean=[0.5] * 3, std=[0.25] * 3)
    dataset = SampleDataset(family, list(records.values()), family.specs(), preprocessing)
    present = [dataset[index]["present"] for index in range(8)]
    assert [row["lesion"] for row in present] == [number in (1, 2, 6) for number in range(8)]
    assert all(row["diagnosis"] for row in present)
    assert dataset[0]["targets"]["lesion"] is None and dataset[1]["targets"]["lesion"].shape == (1, 32, 32)
    assert "lesion" not in dataset.truth("image_0").tasks


def test_several_attributes_and_missing_ones(folder: Path) -> None:
    labels = {
        "image_0.JPG": {"skin_type": 2, "diagnosis": None}, "image_1.jpg": {"diagnosis": "Seborrheic keratosis"},
        "image_2.jpg": {"skin_type": "dry", "diagnosis": 0, "hair_type": "curly"}, "image_3.jpg": 1, "gone.jpg": 1,
    }  # fmt: skip
    put(folder / "labels.json", labels)
    family, records = read(folder, attributes=TWO)
    values = {name: family.read_labels(record).labels for name, record in records.items()}
    assert values["image_0"] == {"skin_type": 2.0} and values["image_1"] == {"diagnosis": 2.0}
    assert values["image_2"] == {"skin_type": 1.0, "diagnosis": 0.0}
    assert values["image_3"] == {"skin_type": 1.0}  # a bare number belongs to the first attribute
    assert values["image_4"] == {} and records["image_4"].labels == ()
    assert list(family.specs()) == ["skin_type", "diagnosis", "lesion"]
    notes = " ".join(family.check().notes)
    assert "gone.jpg named" in notes and "hair_type not read" in notes and "no class for 4 entries" in notes
    assert "skin_type: known for 3 of 8" in notes and "lesion: known for 3 of 8" in notes


def test_an_attribute_that_is_null_does_not_count(folder: Path) -> None:
    family, records = read(folder, attributes={"diagnosis": None, "kind": ["a", "b", "c"]})
    assert list(family.specs()) == ["kind", "lesion"] and records["image_2"].class_counts["c"] == 1
    assert list(read(folder, attributes={"diagnosis": None})[0].specs()) == ["lesion"]


def test_classes_of_the_same_name_are_counted_apart(folder: Path) -> None:
    put(folder / "labels.json", {"image_0.jpg": {"skin": 0, "hair": 0}})
    attributes = {"skin": ["normal", "dry"], "hair": ["normal", "curly"]}
    family, records = read(folder, attributes=attributes)
    assert records["image_0"].class_counts == {"skin.normal": 1, "dry": 0, "hair.normal": 1, "curly": 0}
    labels = {f"image_{n}.jpg": {"skin": int(n > 4), "hair": int(n in (1, 2))} for n in range(7)}
    put(folder / "labels.json", labels)
    family, records = read(folder, attributes=attributes)
    from mtl.evaluation.baselines import count_training

    statistics = count_training(family.specs(), records.values())
    for name in attributes:
        expected = [sum(label[name] == number for label in labels.values()) for number in (0, 1)]
        assert statistics.class_counts[name] == statistics.by_source[name]["skin"] == expected


def test_flat_images_and_a_split_file(folder: Path) -> None:
    for path in sorted((folder / "images").glob("*/*.jpg")):
        path.rename(folder / "images" / path.name)
    assert {record.official_split for record in read(folder)[1].values()} == {None}
    split = {
        "train": [f"image_{n}.jpg" for n in range(4)],
        "val": ["image_4.jpg", "image_5"],
        "test": ["image_6.JPG", "image_7.jpg"],
    }
    put(folder / "splits.json", split)
    assert [record.official_split for record in read(folder)[1].values()] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"train": ["image_0.jpg"]}, "does not name 7 entries (first: image_1.jpg)"),
        ({"train": ["other.jpg"]}, "names `other.jpg` under train, but there is no such image"),
        ({"train": ["image_0.jpg"], "val": ["image_0.jpg"]}, "under train and again under val"),
        ({"val": ["image_0.jpg"]}, "under val, but the image lies in train"),
        ({"fit": ["image_0.jpg"]}, "found `fit`"),
        (["image_0.jpg"], "found list"),
        ("{", "is no valid JSON"),
    ],
)
def test_wrong_split_files(folder: Path, split: Any, says: str) -> None:
    put(folder / "splits.json", split)
    text = refusal(folder)
    assert says in text and str(folder / "splits.json") in text


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            {"image_0.jpg": 3},
            "`image_0.jpg`: diagnosis 3 is out of range; expected 0 to 2 (nevus, melanoma, seborrheic_keratosis)",
        ),
        ({"image_0.jpg": -1}, "out of range"),
        ({"image_0.jpg": "melanom"}, "unknown diagnosis `melanom`; expected one of nevus, melanoma"),
        ({"image_0.jpg": "melanom"}, "Did you mean `melanoma`?"),
        ({"image_0.jpg": 0.5}, "found 0.5"),
        ({"image_0.jpg": True}, "found true"),
        ({"image_0.jpg": {"diagnosis": [1]}}, "found [1]"),
        ({"image_0.jpg": 0, "image_0.JPG": 1}, "was there as `image_0.jpg` with another class"),
        ('{"image_0.jpg": 0, "image_0.jpg": 1}', "`image_0.jpg` is there twice"),
        ('{"image_0.jpg": NaN}', "`image_0.jpg`: expected a number or name of a class as diagnosis, found NaN"),
        ('{"image_0.jpg": NaN, "image_0.jpg": NaN}', "as diagnosis, found NaN"),
        ('{"image_0.jpg": NaN, "image_0.jpg": 1}', "`image_0.jpg` is there twice"),
        ('{"image_0.jpg": -Infinity}', "found -Infinity"),
        ('{"image_0.jpg": 1e400}', "found Infinity"),
        ('{"image_0.jpg": 1e300}', "diagnosis 1e+300 is out of range"),
        ('{"image_0.jpg": {"diagnosis": NaN}}', "as diagnosis, found NaN"),
        ([0, 1], "expected an object with a class per file name; found list"),
        ("not json", "is no valid JSON"),
    ],
)
def test_wrong_labels(folder: Path, labels: Any, says: str) -> None:
    put(folder / "labels.json", labels)
    text = refusal(folder)
    assert says in text and str(folder / "labels.json") in text and text.startswith("1 error below")


@pytest.mark.parametrize(
    "classes",
    [
        {"0": "nevus", "1": "melanoma", "2": "seborrheic keratosis"},
        ["nevus", "melanoma", "seborrheic_keratosis"],
        {"diagnosis": {"0": "nevus", "1": "melanoma", "2": "seborrheic_keratosis"}, "skin_type": ["normal"]},
    ],
)
def test_class_names_that_agree(folder: Path, classes: Any) -> None:
    put(folder / "classes.json", classes)
    assert len(read(folder)[1]) == 8


def test_class_names_that_disagree(folder: Path) -> None:
    put(folder / "classes.json", {"0": "melanoma", "1": "nevus", "2": "seborrheic_keratosis"})
    text = refusal(folder)
    assert "are melanoma, nevus, seborrheic_keratosis; data.attributes.diagnosis says nevus, melanoma" in text
    put(folder / "classes.json", {"nevus": 0})
    assert "expected names by number from 0 on" in refusal(folder)


def test_metadata_columns_and_subgroups(folder: Path) -> None:
    rows = ["Image Name,Age_approx,Gender,Fitzpatrick Skin Type,Lesion_ID,subject_id", "image_0.jpg,39.0,F,2.0,L1,P1"]
    rows += ["image_1,60,male,unknown,L2,", "image_2.JPG,unknown,,6,,P2", "image_3,59,Male,,,", "gone,1,male,1,,", ""]
    put(folder / "metadata.csv", "\n".join(rows))
    _, records = read(folder)
    subgroups = [records[f"image_{number}"].attributes for number in range(5)]
    assert subgroups == [
        {"age": "0-39", "sex": "female", "skin_tone": "2"}, {"age": "60+", "sex": "male"}, {"skin_tone": "6"},
        {"age": "40-59", "sex": "male"}, {},
    ]  # fmt: skip
    assert records["image_0"].groups == {"patient": "P1", "lesion": "L1", "image": "image_0"}
    assert read(folder, age_bands=[60])[1]["image_3"].attributes["age"] == "0-59"
    assert "age" not in read(folder, age_bands=[])[1]["image_3"].attributes


def test_wrong_metadata(folder: Path) -> None:
    put(folder / "metadata.csv", "image,age\nimage_0.jpg,old\n")
    assert "metadata.csv:2: expected an age in years, found `old`" in refusal(folder)
    put(folder / "metadata.csv", "image,age\nimage_0.jpg,30\nimage_0.jpg,40\n")
    assert "metadata.csv:3: `image_0` was listed before with other values" in refusal(folder)
    put(folder / "metadata.csv", "picture,age\nimage_0.jpg,30\n")
    text = refusal(folder)
    assert (
        "metadata.csv: not read; expected a column image, imageid, isicid, imagename or alike, found `picture`, `age`" in text
    )
    put(folder / "metadata.csv", "image,years\nimage_0.jpg,30\n")
    assert "metadata.csv: no column can be used; expected some of ageapproximate, sex" in refusal(folder)
    put(folder / "metadata.csv", "image,age\nother_0.jpg,30\n")
    assert "none of its 1 rows names an image that is there (first: `other_0.jpg`)" in refusal(folder)
    put(folder / "metadata.csv", "image,age,sex\nimage_0.jpg,30,male\nimage_1.jpg,40,male,left, upper arm\n")
    assert "metadata.csv:3: has more values than there are columns, 3" in refusal(folder)
    put(folder / "metadata.csv", "image,patient_id,patient_id\nimage_0.jpg,a,b\n")
    assert "has several columns `patientid`" in refusal(folder)
    put(folder / "metadata.csv", "image,age;sex\nimage_0.jpg,30;male\n")
    assert "the first row has 1 of ',' and as many of ';'" in refusal(folder)


def test_broken_files(folder: Path) -> None:
    family, records = read(folder)
    put_mask(folder / "masks" / "train" / "image_1.png", size=(30, 40))
    other_size = "image_1.png: is 40 x 30 pixels; expected the size of image_1.jpg, 64 x 48"
    assert other_size in refusal(folder)  # before anything is trained
    assert len(Skin(root=str(folder)).check().errors) == 1
    with pytest.raises(DataError, match=other_size):  # replaced after the index was made
        family.read_labels(records["image_1"])
    (folder / "masks" / "train" / "image_1.png").write_bytes(b"no mask")
    assert "image_1.png: cannot be decoded" in refusal(folder)
    assert len(Skin(root=str(folder)).check().errors) == 1
    put_mask(folder / "masks" / "train" / "image_1.png")
    put_mask(folder / "masks" / "val" / "image_1.png")
    assert "is the second mask of this image" in refusal(folder)
    (folder / "masks" / "val" / "image_1.png").unlink()
    (folder / "images" / "train" / "image_3.jpg").write_bytes(b"no image")
    assert "image_3.jpg: cannot be decoded" in refusal(folder)
    put_image(folder / "images" / "val" / "image_3.png", 3)
    assert "has the same name as" in refusal(folder)


def test_masks_that_say_little_are_noted(folder: Path) -> None:
    put_mask(folder / "masks" / "train" / "image_1.png", value=slice(None))
    notes = Skin(root=str(folder)).check().notes
    assert any("image_1.png: marks the whole image" in note for note in notes)
    assert any("image_6.png: marks nothing" in note for note in notes)


def test_place(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"Did you mean data.root={folder}"):
        Skin(root=str(tmp_path)).locate()
    with pytest.raises(DataError, match="does not exist"):
        Skin(root=str(tmp_path / "gone")).locate()
    put_image(folder / "images" / "nevus" / "image_9.jpg", 9)
    assert "expected the images in train, val, test" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attributes": {"lesion": ["a", "b"]}}, "the task of the masks"),
        ({"attributes": {"type": ["a", "b"]}}, "as in `skin_type`"),
        ({"attributes": {"skin type": ["a", "b"]}}, "underscores"),
        ({"attributes": {"kind": ["a"]}}, "at least two"),
        ({"attributes": {"kind": ["a", "A "]}}, "different"),
        ({"attributes": {"kind": [True, False]}}, "data.attributes.kind"),
        ({"age_bands": [60, 40]}, "ascending"),
        ({"age_bands": [0.5]}, "whole years"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Skin(**settings)
    assert says in str(error.value)


def test_reserved_words_are_those_of_modules() -> None:
    words = {name for name in dir(nn.ModuleDict()) if name.isalpha() and name.islower()}
    assert words - RESERVED <= {"ipu", "xpu", "mtia"} and words >= RESERVED


# -- groups and splits -------------------------------------------------------------------------------------------------


def test_without_a_test_part_validation_is_the_test_set(folder: Path) -> None:
    family, records = read(folder)
    assert sum("the official validation part is the test set" in note for note in family.notes()) == 1
    split = make_split(list(records.values()), split_config(scheme="official", ratios=[0.6, 0.3, 0.1]))
    assert [name for name, part in split.items() if part == "test"] == ["image_6", "image_7"]
    assert Counter(split.values()) == {"train": 4, "val": 2, "test": 2}
    (folder / "images" / "test").mkdir()
    (folder / "images" / "val" / "image_7.jpg").rename(folder / "images" / "test" / "image_7.jpg")
    _, records = read(folder)
    assert records["image_6"].official_split == "val" and records["image_7"].official_split == "test"


def test_groups_join_patients_lesions_and_copies(folder: Path) -> None:
    rows = ["image,lesion_id,patient_id", "image_0,L1,P1", "image_1,L1,", "image_2,L2,P1", "image_3,L3,P2", "image_4,L3,"]
    put(folder / "metadata.csv", "\n".join(rows))
    picture = Image.open(folder / "images" / "train" / "image_5.jpg")
    picture.resize((96, 72)).save(folder / "images" / "val" / "image_7.jpg", quality=70)

    def groups(unit: str) -> set[frozenset[str]]:
        _, records = read(folder, group_by=unit)
        names = {record.group for record in records.values()}
        return {frozenset(n[-1] for n, record in records.items() if record.group == name) for name in names}

    def sets(*words: str) -> set[frozenset[str]]:
        return {frozenset(word) for word in words}

    assert groups("patient") == sets("012", "34", "57", "6")
    assert groups("lesion") == sets("01", "2", "34", "57", "6")
    assert groups("image") == sets(*"01234567")
    assert read(folder)[1]["image_1"].group == "patient P1" and Skin(root=str(folder)).person_of("patient P1") == "patient p1"
    assert any("several official parts: 1 (image_5 = image_7)" in note for note in Skin(root=str(folder)).check().notes)


@pytest.mark.parametrize("scheme", ["holdout", "kfold", "official"])
def test_no_person_straddles_a_split(lesions: Path, scheme: str) -> None:
    _, records = read(lesions)
    everyone = hash_records(list(records.values()))
    split = make_split(everyone, split_config(scheme=scheme, seed=5))
    check_split(everyone, split)
    for name in {record.groups["patient"] for record in everyone}:
        assert len({split[record.sample_id] for record in everyone if record.groups["patient"] == name}) == 1


def test_few_masks_are_spread_over_a_split(lesions: Path) -> None:
    _, records = read(lesions)
    split = make_split(list(records.values()), split_config(scheme="holdout", ratios=[0.5, 0.25, 0.25], seed=1))
    masked = Counter(split[name] for name, record in records.items() if record.knows("mask:lesion"))
    assert sum(masked.values()) == 8 and set(masked) == {"train", "val", "test"}


# -- names, ids and what is not read ----------------------------------------------------------------------------------


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """36 images of twelve patients, three each in turn, half of them with an umlaut; a mask for each."""
    root = tmp_path / "clinic"
    labels = {}
    for number in range(36):
        name = f"{number:04d}_l\u00e4sion" if number % 2 else f"{number:04d}"
        put_image(root / "images" / f"{name}.png", number)
        put_mask(root / "masks" / f"{name}.png")
        labels[f"{name}.png"] = number % 3
    put(root / "labels.json", labels)
    put_table(root)
    return root


def put_table(
    root: Path, separator: str = ",", image: str = "image", patient: str = "patient_id",
    ids: Callable[[int, int], str] = lambda patient, number: f"P{patient:02d}",
    names: Callable[[str], str] = lambda name: name,
) -> None:  # fmt: skip
    rows = [separator.join([image, patient, "age"])]
    for number, name in enumerate(json.loads((root / "labels.json").read_text())):
        rows.append(separator.join([names(name), ids(number // 3, number), "50"]))
    put(root / "metadata.csv", "\ufeff" + "\r\n".join(rows) + "\r\n")


def known(root: Path) -> tuple[int, int, int, int]:
    """Return of how many images class, mask and patient are known, and how many groups there are."""
    _, records = read(root)
    values = records.values()
    counts = [sum(record.knows(label) for record in values) for label in ("class:diagnosis", "mask:lesion")]
    return (*counts, sum("patient" in record.groups for record in values), len({record.group for record in values}))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "table",
    [
        {}, {"separator": ";"}, {"separator": "\t"}, {"patient": "patient"}, {"patient": "Subject"}, {"image": "filename"},
        {"image": "File"}, {"names": lambda name: f"images/{name}"}, {"names": lambda name: name.removesuffix(".png").upper()},
        {"ids": lambda patient, number: (f"P{patient:02d}", f"p{patient:02d}", f"P{patient}")[number % 3]},
        {"ids": lambda patient, number: (f"{patient}", f"{patient}.0", f"{patient:03d}")[number % 3]},
        {"names": lambda name: str(int(name[:4])) + name[4:]},
    ],
)  # fmt: skip
def test_every_spelling_of_a_table_keeps_patients_together(clinic: Path, table: dict[str, Any]) -> None:
    put_table(clinic, **table)
    assert known(clinic) == (36, 36, 36, 12)


def test_what_was_spelled_otherwise_is_noted(clinic: Path) -> None:
    put_table(
        clinic, names=lambda name: str(int(name[:4])) + name[4:], ids=lambda patient, number: "P01" if number % 2 else "p1"
    )
    notes = " ".join(Skin(root=str(clinic)).check().notes)
    assert "36 names fit an image only without leading zeros (first: `0.png` for `0000`)" in notes
    assert "1 ids differ from another one only in case, leading zeros or `.0` (first: `P01` and `p1`)" in notes


def test_ambiguous_names_match_nothing(clinic: Path) -> None:
    put_image(clinic / "images" / "00000.png", 50)
    put_table(clinic, names=lambda name: str(int(name[:4])) + name[4:])
    _, records = read(clinic)
    assert "patient" not in records["0000"].groups and "patient" not in records["00000"].groups
    notes = " ".join(Skin(root=str(clinic)).check().notes)
    assert "0.png of 36 rows listed, but there is no such image" in notes and "gives the patient of 35 of 37 images" in notes


def test_a_person_is_one_in_every_unicode_form() -> None:
    composed, decomposed = (Skin().person_of(unicodedata.normalize(form, "patient M\u00dcLLER")) for form in ("NFC", "NFD"))
    assert composed == decomposed == "patient m\u00fcller"


def test_names_that_a_mac_stored_keep_class_mask_and_patient(clinic: Path) -> None:
    for path in [*(clinic / "images").iterdir()]:
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert known(clinic) == (36, 36, 36, 12)
    put_image(clinic / "images" / "0001_L\u00c4SION.jpg", 50)
    assert "has the same name as" in refusal(clinic)


def test_linked_folders_are_read_like_others(folder: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (folder / name / "train").rename(tmp_path / f"{name}_store")
        (folder / name / "train").mkdir()
        (folder / name / "train" / "clinic_b").symlink_to(tmp_path / f"{name}_store")
        (folder / name / "train" / "again").symlink_to(folder / name / "train")  # leads back
        (folder / name / "train" / "folder.jpg").mkdir()
    _, records = read(folder)
    assert len(records) == 8 and sum(record.knows("mask:lesion") for record in records.values()) == 3
    (folder / "labels.json").unlink()
    (folder / "labels.json").symlink_to(tmp_path / "nowhere")
    assert "labels.json: cannot be read: it is a link that leads nowhere" in refusal(folder)


def test_files_that_are_not_read_are_noted(folder: Path) -> None:
    put_mask(folder / "masks" / "train" / "image_3.jpg")
    (folder / "images" / "train" / "image_9.gif").write_bytes(b"x")
    put(folder / "patients.csv", "image,patient_id")
    os.mkfifo(folder / "images" / "train" / "pipe.jpg")
    notes = " ".join(Skin(root=str(folder)).check().notes)
    assert "masks: image_3.jpg left out; expected files that end in .bmp" in notes
    assert "2 entries (first: image_9.gif) left out" in notes and "patients.csv not read" in notes
    (folder / "labels.json").rename(folder / "Labels.JSON")
    assert read(folder)[1]["image_1"].knows("class:diagnosis")
    put(folder / "Labels.JSON", {"other.jpg": 1})
    assert "none of its 1 names is that of an image (first: `other.jpg`)" in refusal(folder)


def test_masks_are_files_of_the_same_formats_in_every_family(folder: Path, archives: Path) -> None:
    assert {".png", ".tif", ".tiff", ".bmp"} == MASK_SUFFIXES and skin_files.MASK_SUFFIXES is MASK_SUFFIXES
    assert idrid_files.MASK_SUFFIXES is tiger_files.MASK_SUFFIXES is MASK_SUFFIXES
    put_mask(folder / "masks" / "train" / "image_3.gif")
    family, records = read(folder)
    assert not records["image_3"].knows("mask:lesion")
    assert any(
        "image_3.gif left out; expected files that end in .bmp, .png, .tif, .tiff" in note for note in family.check().notes
    )
    put_mask(archives / "ISIC-2017_Training_Part1_GroundTruth" / "ISIC_0000000_segmentation.gif")
    family, records = read(archives)
    assert not records["ISIC_0000000"].knows("mask:lesion")
    assert any("ISIC_0000000_segmentation.gif left out" in note for note in family.check().notes)


# -- ISIC layout -------------------------------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """ISIC 2017 as it unpacks: six images of three parts, masks of two, flags and metadata."""
    root = tmp_path / "isic"
    parts = {"Training_Data": range(3), "Validation_Data": range(3, 5), "Test_v2_Data": range(5, 6)}
    flags = {part.replace("Data", "Part3_GroundTruth"): ["image_id,melanoma,seborrheic_keratosis"] for part in parts}
    for part, numbers in parts.items():
        for number in numbers:
            put_image(root / f"ISIC-2017_{part}" / f"ISIC_000000{number}.jpg", number)
            put_image(root / f"ISIC-2017_{part}" / f"ISIC_000000{number}_superpixels.png", number)
            flags[part.replace("Data", "Part3_GroundTruth")].append(
                f"ISIC_000000{number},{float(number % 3 == 1)},{number % 3 // 2}.0"
            )
    for name, lines in flags.items():
        put(root / f"ISIC-2017_{name}.csv", "\n".join(lines))
    for name in ("Training_Part1_GroundTruth/ISIC_0000001", "Test_v2_Part1_GroundTruth/ISIC_0000005"):
        put_mask(root / f"ISIC-2017_{name}_segmentation.png")
    put(
        root / "ISIC-2017_Training_Data" / "ISIC-2017_Training_Data_metadata.csv",
        "image_id,age_approximate,sex\nISIC_0000000,55,female\nISIC_0000001,unknown,male",
    )
    return root


def test_isic_with_two_flags(archives: Path) -> None:
    family, records = read(archives)
    assert list(records) == [f"ISIC_000000{number}" for number in range(6)] and set(Skin(layout="isic").sources) == {"isic"}
    assert [record.official_split for record in records.values()] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert [family.read_labels(record).labels["diagnosis"] for record in records.values()] == [0, 1, 2, 0, 1, 2]
    assert [name for name, record in records.items() if record.knows("mask:lesion")] == ["ISIC_0000001", "ISIC_0000005"]
    assert records["ISIC_0000000"].attributes == {"age": "40-59", "sex": "female"}
    assert records["ISIC_0000001"].attributes == {"sex": "male"} and records["ISIC_0000002"].source == "isic"
    assert family.check().errors == []


def test_isic_with_one_column_per_class(archives: Path) -> None:
    for path in archives.glob("*GroundTruth.csv"):
        path.unlink()
    header, one = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC,UNK", dict(enumerate(["NV", "MEL", "DF", "UNK", "NV"]))
    columns = header.split(",")[1:]
    rows = [
        f"ISIC_000000{number}," + ",".join(str(float(column == name)) for column in columns) for number, name in one.items()
    ]
    put(archives / "ISIC2018_GroundTruth.csv", "\n".join([header, *rows]))
    put(archives / "groups.csv", "image,lesion_id\nISIC_0000000,HAM_1\nISIC_0000004,HAM_1")
    family, records = read(archives, attributes={"diagnosis": ["melanoma", "NV", "dermatofibroma"]})
    values = [family.read_labels(record).labels.get("diagnosis") for record in records.values()]
    assert values == [1, 0, 2, None, 1, None]  # unknown, and not listed
    assert records["ISIC_0000000"].group == records["ISIC_0000004"].group == "lesion HAM_1"
    text = refusal(archives)
    assert "1 images are dermatofibroma, but data.attributes.diagnosis is nevus, melanoma, seborrheic_keratosis" in text


def test_wrong_isic_tables(archives: Path) -> None:
    table = archives / "ISIC-2017_Training_Part3_GroundTruth.csv"
    put(table, "image_id,melanoma,seborrheic_keratosis\nISIC_0000000,1.0,1.0")
    assert f"{table}:2: expected zeros and at most one 1, found melanoma 1.0, seborrheickeratosis 1.0" in refusal(archives)
    put(table, "image_id,melanoma,seborrheic_keratosis\nISIC_0000000,1.0,0.0\nISIC_0000000,0.0,0.0")
    assert "3: `ISIC_0000000`".casefold() in refusal(archives).casefold()
    put(table, "image,MEL,NV\nISIC_0000000,0,0")
    assert "marks no class for" in refusal(archives)
    put(table, "image,MEL,NV\nISIC_0000005,0,1")
    assert "another class than an earlier table" in refusal(archives)


def test_isic_files_that_are_not_read_are_noted(archives: Path) -> None:
    for name in ("Test_v2", "Training"):
        table = archives / f"ISIC-2017_{name}_Part3_GroundTruth.csv"
        put(table.with_suffix(".tsv" if name == "Training" else ".xlsx"), table.read_text().replace(",", "\t"))
        table.unlink()
    first = archives / "ISIC-2017_Training_Data" / "ISIC_0000000.jpg"
    first.rename(first.with_name("isic_0000000.jpg"))
    for name in ("PH2_001.jpg", "ISIC_0000009.heic", "ISIC_0000000.json"):
        (first.parent / name).write_bytes(b"x")
    family, records = read(archives)
    values = [family.read_labels(records[name]).labels.get("diagnosis") for name in sorted(records, key=str.upper)]
    assert values == [0, 1, 2, 0, 1, None] and "isic_0000000" in records
    notes = " ".join(family.check().notes)
    assert "2 entries (first: ISIC-2017_Test_v2_Part3_GroundTruth.xlsx) not read; expected tables that end in .csv" in notes
    assert "PH2_001.jpg left out; expected images named ISIC_*." in notes
    assert "ISIC_0000009.heic left out: neither an image nor a mask." in notes
    assert "no table gives a diagnosis for ISIC_0000005" in notes


def test_isic_diagnoses_that_fit_no_image_are_lost(archives: Path) -> None:
    table = archives / "ISIC-2017_Validation_Part3_GroundTruth.csv"
    table.write_text(table.read_text().replace("ISIC_", "IMG_"))  # two of six images go without
    family, _ = read(archives)
    (lost,) = family.lost_labels()
    assert (lost.what, lost.lost, lost.total) == ("diagnoses", 2, 6) and f"{table} names them otherwise" in lost.why
    for path in archives.glob("*GroundTruth.csv"):
        path.write_text(path.read_text().replace("ISIC_", "IMG_"))
    assert refusal(archives).startswith("3 errors below")
    assert any(
        f"{table}: none of its 2 rows names an image that is there (first: `IMG_0000003`)" in error
        for error in Skin(root=str(archives)).check().errors
    )
    assert read(archives, attributes={"diagnosis": None})[0].lost_labels() == []


def test_isic_without_a_test_part(archives: Path) -> None:
    import shutil

    shutil.rmtree(archives / "ISIC-2017_Test_v2_Data")
    _, records = read(archives)
    assert [record.official_split for record in records.values()] == ["train"] * 3 + ["test"] * 2


# -- real images -------------------------------------------------------------------------------------------------------


def test_real_images(real_data: Path) -> None:
    if not (real_data / "skin").is_dir():
        pytest.skip("no skin images here")
    family, records = read(real_data / "skin")
    assert len(records) == 614 and sum(record.knows("mask:lesion") for record in records.values()) == 14
    counts = Counter(name for record in records.values() for name, count in record.class_counts.items() if count)
    assert counts == {"nevus": 288, "melanoma": 182, "seborrheic_keratosis": 144, "lesion": 14}
    split = make_split(list(records.values()), split_config(scheme="official"))
    masked = Counter(split[name] for name, record in records.items() if record.knows("mask:lesion"))
    assert Counter(split.values()) == {"train": 404, "val": 86, "test": 124} and masked == {"train": 8, "val": 2, "test": 4}
    assert len({record.group for record in records.values()}) == 613
    assert records["ISIC_0000222"].group == records["ISIC_0014846"].group  # the same photograph in other colours
    assert Counter(record.attributes.get("sex") for record in records.values()) == {"male": 276, "female": 236, None: 102}
    for record in (record for record in records.values() if record.knows("mask:lesion")):
        mask = family.read_labels(record).masks["lesion"]
        assert mask.shape == record.size and 0.01 < mask.mean() < 0.9
