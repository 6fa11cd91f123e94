"""Brain MRI as a user meets it: three stages on volumes and pictures, scores per case and source, masks for new volumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny_runs import before_step, checkpoint, differing, go, history

from mtl.cli import describe
from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.experiments.score import evaluate, score
from mtl.inference.predict import predict
from mtl.runs.loading import load_model
from mtl.training.module import MultiTaskModule

SMALL = (
    "task=brain_joint", "trainer=cpu", "backbone.base_filters=4", "backbone.depth=2", "data.geometry.size=[64,64]",
    "data.cache.enabled=false", "data.min_tumor_pixels=8", "data.split.ratios=[0.5,0.25,0.25]", "data.loader.batch_size=4",
    "evaluation.bootstrap=10", "evaluation.cases=1", "trainer.max_epochs=1",
)  # fmt: skip


def run(brains: Path, run_dir: Path, *words: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    return go(Plan.from_words([*SMALL, f"data.root={brains}", f"paths.run_dir={run_dir}", *words]), score)


@pytest.fixture(scope="module")
def curriculum(brains: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the three stages with everything it leaves behind; what each batch held is in `batches.json`."""
    run_dir = tmp_path_factory.mktemp("brain") / "run"
    seen: dict[str, list[list[str]]] = {}

    def note(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        seen.setdefault(module.stage.name, []).append(sorted({meta.source for meta in batch.meta}))

    with before_step(note):
        run(brains, run_dir, score=True)
    (run_dir / "batches.json").write_text(json.dumps(seen))
    return run_dir


def test_three_stages_in_one_run(curriculum: Path) -> None:
    assert [row["stage"] for row in history(curriculum)] == ["segmentation", "classification", "joint"]
    batches = json.loads((curriculum / "batches.json").read_text())
    assert {source for batch in batches["segmentation"] for source in batch} == {"brats"}
    assert {source for batch in batches["classification"] for source in batch} == {"brats", "kaggle"}
    first, second = (checkpoint(curriculum, f"stage_{name}")["state_dict"] for name in ("segmentation", "classification"))
    assert {name.split(".")[2] for name in differing(first, second)} == {"presence"}


def test_scores_per_case_and_per_source(curriculum: Path) -> None:
    metrics = json.loads((curriculum / "metrics.json").read_text())
    tumor, presence = metrics["tasks"]["whole_tumor"], metrics["tasks"]["presence"]
    for name in ("dice_per_image", "dice_nonempty", "dice_per_case", "dice_pooled", "iou_per_case", "mae_volume_mm3"):
        assert tumor[name] is not None, name
    assert "hd95_per_image" in tumor and "hd95_per_case" in tumor and metrics["hd95_units"]["whole_tumor"] == "mm"
    assert set(presence["per_source"]) == {"brats", "kaggle"}
    for values in (presence, *presence["per_source"].values()):
        assert {"sensitivity", "specificity", "balanced_accuracy", "auroc", "confusion"} <= set(values)
    assert metrics["baseline"]["presence"]["from_source"]["metrics"]["balanced_accuracy"] is not None
    cases = metrics["cases"]["whole_tumor"]
    rows = [line.split(",") for line in (curriculum / "split.csv").read_text().splitlines()[1:]]
    assert set(cases) == {row[0].split("/")[1] for row in rows if row[2] == "brats" and row[3] == "test"}
    report = (curriculum / "report.html").read_text()
    assert "source alone" in report and "After each stage" in report and "Per case" in report


def test_volumes_are_scored_whole(curriculum: Path, brains: Path) -> None:
    """Training leaves slices out, evaluation does not: the annotated volume is that of the file."""
    metrics = json.loads((curriculum / "metrics.json").read_text())
    for case, values in metrics["cases"]["whole_tumor"].items():
        file = nibabel.load(next((brains / "brats").glob(f"*{case.rpartition('/')[2]}*/*_seg.nii.gz")))
        expected = (np.asanyarray(file.dataobj) > 0).sum() * abs(np.linalg.det(file.affine[:3, :3]))
        found = values["whole_tumor"]
        assert found["volume_annotated_mm3"] == pytest.approx(expected) and found["slices"] == file.shape[2]


def test_the_distance_is_measured_only_where_asked(curriculum: Path) -> None:
    loaded = load_model(curriculum)
    config = loaded.config.model_dump()
    plan = Plan.from_stored({**config, "evaluation": {**config["evaluation"], "hd95": False}}, "config.json")
    assert "hd95_per_case" not in score(loaded, "val", examples=0, plan=plan).summary["tasks"]["whole_tumor"]


def test_scoring_again_gives_the_same(curriculum: Path, tmp_path: Path) -> None:
    again = evaluate(str(curriculum), output=str(tmp_path / "again"), report=False)
    before = json.loads((curriculum / "metrics.json").read_text())
    assert json.loads(json.dumps(again["tasks"])) == before["tasks"]


def test_a_new_volume_gets_a_mask_in_its_own_space(curriculum: Path, brains: Path, tmp_path: Path) -> None:
    case = sorted((brains / "brats").iterdir())[0]
    predict(str(curriculum), str(case), str(tmp_path / "out"))
    mask = nibabel.load(tmp_path / "out" / f"{case.name}_whole_tumor.nii.gz")
    stored = nibabel.load(case / f"{case.name}_flair.nii.gz")
    assert mask.shape == stored.shape and np.array_equal(mask.affine, stored.affine)
    about = json.loads((tmp_path / "out" / f"{case.name}.json").read_text())
    voxels = int((np.asanyarray(mask.dataobj) == 1).sum())
    assert str(round(voxels * abs(np.linalg.det(stored.affine[:3, :3])))) in json.dumps(about).replace(".0", "")


@pytest.mark.parametrize("modalities", [["flair"], ["flair", "t1", "t1ce", "t2"]])
def test_one_and_four_channels_on_any_encoder(modalities: list[str], brains: Path, tmp_path: Path) -> None:
    words = (
        "backbone=test_resnet", "head@heads.whole_tumor=unet", f"data.modalities={modalities}", "stages=none",
        "data.augmentation.channel_dropout=0.5",
    )  # fmt: skip
    bare = [word for word in SMALL if not word.startswith("backbone.")]
    plan = Plan.from_words([*bare, f"data.root={brains}", f"paths.run_dir={tmp_path / 'run'}", *words])
    assert plan.config.backbone["in_chans"] == len(modalities)
    _, objects = go(plan)
    assert next(objects["module"].model.encoder.parameters()).shape[1] == len(modalities)


def test_describe_says_what_each_stage_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.run(["experiment=published/brain_unet32", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["trainable"] for stage in stages] == [1_172_640 + 775_073, 66_306, 2_014_019]
    assert describe.run(["task=brain_joint", "backbone.base_filters=4", "backbone.depth=1"]) == 0
    assert "stage 2 of 3, classification: tasks presence" in capsys.readouterr().out


def test_three_regions_at_once(brains: Path, tmp_path: Path) -> None:
    words = (
        "+head@heads.tumor_regions=unet_classic", "tasks=[tumor_regions]", "stages=none", "data.sets=[brats]",
    )  # fmt: skip
    metrics, _ = run(brains, tmp_path / "run", *words, score=True)
    assert set(metrics["tasks"]["tumor_regions"]["per_class"]) == {"whole_tumor", "tumor_core", "enhancing_tumor"}
