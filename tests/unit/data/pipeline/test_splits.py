from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from data_fakes import split_config

from mtl.core.errors import ConfigError, DataError
from mtl.core.memo import Memo
from mtl.core.types import Record
from mtl.data.pipeline.splits import SPLITS, hash_records, load_split, make_split, save_split


def make(groups: int = 20, each: int = 5, strata: int = 1, **extra: object) -> list[Record]:
    return [
        Record(
            f"p{g:02d}-{i}", f"p{g:02d}", "fake", f"/x/p{g:02d}-{i}.png", stratum=g % strata,
            groups={"patient": f"p{g:02d}", "field": f"f{i}"}, content_hash=f"{g}-{i}", **extra,
        )
        for g in range(groups)
        for i in range(each)
    ]  # fmt: skip


def groups_of(records: list[Record], split: dict[str, str], name: str) -> set[str]:
    return {r.group for r in records if split[r.sample_id] == name}


@pytest.mark.parametrize("seed", range(5))
def test_holdout_keeps_groups_apart_and_hits_the_ratios(seed):
    records = make(40, 5)
    split = make_split(records, split_config(scheme="holdout", ratios=[0.7, 0.15, 0.15], seed=seed))
    parts = [groups_of(records, split, name) for name in SPLITS]
    assert [len(part) for part in parts] == [28, 6, 6]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_split_ignores_file_order_and_follows_the_seed():
    records = make()
    shuffled = records[:]
    random.Random(0).shuffle(shuffled)
    config = split_config(scheme="holdout", seed=1)
    assert make_split(records, config) == make_split(shuffled, config)
    assert make_split(records, config) != make_split(records, config.model_copy(update={"seed": 2}))


def test_strata_are_spread_over_the_splits():
    records = make(60, 2, strata=3)
    split = make_split(records, split_config(scheme="holdout", seed=3))
    for name, expected in zip(SPLITS, (14, 3, 3), strict=True):
        per_stratum = Counter(int(g[1:]) % 3 for g in groups_of(records, split, name))
        assert all(abs(per_stratum[k] - expected) <= 1 for k in range(3)), (name, per_stratum)


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
@pytest.mark.parametrize("seed", range(6))
def test_large_groups_of_one_source_do_not_outweigh_another_source(seed, scheme):
    """Volumes of 155 slices beside single pictures: each source is spread by its own shares."""
    volumes = [
        replace(r, sample_id=f"v{r.sample_id}", group=f"v{r.group}", source="volumes", stratum=2, content_hash="")
        for r in make(11, 155)
    ]
    pictures = [replace(r, stratum=int(r.group < "p60")) for r in make(100, 1)]
    split = make_split(volumes + pictures, split_config(scheme=scheme, seed=seed))
    shares = {"train": 0.7, "val": 0.15, "test": 0.15} if scheme == "holdout" else {"train": 0.6, "val": 0.2, "test": 0.2}
    for name, share in shares.items():
        assert abs(len(groups_of(pictures, split, name)) - 100 * share) <= 1
        assert abs(len({g for g in groups_of(pictures, split, name) if g < "p60"}) - 60 * share) <= 1
        assert abs(len(groups_of(volumes, split, name)) - 11 * share) <= 1


def test_stratify_off_is_another_split():
    records = make(60, 2, strata=3)
    config = split_config(scheme="holdout", seed=3)
    assert make_split(records, config) != make_split(records, config.model_copy(update={"stratify": False}))


def test_groups_of_very_different_size_still_hit_the_ratio_of_samples():
    records = make(2, 40) + [
        replace(r, sample_id="s" + r.sample_id, group="s" + r.group, content_hash="s" + r.content_hash) for r in make(40, 3)
    ]
    split = make_split(records, split_config(scheme="holdout", seed=0))
    share = Counter(split.values())
    assert abs(share["train"] / len(records) - 0.7) < 0.12 and share["val"] and share["test"]


def test_three_groups_give_one_to_each_split():
    for seed in range(5):
        records = make(3, 2, strata=2)
        split = make_split(records, split_config(scheme="holdout", seed=seed))
        assert all(len(groups_of(records, split, name)) == 1 for name in SPLITS)


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups_is_one_sentence_with_the_way_out(groups):
    with pytest.raises(DataError, match=f"at least 3 groups, found {groups}.*data.group_by"):
        make_split(make(groups), split_config(scheme="holdout"))


def test_every_sample_is_tested_in_exactly_one_fold():
    records = make(11, 3)
    tested = Counter()
    for fold in range(4):
        split = make_split(records, split_config(scheme="kfold", folds=4, fold=fold, seed=5))
        tested.update(sample for sample, name in split.items() if name == "test")
        following = make_split(records, split_config(scheme="kfold", folds=4, fold=(fold + 1) % 4, seed=5))
        assert groups_of(records, split, "val") == groups_of(records, following, "test")
    assert tested == Counter({r.sample_id: 1 for r in records})


def test_leave_one_out_takes_each_group_in_turn():
    records = make(4, 3)
    for fold in range(4):
        split = make_split(records, split_config(scheme="leave_one_out", fold=fold))
        assert groups_of(records, split, "test") == {f"p{fold:02d}"}
    with pytest.raises(ConfigError, match=r"data\.split\.fold"):
        make_split(records, split_config(scheme="leave_one_out", fold=4))


@pytest.mark.parametrize("scheme", ["leave_one_out", "holdout", "kfold"])
def test_val_group_by_cuts_validation_by_a_smaller_unit(scheme):
    records = make(3, 4)
    config = split_config(scheme=scheme, fold=1, folds=3, val_group_by="field", seed=0)
    split = make_split(records, config)
    test = groups_of(records, split, "test")
    assert len(test) == 1 and not test & (groups_of(records, split, "train") | groups_of(records, split, "val"))
    assert groups_of(records, split, "val") & groups_of(records, split, "train")  # one patient serves both, as asked for
    with pytest.raises(ConfigError, match="Did you mean `field`"):
        make_split(records, config.model_copy(update={"val_group_by": "fields"}))


def test_official_split_is_kept_and_validation_cut_from_train():
    records = [replace(r, official_split="test" if r.group < "p05" else "train") for r in make(20)]
    split = make_split(records, split_config(scheme="official", ratios=[0.8, 0.2, 0.1]))
    assert groups_of(records, split, "test") == {f"p{g:02d}" for g in range(5)}
    assert len(groups_of(records, split, "val")) == 3
    with pytest.raises(DataError, match="1 samples have no official split"):
        make_split([*records[:-1], replace(records[-1], official_split=None)], split_config(scheme="official"))


def test_official_training_copies_of_test_images_are_left_out():
    records = [replace(r, official_split="test" if r.group < "p05" else "train") for r in make(20)]
    copies = [replace(r, sample_id=f"copy_{r.sample_id}", official_split="train") for r in records if r.group < "p02"]
    split = make_split([*records, *copies], split_config(scheme="official", ratios=[0.8, 0.2, 0.1]))
    assert {split[copy.sample_id] for copy in copies} == {"left_out"}
    assert {name: value for name, value in split.items() if not name.startswith("copy_")} == make_split(
        records, split_config(scheme="official", ratios=[0.8, 0.2, 0.1])
    )


def test_file_round_trip(tmp_path):
    records = make(5, 2)
    records[0] = replace(records[0], group='a "b", c')
    records[1] = replace(records[1], group='a "b", c')
    split = make_split(records, split_config(scheme="holdout"))
    path = tmp_path / "run" / "split.csv"
    save_split(path, records[::-1], split)
    assert load_split(path) == split
    assert path.read_text().splitlines()[0] == "sample_id,group,source,split,content_hash"
    assert make_split(records, split_config(scheme="file", file=str(path))) == split
    assert [p.name for p in path.parent.iterdir()] == ["split.csv"]
    config = split_config(scheme="file", file=str(path))
    with pytest.raises(DataError, match="lacks 1 of"):
        make_split([*records, replace(records[0], sample_id="new")], config)
    with pytest.raises(DataError, match="names 1 samples"):
        make_split(records[1:], config)
    with pytest.raises(DataError, match="content differs"):
        make_split([replace(records[0], content_hash="other"), *records[1:]], config)


def test_broken_split_files_say_where(tmp_path):
    path = tmp_path / "split.csv"
    with pytest.raises(DataError, match=r"data\.split\.file"):
        make_split(make(), split_config(scheme="file", file=str(path)))
    path.write_text("sample_id,split\na,train\nb,training\n")
    with pytest.raises(DataError, match=r"line 3.*training"):
        load_split(path)
    path.write_text("sample_id,split\na,train\na,val\n")
    with pytest.raises(DataError, match=r"line 3.*twice"):
        load_split(path)


def test_a_split_file_cannot_smuggle_a_patient_into_two_splits(tmp_path):
    records = make(4, 2)
    path = tmp_path / "split.csv"
    names = ["train", "val", "test", "train", "val", "val", "test", "test"]
    path.write_text("sample_id,split\n" + "".join(f"{r.sample_id},{n}\n" for r, n in zip(records, names, strict=True)))
    with pytest.raises(DataError, match=r"`p0\d` is in two splits"):
        make_split(records, split_config(scheme="file", file=str(path)))


def test_the_same_image_under_two_names_is_found():
    records = [replace(r, content_hash="same" if r.sample_id in ("p00-0", "p07-3") else r.content_hash) for r in make(20)]
    caught = 0
    for seed in range(12):
        try:
            split = make_split(records, split_config(scheme="holdout", seed=seed))
        except DataError as error:
            caught += 1
            assert "/x/p00-0.png" in str(error) and "/x/p07-3.png" in str(error)
        else:
            assert split["p00-0"] == split["p07-3"]
    assert 0 < caught < 12


@pytest.mark.parametrize("ratios", [[0.7, 0.3], [1.0, 0.0, 0.0], [0.5, -0.1, 0.6]])
def test_ratios_must_make_sense(ratios):
    with pytest.raises(ConfigError, match=r"data\.split\.ratios"):
        make_split(make(), split_config(scheme="holdout", ratios=ratios))


def test_unknown_scheme_and_no_samples():
    with pytest.raises(ConfigError, match="Did you mean `kfold`"):
        make_split(make(), split_config(scheme="k_fold"))
    with pytest.raises(DataError, match="no samples"):
        make_split([], split_config(scheme="holdout"))


def test_hashes_are_of_the_content_and_remembered(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("1", "1", "2"), strict=True):
        path.write_text(text)
    records = [Record(p.name, p.name, "fake", str(p)) for p in paths]
    folder = tmp_path / "memo"
    first, second, third = hash_records(records, Memo(folder, tmp_path))
    assert first.content_hash == second.content_hash != third.content_hash and len(first.content_hash) == 64
    monkeypatch.setattr("mtl.data.pipeline.splits.file_hash", lambda path: f"read {path}")
    assert hash_records(records, Memo(folder, tmp_path))[2].content_hash == third.content_hash
    paths[2].write_text("changed")
    assert hash_records(records, Memo(folder, tmp_path))[2].content_hash.startswith("read")
    paths[0].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        hash_records(records, Memo(folder, tmp_path))


def test_few_groups_of_several_sources_keep_the_ratios_and_spread_the_labels():
    """Sources of two or three slides each gave one slide to validation per source: 4, 3 and 1 of eight."""
    for seed in range(20):
        slides = [
            Record(f"{source}{n}", f"{source}{n}", source, f"/x/{source}{n}.png", content_hash=f"{source}{n}",
                   labels=("objects",) if source == "b" or n == 0 else ("mask:tissue",))
            for source, count in (("a", 3), ("b", 3), ("c", 2)) for n in range(count)
        ]  # fmt: skip
        split = make_split(slides, split_config(scheme="holdout", ratios=[0.7, 0.15, 0.15], seed=seed))
        counts = Counter(split.values())
        for label in ("objects", "mask:tissue"):  # three slides have the second, so that validation and test need two each
            assert {split[r.sample_id] for r in slides if r.knows(label)} == set(SPLITS), seed
        assert (counts["train"], counts["val"], counts["test"]) == (4, 2, 2), seed
        alike = [replace(r, labels=None) for r in slides]
        counts = Counter(make_split(alike, split_config(scheme="holdout", ratios=[0.7, 0.15, 0.15], seed=seed)).values())
        assert counts["train"] in (5, 6) and counts["val"] in (1, 2) and counts["test"] in (1, 2), seed


def test_a_rare_label_reaches_every_fold():
    records = [replace(r, labels=("mask",) if r.group in ("p00", "p01", "p02", "p03") else ("grade",)) for r in make(20, 2)]
    for seed in range(10):
        tested = Counter()
        for fold in range(4):
            split = make_split(records, split_config(scheme="kfold", folds=4, fold=fold, seed=seed))
            tested.update(split[r.sample_id] for r in records if r.knows("mask"))
            assert {split[r.sample_id] for r in records if r.knows("mask")} == set(SPLITS)
        assert tested["test"] == 8


def test_labels_that_too_few_groups_have_change_nothing():
    records = make(20, 2)
    few = [replace(r, labels=("mask",) if r.group < "p02" else ("grade",)) for r in records]
    config = split_config(scheme="holdout", seed=4)
    assert make_split(few, config) == make_split(records, config)
