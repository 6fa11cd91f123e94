"""Grades, numbers and independent classes of whole images: from labels to files, absent and half-known labels, two ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny_runs import before_step, checkpoint, differing, history, resume_run, stop_at, tiny_run

from mtl.core.errors import TrainingError
from mtl.core.types import TaskBatch
from mtl.data.pipeline.dataset import SampleDataset
from mtl.experiments.score import evaluate
from mtl.inference.predict import predict
from mtl.training.module import MultiTaskModule

OF_IMAGES = ("tasks=[severity,parasitemia_percent]", "data.group_by=field", "data.split.ratios=[0.35,0.4,0.25]")
# Nothing may depend on who shares a batch: no norm over the batch, no augmentation, no dropout.
COMPARABLE = (
    "backbone.freeze=all", "peft=lora", "data.augmentation=null", "optimizer=sgd", "trainer.max_epochs=2",
    "data.loader.samples_per_epoch=8", "balancer=uncertainty",
)  # fmt: skip
TWO, ONE = ("trainer=ddp_cpu", "data.loader.batch_size=2"), ("data.loader.batch_size=4",)
RETINAS = (
    "task=idrid_mtl", "tasks=[findings,grade]", "backbone.output_stride=null", "data.preprocessing.crop=null",
    "data.geometry.size=[64,96]", "necks.aspp.width=16", "data.missing_mask={SE:absent}", "trainer.max_epochs=1",
)  # fmt: skip

BRAINS = (
    "task=brain_joint", "tasks=[presence]", "stages=none", "backbone=unet", "backbone.base_filters=4", "backbone.depth=2",
    "data.min_tumor_pixels=8", "data.split.ratios=[0.5,0.25,0.25]", "trainer.max_epochs=1", "data.cache.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("images") / "run"
    tiny_run(smears, run_dir, *OF_IMAGES, "loss@heads.parasitemia_percent.loss=gaussian", "trainer.max_epochs=2", score=True)
    return run_dir


def test_the_whole_job(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    grade, number = metrics["tasks"]["severity"], metrics["tasks"]["parasitemia_percent"]
    assert {"f1_macro", "auroc", "quadratic_kappa"} <= grade.keys() and {"pearson", "mae", "rmse", "r2"} <= number.keys()
    assert number["ci95"]["mae"] is not None and number["mae"] >= 0
    baseline = metrics["baseline"]["parasitemia_percent"]
    assert baseline["name"].startswith("training mean") and baseline["name"].endswith("%")
    page = (run / "report.html").read_text()
    assert "R²" in page and (run / "figures" / "parasitemia_percent_image.svg").is_file()


def test_the_baseline_is_the_mean_of_the_training_images(run: Path, smears: Path) -> None:
    from mtl.data.families.malaria.smears import Malaria

    family = Malaria(root=str(smears))
    records = {record.sample_id: record for record in family.records()}
    rows = {row["sample_id"]: row["split"] for row in csv.DictReader((run / "split.csv").open())}
    values = {name: records[name].values["parasitemia_percent"] for name in rows}
    mean = np.mean([values[name] for name, split in rows.items() if split == "train"])
    errors = [abs(values[name] - mean) for name, split in rows.items() if split == "test"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["baseline"]["parasitemia_percent"]["metrics"]["mae"] == pytest.approx(np.mean(errors), rel=1e-6)
    # The head learned standardised values: its buffers are those of the training images, in the checkpoint.
    state = checkpoint(run)["state_dict"]
    trained = [values[name] for name, split in rows.items() if split == "train"]
    assert float(state["model.heads.parasitemia_percent.target_mean"]) == pytest.approx(np.mean(trained), rel=1e-5)
    assert float(state["model.heads.parasitemia_percent.target_std"]) == pytest.approx(np.std(trained), rel=1e-5)


def test_files_and_pictures_of_a_prediction(run: Path, smears: Path, tmp_path: Path) -> None:
    assert predict(str(run), str(smears), str(tmp_path)) == []
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted(path.stem for path in tmp_path.glob("IMG*.json"))
    assert len(rows) == len(names) == 12 and (tmp_path / f"{names[0]}_overlay.png").is_file()
    grades = {"negative", "low", "moderate", "high"}
    assert all(float(row["parasitemia_percent_spread"]) > 0 and row["severity_class_name"] in grades for row in rows)
    row = next(row for row in rows if Path(row["image"]).stem == names[0])
    entry = json.loads((tmp_path / f"{names[0]}.json").read_text())["tasks"]["parasitemia_percent"]
    assert entry["unit"] == "%" and entry["value"] == float(row["parasitemia_percent"])


def test_evaluation_and_resuming_give_the_same_again(run: Path, smears: Path, tmp_path: Path) -> None:
    scored = evaluate(str(run), output=str(tmp_path / "again"))
    assert scored["tasks"] == json.loads((run / "metrics.json").read_text())["tasks"]
    settings = (*OF_IMAGES, "trainer.max_epochs=2")
    tiny_run(smears, tmp_path / "whole", *settings)
    with before_step(stop_at(1, 1)), pytest.raises(TrainingError):
        tiny_run(smears, tmp_path / "parts", *settings)
    resume_run(tmp_path / "parts")
    assert differing(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "parts")["state_dict"]) == []


def test_two_ranks_equal_one(smears: Path, tmp_path: Path) -> None:
    settings = (*OF_IMAGES, *COMPARABLE, "heads.severity.dropout=0.0", "heads.parasitemia_percent.dropout=0.0")
    original = SampleDataset.__getitem__

    def hide(self: SampleDataset, key: Any) -> dict[str, Any]:
        """Take the numbers of rank 1 in the first step away."""
        item = original(self, key)
        if isinstance(key, tuple) and divmod(key.position, 4) in ((0, 1), (0, 3)):
            item["present"]["parasitemia_percent"], item["targets"]["parasitemia_percent"] = False, None
        return item

    with patch.object(SampleDataset, "__getitem__", hide):
        tiny_run(smears, tmp_path / "two", *settings, *TWO)
        tiny_run(smears, tmp_path / "one", *settings, *ONE)
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert all(float(row[key]) == pytest.approx(float(other[key]), abs=1e-4, nan_ok=True) for key in row)


def test_findings_of_which_some_are_unknown(retinas: Path, tmp_path: Path) -> None:
    """Unknown classes teach nothing and count nowhere; images without masks have no findings at all."""
    seen: list[torch.Tensor] = []

    def look(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        target, present = batch.targets["findings"], batch.present["findings"]
        assert torch.equal(~target.isnan().all(dim=1), present)
        seen.append(target[present])

    with before_step(look):
        tiny_run(retinas, tmp_path / "run", *RETINAS, score=True)
    known = ~torch.cat(seen).isnan()
    assert known[:, 3].sum() < len(known) and known[:, 0].all()  # soft exudates are known of some images only
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    findings = metrics["tasks"]["findings"]
    assert {"ap_macro", "auroc_macro", "f1_macro", "f1_micro"} <= findings.keys()
    assert findings["n"] == 2 and metrics["baseline"]["findings"]["name"] == "shares of training"
    assert set(metrics["thresholds"]["findings"]) == {"microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates"}
    predict(str(tmp_path / "run"), str(retinas / "A. Segmentation"), str(tmp_path / "files"))
    with (tmp_path / "files" / "predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    claimed = [name for name in metrics["thresholds"]["findings"] if row[f"findings_{name}"] == "1"]
    limits = metrics["thresholds"]["findings"]
    assert claimed == [name for name in limits if float(row[f"findings_p_{name}"]) >= limits[name] - 5e-5]


def test_two_ranks_with_half_known_findings_equal_one(retinas: Path, tmp_path: Path) -> None:
    settings = (*RETINAS, *COMPARABLE, "tasks=[findings]", "heads.findings.dropout=0.0", "data.loader.mixing=mixed")
    tiny_run(retinas, tmp_path / "two", *settings, *TWO)
    tiny_run(retinas, tmp_path / "one", *settings, *ONE)
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []


def test_the_stored_threshold_decides_between_two_classes(brains: Path, tmp_path: Path) -> None:
    """Evaluation, files and captions follow the threshold in the checkpoint, not the more probable class."""
    tiny_run(brains, tmp_path / "run", *BRAINS)
    picture = next((brains / "kaggle" / "yes").iterdir())
    content = checkpoint(tmp_path / "run", "best")
    assert content["mtl"]["thresholds"]["presence"].keys() == {"tumor"}
    for limit, name, shares in ((0.0, "tumor", (1.0, 0.0)), (1.1, "no_tumor", (0.0, 1.0))):
        content["mtl"]["thresholds"]["presence"] = {"tumor": limit}
        edited, output = tmp_path / "run" / "checkpoints" / "edited.ckpt", tmp_path / name
        torch.save(content, edited)
        presence = evaluate(str(edited), output=str(output / "scores"), report=False)["tasks"]["presence"]
        assert (presence["sensitivity"], presence["specificity"]) == shares
        assert predict(str(edited), str(picture), str(output)) == []
        with (output / "predictions.csv").open(newline="") as file:
            assert [row["presence_class_name"] for row in csv.DictReader(file)] == [name]
