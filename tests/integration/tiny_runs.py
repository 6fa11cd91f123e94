"""Training runs that take about a second each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.experiments.train import train
from mtl.runs.resume import resumed_plan
from mtl.training.module import MultiTaskModule

DENSE = ("tasks=[segmentation,heatmap]",)


def words(smears: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Command-line words of a tiny run: 8 training images of 64 px in 4 batches."""
    return [
        "task=malaria_mttl", "backbone=test_resnet", "trainer=cpu", f"data.root={smears}", f"paths.run_dir={run_dir}",
        "data.geometry.size=[64,64]", "data.loader.batch_size=2", "evaluation.bootstrap=10", "evaluation.cases=1",
        *overrides,
    ]  # fmt: skip


def tiny_run(smears: Path, run_dir: Path, *overrides: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train; the evaluation on the test split is left out unless `score`."""
    return go(Plan.from_words(words(smears, run_dir, *overrides)), score)


def resume_run(run_dir: Path, *overrides: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Go on with a run."""
    return go(resumed_plan(str(run_dir), list(overrides)), score)


def go(plan: Plan, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Carry out a plan."""
    if score:
        return train(plan)
    with patch("mtl.experiments.score.evaluate_run", return_value={}):
        return train(plan)


@contextmanager
def before_step(action: Any) -> Iterator[None]:
    """Call `action(module, batch, batch_index)` before every training step; it may raise or change the batch in place."""
    original = MultiTaskModule.training_step

    def step(self: MultiTaskModule, batch: TaskBatch, batch_index: int) -> torch.Tensor:
        action(self, batch, batch_index)
        return original(self, batch, batch_index)

    with patch.object(MultiTaskModule, "training_step", step):
        yield


def boxes_on_one_rank(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
    """For `before_step`: take all boxes from rank 1 in the first step, and from rank 0 in the second their label."""
    if module.global_rank == 1 and index == 0:
        for task in ("detection", "roi"):
            for target in batch.targets[task]:
                for key, value in target.items():
                    target[key] = value[:0]
    if module.global_rank == 0 and index == 1:
        for task in ("detection", "roi"):
            batch.present[task][:] = False


def stop_at(epoch: int, batch_index: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    """Make an action for `before_step` that raises at one step."""

    def action(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if (module.current_epoch, index) == (epoch, batch_index):
            raise error

    return action


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    """Load a checkpoint of a run."""
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def history(run_dir: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` without the time they took."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 0.0) -> list[str]:
    """Names of tensors that differ by more than `tolerance` (relative to 1 or their size)."""
    assert first.keys() == second.keys()
    return [
        name
        for name, value in first.items()
        if (value.double() - second[name].double()).abs().max() > tolerance * max(1.0, float(value.double().abs().max()))
    ]
