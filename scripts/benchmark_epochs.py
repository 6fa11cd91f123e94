"""Measurements of loaders and epochs: images per second, training and validation with everything around them."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from benchmark_plans import build_datamodule, build_module, clock, device_of, trainer_for
from benchmark_rows import Row, spread
from torch.utils.data import DataLoader

from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.runs.build import build_model


def loading_rows(plan: Plan, passes: int = 3) -> list[Row]:
    """Measure training images per second of the loader alone, decoding every time and from the cache."""
    model = build_model(plan)
    rates: dict[bool, list[float]] = {False: [], True: []}
    modules = {cached: build_datamodule(plan, model, cached) for cached in rates}
    started = time.perf_counter()
    modules[True].dataset("train")
    build = time.perf_counter() - started
    loaders = {cached: module.train_dataloader() for cached, module in modules.items()}
    for repetition in range(1 + passes):  # the first pass also reads the labels
        for cached, loader in loaders.items():
            modules[cached].set_epoch(repetition)
            rate, _ = loading_rate(loader)
            if repetition:
                rates[cached].append(rate)
    note = f"with augmentation, {where_loaded(loaders[False])}"
    return [
        *(
            Row("data loading", what, statistics.median(rates[cached]), "images / s", f"{note}; {spread(rates[cached], 1)}")
            for what, cached in (("decoded every time", False), ("from the cache", True))
        ),
        Row("data loading", "building the cache, once", build, "s", f"{len(modules[True].records)} images"),
    ]


def loading_rate(loader: DataLoader, seconds: float = float("inf")) -> tuple[float, int]:
    """Return images per second of one pass, or of so many seconds of it, and how many images those were."""
    started, images = time.perf_counter(), 0
    for batch in loader:
        images += len(batch)
        if time.perf_counter() - started > seconds:
            break
    return images / (time.perf_counter() - started), images


def where_loaded(loader: DataLoader) -> str:
    """Return which processes load."""
    count = loader.num_workers
    return f"{count} worker{'s' if count > 1 else ''}" if count else "in the training process"


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
    module, watch = build_module(plan), Stopwatch(device_of(plan.config))
    trainer = trainer_for(plan, folder / "epoch", [watch], limit_train_batches=batches, limit_val_batches=batches, max_epochs=2)
    trainer.fit(module, datamodule=build_datamodule(plan, module.model))
    cost = {name: 1000 * watch.seconds[name][-1] / max(1, watch.images[name]) for name in watch.seconds}
    return [
        Row("epoch", "training", cost["train"], "ms / image", f"{watch.images['train']} images, loading included"),
        Row("epoch", "validation", cost["val"], "ms / image", f"{watch.images['val']} images, decoding and metrics included"),
        Row("epoch", "validation / training", cost["val"] / cost["train"], "", "per image"),
    ]


def validation_cost(plan: Plan, folder: Path, batches: int) -> tuple[float, int]:
    """Return seconds per window of a validation, decoding, joining and metrics included, and how many windows it had."""
    module, watch = build_module(plan), Stopwatch(device_of(plan.config))
    trainer = trainer_for(plan, folder, [watch], limit_val_batches=batches)
    trainer.validate(module, datamodule=build_datamodule(plan, module.model), verbose=False)
    return watch.seconds["val"][-1] / max(1, watch.images["val"]), watch.images["val"]
