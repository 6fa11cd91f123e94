"""Rules that keep results honest, checked on whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_runs import DENSE, before_step, checkpoint, history, tiny_run

from mtl.balancing.base import Step
from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.data.pipeline.collate import Collate
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.experiments.score import evaluate
from mtl.metrics.evaluator import Evaluator
from mtl.runs.build import build_balancer, build_evaluator, build_model
from mtl.training.module import MultiTaskModule
from mtl.training.optim import build_optimizer, split_parts

SUITES = {
    "malaria_mttl": (
        "task=malaria_mttl", "backbone=test_resnet", "backbone.freeze=all", "backbone.unfreeze=[layer3,layer4]",
        "peft=bottleneck", "heads.segmentation.norm=batchnorm", "balancer=uncertainty",
    ),
    "published": ("experiment=published/malaria_det3_roi", "peft.dropout=0.0"),
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_every_trainable_parameter_moves_and_nothing_else_does(suite: str, smears: Path) -> None:
    """Two steps: the second factor of an adapter starts at zero, so its first factor has no gradient in the first one."""
    plan = Plan.from_words([*SUITES[suite], f"data.root={smears}", "data.geometry.size=[128,128]", "seed=1"])
    torch.manual_seed(0)
    model, balancer = build_model(plan), build_balancer(plan.config.balancer, plan.config.tasks)
    module = MultiTaskModule(model, balancer, build_evaluator(plan, model.specs), plan)
    data = MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)
    data.setup("fit")
    optimizer = build_optimizer(split_parts(model, balancer), plan.config.optimizer.model_copy(update={"weight_decay": 0.0}))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable.values())
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.train()
    dataset = data.dataset("train")
    with patch.object(MultiTaskModule, "trainer", SimpleNamespace(world_size=1)):
        for step in range(2):
            batch = Collate(model.specs, plan.config.tasks)([dataset[2 * step], dataset[2 * step + 1]])
            losses, counts = module.task_losses(module(batch.images, rows=batch.rows), batch)
            loss = balancer(Step(losses, {task: count > 0 for task, count in counts.items()}))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    after = module.state_dict()
    assert [name for name in trainable if torch.equal(before[name], after[name])] == []
    trained = set(trainable) | {name for name in before if _statistics_of_trained(module, name)}
    assert [name for name in before if name not in trained and not torch.equal(before[name], after[name])] == []
    frozen_statistics = [name for name in before if "running_mean" in name and name not in trained]
    assert frozen_statistics and any("encoder" in name for name in frozen_statistics)


def _statistics_of_trained(module: torch.nn.Module, name: str) -> bool:
    """Return whether a state entry is a norm statistic of a layer whose weights are trained."""
    owner, _, leaf = name.rpartition(".")
    if leaf not in ("running_mean", "running_var", "num_batches_tracked"):
        return False
    return any(parameter.requires_grad for parameter in module.get_submodule(owner).parameters())


def test_frozen_parts_survive_a_run_bit_for_bit(smears: Path, tmp_path: Path) -> None:
    start: dict[str, torch.Tensor] = {}

    def remember(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        start.update({} if start else {name: value.clone() for name, value in module.state_dict().items()})

    with before_step(remember):
        tiny_run(smears, tmp_path / "run", *DENSE, "backbone.freeze=all", "trainer.max_epochs=1")
    end = checkpoint(tmp_path / "run")["state_dict"]
    encoder = [name for name in end if name.startswith("model.encoder.")]
    assert any("running_var" in name for name in encoder)
    assert [name for name in encoder if not torch.equal(start[name], end[name])] == []


def test_thresholds_come_from_validation_and_never_see_test(smears: Path, tmp_path: Path) -> None:
    """Other test images change the test figures, but neither weights nor thresholds nor the chosen epoch."""
    settings = (*DENSE, "trainer.max_epochs=2", "optimizer.lr=0.01")
    kinds: list[set[str]] = []
    original = Evaluator.thresholds

    def watch(self: Evaluator) -> Any:
        kinds.append(set(self._seen))
        return original(self)

    with patch.object(Evaluator, "thresholds", watch):
        first, objects = tiny_run(smears, tmp_path / "first", *settings, score=True)
    split = {row["sample_id"]: row["split"] for row in objects["datamodule"].split_rows()}
    assert {split[name] for seen in kinds for name in seen} == {"val"} and len(kinds) == 2
    spoiled = tmp_path / "spoiled"
    shutil.copytree(smears, spoiled)
    for record in objects["datamodule"].records_by_split["test"]:
        image = spoiled / Path(record.path).relative_to(smears)
        other = next(r for r in objects["datamodule"].records_by_split["val"])
        image.write_bytes(Path(other.path).read_bytes() + b"\0" * (1 + len(record.sample_id)))
    second, _ = tiny_run(spoiled, tmp_path / "second", *settings, score=True)
    assert first["thresholds"] == second["thresholds"]
    assert first["tasks"]["segmentation"]["dice_per_image"] != second["tasks"]["segmentation"]["dice_per_image"]
    for name in ("best", "last"):
        one, two = checkpoint(tmp_path / "first", name)["mtl"], checkpoint(tmp_path / "second", name)["mtl"]
        assert (one["thresholds"], one["epoch"], one["validation"]) == (two["thresholds"], two["epoch"], two["validation"])
    assert first["thresholds"] == checkpoint(tmp_path / "first", "best")["mtl"]["thresholds"]


def test_best_is_the_epoch_with_the_best_validation_metric(smears: Path, tmp_path: Path) -> None:
    validated: list[int] = []
    original = MultiTaskModule.on_validation_epoch_start

    def count(self: MultiTaskModule) -> None:
        assert not self.trainer.sanity_checking
        validated.append(self.current_epoch)
        original(self)

    with patch.object(MultiTaskModule, "on_validation_epoch_start", count):
        tiny_run(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=4", "optimizer.lr=0.02", "monitor=val/heatmap/mse")
    values = [float(row["val/heatmap/mse"]) for row in history(tmp_path / "run")]
    assert validated == [0, 1, 2, 3]
    best = checkpoint(tmp_path / "run", "best")["mtl"]
    assert best["epoch"] == values.index(min(values))
    assert best["validation"]["val/heatmap/mse"] == pytest.approx(min(values))


def test_metrics_do_not_depend_on_the_batch_size(finished_run: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 5):
        folder = tmp_path / str(size)
        evaluate(str(finished_run), split="all", output=str(folder), batch_size=size, device="cpu", bootstrap=0, report=False)
        found.append(json.loads((folder / "metrics.json").read_text()))
    assert _close(found[0]["tasks"], found[1]["tasks"]) and found[0]["n_samples"] == 12
    assert _close(found[0]["study"], found[1]["study"])


def test_validation_does_not_depend_on_the_batch_size(smears: Path, tmp_path: Path) -> None:
    rows = []
    for size in (1, 2):
        tiny_run(smears, tmp_path / str(size), *DENSE, "debug=fast", f"data.loader.eval_batch_size={size}")
        rows.append(history(tmp_path / str(size))[0])
    scores = [
        {key: float(value) for key, value in row.items() if key.startswith("val/") and key[-4:] != "loss"} for row in rows
    ]
    assert _close(*scores)


def _close(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_close(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(_close(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, float) and second is not None:
        return first == pytest.approx(second, abs=2e-5, nan_ok=True)
    return bool(first == second)
