"""Measurements within one process: training step, its parts, precision, data loading, epochs."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from benchmark_rows import Row, spread
from torch import Tensor

from mtl.config.plan import Plan
from mtl.config.schema import RunConfig
from mtl.core.errors import ConfigError
from mtl.core.task import higher_is_better
from mtl.core.types import TaskBatch
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.layers import take_rows
from mtl.model import Features, MultiTaskModel
from mtl.runs.build import build_balancer, build_evaluator, build_model
from mtl.runs.environment import environment
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.fit import build_trainer
from mtl.training.module import MultiTaskModule

WARM_UP = 2
TARGET = 1.03


# -- what is measured ------------------------------------------------------------------------------------------------------


def generate_images(family: str, folder: Path, images: int, width: int) -> Path:
    """Generate a data set of a family.

    Raises:
        ConfigError: There is no generator for the family.
    """
    from mtl.data.families.malaria.generator import generate_malaria, generate_malaria_cells

    if family == "malaria":
        generate_malaria(folder, patients=max(4, images // 2), fields=2, seed=0, width=width)
    elif family == "malaria_cells":
        generate_malaria_cells(folder, patients=6, cells=max(8, images // 6), seed=0)
    else:
        raise ConfigError(f"There are no synthetic images for `{family}`: give data.root=<folder>.")
    return folder


def device_of(config: RunConfig) -> torch.device:
    """Return the device that the Trainer would use."""
    wanted = config.trainer.accelerator
    cuda = wanted in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def build_module(plan: Plan) -> MultiTaskModule:
    """Build the module of a run with fixed random weights."""
    pl.seed_everything(plan.config.seed, verbose=False)
    model, balancer = build_model(plan), build_balancer(plan.config.balancer, plan.config.tasks)
    return MultiTaskModule(model, balancer, build_evaluator(plan, model.specs), plan)


def build_datamodule(plan: Plan, model: MultiTaskModel, cached: bool | None = None) -> MultiTaskDataModule:
    """Build the data module of a run, with the cache on, off or as configured."""
    if cached is not None:
        plan = changed(plan, {"data": {"cache": {"enabled": cached}}})
    return MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)


def changed(plan: Plan, values: dict[str, Any]) -> Plan:
    """Return a plan with other values in its configuration."""

    def merged(before: Any, after: Any) -> Any:
        if not (isinstance(before, dict) and isinstance(after, dict)):
            return after
        return {**before, **{key: merged(before.get(key), value) for key, value in after.items()}}

    return Plan.from_stored(merged(plan.to_dict(), values), "the benchmark")


def first_batch(plan: Plan, model: MultiTaskModel) -> TaskBatch:
    """Return one training batch."""
    return next(iter(build_datamodule(plan, model).train_dataloader()))


def mixed(config: RunConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context of the configured precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled="bf16" in str(config.trainer.precision))


def total_loss(model: MultiTaskModel, outputs: dict[str, Any], batch: TaskBatch) -> Tensor:
    """Add up all loss terms of all heads."""
    terms = [
        term for task, head in model.heads.items() if task in outputs
        for term in head.loss(outputs[task], take_rows(batch.targets[task], batch.rows[task])).values()
    ]  # fmt: skip
    return torch.stack(terms).sum()


def bare_step(config: RunConfig, module: MultiTaskModule) -> Callable[[TaskBatch], None]:
    """Return a training step as one would write it by hand: no Lightning, no checks, no log."""
    model, device = module.model, next(module.model.parameters()).device
    own = config.optimizer
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[own.name]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = kind(parameters, lr=own.lr, weight_decay=own.weight_decay, **own.options)
    clip = config.trainer.gradient_clip_val
    channels_last = config.runtime.channels_last
    model.train()

    def step(batch: TaskBatch) -> None:
        batch = batch.to(device)
        images = batch.images.contiguous(memory_format=torch.channels_last) if channels_last else batch.images
        optimizer.zero_grad()
        with mixed(config, device):
            loss = total_loss(model, model(images, rows=batch.rows), batch)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    return step


def clock(device: torch.device) -> float:
    """Return the time after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# -- training step ---------------------------------------------------------------------------------------------------------


class Finished(Exception):
    """Ends `Trainer.fit` once enough steps were timed."""


class Relay:
    """A loader that always yields the same batch and, between two steps of the Trainer, runs the bare loop's.

    What passes between handing out a batch and being asked for the next is one full step of the Trainer: transfer, hooks,
    forward, backward, clipping, optimizer, schedule, log.

    Args:
        batch: The batch.
        bare: The other side's step.
        device: Where both run.
        repetitions: Timed blocks per side.
        block: Steps per block; more than one lets a GPU run ahead of Python, as in a real epoch.
    """

    def __init__(
        self, batch: TaskBatch, bare: Callable[[TaskBatch], None], device: torch.device, repetitions: int, block: int
    ) -> None:
        self.batch, self.bare, self.device, self.repetitions, self.block = batch, bare, device, repetitions, block
        self.wall: dict[str, list[float]] = {"ours": [], "bare": []}
        self.processor: dict[str, list[float]] = {"ours": [], "bare": []}

    def __len__(self) -> int:
        return 10**6  # the end of the epoch, with its checkpoint, is never reached

    def __iter__(self) -> Iterator[TaskBatch]:
        for repetition in range(WARM_UP + self.repetitions):
            # Each side goes first in turn.
            for side in ("bare", "ours") if repetition % 2 else ("ours", "bare"):
                started, processor = clock(self.device), time.process_time()
                for _ in range(self.block):
                    if side == "bare":
                        self.bare(self.batch)
                    else:
                        yield self.batch
                wall, processor = clock(self.device) - started, time.process_time() - processor
                if repetition >= WARM_UP:
                    self.wall[side].append(wall / self.block)
                    self.processor[side].append(processor / self.block)
        raise Finished


def step_rows(plan: Plan, folder: Path, repetitions: int) -> list[Row]:
    """Compare a training step of the Trainer with a bare PyTorch loop over a copy of the same model and the same batch."""
    module = build_module(plan)
    device = device_of(plan.config)
    batch = first_batch(plan, module.model)
    twin = copy.deepcopy(module)
    twin.model.to(device)
    relay = Relay(batch, bare_step(plan.config, twin), device, repetitions, block=10 if device.type == "cuda" else 1)
    run_dir = folder / "step"
    run_dir.mkdir(parents=True, exist_ok=True)
    limits = {"check_val_every_n_epoch": 2, "max_epochs": 1, "enable_progress_bar": False}
    monitor = plan.config.monitor
    trainer = build_trainer(
        changed(plan, {"trainer": limits}).config, run_dir, [RunRecorder(run_dir, monitor, higher_is_better(monitor))]
    )
    with contextlib.suppress(Finished):
        trainer.fit(module, train_dataloaders=relay)
    section, images = "training step", len(batch)
    wall = [ours / bare for ours, bare in zip(relay.wall["ours"], relay.wall["bare"], strict=True)]
    found = [
        Row(section, name, 1000 * statistics.median(relay.wall[side]) / images, "ms / image", spread(relay.wall[side]) + " s")
        for name, side in (("bare PyTorch loop", "bare"), ("Trainer and module", "ours"))
    ]
    found.append(Row(section, "ratio", statistics.median(wall), "", f"target {TARGET} or less; {spread(wall)}"))
    if device.type == "cpu":
        processor = [ours / bare for ours, bare in zip(relay.processor["ours"], relay.processor["bare"], strict=True)]
        note = f"less disturbed by other processes; {spread(processor)}"
        found.append(Row(section, "ratio of processor time", statistics.median(processor), "", note))
    return found


def part_rows(plan: Plan, repetitions: int) -> list[Row]:
    """Time encoder, necks and each head (forward, loss and backward) in one training step."""
    module, device = build_module(plan), device_of(plan.config)
    model = module.model.to(device).train()
    batch = first_batch(plan, model).to(device)
    seconds: dict[str, list[float]] = {}
    for repetition in range(1 + repetitions):
        found = _time_parts(plan.config, model, batch, device)
        if repetition:
            for part, value in found.items():
                seconds.setdefault(part, []).append(value)
    medians = {part: statistics.median(values) for part, values in seconds.items()}
    whole = sum(medians.values())
    images = len(batch)
    return [
        Row("parts of a step", part, 100 * value / whole, "%", f"{1000 * value / images:.0f} ms / image")
        for part, value in medians.items()
    ]


def _time_parts(config: RunConfig, model: MultiTaskModel, batch: TaskBatch, device: torch.device) -> dict[str, float]:
    rows = {task: rows for task, rows in batch.rows.items() if rows}
    size = (batch.images.shape[-2], batch.images.shape[-1])
    model.zero_grad()
    started = clock(device)
    with mixed(config, device):
        features = Features(model, rows, batch.images)
        encoder = clock(device)
        maps = {task: features.read_by(task) for task in rows}
        necks = clock(device)
    found = {"encoder forward": encoder - started, "necks forward": necks - encoder}
    cut = {name: tuple(level.detach().requires_grad_() for level in levels) for name, levels in maps.items()}
    for task in rows:
        head: Any = model.heads[task]
        started = clock(device)
        with mixed(config, device):
            output = head(cut[task], size)
            loss = torch.stack(list(head.loss(output, take_rows(batch.targets[task], rows[task])).values())).sum()
        loss.backward()
        found[f"head {task} ({config.heads[task]['name']})"] = clock(device) - started
    pairs = [
        (level, twin.grad) for name in maps for level, twin in zip(maps[name], cut[name], strict=True)
        if twin.grad is not None and level.requires_grad
    ]  # fmt: skip
    started = clock(device)
    torch.autograd.backward([level for level, _ in pairs], [gradient for _, gradient in pairs])
    found["encoder and necks backward"] = clock(device) - started
    return found


def variant_rows(plan: Plan, repetitions: int) -> list[Row]:
    """Compare precisions and memory formats by forward and backward passes of one model each, in turns."""
    device = device_of(plan.config)
    names = ["fp32", "bf16-mixed", "channels_last", "bf16-mixed + channels_last"]
    names += ["compile", "bf16-mixed + channels_last + compile"] if device.type == "cuda" else []
    passes = {name: _variant(plan, name, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(WARM_UP + repetitions):
        for name, run in passes.items():
            started = clock(device)
            run()
            if repetition >= WARM_UP:
                seconds[name].append(clock(device) - started)
    first = statistics.median(seconds[names[0]])
    images = plan.config.data.loader.batch_size
    return [
        Row(
            "precision and format", name, first / statistics.median(values), "x fp32",
            f"{1000 * statistics.median(values) / images:.0f} ms / image forward and backward",
        )
        for name, values in seconds.items()
    ]  # fmt: skip


def _variant(plan: Plan, name: str, device: torch.device) -> Callable[[], None]:
    settings = {
        "trainer": {"precision": "bf16-mixed" if "bf16" in name else "32-true"},
        "runtime": {"channels_last": "channels_last" in name, "compile": "compile" in name},
    }
    plan = changed(plan, settings)
    module = build_module(plan)
    module.model.to(device).train()
    batch = first_batch(plan, module.model).to(device)

    def run() -> None:
        module.zero_grad()
        with mixed(plan.config, device):
            loss = total_loss(module.model, module(batch.images, rows=batch.rows), batch)
        loss.backward()

    return run


# -- data and epochs -------------------------------------------------------------------------------------------------------


def loading_rows(plan: Plan, folder: Path) -> list[Row]:
    """Measure training images per second of the loader alone, decoding every time and from the cache."""
    model = build_model(plan)
    rates: dict[bool, list[float]] = {False: [], True: []}
    modules = {cached: build_datamodule(plan, model, cached) for cached in rates}
    started = time.perf_counter()
    modules[True].dataset("train")
    build = time.perf_counter() - started
    loaders = {cached: module.train_dataloader() for cached, module in modules.items()}
    for repetition in range(4):  # the first pass also reads the labels
        for cached, loader in loaders.items():
            modules[cached].set_epoch(repetition)
            started, images = time.perf_counter(), 0
            for batch in loader:
                images += len(batch)
            if repetition:
                rates[cached].append(images / (time.perf_counter() - started))
    workers = plan.config.data.loader.num_workers
    note = "with augmentation, " + (f"{workers} workers" if workers else "in the training process")
    return [
        Row(
            "data loading",
            "decoded every time",
            statistics.median(rates[False]),
            "images / s",
            f"{note}; {spread(rates[False], 1)}",
        ),
        Row(
            "data loading", "from the cache", statistics.median(rates[True]), "images / s", f"{note}; {spread(rates[True], 1)}"
        ),
        Row("data loading", "building the cache, once", build, "s", f"{len(modules[True].records)} images"),
    ]


class Stopwatch(pl.Callback):
    """Times the training and the validation part of every epoch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {"train": [], "val": []}
        self.images = {"train": 0, "val": 0}
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.images = {"train": 0, "val": 0}
        self._started = clock(self.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: TaskBatch, batch_idx: int) -> None:
        """Count."""
        self.images["train"] += len(batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop for training, start for validation."""
        now = clock(self.device)
        self.seconds["train"].append(now - self._started)
        self._started = now

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: TaskBatch, batch_idx: int) -> None:
        """Count."""
        self.images["val"] += len(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.seconds["val"].append(clock(self.device) - self._started)


def epoch_rows(plan: Plan, folder: Path, batches: int = 4) -> list[Row]:
    """Time a short training epoch and a validation epoch, metrics included, per image; the second epoch counts."""
    module, device = build_module(plan), device_of(plan.config)
    watch, run_dir = Stopwatch(device), folder / "epoch"
    run_dir.mkdir(parents=True, exist_ok=True)
    limits = {
        "limit_train_batches": batches, "limit_val_batches": batches, "max_epochs": 2, "enable_progress_bar": False,
        "check_val_every_n_epoch": 1,
    }  # fmt: skip
    trainer = build_trainer(changed(plan, {"trainer": limits}).config, run_dir, [watch])
    trainer.fit(module, datamodule=build_datamodule(plan, module.model))
    cost = {name: 1000 * watch.seconds[name][-1] / max(1, watch.images[name]) for name in watch.seconds}
    return [
        Row("epoch", "training", cost["train"], "ms / image", f"{watch.images['train']} images, loading included"),
        Row("epoch", "validation", cost["val"], "ms / image", f"{watch.images['val']} images, decoding and metrics included"),
        Row("epoch", "validation / training", cost["val"] / cost["train"], "", "per image"),
    ]


# -- conditions ------------------------------------------------------------------------------------------------------------


def describe(config: RunConfig, threads: int) -> dict[str, str]:
    """Return what a reader must know to repeat the numbers."""
    found = environment()
    device = device_of(config)
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    height, width = config.data.geometry.size
    malloc = {key: os.environ[key] for key in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_") if key in os.environ}
    return {
        "suite": f"{config.suite}, {config.backbone.get('architecture', config.backbone['name'])}, "
        f"{height} x {width} px, "
        f"batch {config.data.loader.batch_size}, {config.optimizer.name}, {config.trainer.precision}",
        "device": f"{device.type}: {name}",
        "threads": f"{threads} of {os.cpu_count()}",
        "versions": ", ".join([f"python {found['python']}", *(f"{key} {value}" for key, value in found["packages"].items())]),
        "mtl": f"{found['mtl']}, commit {found['commit']}",
        "malloc": ", ".join(f"{key}={value}" for key, value in malloc.items()) or "defaults",
        "load of the machine": f"{os.getloadavg()[0]:.1f} at the end of the run, {time.strftime('%Y-%m-%d')}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
