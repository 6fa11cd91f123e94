from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import split_config
from PIL import Image

from mtl.core.errors import ConfigError, DataError
from mtl.data.families.idrid.family import GRADES, LESIONS, Idrid
from mtl.data.families.idrid.generator import generate_idrid
from mtl.data.pipeline.splits import hash_records, make_split


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_native_layout(retinas: Path) -> None:
    assert sorted(path.name for path in retinas.glob("[!.]*")) == ["A. Segmentation", "B. Disease Grading", "C. Localization"]
    truth = retinas / "A. Segmentation" / "2. All Segmentation Groundtruths"
    assert {path.name for path in truth.glob("*/*")} == {
        "1. Microaneurysms", "2. Haemorrhages", "3. Hard Exudates", "4. Soft Exudates", "5. Optic Disc",
    }  # fmt: skip
    modes = {path.stem[-2:]: set() for path in truth.rglob("*.tif")}
    for path in truth.rglob("*.tif"):
        with Image.open(path) as image:
            modes[path.stem[-2:]].add(image.mode)
    assert modes["EX"] == {"P", "RGBA"} and modes["HE"] == {"1"} and modes["OD"] == {"L"}
    training, testing = sorted((retinas / "B. Disease Grading" / "2. Groundtruths").iterdir())
    lines = training.read_bytes().split(b"\r\n")
    assert lines[0] == b"Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,," and lines[1].endswith(b",,,,,,,,,")
    assert testing.read_bytes().startswith(b"Image name,Retinopathy grade,Risk of macular edema \r\nIDRiD_001,")
    centres = sorted((retinas / "C. Localization" / "2. Groundtruths").rglob("*.csv"))
    assert [path.name for path in centres] == [
        "IDRiD_OD_Center_Testing Set_Markups.csv",
        "IDRiD_OD_Center_Training Set_Markups.csv",
        "IDRiD_Fovea_Center_Testing Set_Markups.csv",
        "IDRiD_Fovea_Center_Training Set_Markups.csv",
    ]
    assert centres[0].read_bytes().endswith(b",,,,,,,,,\r\n")


def test_it_passes_the_check(retinas: Path) -> None:
    report = Idrid(root=str(retinas)).check()
    assert report.errors == []
    assert report.counts["photographs"] == 20
    assert report.counts["soft_exudates"] == report.counts["microaneurysms"] / 2 == 4
    assert len(report.notes) == 2 and "in an official training part and in an official test part: 1 (" in report.notes[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_sets_have_all_parts_and_grades(tmp_path: Path, seed: int) -> None:
    generate_idrid(tmp_path / "out", patients=8, fields=2, seed=seed, width=96)
    family = Idrid(root=str(tmp_path / "out"))
    records = family.records()
    graded = [record for record in records if record.source == "idrid_grading"]
    assert {record.stratum for record in graded} == {0, 1, 2, 3, 4}
    assert sum(record.source == "idrid_segmentation" for record in records) == 6 and len(graded) >= 10
    split = make_split(hash_records(records), split_config(scheme="official"))
    for letter in "ABC":
        used = {split[record.sample_id] for record in records if record.sample_id[0] == letter}
        assert used >= {"train", "test"}, letter
    assert "val" in split.values()


def test_the_smallest_set(tmp_path: Path) -> None:
    generate_idrid(tmp_path / "out", patients=2, fields=2, seed=0, width=64)
    parts = {record.sample_id.rpartition("/")[0] for record in Idrid(root=str(tmp_path / "out")).records()}
    assert parts == {"A/train", "A/test", "B/train", "B/test", "C/train", "C/test"}


def test_lesions_are_where_the_masks_say(retinas: Path) -> None:
    family = Idrid(root=str(retinas))
    contrast: dict[str, list[float]] = {name: [] for name, _ in LESIONS.values()}
    for record in family.records():
        if record.source != "idrid_segmentation":
            continue
        green, masks = family.read_image(record)[..., 1].astype(float), family.read_labels(record).masks
        lesions = masks["lesions"].any(axis=2)
        ground = np.median(green[(green > 40) & ~lesions])
        for name in contrast:
            if masks[name].any():
                alone = (masks[name] > 0) & (masks["lesions"].sum(axis=2) == 1)
                contrast[name].append(float(np.mean(green[alone]) - ground))
    assert max(contrast["lesions_he"]) < -15 and np.mean(contrast["lesions_ma"]) < -8
    assert min(contrast["lesions_ex"]) > 15 and np.mean(contrast["lesions_se"]) > 8 and min(contrast["optic_disc"]) > 25


def test_grades_follow_the_lesions(tmp_path: Path) -> None:
    """Among photographs that are in A and B, the grade of edema says whether exudates are close to the fovea."""
    generate_idrid(tmp_path / "out", patients=12, fields=3, seed=4, width=240)
    family = Idrid(root=str(tmp_path / "out"))
    by_group: dict[str, dict[str, Any]] = {}
    for record in family.records():
        by_group.setdefault(record.group, {})[record.source] = family.read_labels(record)
    seen = set()
    for samples in by_group.values():
        if len(samples) < 3:
            continue
        masked, graded, points = (samples[f"idrid_{name}"] for name in ("segmentation", "grading", "localization"))
        edema = int(graded.labels["edema"])
        fovea = points.objects.points[1] / points.pixel_scale
        rows, columns = np.nonzero(masked.masks["lesions_ex"])
        distance = np.hypot((columns + 0.5) / masked.pixel_scale - fovea[0], (rows + 0.5) / masked.pixel_scale - fovea[1])
        assert graded.labels["grade"] >= 2 and edema > 0
        assert (distance.min() < 2 * 262) == (edema == 2)
        # The centre of the disc is the one that its mask has.
        rows, columns = np.nonzero(masked.masks["optic_disc"])
        centre = np.asarray([columns.mean(), rows.mean()]) / masked.pixel_scale
        assert np.hypot(*(centre - points.objects.points[0] / points.pixel_scale)) < 60
        seen.add(edema)
    assert seen == {1, 2}
    graded = [samples["idrid_grading"].labels for samples in by_group.values() if "idrid_grading" in samples]
    assert [labels["edema"] for labels in graded if labels["grade"] < 2] == [0.0] * sum(
        labels["grade"] < 2 for labels in graded
    )


def test_copies_are_smaller(retinas: Path) -> None:
    sizes = {record.sample_id[0]: record.size for record in Idrid(root=str(retinas)).records()}
    assert sizes == {"A": (128, 192), "B": (96, 144), "C": (96, 144)}


def test_repeatable(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate_idrid(tmp_path / name, patients=2, fields=2, seed=seed, width=64)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    pictures = [name for name in first if name.endswith(".jpg")]
    assert all(other.get(name) != first[name] for name in pictures)


def test_existing_folders_are_safe(tmp_path: Path) -> None:
    output = tmp_path / "out"
    generate_idrid(output, 2, 2, 0, width=64)
    before = files(output)
    with pytest.raises(DataError, match="exists already"):
        generate_idrid(output, 2, 2, 1, width=64)
    assert files(output) == before
    generate_idrid(output, 2, 2, 1, width=64, overwrite=True)
    assert files(output) != before
    (output / "thesis.doc").write_text("years of work")
    with pytest.raises(DataError, match=r"not made by this command: `thesis\.doc`, added or changed"):
        generate_idrid(output, 2, 2, 2, width=64, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("mtl.data.families.idrid.generator._write_mask", fail)
    with pytest.raises(OSError, match="disk is full"):
        generate_idrid(tmp_path / "out", 2, 2, 0, width=64)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        generate_idrid(tmp_path / "out", 0, 0, -1, width=10)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="at least 4 photographs"):
        generate_idrid(tmp_path / "out", 3, 1, 0)
    settings = {"patients": 2, "fields": 2, "seed": 0, "width": None, "overwrite": False}
    with pytest.raises(ConfigError, match="`kind` chooses among variants of a layout; retinal photographs have one"):
        Idrid.generate(tmp_path / "out", kind="points", **settings)


def test_speed(tmp_path: Path) -> None:
    start = time.perf_counter()
    generate_idrid(tmp_path / "out", patients=6, fields=2, seed=0, width=240)
    assert (time.perf_counter() - start) / 12 < 0.5  # about 0.035 s on an idle core; generous for a busy machine


def test_classes_of_the_grades(retinas: Path) -> None:
    names = {name for classes in GRADES.values() for name in classes}
    counted = dict.fromkeys(names, 0)
    for record in Idrid(root=str(retinas), sets=["grading"]).records():
        assert set(record.class_counts) == names and sum(record.class_counts.values()) == 2
        for name in names:
            counted[name] += record.class_counts[name]
    assert all(counted.values())
