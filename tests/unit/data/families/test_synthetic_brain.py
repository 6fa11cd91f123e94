"""Synthetic volumes and pictures of brains are in the native layouts, plausible and learnable."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mtl.core.errors import ConfigError, DataError
from mtl.data.families.brain.family import Brain
from mtl.data.families.brain.generator import generate_brain
from mtl.imaging.intensity import brain_mask
from mtl.imaging.preprocessing import Preprocessing
from mtl.report.data_pages import show_samples, write_stats


def test_native_layout(brains: Path) -> None:
    case = brains / "brats" / "BraTS20_Training_003"
    assert {path.name.removeprefix(f"{case.name}_") for path in case.iterdir()} == {
        "flair.nii.gz", "t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "seg.nii.gz",
    }  # fmt: skip
    volume = nibabel.load(case / f"{case.name}_t1.nii.gz")
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S") and volume.shape == (64, 64, 8)
    assert volume.get_data_dtype() == np.int16
    assert set(np.unique(nibabel.load(case / f"{case.name}_seg.nii.gz").dataobj)) == {0, 1, 2, 4}
    assert len(list((brains / "kaggle" / "yes").iterdir())) == len(list((brains / "kaggle" / "no").iterdir())) == 11


def test_it_passes_the_check(brains: Path) -> None:
    report = Brain(root=str(brains)).check()
    assert not report.errors
    assert min(report.counts[f"slices: {name}"] for name in ("no_tumor", "tumor", "enhancing_tumor")) >= 6


def test_tumours_look_as_they_do_in_each_sequence(brains: Path) -> None:
    """Oedema is brighter than the brain in flair, the ring in t1ce; both can be learned from a threshold."""
    family = Brain(root=str(brains), sets=["brats"], modalities=["flair", "t1ce"])
    for record in (record for record in family.records() if record.class_counts.get("tumor")):
        masks = {name: mask > 0 for name, mask in family.read_labels(record).masks.items()}
        flair, t1ce = np.moveaxis(family.read_image(record), 2, 0)
        brain = brain_mask(flair)
        assert not masks["whole_tumor"][~brain].any()
        healthy, oedema = brain & ~masks["whole_tumor"], masks["whole_tumor"] & ~masks["tumor_core"]
        assert np.median(flair[oedema]) > 1.4 * np.median(flair[healthy])
        if masks["enhancing_tumor"].sum() > 20:
            assert np.median(t1ce[masks["enhancing_tumor"]]) > 1.4 * np.median(t1ce[healthy])


def test_pictures_show_a_skull(brains: Path) -> None:
    family = Brain(root=str(brains), sets=["kaggle"])
    for record in family.records():
        image = family.read_image(record)[..., 0]
        mask = brain_mask(image)
        assert 0.4 < mask.mean() < 0.95 and not mask[0, 0]


def test_repeatable_and_safe(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        def content(path: Path) -> bytes:
            # The header of gzip holds the time.
            return np.asarray(nibabel.load(path).dataobj).tobytes() if ".nii" in path.name else path.read_bytes()

        return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*.*"))}

    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_brain(tmp_path / name, patients=1, fields=3, seed=seed, width=48)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    with pytest.raises(DataError, match="overwrite=true"):
        generate_brain(tmp_path / "a", patients=1, fields=3, seed=1, width=48)
    for wrong in ({"patients": 0}, {"fields": 2}, {"width": 20}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            generate_brain(tmp_path / "d", **{"patients": 1, "fields": 3, "seed": 0, "width": 64, **wrong})
    with pytest.raises(ConfigError, match="`kind`"):
        Brain.generate(tmp_path / "d", patients=1, fields=3, seed=0, width=64, kind="both", overwrite=False)


def test_figures_and_tables(brains: Path, tmp_path: Path) -> None:
    family = Brain(root=str(brains), modalities=["flair", "t1"])
    records = family.records()
    foreground = {"foreground": {"method": "zscore", "limit": 4.0}}
    preprocessing = Preprocessing.from_config({"mode": "letterbox", "size": [64, 64]}, foreground)
    assert len(show_samples(family, [records[3], records[-1]], tmp_path, 2, seed=0, preprocessing=preprocessing)) == 2
    write_stats(family, records, tmp_path)
    with (tmp_path / "groups.csv").open() as file:
        total = list(csv.DictReader(file))[-1]
    assert int(total["images"]) == 70 and int(total["tumor"]) == sum(r.class_counts.get("tumor", 0) for r in records)
