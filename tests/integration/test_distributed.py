"""Two processes train the same network as one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tiny_runs import before_step, boxes_on_one_rank, checkpoint, differing, history, tiny_run

from mtl.core.errors import TrainingError
from mtl.core.types import TaskBatch
from mtl.data.pipeline.dataset import SampleDataset
from mtl.training.module import MultiTaskModule

# Nothing may depend on who shares a batch: frozen norm statistics, no augmentation, losses per image.
COMPARABLE = (
    "backbone.freeze=all", "peft=lora", "heads.segmentation.norm=instancenorm", "data.augmentation=null",
    "optimizer=sgd", "optimizer.options={momentum:0.9,nesterov:true}", "trainer.max_epochs=2", "balancer=uncertainty",
    "loss@heads.heatmap.loss=mse", "data.group_by=field", "data.split.ratios=[0.35,0.42,0.23]",
    "data.loader.samples_per_epoch=12",
)  # fmt: skip
TWO = ("trainer=ddp_cpu", "data.loader.batch_size=2")
ONE = ("data.loader.batch_size=4",)


def hide_labels(self: SampleDataset, key: Any, original: Any) -> dict[str, Any]:
    """Take labels away so that steps occur in which one rank, or nobody, has a label of a task."""
    item = original(self, key)
    position = getattr(key, "position", 0)
    step, place = divmod(position, 4)
    absent = {
        "segmentation": step == 0 and place % 2 == 1,  # all of rank 1
        "heatmap": step == 1 or (step == 2 and place < 3),  # nobody; all but one
    }
    if isinstance(key, tuple):
        for task, gone in absent.items():
            if gone and task in item["present"]:
                item["present"][task], item["targets"][task] = False, None
    return item


def trained(smears: Path, run_dir: Path, *overrides: str, hide: bool = True) -> dict[str, Any]:
    original = SampleDataset.__getitem__
    with patch.object(SampleDataset, "__getitem__", (lambda self, key: hide_labels(self, key, original)) if hide else original):
        tiny_run(smears, run_dir, *overrides)
    return checkpoint(run_dir)


def test_two_ranks_equal_one(smears: Path, tmp_path: Path) -> None:
    settings = ("tasks=[segmentation,heatmap]", *COMPARABLE)
    two = trained(smears, tmp_path / "two", *settings, *TWO)
    one = trained(smears, tmp_path / "one", *settings, *ONE)
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5) == []
    assert one["mtl"]["thresholds"] == two["mtl"]["thresholds"]
    first, second = history(tmp_path / "one"), history(tmp_path / "two")
    assert [row.keys() for row in first] == [row.keys() for row in second] and len(first) == 2
    for row, other in zip(first, second, strict=True):
        for key in row:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-4, nan_ok=True), key
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "val 5 images" in log  # three on one rank, two on the other
    names = sorted(path.name for path in (tmp_path / "two").rglob("*") if path.is_file())
    assert names == ["best.ckpt", "config.json", "environment.json", "last.ckpt", "log.txt", "metrics.csv", "split.csv"]
    assert log.count("epoch 2/2") == 1


@pytest.mark.slow
def test_a_wrong_division_would_be_seen(smears: Path, tmp_path: Path) -> None:
    """The comparison above notices if ranks averaged their own means."""
    settings = ("tasks=[segmentation,heatmap]", *COMPARABLE, "trainer.max_epochs=1")
    one = trained(smears, tmp_path / "one", *settings, *ONE)
    with patch("mtl.training.module._share", return_value=1.0):
        two = trained(smears, tmp_path / "two", *settings, *TWO)
    assert differing(one["state_dict"], two["state_dict"], tolerance=1e-5)


def test_detection_without_a_box_on_one_rank_and_one_validation_image(smears: Path, tmp_path: Path) -> None:
    """No rank may wait for another: neither for a gradient nor for a validation that the other skips."""

    original = MultiTaskModule.on_validation_epoch_start

    def one_image(self: MultiTaskModule) -> None:
        assert len(self.trainer.val_dataloaders.sampler) == 1
        original(self)

    with before_step(boxes_on_one_rank), patch.object(MultiTaskModule, "on_validation_epoch_start", one_image):
        tiny_run(smears, tmp_path / "run", "tasks=[detection,roi]", *TWO, "trainer.max_epochs=1", "data.loader.batch_size=1")
    assert len(history(tmp_path / "run")) == 1
    assert all(
        np.isfinite(float(history(tmp_path / "run")[0][f"train/{task}/loss"]))
        for task in (
            "detection",
            "roi",
        )
    )


def test_an_error_in_a_rank_is_one_sentence(smears: Path, tmp_path: Path) -> None:
    def spoil(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if module.global_rank == 1:
            batch.images.fill_(float("nan"))

    with (
        before_step(spoil),
        pytest.raises(TrainingError, match=r"^The loss of segmentation.* is not finite .NaN or infinite. in epoch 1, step 0"),
    ):
        tiny_run(smears, tmp_path / "run", "tasks=[segmentation,heatmap]", *TWO, "trainer.max_epochs=1")


def test_a_rank_that_is_killed_is_one_sentence_in_the_log_too(smears: Path, tmp_path: Path) -> None:
    def die(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if module.global_rank == 1 and module.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with before_step(die), pytest.raises(TrainingError, match=r"^A process of the run is gone: rank \d ") as caught:
        tiny_run(smears, tmp_path / "run", "tasks=[segmentation]", *TWO, "trainer.max_epochs=2")
    assert str(caught.value).endswith(f"last.ckpt holds epoch 1. Go on with: python train.py resume={tmp_path / 'run'}")
    assert (tmp_path / "run" / "log.txt").read_text().rstrip().endswith(f"ERROR {caught.value}")
