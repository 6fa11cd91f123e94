"""Every file that a run reads is decoded once before it begins, and what could be read is remembered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_fakes import FakeFamily, data_config

from mtl.core.errors import DataError
from mtl.data.families.brain.family import Brain
from mtl.data.families.idrid.family import Idrid
from mtl.data.formats.duplicates import near_duplicates
from mtl.data.formats.tables import unmatched_rows
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.readable import check_readable
from mtl.imaging.preprocessing import Preprocessing


def module_of(family: FakeFamily, **cache: object) -> MultiTaskDataModule:
    config = data_config(cache=cache) if cache else data_config()
    preprocessing = Preprocessing.from_config({"mode": "stretch", "size": [64, 64]}, {"mean": [0.5] * 3, "std": [0.25] * 3})
    family.memo_folder = config.cache.place
    return MultiTaskDataModule(family, family.specs(), preprocessing, config, records=family.records())


def damage(family: FakeFamily, *numbers: int) -> None:
    """Cut files short behind their header."""
    for number in numbers:
        path = family.root / f"s{number:02d}.png"
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("cached", [False, True])
def test_all_broken_files_are_named_before_training(tmp_path: Path, cached: bool) -> None:
    family = FakeFamily(tmp_path).generate()
    module = module_of(family, enabled=cached, folder=str(tmp_path / "cache"))
    damage(family, 3, 7, 11)
    with pytest.raises(DataError) as caught:
        module.setup("fit")
    assert all(f"s{number:02d}.png` cannot be decoded" in str(caught.value) for number in (3, 7, 11))
    assert str(caught.value).startswith("3 errors in the files of this run:")


def test_each_file_is_decoded_once_and_then_remembered(tmp_path: Path) -> None:
    family = FakeFamily(tmp_path).generate()
    first = module_of(family)
    first.setup("fit")
    assert sorted(family.decoded) == [f"s{number:02d}" for number in range(12)]
    first.for_stage(["detection"], None, first.config.loader, 1).setup("fit")
    module_of(family).setup("fit")  # of the same run: the evaluation at its end
    assert len(family.decoded) == 12


def test_with_a_cache_only_the_cache_decodes_images(tmp_path: Path) -> None:
    family = FakeFamily(tmp_path).generate()
    module_of(family, enabled=True, folder=str(tmp_path / "cache")).setup("fit")
    assert sorted(family.decoded) == [f"s{number:02d}" for number in range(12)]
    later = FakeFamily(tmp_path)
    later.read_labels = None  # type: ignore[assignment, method-assign]  # not asked: the memo beside the cache knows
    module_of(later, enabled=True, folder=str(tmp_path / "cache")).setup("fit")
    assert later.decoded == []


def test_a_changed_file_or_setting_is_read_again(tmp_path: Path) -> None:
    def decoded(**settings: object) -> int:
        family = FakeFamily(tmp_path)
        family.memo_folder = tmp_path / "cache"
        check_readable(family, family.records(), dict(settings))
        return len(family.decoded)

    FakeFamily(tmp_path).generate()
    assert [decoded(limit=1), decoded(limit=1), decoded(limit=2), decoded(limit=1, root="moved")] == [12, 0, 12, 0]
    damage(FakeFamily(tmp_path), 5)
    for _ in range(2):  # an error is not remembered
        with pytest.raises(DataError, match=r"s05.png` cannot be decoded"):
            decoded(limit=1)


def test_masks_and_volumes_are_files_too(retinas: Path, brains: Path, tmp_path: Path) -> None:
    """A file that ends early has a fine header; all that a family opens beside the image itself is decoded."""
    eyes = shutil.copytree(retinas, tmp_path / "retinas")
    mask = sorted(eyes.rglob("*_EX.tif"))[0]
    family = Idrid(root=str(eyes), sets=["segmentation"], group_by="image")
    records = family.records()
    assert sum(str(mask) in family.files_of(record) for record in records) == 1
    mask.write_bytes(mask.read_bytes()[:-40])
    with pytest.raises(DataError, match=mask.name):
        check_readable(family, records, {})
    heads = Brain(root=str(brains / "brats"), modalities=["flair", "t1"])
    case = next(record for record in heads.records() if record.case)
    kinds = sorted(Path(file).name.removesuffix(".nii.gz").rpartition("_")[2] for file in heads.files_of(case))
    assert kinds == ["flair", "seg", "t1"]


def test_all_images_that_a_search_for_copies_cannot_decode_are_named(tmp_path: Path) -> None:
    family = FakeFamily(tmp_path).generate()
    damage(family, 1, 4)
    with pytest.raises(DataError) as caught:
        near_duplicates([record.path for record in family.records()])
    assert "2 errors in the images" in str(caught.value) and "2 files, first" in str(caught.value)


def test_rows_about_images_that_are_simply_not_here_are_no_loss() -> None:
    table = Path("grades.csv")
    assert unmatched_rows("rows", table, ["a", "b", "c"], bare=0, used=10) == []
    (lost,) = unmatched_rows("rows", table, ["a", "b", "c"], bare=2, used=8)
    assert (lost.lost, lost.total) == (2, 10) and str(lost).startswith("2 of 10 rows cannot be used: grades.csv names them")
