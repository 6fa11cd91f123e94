"""What is measured: the stage of a run, its module, its data (generated where none are given), and the conditions."""

from __future__ import annotations

import os
import platform
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mtl.config.plan import Plan
from mtl.config.schema import RunConfig
from mtl.config.stages import Stage
from mtl.core.allocator import OWN_SETTINGS
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import higher_is_better
from mtl.core.types import TaskBatch
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.model import MultiTaskModel
from mtl.runs.build import build_balancer, build_evaluator, build_model
from mtl.runs.environment import environment
from mtl.runs.precision import settled
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.fit import build_trainer, show_targets
from mtl.training.loading import settled_loading
from mtl.training.module import MultiTaskModule

# Per patient where a photograph is not the unit: slices of a volume, single cells.
FIELDS = {"brain": 8, "malaria_cells": 8}
SEARCHED = 8  # batches that are looked at for one with labels of all tasks


def plan_of(words: list[str]) -> Plan:
    """Return the plan that a command would carry out on this machine: what is `auto` is settled."""
    plan, _ = settled(Plan.from_words(words))
    return settled_loading(plan)[0]


def generate_images(family: str, folder: Path, images: int, width: int | None = None) -> Path:
    """Generate a data set of a family, unless it is there.

    Raises:
        ConfigError: There is no generator for the family, or it generates no other width.
    """
    if not folder.exists():
        fields = FIELDS.get(family, 2)
        kind: Any = DATA_FAMILIES.get(family)
        patients = max(8, images // fields)
        kind.generate(folder, patients=patients, fields=fields, seed=0, width=width, kind=None, overwrite=False)
    return folder


def stage_of(plan: Plan) -> Stage:
    """Return the stage that trains the most tasks, the last of several such."""
    return max(plan.stages, key=lambda stage: (len(stage.tasks), stage.index))


def build_module(plan: Plan) -> MultiTaskModule:
    """Build the module of a run with fixed random weights; what its heads ask of the data they learn from the labels."""
    stage = stage_of(plan)
    pl.seed_everything(plan.config.seed, verbose=False)
    model, balancer = build_model(plan), build_balancer(stage.config.balancer, stage.tasks)
    if any(head.looks_at_targets for head in model.heads.values()):
        show_targets(model, build_datamodule(plan, model))
    return MultiTaskModule(model, balancer, build_evaluator(plan, model.specs), plan, stage)


def build_datamodule(plan: Plan, model: MultiTaskModel, cached: bool | None = None) -> MultiTaskDataModule:
    """Build the data module of what is measured, with the cache on, off or as configured."""
    if cached is not None:
        plan = changed(plan, {"data": {"cache": {"enabled": cached}}})
    stage, data = stage_of(plan), MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)
    return data.for_stage(stage.tasks, stage.sources, stage.config.data.loader, stage.seed)


def trainer_for(plan: Plan, run_dir: Path, callbacks: list[pl.Callback], **limits: Any) -> pl.Trainer:
    """Build the Trainer of what is measured, with the recorder of a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    stage = stage_of(changed(plan, {"trainer": {"enable_progress_bar": False, "check_val_every_n_epoch": 1, **limits}}))
    monitor = stage.config.monitor
    recorder = RunRecorder(run_dir, monitor, higher_is_better(monitor), stage.name)
    return build_trainer(stage.config, run_dir, [recorder, *callbacks])


def changed(plan: Plan, values: dict[str, Any]) -> Plan:
    """Return a plan with other values in its configuration."""

    def merged(before: Any, after: Any) -> Any:
        if not (isinstance(before, dict) and isinstance(after, dict)):
            return after
        return {**before, **{key: merged(before.get(key), value) for key, value in after.items()}}

    return Plan.from_stored(merged(plan.to_dict(), values), "the benchmark")


def in_fp32(plan: Plan) -> Plan:
    """Return the plan in single precision, with images in the ordinary memory format."""
    return changed(plan, {"trainer": {"precision": "32-true"}, "runtime": {"channels_last": False}})


def first_batch(plan: Plan, model: MultiTaskModel) -> TaskBatch:
    """Return the training batch, of the first few, in which the most tasks have a label."""
    tasks = stage_of(plan).tasks

    def labelled(batch: TaskBatch) -> int:
        return sum(bool(batch.present[task].any()) for task in tasks)

    best: TaskBatch | None = None
    for batch in islice(build_datamodule(plan, model).train_dataloader(), SEARCHED):
        if best is None or labelled(batch) > labelled(best):
            best = batch
        if labelled(best) == len(tasks):
            break
    assert best is not None  # a loader without a batch is refused when it is made
    return best


def device_of(config: RunConfig) -> torch.device:
    """Return the device that the Trainer would use."""
    wanted = config.trainer.accelerator
    cuda = wanted in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def clock(device: torch.device) -> float:
    """Return the time after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# -- conditions ------------------------------------------------------------------------------------------------------------


def describe(config: RunConfig, threads: int) -> dict[str, str]:
    """Return what a reader must know to repeat the numbers of one suite."""
    height, width = config.data.geometry.size
    suite = (
        f"{config.suite}, {config.backbone.get('architecture', config.backbone['name'])}, {height} x {width} px, "
        f"batch {config.data.loader.batch_size}, {config.optimizer.name}, {config.trainer.precision}"
    )
    return {"suite": suite, **conditions(device_of(config), threads)}


def conditions(device: torch.device, threads: int) -> dict[str, str]:
    """Return what the numbers of all suites depend on."""
    found = environment()
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    malloc = {key: os.environ[key] for key in OWN_SETTINGS if key in os.environ}
    return {
        "device": f"{device.type}: {name}",
        "threads": f"{threads} of {os.cpu_count()}",
        "versions": ", ".join([f"python {found['python']}", *(f"{key} {value}" for key, value in found["packages"].items())]),
        "mtl": f"{found['mtl']}, commit {found['commit']}",
        "malloc": ", ".join(f"{key}={value}" for key, value in malloc.items()) or "freed memory is kept",
        "load of the machine": f"{os.getloadavg()[0]:.1f} at the end of the run, {time.strftime('%Y-%m-%d')}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
