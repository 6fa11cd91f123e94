"""Slices of volumes and single pictures of brains: what is read, what trains, what a split keeps together."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from data_fakes import split_config
from PIL import Image

from mtl.core.errors import ConfigError, DataError
from mtl.core.types import Record
from mtl.data.families.brain.family import Brain
from mtl.data.families.brain.folders import read_case
from mtl.data.pipeline.cache import cache_key, prepare
from mtl.data.pipeline.splits import hash_records, make_split
from mtl.imaging.preprocessing import Preprocessing

CASE = "BraTS20_Training_001"


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def case(brains: Path, tmp_path: Path) -> Path:
    """A folder with one case, to change."""
    return Path(shutil.copytree(brains / "brats" / CASE, tmp_path / "one" / CASE))


def brats(folder: Path, **settings: object) -> Brain:
    return Brain(root=str(folder), sets=["brats"], **settings)


def change(path: Path, function: object) -> None:
    """Apply a function to the stored array of a volume."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(function(np.asarray(image.dataobj)), image.affine), path)


def label_map(folder: Path) -> np.ndarray:
    """[slices, rows, columns] as stored by the generator: columns, rows, slices."""
    return np.asarray(nibabel.load(next(folder.glob("*_seg.nii.gz"))).dataobj).transpose(2, 1, 0)


def slices_of(family: Brain) -> list[Record]:
    return [record for record in family.records() if record.source == "brats"]


# -- volumes -----------------------------------------------------------------------------------------------------------


def test_slices_are_upright_and_carry_their_masks(brains: Path) -> None:
    family = brats(brains, modalities=["flair", "t1ce"])
    records = family.records()
    assert [record.sample_id for record in records[:2]] == [f"brats/{CASE}/z000", f"brats/{CASE}/z001"]
    assert len(records) == 48 and {record.group for record in records} == {f"BraTS20_Training_{n:03d}" for n in range(1, 7)}
    record = records[4]
    assert record.spacing == pytest.approx((140 * 0.97 / 7, 3.75, 3.75), rel=1e-5) and record.size == (64, 64)
    image, labels = family.read_image(record), label_map(brains / "brats" / CASE)[4]
    assert image.shape == (64, 64, 2) and image.dtype == np.float32
    for channel, name in enumerate(family.modalities):
        stored = np.asarray(nibabel.load(brains / "brats" / CASE / f"{CASE}_{name}.nii.gz").dataobj)
        np.testing.assert_array_equal(image[..., channel], stored[:, :, 4].T)
    masks = family.read_labels(record).masks
    expected = {"whole_tumor": labels > 0, "tumor_core": np.isin(labels, (1, 4)), "enhancing_tumor": labels == 4}
    assert labels.any()
    for number, (name, mask) in enumerate(expected.items()):
        np.testing.assert_array_equal(masks[name], mask)
        np.testing.assert_array_equal(masks["tumor_regions"][..., number], mask)
        assert record.class_counts[name] == int(mask.any())
    specs = family.specs()
    assert all(record.knows(spec.label) for spec in specs.values() if spec.kind == "segmentation")
    assert specs["tumor_regions"].volumetric and specs["presence"].classes == ("no_tumor", "tumor")


@pytest.mark.parametrize("modalities", [["t2"], ["t2", "flair", "t1ce", "t1"]])
def test_channels_follow_the_modalities(brains: Path, modalities: list[str]) -> None:
    family = Brain(root=str(brains), modalities=modalities)
    records = family.records()
    assert family.channels == len(modalities) and family.sources == ("brats", "kaggle")
    assert all(family.read_image(record).shape[2] == len(modalities) for record in (records[3], records[-1]))
    one = Brain(root=str(brains), modalities=["flair"]).read_image(records[3])[..., 0]
    if "flair" in modalities:
        np.testing.assert_array_equal(family.read_image(records[3])[..., modalities.index("flair")], one)


def test_a_missing_modality_is_blank_and_none_at_all_is_an_error(case: Path) -> None:
    (case / f"{CASE}_t1.nii.gz").unlink()
    family = brats(case.parent, modalities=["t1", "flair"])
    image = family.read_image(family.records()[4])
    assert not image[..., 0].any() and image[..., 1].any()
    assert any("has no t1; the channel is blank" in note for note in family.check().notes)
    with pytest.raises(DataError, match="has no t1"):
        brats(case.parent, modalities=["t1"]).records()


def test_a_misnamed_label_file_is_taken_with_a_note(case: Path) -> None:
    (case / f"{CASE}_seg.nii.gz").rename(case / "W39_1998.09.19_Segm.nii.gz")
    family = brats(case.parent)
    assert len(family.records()) == 8 and any("W39_1998.09.19_Segm.nii.gz" in note for note in family.notes())
    # Two candidates are none.
    shutil.copyfile(case / "W39_1998.09.19_Segm.nii.gz", case / "other_seg_2.nii.gz")
    assert read_case(case, Brain.volume_endings, Brain.label_endings)[0].seg is None


def test_names_of_2023_and_plain_nifti(case: Path) -> None:
    other = case.parent / "BraTS-GLI-00001-001"
    other.mkdir()
    names = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
    for name, new in names.items():
        nibabel.save(nibabel.load(case / f"{CASE}_{name}.nii.gz"), other / f"{other.name}-{new}.nii")
    shutil.rmtree(case)
    change(other / f"{other.name}-seg.nii", lambda labels: np.where(labels == 4, 3, labels).astype(np.uint8))
    family = brats(case.parent, modalities=["flair", "t1", "t1ce", "t2"])
    records = family.records()
    assert {record.group for record in records} == {"BraTS-GLI-00001"}  # the same patient may come again
    assert {record.case for record in records} == {other.name}
    assert any("label 3 counts as enhancing" in note for note in family.check().notes)
    assert any(record.class_counts["enhancing_tumor"] for record in records)
    assert any(family.read_labels(record).masks["enhancing_tumor"].any() for record in records)
    assert family.read_image(records[4]).all(axis=2).any()


def test_slices_name_their_case_and_sort_by_number(brains: Path, tmp_path: Path) -> None:
    records = Brain(root=str(brains)).records()
    assert {record.case for record in records if record.source == "kaggle"} == {""}
    assert all(record.case == record.sample_id.split("/")[1] for record in slices_of(brats(brains)))
    for visit, slices in (("000", 8), ("001", 1001)):
        folder = tmp_path / "visits" / f"BraTS-GLI-00001-{visit}"
        folder.mkdir(parents=True)
        for ending in ("t2f", "seg"):
            nibabel.save(
                nibabel.Nifti1Image(np.ones((4, 4, slices), np.uint8), np.eye(4)), folder / f"{folder.name}-{ending}.nii"
            )
    family = brats(tmp_path / "visits")
    records = family.records()
    assert {record.group for record in records} == {"BraTS-GLI-00001"}
    places = [(record.case, family._index.slices[record.sample_id][1]) for record in records]
    assert places == sorted(places) and len({case for case, _ in places}) == 2 and len(places) == 1009


def test_a_volume_of_colours_is_named(case: Path) -> None:
    path, grey = case / f"{CASE}_flair.nii.gz", nibabel.load(case / f"{CASE}_flair.nii.gz")
    colours = np.zeros(grey.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colours, grey.affine), path)
    (error, *_) = brats(case.parent).check().errors
    assert f"{path}: its voxels are colours" in error


def test_labels_that_do_not_exist_are_named(case: Path) -> None:
    for value in (7, 3):  # 3 beside 4 is neither release
        change(case / f"{CASE}_seg.nii.gz", lambda labels, value=value: np.where(labels == 2, value, labels).astype(np.uint8))
        with pytest.raises(DataError, match=rf"{CASE}_seg\.nii\.gz: has the label {value}; expected 0, 1, 2 and 4"):
            brats(case.parent).records()
        assert len(brats(case.parent).check().errors) >= 1
        change(case / f"{CASE}_seg.nii.gz", lambda labels, value=value: np.where(labels == value, 2, labels).astype(np.uint8))


def test_labels_scaled_by_a_header_are_what_they_were(case: Path) -> None:
    """nibabel stores decimals in whole numbers with a slope, and 1 comes back as 1.00002."""
    path, labels = case / f"{CASE}_seg.nii.gz", label_map(case)
    for dtype in (np.int16, np.uint8, np.float32):
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(np.float64), nibabel.load(path).affine)
        image.header.set_data_dtype(dtype)
        nibabel.save(image, path)
        family = brats(case.parent)
        for z, record in enumerate(family.records()):
            np.testing.assert_array_equal(family.read_labels(record).masks["tumor_core"], np.isin(labels[z], (1, 4)))
    change(path, lambda array: np.where(array == 2, 1.75, array))
    with pytest.raises(DataError, match=r"has the label 1\.75; expected 0, 1, 2 and 4"):
        brats(case.parent).records()


@pytest.mark.parametrize("name", ["seg", "flair", "t2"])
def test_voxels_that_are_no_numbers_are_an_error_that_names_the_file(case: Path, name: str) -> None:
    """A tumour of NaN is not "no tumour"."""
    tumor = label_map(case).transpose(2, 1, 0) > 0
    change(case / f"{CASE}_{name}.nii.gz", lambda array: np.where(tumor, np.nan, array).astype(np.float32))
    words = rf"{CASE}_{name}\.nii\.gz: {np.count_nonzero(tumor)} of {tumor.size} voxels are not numbers"
    with pytest.raises(DataError, match=words):
        brats(case.parent, modalities=["flair", "t2"]).records()
    report = brats(case.parent, modalities=["flair", "t2"]).check()
    assert len([error for error in report.errors if re.search(words, error)]) == 1


@pytest.mark.parametrize("value", [-1024, 37])
def test_background_need_not_be_0(case: Path, value: int) -> None:
    first = brats(case.parent).records()
    for path in case.glob("*.nii.gz"):
        if "_seg" not in path.name:
            change(path, lambda array: np.where(array == 0, value, array))
    second = brats(case.parent).records()
    assert [(r.class_counts, r.training, r.labels) for r in second] == [(r.class_counts, r.training, r.labels) for r in first]
    assert any(not r.knows("class:presence") for r in second)  # slices without brain are still known to be such


def test_slices_of_a_tilted_gantry_know_their_angles(case: Path) -> None:
    for path in case.glob("*.nii.gz"):
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[1, 2] = np.tan(np.deg2rad(25)) * affine[2, 2]
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    family = brats(case.parent)
    record = family.records()[0]
    assert record.spacing is not None and record.skew is not None
    high = 140 * 0.97 / 7
    assert record.spacing == pytest.approx((high / np.cos(np.deg2rad(25)), 3.75, 3.75), rel=1e-5)
    voxel = np.prod(record.spacing) * np.sqrt(1 - record.skew[0] ** 2)
    assert voxel == pytest.approx(high * 3.75**2, rel=1e-5) and record.skew[1:] == pytest.approx((0, 0), abs=1e-6)
    assert any("25.0 degrees off a right angle" in note for note in family.check().notes)
    assert brats(case.parent).records()[0] == record


def test_volumes_of_a_case_must_lie_in_the_same_place(case: Path) -> None:
    path = case / f"{CASE}_t1.nii.gz"
    image = nibabel.load(path)
    shifted = image.affine.copy()
    shifted[2, 3] += 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), shifted), path)
    assert len(brats(case.parent).records()) == 8  # t1 is not asked for
    with pytest.raises(DataError, match="Resample one of them"):
        brats(case.parent, modalities=["flair", "t1"]).records()
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)
    with pytest.raises(DataError, match=r"\(63, 64, 8\)"):
        brats(case.parent, modalities=["flair", "t1"]).records()


def test_cases_without_labels_are_left_out(brains: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(brains / "brats", tmp_path / "some"))
    (folder / CASE / f"{CASE}_seg.nii.gz").unlink()
    family = brats(folder)
    assert len(family.records()) == 40 and family.check().counts["cases without labels"] == 1


# -- which slices train ------------------------------------------------------------------------------------------------


def test_what_a_slice_is_for(brains: Path) -> None:
    family = brats(brains, tumor_free_share=0.5, min_brain_share=0.1, min_tumor_pixels=60)
    kinds: Counter[str] = Counter()
    for record in family.records():
        name, z = record.sample_id.split("/")[1:]
        pixels = np.count_nonzero(label_map(brains / "brats" / name)[int(z[1:])])  # at native size, whatever the network sees
        share = (family.read_image(record) > 0).mean()
        sample = family.read_labels(record)
        kind = "edge" if share < 0.1 else "few" if 0 < pixels < 60 else "tumor" if pixels else "free"
        kinds[kind] += 1
        assert record.knows("class:presence") == (kind in ("tumor", "free")) == ("presence" in sample.labels)
        assert record.knows("mask:whole_tumor") and "whole_tumor" in sample.masks
        if kind in ("edge", "few"):
            assert not record.training and "tumor" not in record.class_counts
        else:
            assert record.class_counts["tumor"] == int(kind == "tumor") == sample.labels["presence"]
            assert record.training or kind == "free"
    assert min(kinds[kind] for kind in ("edge", "few", "tumor", "free")) > 0


def test_tumour_free_slices_are_drawn_by_seed_case_and_number(brains: Path, tmp_path: Path) -> None:
    def drawn(folder: Path, **settings: object) -> set[str]:
        records = slices_of(Brain(root=str(folder), **settings))
        return {record.sample_id for record in records if record.training and record.class_counts["no_tumor"]}

    free = {r.sample_id for r in slices_of(Brain(root=str(brains))) if r.class_counts.get("no_tumor")}
    assert drawn(brains, tumor_free_share=1.0) == free and drawn(brains, tumor_free_share=0.0) == set()
    half, other = drawn(brains, tumor_free_share=0.5), drawn(brains, tumor_free_share=0.5, slice_seed=1)
    assert 0 < len(half) < len(free) and half != other
    assert drawn(brains, tumor_free_share=0.2) <= half  # a larger share only adds
    less = tmp_path / "less"
    shutil.copytree(brains, less, ignore=shutil.ignore_patterns(CASE))
    assert drawn(less, tumor_free_share=0.5) == {name for name in half if CASE not in name}


def test_the_scan_is_remembered_until_a_file_changes(case: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached() -> Brain:
        family = brats(case.parent)
        family.memo_folder = cache_home / "mtl"
        return family

    first = cached().records()
    (memo,) = (cache_home / "mtl").glob("files_*.json")
    with monkeypatch.context() as patched:
        patched.setattr("mtl.data.families.brain.files.CaseReader.scan", lambda *_: pytest.fail("scanned again"))
        family = cached()
        assert family.records() == first
        assert any(family.read_labels(record).masks["whole_tumor"].any() for record in first)
    change(case / f"{CASE}_seg.nii.gz", np.zeros_like)
    assert not any(record.class_counts["whole_tumor"] for record in cached().records())
    # A folder that cannot be written, or a damaged file in it, is done without.
    memo.write_text("{")
    assert len(cached().records()) == 8
    shutil.rmtree(cache_home)
    cache_home.write_text("no folder")
    assert len(cached().records()) == 8


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_of_any_suffix_and_mode_are_grey(brains: Path) -> None:
    family = Brain(root=str(brains), sets=["kaggle"], modalities=["flair", "t1ce"], unknown_modality="t1ce")
    records = family.records()
    assert list(family.specs()) == ["presence"] and len(records) == 22
    assert len({Path(record.path).suffix for record in records}) >= 5
    modes = set()
    for record in records:
        with Image.open(record.path) as stored:
            modes.add(stored.mode)
            expected = np.asarray(stored.convert("RGB").convert("L"), np.float32)
        image = family.read_image(record)
        np.testing.assert_array_equal(image[..., 1], expected)
        assert not image[..., 0].any() and record.size == expected.shape
        answer = record.sample_id.split("/")[1]
        assert (
            family.read_labels(record).labels == {"presence": float(answer == "yes")} and not family.read_labels(record).masks
        )
        assert record.labels == ("class:presence",) and record.training
    assert modes >= {"RGB", "L", "RGBA", "P"}
    repeated = Brain(root=str(brains), sets=["kaggle"], modalities=["flair", "t1ce"]).read_image(records[0])
    np.testing.assert_array_equal(repeated[..., 0], repeated[..., 1])


def test_copies_never_straddle_a_split(brains: Path) -> None:
    family = Brain(root=str(brains))
    records = hash_records(family.records())
    by_number = {int(re.sub(r"\D", "", Path(r.path).stem)): r for r in records if r.source == "kaggle"}
    found = [(by_number[number - 500], record) for number, record in by_number.items() if number > 500]
    assert len(found) == 4 and all(a.group == b.group for a, b in found)
    for scheme in ("holdout", "kfold"):
        for seed in range(20):
            split = make_split(records, split_config(scheme=scheme, seed=seed))
            assert all(split[a.sample_id] == split[b.sample_id] for a, b in found)
            where: dict[str, set[str]] = {}
            for record in records:
                where.setdefault(record.group, set()).add(split[record.sample_id])
            assert all(len(splits) == 1 for splits in where.values())
            for name in ("train", "val", "test"):  # each source, and of the pictures both answers
                kinds = {
                    r.sample_id.split("/")[1] if r.source == "kaggle" else "brats"
                    for r in records
                    if split[r.sample_id] == name
                }
                assert kinds == {"brats", "yes", "no"}
    by_file = Brain(root=str(brains), group_by="file").records()
    assert len({record.group for record in by_file}) == 6 + 22 > len({record.group for record in records})


# -- both --------------------------------------------------------------------------------------------------------------


def test_one_normalisation_for_all_sources(brains: Path) -> None:
    """Inside the head every image of either source has mean 0.5 and standard deviation 1 / (2 limit); outside it is 0."""
    family = Brain(root=str(brains))
    geometry = {"mode": "letterbox", "size": [64, 64]}
    preprocessing = Preprocessing.from_config(
        geometry, {"foreground": {"method": "zscore", "limit": 4.0}}, {"mean": [0], "std": [1]}
    )
    records = [record for record in family.records() if record.knows("class:presence")]
    for record in [*records[:10], *records[-10:]]:
        unit = preprocessing.standardised(family.read_image(record))[..., 0]
        assert unit[unit > 0].mean() == pytest.approx(0.5, abs=0.02) and unit[unit > 0].std() == pytest.approx(0.125, abs=0.03)
        assert not unit[0, 0]
        network = preprocessing.normalize(preprocessing.crop(preprocessing.working(family.read_image(record)),
                                                             preprocessing.windows(record.size)[0]))  # fmt: skip
        assert network.shape == (1, 64, 64) and network.dtype == np.float32 and abs(network[network > -4].mean()) < 0.3


def test_the_cache_decodes_each_volume_once(brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.data.formats.volumes import Volume

    family = brats(brains, modalities=["flair", "t2"])
    records = family.records()
    decoded: Counter[str] = Counter()
    original = Volume.array.func

    def count(self: Volume) -> np.ndarray:
        decoded[self.path.name] += 1
        return original(self)

    monkeypatch.setattr(Volume.array, "func", count)
    settings = {"foreground": {"method": "zscore", "limit": 4.0}}
    preprocessing = Preprocessing.from_config(
        {"mode": "letterbox", "size": [64, 64]}, settings, {"mean": [0] * 2, "std": [1] * 2}
    )
    cache = prepare(family, records, preprocessing, tmp_path / "cache", progress=False)
    assert len(decoded) == 12 and set(decoded.values()) == {1}
    for record in records[2:6]:
        raster = cache.read(record.sample_id)
        assert raster.dtype == np.float16
        np.testing.assert_array_equal(raster, preprocessing.working(family.read_image(record)))
    # What a picture fills, and files that are no record's own, decide pixels too.
    assert cache_key(family, records, preprocessing) != cache_key(
        brats(brains, modalities=["flair", "t1"]), records, preprocessing
    )


def test_the_folder_may_be_given_in_several_ways(brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**settings: object) -> Counter[str]:
        return Counter(record.source for record in Brain(**settings).records())

    everything = {"brats": 48, "kaggle": 22}
    assert found(root=str(brains)) == everything
    assert found(root=str(brains.parent)) == everything
    assert found(root=str(brains / "brats")) == {"brats": 48}
    assert found(root=str(brains / "kaggle")) == {"kaggle": 22}
    folders = {"brats": str(brains / "brats"), "kaggle": str(brains / "kaggle")}
    assert found(folders=folders) == everything
    # A given root wins: `evaluate.py data.root=` leaves the folders of the training in the settings.
    assert found(root=str(brains / "kaggle"), folders=folders) == {"kaggle": 22}
    notes = Brain(root=str(brains / "kaggle"), folders=folders).notes()
    assert notes[0].startswith("data.folders.brats and data.folders.kaggle not looked at")
    assert not any("data.folders" in note for note in Brain(folders=folders).check().notes)
    monkeypatch.delenv("MTL_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="MTL_DATA_DIR is not in the environment"):
        Brain().records()
    monkeypatch.setenv("MTL_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="No `brain` data below"):
        Brain().locate()
    (tmp_path / "brain_brats").symlink_to(brains / "brats")
    assert found() == {"brats": 48}
    with pytest.raises(DataError, match="holds no pictures"):
        Brain(sets=["brats", "kaggle"]).locate()
    with pytest.raises(DataError, match=r"data\.folders\.kaggle"):
        Brain(folders={"kaggle": str(brains / "brats")}).locate()
    with pytest.raises(DataError, match="does not exist"):
        Brain(root=str(tmp_path / "nothing")).locate()


def test_settings_that_make_no_sense() -> None:
    for settings, words in (
        ({"sets": ["isic"]}, "Unknown set"),
        ({"sets": []}, "empty"),
        ({"modalities": ["dwi"]}, "Unknown modality"),
        ({"modalities": []}, "at least one"),
        ({"modalities": ["t1", "t1"]}, "each once"),
        ({"unknown_modality": "t2"}, "data.unknown_modality"),
        ({"folders": {"other": None}}, "data.folders"),
        ({"min_tumor_pixels": 0}, "min_tumor_pixels"),
        ({"tumor_free_share": 1.5}, "tumor_free_share"),
        ({"min_brain_share": -0.1}, "min_brain_share"),
    ):
        with pytest.raises(ConfigError, match=words):
            Brain(**settings)


def test_check_collects_everything(brains: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(brains, tmp_path / "damaged"))
    report = Brain(root=str(folder)).check()
    assert not report.errors and report.counts["cases"] == 6 and report.counts["slices"] == 48
    assert report.counts["pictures"] == 22 > report.counts["different pictures"]
    picture = sorted((folder / "kaggle" / "yes").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:300])
    volume = folder / "brats" / CASE / f"{CASE}_flair.nii.gz"
    volume.write_bytes(volume.read_bytes()[:2000])
    errors = Brain(root=str(folder)).check().errors
    assert any(picture.name in error for error in errors) and any(volume.name in error for error in errors)


def test_real_data(real_data: Path) -> None:
    if not (real_data / "brain_brats").is_dir() or not (real_data / "brain_kaggle").is_dir():
        pytest.skip("no brain images here")
    family = Brain()
    records = family.records()
    slices = [record for record in records if record.source == "brats"]
    pictures = [record for record in records if record.source == "kaggle"]
    assert len({record.group for record in slices}) == 7 and len(slices) == 107
    assert sum(record.class_counts.get("tumor", 0) for record in slices) == 98
    assert {record.spacing for record in slices} == {(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (6.0, 1.0, 1.0)}
    assert Counter(record.sample_id.split("/")[1] for record in pictures) == {"yes": 123, "no": 77}
    groups = {record.sample_id.rpartition("/")[2]: record.group for record in pictures}
    assert len(set(groups.values())) == 165
    # Copies that were cut differently, found by looking at them; the last two are different people.
    assert len({groups[name] for name in ("Y255.JPG", "Y30.jpg", "Y38.jpg", "Y54.jpg", "Y70.jpg")}) == 1
    assert groups["Y163.JPG"] == groups["Y33.jpg"] and groups["Y113.JPG"] == groups["Y59.JPG"]
    assert groups["Y27.jpg"] != groups["Y56.jpg"]


# -- what is not read --------------------------------------------------------------------------------------------------


def test_linked_cases_are_read_and_others_are_named(case: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    (root / "UCSF-001").mkdir(parents=True)
    shutil.copyfile(case / f"{CASE}_flair.nii.gz", root / "UCSF-001" / "x_flair.nii.gz")
    (root / "BraTS_dicom").mkdir()
    (root / "BraTS_dicom" / "1.dcm").write_bytes(b"x")
    (root / CASE).symlink_to(case)
    (case / "again").symlink_to(root)  # leads back
    family = brats(root)
    assert {record.case for record in family.records()} == {CASE} and len(family.records()) == 8
    assert any(
        "2 entries (first: BraTS_dicom) left out; expected volumes in folders BraTS*" in note for note in family.check().notes
    )


def test_a_volume_that_is_a_broken_link_is_an_error_not_a_blank_channel(case: Path, tmp_path: Path) -> None:
    (case / f"{CASE}_t1.nii.gz").unlink()
    (case / f"{CASE}_t1.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"_t1\.nii\.gz: cannot be read: it is a link that leads nowhere"):
        brats(case.parent, modalities=["t1", "flair"]).records()


def test_pictures_in_linked_folders_and_of_one_name(tmp_path: Path) -> None:
    root, store = tmp_path / "pictures", tmp_path / "store"
    for number, path in enumerate((root / "yes" / "Y1.jpg", root / "no" / "N1.jpg", store / "Y2.jpg")):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    (root / "yes" / "more").symlink_to(store)
    (root / "yes" / "folder.jpg").mkdir()
    (root / "yes" / "Y3.gif").write_bytes(b"x")
    family = Brain(root=str(root), sets=["kaggle"])
    assert [record.sample_id for record in family.records()] == [
        "kaggle/no/N1.jpg",
        "kaggle/yes/Y1.jpg",
        "kaggle/yes/more/Y2.jpg",
    ]
    assert any("1 files left out that are no images (first: Y3.gif)" in note for note in family.check().notes)
    shutil.copyfile(root / "yes" / "Y1.jpg", root / "yes" / "y1.JPG")
    with pytest.raises(DataError, match=r"y1\.JPG: has the same name as .*Y1\.jpg"):
        Brain(root=str(root), sets=["kaggle"]).records()
    (root / "yes" / "y1.JPG").unlink()
    shutil.rmtree(root / "no")
    assert any(
        "there is no `no/`, so that all pictures are of one class" in note for note in Brain(root=str(root)).check().notes
    )
