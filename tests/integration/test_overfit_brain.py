"""A curriculum learns a few heads by heart: masks, classes on a resting encoder, then both. Slow; run by `make test-all`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_three_stages_together(tmp_path: Path) -> None:
    from mtl.config.plan import Plan
    from mtl.data.families.brain.generator import generate_brain
    from mtl.experiments.score import score
    from mtl.experiments.train import train
    from mtl.runs.loading import load_model

    generate_brain(tmp_path / "brains", patients=5, fields=6, seed=2, width=96)
    words = [
        "task=brain_joint", f"data.root={tmp_path}/brains", "backbone.base_filters=8", "data.geometry.size=[96,96]",
        "data.augmentation=null", "data.cache.enabled=false", "data.min_tumor_pixels=8", "data.loader.batch_size=4",
        "data.loader.samples_per_epoch=48", "data.split.ratios=[0.5,0.25,0.25]", "optimizer.weight_decay=0",
        "data.tumor_free_share=1.0", "heads.presence.dropout=0.0", "stages.segmentation.epochs=12",
        "stages.classification.epochs=2", "stages.joint.epochs=30",
        "stages.joint.optimizer={lr: 4e-3, parts: {backbone: {lr: 2e-3}}}", "trainer=cpu", "trainer.check_val_every_n_epoch=2",
        "evaluation.bootstrap=0", "evaluation.cases=0", f"paths.run_dir={tmp_path}/run",
    ]  # fmt: skip
    train(Plan.from_words(words))
    evaluation = score(load_model(tmp_path / "run" / "checkpoints" / "last.ckpt", "cpu"), "train", bootstrap=0)
    found = evaluation.evaluator.compute(evaluation.evaluator.thresholds())
    assert found["presence"]["balanced_accuracy"] >= 0.95
    assert found["whole_tumor"]["dice_per_case"] >= 0.85 and found["whole_tumor"]["dice_nonempty"] >= 0.75  # some are tiny
