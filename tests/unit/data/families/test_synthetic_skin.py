from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mtl.core.errors import ConfigError, DataError
from mtl.data.families.skin.family import Skin
from mtl.data.families.skin.generator import generate_skin
from mtl.data.families.skin.painter import DIAGNOSES, SKIN_TYPES, generate_lesion, photograph
from mtl.data.formats.images import read_mask, read_rgb

TWO = {"diagnosis": list(DIAGNOSES), "skin_type": list(SKIN_TYPES)}


def test_everything_that_the_family_reads_is_there(lesions: Path) -> None:
    family = Skin(root=str(lesions), attributes=TWO)
    records = family.records()
    report = family.check()
    assert report.errors == [] and report.counts["images"] == 24 and report.counts["groups"] == 12
    assert sum(record.knows("mask:lesion") for record in records) == 8
    assert 0 < sum(record.knows("class:skin_type") for record in records) < 24
    parts = {part: [record for record in records if record.official_split == part] for part in ("train", "val", "test")}
    assert [len(some) for some in parts.values()] == [16, 4, 4]
    assert all(any(record.knows("mask:lesion") for record in some) for some in parts.values())
    assert {name for record in parts["train"] for name, count in record.class_counts.items() if count} >= {*DIAGNOSES, "dry"}
    assert {key for record in records for key in record.attributes} == {"age", "sex", "skin_tone"}
    assert any("age" not in record.attributes for record in records)
    # Two pictures of one lesion stay together.
    lesion = [record.groups["lesion"] for record in records]
    assert len(set(lesion)) == 12 and all(lesion.count(name) == 2 for name in lesion)


def test_masks_lie_on_the_lesions(lesions: Path) -> None:
    for path in (lesions / "masks").iterdir():
        mask = read_mask(path).astype(bool)
        image = read_rgb(lesions / "images" / f"{path.stem}.jpg").astype(float).mean(axis=2)
        assert 0.03 < mask.mean() < 0.6
        near = ~mask & (np.roll(mask, 6, 0) | np.roll(mask, -6, 0) | np.roll(mask, 6, 1) | np.roll(mask, -6, 1))
        assert image[mask].mean() < image[near].mean() - 8


def test_classes_show() -> None:
    """A melanoma has several colours, a keratosis dots, a nevus neither: variation inside the mask tells them apart."""
    spread = {}
    for name in DIAGNOSES:
        values = []
        for seed in range(6):
            lesion = generate_lesion(np.random.default_rng(seed), name)
            image, mask = photograph(np.random.default_rng(100 + seed), lesion, 96, 2, "normal")
            values.append(image[mask].std(axis=0).mean())
        spread[name] = np.mean(values)
    assert spread["nevus"] < spread["seborrheic_keratosis"] < spread["melanoma"]


def test_plain_ids_and_seeds(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_skin(tmp_path / name, patients=3, fields=3, seed=seed, width=48, kind="ids")
    labels = json.loads((tmp_path / "a" / "labels.json").read_text())
    assert set(labels.values()) <= {0, 1, 2} and len(labels) == 9 and Skin(root=str(tmp_path / "a")).check().errors == []
    with (tmp_path / "a" / "metadata.csv").open() as file:
        assert [row["lesion_id"] for row in csv.DictReader(file)][:3] == ["L000_0", "L000_0", "L000_1"]
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())] for name in "abc"}
    assert files["a"] == files["b"] != files["c"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`patients` is 2; expected at least 3"):
        generate_skin(tmp_path / "new", patients=2, fields=1, seed=0)
    with pytest.raises(ConfigError, match="Unknown kind `polygons`"):
        generate_skin(tmp_path / "new", patients=3, fields=1, seed=0, kind="polygons")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="Nothing is replaced"):
        generate_skin(tmp_path / "mine", patients=3, fields=1, seed=0, overwrite=True)
