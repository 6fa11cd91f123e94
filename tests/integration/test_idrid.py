"""Two sets that never label the same image: batches, two ranks, mixture of experts, and the whole job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny_runs import before_step, checkpoint, differing, go, history

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError, DataError
from mtl.core.types import TaskBatch
from mtl.data.families.idrid.family import Idrid
from mtl.data.pipeline.sampling import EpochSampler
from mtl.training.module import MultiTaskModule

SMALL = (
    "backbone=test_resnet", "backbone.output_stride=null", "trainer=cpu", "data.geometry.size=[64,96]",
    "data.preprocessing.crop=null", "necks.aspp.width=16", "data.loader.batch_size=2", "data.loader.samples_per_epoch=8",
    "evaluation.bootstrap=10", "evaluation.cases=1", "trainer.max_epochs=1",
)  # fmt: skip
# Nothing may depend on who shares a batch: no norm over the batch, no augmentation, no dropout.
COMPARABLE = (
    "tasks=[grade,lesions_ma]", "backbone.freeze=all", "peft=lora", "data.augmentation=null", "optimizer=sgd",
    "head@heads.lesions_ma.expert=unet", "heads.lesions_ma.expert.norm=instancenorm",
    "heads.grade.expert.dropout=0.0", "trainer.max_epochs=2", "data.loader.mixing=mixed", "data.loader.samples_per_epoch=12",
    "balancer=uncertainty", "heads.grade.l1_weight=0.1", "heads.lesions_ma.importance_weight=0.1",
)  # fmt: skip


def run(retinas: Path, run_dir: Path, *words: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    return go(Plan.from_words([*SMALL, f"data.root={retinas}", f"paths.run_dir={run_dir}", *words]), score)


def interleaved(self: EpochSampler) -> np.ndarray:
    """Graded and segmented images by turns, so that of two ranks one gets all graded ones."""
    rng = np.random.default_rng([self.seed, self.epoch])
    sources = np.asarray(self.sources_for_test)
    graded, segmented = (np.flatnonzero(sources == name) for name in ("idrid_grading", "idrid_segmentation"))
    half = self.total // 2
    return np.stack([rng.choice(graded, half), rng.choice(segmented, half)], axis=1).ravel()


def test_one_rank_with_graded_and_one_with_segmented_images_equal_one_process(retinas: Path, tmp_path: Path) -> None:
    original = EpochSampler.__init__

    def remember(self: EpochSampler, *arguments: Any) -> None:
        original(self, *arguments)
        self.sources_for_test = arguments[6].sources

    seen: list[tuple[int, set[str]]] = []

    def look(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if module.trainer.world_size == 2:
            assert {meta.source for meta in batch.meta} == {("idrid_grading", "idrid_segmentation")[module.global_rank]}
        seen.append((module.global_rank, {meta.source for meta in batch.meta}))

    words = ("task=idrid_moe", *COMPARABLE)
    with (
        patch.object(EpochSampler, "__init__", remember),
        patch.object(EpochSampler, "order", interleaved),
        before_step(look),
    ):
        run(retinas, tmp_path / "two", *words, "trainer=ddp_cpu")
        run(retinas, tmp_path / "one", *words, "data.loader.batch_size=4")
    assert all(sources == {"idrid_grading", "idrid_segmentation"} for _, sources in seen) and len(seen) == 6
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []
    assert one["mtl"]["thresholds"] == two["mtl"]["thresholds"]
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert row.keys() == other.keys() and "train/grade/expert_1" in row
        for key in row:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-4, nan_ok=True), key


@pytest.mark.parametrize("suite", ["idrid_mtl", "idrid_moe"])
def test_a_task_that_nobody_in_the_batch_is_labelled_for_costs_nothing(suite: str, retinas: Path, tmp_path: Path) -> None:
    """Alternating batches: no loss, no gradient, no pass through that task's head, and no figure; neither in validation."""
    found: list[tuple[str, dict[str, float], dict[str, float]]] = []
    passes: list[tuple[str, bool, int]] = []

    def look(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if not found:
            for name, head in module.model.heads.items():
                head.register_forward_pre_hook(
                    lambda own, given, name=name: passes.append((name, own.training, len(given[0][0])))
                )
        (source,) = {meta.source for meta in batch.meta}
        absent = [task for task in module.model.heads if not batch.present[task].any()]
        assert absent == [task for task in module.model.heads if (task == "grade") == (source == "idrid_segmentation")]
        losses, _ = module.task_losses(module(batch.images, rows=batch.rows), batch)
        gradients = {}
        for task in absent:
            module.zero_grad()
            losses[task].backward(retain_graph=True)
            some = [p.grad.abs().max() for p in module.parameters() if p.grad is not None]
            gradients[task] = float(torch.stack(some).max())
        module.zero_grad()
        found.append((source, {task: float(losses[task].detach()) for task in absent}, gradients))

    with before_step(look):
        _, objects = run(retinas, tmp_path / "run", f"task={suite}", "tasks=[grade,lesions_ma,optic_disc]")
    assert [source for source, _, _ in found] == ["idrid_grading", "idrid_segmentation"] * 2
    assert all(value == 0.0 for _, losses, gradients in found for value in (*losses.values(), *gradients.values()))
    metrics = objects["module"].evaluator.metrics
    sources = {task: {record["source"] for record in metric.records} for task, metric in metrics.items()}
    masks = {"idrid_segmentation"}
    assert sources == {"grade": {"idrid_grading"}, "lesions_ma": masks, "optic_disc": masks}
    for task, metric in metrics.items():
        trained = [rows for name, training, rows in passes if name == task and training]
        assert trained == [2] * 4  # the step and the look at it, of two of four batches
        assert sum(rows for name, training, rows in passes if name == task and not training) == len(metric.records)


def test_single_task_twins_draw_only_what_they_can_learn_from(retinas: Path, tmp_path: Path) -> None:
    _, together = run(retinas, tmp_path / "both", "task=idrid_mtl", "tasks=[grade,lesions_ma]")
    _, alone = run(retinas, tmp_path / "alone", "task=idrid_mtl", "tasks=[grade]")
    assert set(alone["datamodule"].dataset("train").sources) == {"idrid_grading"}
    assert set(together["datamodule"].dataset("train").sources) == {"idrid_grading", "idrid_segmentation"}
    assert (tmp_path / "both" / "split.csv").read_bytes() == (tmp_path / "alone" / "split.csv").read_bytes()


def test_the_whole_job_with_experts(retinas: Path, tmp_path: Path) -> None:
    """Train dense then sparse, score at the original size, report, predict from the checkpoint alone."""
    import mtl
    from mtl.data.formats.images import read_rgb

    run_dir = tmp_path / "run"
    words = ("task=idrid_moe", "trainer.max_epochs=2", "data.preprocessing.crop={threshold:0.06,margin:0.0}")
    metrics, _ = run(retinas, run_dir, *words, score=True)
    tasks = ["grade", "edema", "lesions_ma", "lesions_he", "lesions_ex", "lesions_se", "optic_disc"]
    assert list(metrics["tasks"]) == tasks
    assert "quadratic_kappa" in metrics["tasks"]["grade"] and "aupr" in metrics["tasks"]["lesions_ma"]
    assert "aupr" in metrics["study"]["lesion_mean"]
    rows = history(run_dir)
    assert float(rows[0]["train/grade/experts_used"]) == 3.0 >= float(rows[1]["train/grade/experts_used"])
    assert "expert" in (run_dir / "report.html").read_text()
    image = read_rgb(next((retinas / "A. Segmentation").rglob("*.jpg")))
    prediction = mtl.load(run_dir, device="cpu").predict(image)
    mask = prediction.mask("optic_disc")
    assert mask.shape == (1, *image.shape[:2])
    content = prediction.to_json()
    assert set(content["tasks"]) == set(tasks) and "parasitemia" not in content  # nothing is counted here
    left, _, right, _ = prediction.window.content_box
    assert left > 0 and right < image.shape[1] and not mask[:, :, :left].any() and not mask[:, :, right:].any()


def test_a_task_without_a_single_label_is_refused(retinas: Path, tmp_path: Path) -> None:
    graded = tmp_path / "graded"
    shutil.copytree(retinas / "B. Disease Grading", graded / "B. Disease Grading")
    with pytest.raises(DataError, match="No training image is labelled for lesions_ma"):
        run(graded, tmp_path / "run", "task=idrid_mtl", "tasks=[grade,lesions_ma]")


def test_a_run_that_nothing_could_validate_is_refused_before_it_trains(retinas: Path, tmp_path: Path) -> None:
    family = Idrid(root=str(retinas))
    lines = ["sample_id,split"]
    for record in family.records():
        part = "train" if record.official_split == "train" and record.source == "idrid_segmentation" else "val"
        lines.append(f"{record.sample_id},{'test' if record.official_split == 'test' else part}")
    (tmp_path / "split.csv").write_text("\n".join(lines))
    words = ("data.group_by=image", "data.split.scheme=file", f"data.split.file={tmp_path / 'split.csv'}")
    with pytest.raises(DataError, match="No validation image is labelled for lesions_ma"):
        run(retinas, tmp_path / "run", "task=idrid_mtl", "tasks=[lesions_ma]", *words)


def test_all_lesions_in_one_head_train_beside_landmarks(retinas: Path, tmp_path: Path) -> None:
    """A mask of five channels and points, augmented together, on images whose border is cut off."""
    words = ("task=idrid_mtl", "tasks=[lesions,landmarks]", "data.preprocessing.crop={threshold:0.06,margin:0.0}")
    metrics, _ = run(retinas, tmp_path / "run", *words, score=True)
    assert len(metrics["tasks"]["lesions"]["per_class"]) == 5 and metrics["resolution"] == "native"
    assert metrics["tasks"]["landmarks"]["n"] > 0


def test_a_single_task_may_keep_the_weights_of_all_sources(retinas: Path, tmp_path: Path) -> None:
    weights = "data.loader.source_weights={idrid_grading:1,idrid_segmentation:3}"
    _, alone = run(retinas, tmp_path / "run", "task=idrid_mtl", "tasks=[grade]", "data.loader.mixing=mixed", weights)
    assert set(alone["datamodule"].dataset("train").sources) == {"idrid_grading"}


def test_settings_of_sources_are_checked(retinas: Path, tmp_path: Path) -> None:
    words = ("task=idrid_mtl", "tasks=[grade,lesions_ma]", "data.loader.mixing=mixed")
    with pytest.raises(ConfigError, match="Did you mean `idrid_grading`"):
        run(retinas, tmp_path / "run", *words, "data.loader.source_weights={idrid_gradin:1,idrid_segmentation:1}")
    with pytest.raises(ConfigError, match="output_stride"):
        run(retinas, tmp_path / "run", *words, "backbone=swin_tiny", "backbone.output_stride=16")
