"""Experts and a shared neck can learn a few retinas by heart, from two sets at once. Slow; run by `make test-all`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("suite", ["idrid_mtl", "idrid_moe"])
def test_grades_and_masks_together(suite: str, tmp_path: Path) -> None:
    from mtl.config.plan import Plan
    from mtl.data.families.idrid.generator import generate_idrid
    from mtl.experiments.score import score
    from mtl.experiments.train import train
    from mtl.runs.loading import load_model

    generate_idrid(tmp_path / "retinas", patients=8, fields=1, seed=2, width=240)
    epochs = 20
    words = [
        f"task={suite}", f"data.root={tmp_path}/retinas", "tasks=[grade,lesions_ex,optic_disc]", "backbone=resnet10t",
        "necks.aspp.width=32", "data.geometry.size=[128,160]", "data.augmentation=null", "data.loader.batch_size=4",
        "data.loader.samples_per_epoch=48", "data.loader.mixing=mixed", "data.loader.temperature=100",
        "optimizer.lr=2e-3", "optimizer.weight_decay=0", f"trainer.max_epochs={epochs}",
        f"trainer.check_val_every_n_epoch={epochs}", "trainer=cpu", "evaluation.bootstrap=0", "evaluation.cases=0",
        "evaluation.resolution=working", f"paths.run_dir={tmp_path}/run",
    ]  # fmt: skip
    train(Plan.from_words(words))
    evaluation = score(load_model(tmp_path / "run" / "checkpoints" / "last.ckpt", "cpu"), "train", bootstrap=0)
    found = evaluation.evaluator.compute(evaluation.evaluator.thresholds())
    assert found["grade"]["accuracy"] == 1.0
    assert found["optic_disc"]["dice_per_image"] >= 0.9
    assert found["lesions_ex"]["dice_pooled"] >= 0.7
