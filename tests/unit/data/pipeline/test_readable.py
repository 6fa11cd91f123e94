"""Every file that a run reads is decoded once before it begins, and what could be read is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_fakes import FakeFamily, data_config

from mtl.core.errors import DataError
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.readable import check_readable
from mtl.imaging.preprocessing import Preprocessing


def module_of(family: FakeFamily, **cache: object) -> MultiTaskDataModule:
    config = data_config(cache=cache) if cache else data_config()
    preprocessing = Preprocessing.from_config({"mode": "stretch", "size": [64, 64]}, {"mean": [0.5] * 3, "std": [0.25] * 3})
    family.memo_folder = config.cache.place
    return MultiTaskDataModule(family, family.specs(), preprocessing, config)


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
