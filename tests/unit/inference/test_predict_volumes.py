"""Volumes: predicted slice by slice, written back onto their own voxels, whatever the orientation."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from grey_tools import LETTERBOX, STRETCH, BrightModel, head

import mtl.inference.predict as command
from mtl.core.errors import DataError
from mtl.data.families.brain.family import Brain
from mtl.imaging.geometry import Geometry
from mtl.inference.images import case_files, find_images, is_case
from mtl.inference.predictor import Predictor
from mtl.inference.volumes import label_slice, labels_of, predict_case, read_case

# What the world holds: right-left, anterior-posterior and inferior-superior extent of a bright block in millimetres.
SPACING = (1.0, 1.5, 4.0)  # along right, anterior, superior
SHAPE = (72, 60, 6)
BLOCK = np.s_[20:40, 30:45, 2:4]
ORIENTATIONS = ("RAS", "LPS", "PSR", "SAL", "IRP")


def world() -> np.ndarray:
    """Grey values indexed by (right, anterior, superior)."""
    volume = np.zeros(SHAPE, np.float32)
    volume[...] = head(SHAPE[:2], (0, 0, 0, 0))[..., None]
    volume[..., 0] = 0  # a slice below the head
    volume[BLOCK] = 1.0
    return volume


def save(path: Path, volume: np.ndarray, orientation: str = "RAS") -> np.ndarray:
    """Store a world with its axes in some order; returns what is in the file."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    image = nibabel.Nifti1Image(volume, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(orientation)
    )
    image = image.as_reoriented(turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return np.asarray(image.dataobj)


def make(modalities: tuple[str, ...] = ("flair",), **settings: Any) -> Predictor:
    return Predictor(BrightModel(channels=len(modalities), **settings), device="cpu", modalities=modalities)


def run(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, source: Path, output: Path) -> list[str]:
    monkeypatch.setattr(command, "load_predictor", lambda *given: predictor)
    return command.predict("none.ckpt", str(source), str(output))


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("geometry", [STRETCH, LETTERBOX], ids=["stretch", "letterbox"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_mask_lies_on_the_stored_voxels(
    orientation: str, geometry: Geometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "case" / "case_flair.nii.gz"
    stored = save(source, world(), orientation)
    assert run(monkeypatch, make(geometry=geometry), tmp_path / "case", tmp_path / "out") == []
    written, given = nibabel.load(tmp_path / "out" / "case_whole_tumor.nii.gz"), nibabel.load(source)
    np.testing.assert_array_equal(written.affine, given.affine)
    assert written.shape == given.shape and written.get_data_dtype() == np.uint8
    mask, truth = np.asarray(written.dataobj), stored == 1.0
    assert set(np.unique(mask)) == {0, 1}
    assert 2 * (mask[truth] > 0).sum() / (mask.sum() + truth.sum()) > 0.93
    content = json.loads((tmp_path / "out" / "case.json").read_text())
    entry = content["tasks"]["whole_tumor"]
    assert content["spacing_mm"] == [4.0, 1.5, 1.0] and content["size"] == [6, 60, 72]
    assert entry["volume_mm3"]["whole_tumor"] == pytest.approx(int(mask.sum()) * 6.0)
    assert entry["volume_mm3"]["whole_tumor"] == pytest.approx(20 * 15 * 2 * 6.0, rel=0.08)
    assert entry["slices"] == {"whole_tumor": [2, 3]} and entry["mask"] == "case_whole_tumor.nii.gz"
    assert content["shown_slice"] in (2, 3) and (tmp_path / "out" / "case_overlay.png").stat().st_size > 500
    presence = content["tasks"]["presence"]
    assert [row["slice"] for row in presence["slices"]] == [1, 2, 3, 4, 5]  # the first shows nothing
    assert presence["n_slices"] == {"no_tumor": 3, "tumor": 2}
    assert presence["slices"][1] == {
        "slice": 2, "predicted_class_id": 1, "class_name": "tumor", "confidence": 0.8,
        "probabilities": {"no_tumor": 0.2, "tumor": 0.8}, "probability_list": [0.2, 0.8],
    }  # fmt: skip
    (row,) = rows_of(tmp_path / "out")
    assert (row["slices"], row["height"], row["width"]) == ("6", "60", "72") and row["presence_tumor_slices"] == "2"
    assert float(row["whole_tumor_whole_tumor_volume_mm3"]) == entry["volume_mm3"]["whole_tumor"]
    assert row["whole_tumor_whole_tumor_slices"] == "2"


def test_a_case_has_a_verdict_and_confidence_maps_lie_on_its_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "case" / "case_flair.nii.gz"
    stored = save(source, world(), "PSR")
    run(monkeypatch, make(), tmp_path / "case", tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "case_whole_tumor_confidence.nii.gz")
    np.testing.assert_array_equal(written.affine, nibabel.load(source).affine)
    sure = np.asarray(written.dataobj)
    assert sure.shape == stored.shape and sure.dtype == np.float32 and sure.min() >= 0 and sure.max() == 1.0
    inside = nibabel.load(tmp_path / "out" / "case_whole_tumor.nii.gz").get_fdata() > 0
    assert sure[inside].min() >= 0.499 and sure[~inside].max() <= 0.501
    content = json.loads((tmp_path / "out" / "case.json").read_text())
    assert content["tasks"]["whole_tumor"]["confidence_map"] == "case_whole_tumor_confidence.nii.gz"
    assert content["tasks"]["presence"]["case"] == {  # two of the five slices that show something
        "class_name": "tumor", "highest_probability": 0.8, "slice": 2, "mean_probability": 0.44, "slice_share": 0.4,
    }  # fmt: skip
    (row,) = rows_of(tmp_path / "out")
    assert (row["presence_case"], row["presence_highest_p_tumor"], row["presence_mean_p_tumor"]) == ("tumor", "0.8", "0.44")


def test_masks_only_where_the_class_is_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "case_flair.nii", world())
    predictor = make()
    whole, part = (predictor.predict(tmp_path / "case_flair.nii", when=when) for when in (None, {"presence": 0.5}))
    assert part.withheld == dict.fromkeys((0, 1, 4, 5), "presence: tumor 0.20, below 0.5") and not whole.withheld
    for number in range(6):
        expected = whole.masks["whole_tumor"][""][number] if number in (2, 3) else 0
        np.testing.assert_array_equal(part.masks["whole_tumor"][""][number], expected)
    none = predictor.predict(tmp_path / "case_flair.nii", when={"presence": 0.9})
    assert not none.mask("whole_tumor").any() and none.volumes_mm3("whole_tumor") == {"whole_tumor": 0.0}
    assert not none.confidence_map("whole_tumor").any()
    assert none.to_json()["withheld_slices"]["2"] == "presence: tumor 0.80, below 0.9"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_volumes_in_python_are_those_of_the_files(orientation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("case", "other"):
        save(tmp_path / "in" / name / f"{name}_flair.nii.gz", world() * (1 if name == "case" else 0.9), orientation)
    predictor = make()
    run(monkeypatch, predictor, tmp_path / "in", tmp_path / "out")
    folder = tmp_path / "in" / "case"
    found = predictor.predict(folder)
    assert found.to_json() == predictor.predict(str(folder / "case_flair.nii.gz")).to_json()
    for key in ("", "_confidence"):
        file = nibabel.load(tmp_path / "out" / f"case_whole_tumor{key}.nii.gz")
        mine = found.confidence_map("whole_tumor") if key else found.mask("whole_tumor")
        np.testing.assert_array_equal(mine, np.asarray(file.dataobj))
        np.testing.assert_array_equal(found.affine, file.affine)
    written = json.loads((tmp_path / "out" / "case.json").read_text())
    assert found.volumes_mm3("whole_tumor") == written["tasks"]["whole_tumor"]["volume_mm3"]
    assert found.verdicts["presence"] == written["tasks"]["presence"]["case"]
    both = predictor.predict([folder, 255 * np.ones((64, 64), np.uint8), tmp_path / "in" / "other"])
    assert [type(one).__name__ for one in both] == ["VolumePrediction", "Prediction", "VolumePrediction"]
    assert both[0].to_json() == found.to_json()


def test_nested_regions_share_a_file_with_the_labels_of_brats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = world()
    volume[22:38, 32:43, 2:4] = 0.8
    volume[..., 2:4][(volume[..., 2:4] > 0.7) & (volume[..., 2:4] < 0.9)] = 0.8
    volume[20:40, 30:45, 2:4] = 0.6  # whole
    volume[24:36, 33:42, 2:4] = 0.75  # core
    volume[27:33, 35:40, 2:4] = 1.0  # enhancing
    save(tmp_path / "case" / "case_flair.nii", volume, "LPS")
    run(monkeypatch, make(tasks=("tumor_regions",)), tmp_path / "case", tmp_path / "out")
    mask = np.asarray(nibabel.load(tmp_path / "out" / "case_tumor_regions.nii.gz").dataobj)[::-1, ::-1]
    assert [int(mask[x, 37, 2]) for x in (10, 22, 25, 30)] == [0, 2, 1, 4]
    entry = json.loads((tmp_path / "out" / "case.json").read_text())["tasks"]["tumor_regions"]
    assert entry["labels"] == {"whole_tumor": [1, 2, 4], "tumor_core": [1, 4], "enhancing_tumor": [4]}
    for name, values in entry["labels"].items():
        assert entry["volume_mm3"][name] == pytest.approx(6.0 * np.isin(mask, values).sum())


def test_what_is_enhancing_is_core_and_whole() -> None:
    spec = make(tasks=("tumor_regions",)).specs["tumor_regions"]
    channels = np.zeros((3, 1, 4), np.uint8)
    channels[0, 0] = [1, 1, 0, 0]
    channels[1, 0] = [0, 1, 1, 0]
    channels[2, 0] = [0, 0, 0, 1]
    assert label_slice(channels, spec)[""].tolist() == [[2, 1, 1, 4]]
    assert labels_of(make().specs["whole_tumor"]) == {"whole_tumor": 1}
    assert spec.labels == Brain().specs()["tumor_regions"].labels
    inside_first = replace(spec, classes=spec.classes[::-1], labels=spec.labels[::-1])
    assert label_slice(channels[::-1], inside_first)[""].tolist() == [[2, 1, 1, 4]]
    without_core = replace(spec, classes=spec.classes[::2], labels=spec.labels[::2])
    assert label_slice(channels[::2], without_core)[""].tolist() == [[2, 2, 0, 4]]


def test_a_missing_modality_is_blank_and_said(tmp_path: Path) -> None:
    for name in ("flair", "t2"):
        save(tmp_path / "case" / f"case_{name}.nii.gz", world())
    predictor = make(("flair", "t1", "t2"))
    outcome = predict_case(predictor, tmp_path / "case")
    assert outcome.prediction is not None
    assert outcome.prediction.case.notes == ["t1 missing: a blank channel each."]
    images = predictor.model.seen[0]
    assert images[:, 0].any() and images[:, 2].any() and not images[:, 1].any()
    with pytest.raises(DataError, match="takes t1ce"):
        read_case(tmp_path / "case", ("t1ce",))
    with pytest.raises(DataError, match="trained on pictures"):
        read_case(tmp_path / "case", ())


@pytest.mark.parametrize(("name", "filled"), [("scan_t2.nii.gz", [False, True]), ("scan.nii", [True, True])])
def test_a_single_file_goes_where_its_name_says(name: str, filled: list[bool], tmp_path: Path) -> None:
    save(tmp_path / name, world())
    predictor = make(("flair", "t2"))
    (path,) = find_images(tmp_path / name)
    outcome = predict_case(predictor, path)
    assert outcome.prediction is not None and len(outcome.prediction.case.notes) == 1
    assert [bool(channel.any()) for channel in predictor.model.seen[0][1]] == filled


def test_slices_are_predicted_in_batches_that_fit(tmp_path: Path) -> None:
    save(tmp_path / "case_flair.nii", world())
    predictor = make()
    predictor.batch_size = 2
    predict_case(predictor, tmp_path / "case_flair.nii")
    assert [len(images) for images in predictor.model.seen] == [2, 2, 2]


def test_what_is_found_in_blank_slices_counts_as_in_evaluation(tmp_path: Path) -> None:
    class Inverted(BrightModel):
        def decode(self, outputs: dict[str, Any], boxes: Any = None) -> dict[str, Any]:
            return super().decode({task: 1 - images for task, images in outputs.items()})

    save(tmp_path / "case_flair.nii", world())
    found = predict_case(Predictor(Inverted(), device="cpu", modalities=("flair",)), tmp_path / "case_flair.nii").prediction
    assert found is not None and found.masks["whole_tumor"][""][0].all()
    assert found.pixels["whole_tumor"][0, 0] == SHAPE[0] * SHAPE[1]
    assert 0 in found.slices_with("whole_tumor")["whole_tumor"] and 0 not in found.statements["presence"]


def test_broken_files_are_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cases"
    for case in ("a", "b", "c", "d", "e"):
        save(folder / case / f"{case}_flair.nii.gz", world())
    whole = (folder / "b" / "b_flair.nii.gz").read_bytes()
    (folder / "b" / "b_flair.nii.gz").write_bytes(whole[: len(whole) // 2])  # the header is still there
    (folder / "c" / "c_flair.nii.gz").write_text("nothing")
    save(folder / "d" / "d_t1.nii.gz", world()[:-1])
    problems = run(monkeypatch, make(("flair", "t1")), folder, tmp_path / "out")
    assert len(problems) == 3 and "b_flair" in problems[0] and "c_flair" in problems[1] and "voxel by voxel" in problems[2]
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["error: "] * 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.json", "e.json"]
    assert len(rows_of(tmp_path / "out")) == 2


def test_a_blank_volume_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x_flair.nii.gz", np.zeros(SHAPE, np.float32))
    assert run(monkeypatch, make(), tmp_path / "x_flair.nii.gz", tmp_path / "out") == []
    content = json.loads((tmp_path / "out" / "x_flair.json").read_text())
    assert content["shown_slice"] is None and content["tasks"]["presence"]["slices"] == []
    assert not np.asarray(nibabel.load(tmp_path / "out" / "x_flair_whole_tumor.nii.gz").dataobj).any()
    assert not (tmp_path / "out" / "x_flair_overlay.png").exists()


def test_volumes_are_counted_in_voxels_of_their_own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 4 mm that lean by 25 degrees: an edge is longer than 4 mm, a voxel holds 6 mm3 all the same."""
    affine = np.diag([*SPACING, 1.0])
    affine[1, 2] = 4 * np.tan(np.deg2rad(25))
    path = tmp_path / "case" / "case_flair.nii.gz"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(world(), affine), path)
    assert run(monkeypatch, make(), path, tmp_path / "out") == []
    content = json.loads((tmp_path / "out" / "case_flair.json").read_text())
    written = nibabel.load(tmp_path / "out" / "case_flair_whole_tumor.nii.gz")
    voxels = int(np.asarray(written.dataobj).sum())
    expected = voxels * abs(np.linalg.det(written.affine[:3, :3]))
    assert voxels > 500 and expected == pytest.approx(voxels * 6.0)
    assert content["tasks"]["whole_tumor"]["volume_mm3"]["whole_tumor"] == pytest.approx(expected, rel=1e-6)
    assert content["voxel_mm3"] == pytest.approx(6.0) and content["spacing_mm"][0] == pytest.approx(4 / np.cos(np.deg2rad(25)))
    assert any("25.0 degrees off a right angle" in note for note in content["notes"])


@pytest.mark.parametrize("value", [-1024.0, 0.1])
def test_what_is_background_is_blank_whatever_its_value(value: float, tmp_path: Path) -> None:
    found = []
    for name, volume in (("a", world()), ("b", np.where(world() == 0, np.float32(value), world()))):
        save(tmp_path / f"{name}_flair.nii", volume)
        found.append(predict_case(make(foreground=True), tmp_path / f"{name}_flair.nii").prediction)
    first, second = found
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.masks["whole_tumor"][""], second.masks["whole_tumor"][""])
    assert first.statements == second.statements and 0 not in second.statements["presence"]
    assert first.shown is not None and second.shown is not None and first.shown[0] == second.shown[0]


def test_a_volume_with_voxels_that_are_no_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = world()
    broken[BLOCK] = np.nan
    save(tmp_path / "in" / "a" / "a_flair.nii", broken)
    save(tmp_path / "in" / "b" / "b_flair.nii", world())
    (problem,) = run(monkeypatch, make(), tmp_path / "in", tmp_path / "out")
    assert f"a_flair.nii: {20 * 15 * 2} of {world().size} voxels are not numbers" in problem
    assert not list((tmp_path / "out").glob("a*")) and (tmp_path / "out" / "b.json").exists()


def test_finding_cases_volumes_and_pictures(tmp_path: Path) -> None:
    for name in (
        "p1/p1_flair.nii.gz", "p1/p1_t1.nii", "p1/p1_seg.nii.gz", "flat/x_flair.nii", "flat/x_T1CE.nii", "flat/y_t2.nii.gz",
        "alone/scan.nii.gz", "picture.png", "p1/notes.txt", "p1/W39_Segm.nii", "late/BraTS-GLI-7-000-t2f.nii.gz",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "alone/scan.nii.gz", "flat/x", "flat/y", "late", "p1", "picture.png",
    ]  # fmt: skip
    assert [is_case(path) for path in found] == [True] * 5 + [False]
    assert set(case_files(tmp_path / "late")) == {"flair"}
    assert {name: file.name for name, file in case_files(tmp_path / "flat/x").items()} == {
        "t1ce": "x_T1CE.nii", "flair": "x_flair.nii",
    }  # fmt: skip
    assert set(case_files(tmp_path / "p1")) == {"flair", "t1"} and case_files(found[0]) == {"": found[0]}
    assert find_images(tmp_path / "p1") == [tmp_path / "p1"]
    assert find_images(f"{tmp_path}/p*") == [tmp_path / "p1", tmp_path / "picture.png"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "z_seg.nii").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image.*\.nii\.gz"):
        find_images(tmp_path / "only")
    for name in ("only/z_seg.nii", "p1/p1_seg.nii.gz"):
        with pytest.raises(DataError, match=r"is a mask: its name ends in `seg`; expected an MR volume"):
            find_images(tmp_path / name)


def test_slices_are_what_training_reads(brains: Path) -> None:
    """The prediction of a volume is that of its images in the data family, slice by slice."""
    family = Brain(root=str(brains), sets=["brats"], modalities=["flair", "t1"])
    predictor = make(("flair", "t1"), foreground=True)
    records = [record for record in family.records() if record.group == family.records()[0].group]
    outcome = predict_case(predictor, Path(records[0].path).parent)
    assert outcome.prediction is not None and outcome.prediction.case.grid.size[0] == len(records)
    for number, record in enumerate(records):
        alone = predictor.predict(family.read_image(record)).mask("whole_tumor")[0]
        np.testing.assert_array_equal(outcome.prediction.masks["whole_tumor"][""][number], alone)
    assert record.spacing == pytest.approx(outcome.prediction.case.grid.spacing)
