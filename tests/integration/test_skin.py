"""Classes for every image, masks for a few: batches, gradients, order of drawing, and the whole job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import before_step, go, history

from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.training.module import MultiTaskModule

SMALL = (
    "task=skin_mtl", "backbone=test_resnet", "trainer=cpu", "data.geometry.size=[64,64]", "data.loader.batch_size=4",
    "evaluation.bootstrap=10", "evaluation.cases=1", "trainer.max_epochs=1",
)  # fmt: skip


def run(lesions: Path, run_dir: Path, *words: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    return go(Plan.from_words([*SMALL, f"data.root={lesions}", f"paths.run_dir={run_dir}", *words]), score)


def test_images_without_a_mask_teach_the_mask_head_nothing(lesions: Path, tmp_path: Path) -> None:
    """The loss is that of the masked rows alone; a batch without a mask gives neither loss nor gradient."""
    seen: list[bool] = []

    def look(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        present = batch.present["lesion"]
        names = [meta.sample_id for meta in batch.meta]
        assert present.tolist() == [(lesions / "masks" / f"{name}.png").is_file() for name in names]
        assert bool(batch.present["diagnosis"].all())
        module.eval()  # rows must not see each other through norms
        head: Any = module.model.heads["lesion"]
        value = module.task_losses(module(batch.images, rows=batch.rows), batch)[0]["lesion"]
        module.zero_grad()
        value.backward()
        largest = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
        if present.any():
            output = module(batch.images[present])["lesion"]
            torch.testing.assert_close(value, head.loss(output, batch.targets["lesion"][present])["mask"])
        assert (float(value.detach()) == 0.0 and largest == 0.0) != bool(present.any())
        module.zero_grad()
        module.train()
        seen.append(bool(present.any()))

    with before_step(look):
        run(lesions, tmp_path / "run", "data.loader.sampler=shuffle", "data.loader.batch_size=2")
    assert any(seen) and not all(seen)


def test_few_masks_are_drawn_often(lesions: Path, tmp_path: Path) -> None:
    """About a fourth of the draws, as many as of each class, although one training image in sixteen has a mask."""
    shutil.copytree(lesions, tmp_path / "few")
    split = json.loads((lesions / "splits.json").read_text())
    trained = sorted(path for path in (tmp_path / "few" / "masks").iterdir() if f"{path.stem}.jpg" in split["train"])
    for path in trained[1:]:
        path.unlink()
    _, objects = run(tmp_path / "few", tmp_path / "run", "data.loader.samples_per_epoch=400", "trainer.limit_train_batches=1")
    module = objects["datamodule"]
    records = module.dataset("train").records
    drawn = [records[draw.item].knows("mask:lesion") for draw in module.train_dataloader().sampler]
    assert sum(record.knows("mask:lesion") for record in records) == 1 and len(records) == 16
    assert 0.18 < sum(drawn) / len(drawn) < 0.32


def test_the_whole_job(lesions: Path, tmp_path: Path) -> None:
    """Two attributes and a mask, scored at the size of the originals, reported, predicted from the checkpoint alone."""
    import mtl
    from mtl.data.formats.images import read_rgb

    words = (
        "data.attributes={skin_type:[normal,dry,oily]}", "+head@heads.skin_type=classifier",
        "tasks=[diagnosis,skin_type,lesion]", "backbone.freeze=all",
    )  # fmt: skip
    metrics, objects = run(lesions, tmp_path / "run", *words, score=True)
    assert list(metrics["tasks"]) == ["diagnosis", "skin_type", "lesion"] and metrics["resolution"] == "native"
    assert metrics["tasks"]["lesion"]["n"] == 2 and metrics["tasks"]["diagnosis"]["n"] == 4
    assert "val/score" in history(tmp_path / "run")[0]
    assert not any(parameter.requires_grad for parameter in objects["module"].model.encoder.parameters())
    assert "lesion" in (tmp_path / "run" / "report.html").read_text()
    image = read_rgb(next((lesions / "images").iterdir()))
    prediction = mtl.load(tmp_path / "run", device="cpu").predict(image)
    assert prediction.mask("lesion").shape == (1, *image.shape[:2]) and np.isin(prediction.mask("lesion"), (0, 1)).all()


@pytest.mark.parametrize("task", ["diagnosis", "lesion"])
def test_twins_share_the_split(lesions: Path, tmp_path: Path, task: str) -> None:
    run(lesions, tmp_path / "both")
    _, alone = run(lesions, tmp_path / task, f"tasks=[{task}]")
    records = alone["datamodule"].dataset("train").records
    assert all(record.knows("mask:lesion") for record in records) == (task == "lesion")
    assert (tmp_path / "both" / "split.csv").read_bytes() == (tmp_path / task / "split.csv").read_bytes()


def test_the_published_recipe_on_classes_of_ones_own(tmp_path: Path) -> None:
    from mtl.data.families.skin.generator import generate_skin

    generate_skin(tmp_path / "ids", patients=6, fields=2, seed=1, width=64, kind="ids")
    words = [
        "experiment=published/skin_b0", f"data.root={tmp_path / 'ids'}", f"paths.run_dir={tmp_path / 'run'}", "trainer=cpu",
        "data.geometry.size=[64,64]", "data.attributes.skin_hair=[nevus,melanoma,seborrheic_keratosis]",
        "heads.lesion.decoder_channels=[16,8]", "heads.lesion.last_channels=4", "backbone.architecture=test_efficientnet",
        "trainer.max_epochs=1", "data.loader.batch_size=4",
    ]  # fmt: skip
    go(Plan.from_words(words))
    assert float(history(tmp_path / "run")[0]["val/skin_hair/loss"]) > 0
