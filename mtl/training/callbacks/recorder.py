"""Writes what a run leaves behind after every epoch: checkpoints, `metrics.csv` and a line in the log."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from mtl.core.files import write_text

log = logging.getLogger("mtl")


class RunRecorder(Checkpoint):
    """Saves `last.ckpt` after every epoch and `best.ckpt` whenever the monitored metric improves.

    A sub-class of `Checkpoint`, because Lightning runs those after the module has logged its epoch.

    Args:
        run_dir: The run directory.
        monitor: Name of the metric that selects `best.ckpt`.
        higher_is_better: Its direction.
    """

    def __init__(self, run_dir: Path, monitor: str, higher_is_better: bool) -> None:
        self.run_dir = run_dir
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.last_epoch = -1
        self.rows: list[dict[str, float]] = []
        self._started = time.monotonic()

    @property
    def last(self) -> Path:
        """Path of the checkpoint of the last finished epoch."""
        return self.run_dir / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the best monitored value."""
        return self.run_dir / "checkpoints" / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must remember."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch, "last_epoch": self.last_epoch, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the interrupted run."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
        self.last_epoch, self.rows = state_dict["last_epoch"], list(state_dict["rows"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of an epoch."""
        if batch_idx == 0:
            self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch."""
        epoch = trainer.current_epoch
        if epoch <= self.last_epoch:  # Lightning repeats the hook when it resumes at an epoch's end
            return
        self.last_epoch = epoch
        values = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
        seconds = time.monotonic() - self._started
        row = {"epoch": epoch, "step": trainer.global_step, **values, **_learning_rates(trainer), "seconds": round(seconds, 3)}
        self.rows.append(row)
        improved = self._improves(values.get(self.monitor), trainer)
        if improved:
            self.best_value, self.best_epoch = values[self.monitor], epoch
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            if improved:
                self._copy_to_best()
            write_text(self.run_dir / "metrics.csv", table(self.rows))
            log.info(self._line(row, improved, trainer.max_epochs))

    def _improves(self, value: float | None, trainer: pl.Trainer) -> bool:
        if value is None or math.isnan(value) or trainer.sanity_checking:
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if self.higher_is_better else value < self.best_value

    def _copy_to_best(self) -> None:
        """Publish the epoch's checkpoint as the best one, by a copy beside and a rename."""
        partial = self.best.with_suffix(".partial")
        try:
            os.link(self.last, partial)  # the next epoch replaces last.ckpt by a rename, so the linked content stays
        except OSError:
            shutil.copyfile(self.last, partial)
        partial.replace(self.best)

    def _line(self, row: dict[str, float], improved: bool, epochs: int | None) -> str:
        parts = [f"epoch {int(row['epoch']) + 1}/{epochs}", f"train/loss {row.get('train/loss', math.nan):.4f}"]
        parts += [f"{key} {row[key]:.4f}" for key in ("val/loss", "val/score") if key in row]
        if self.monitor not in ("val/loss", "val/score") and self.monitor in row:
            parts.append(f"{self.monitor} {row[self.monitor]:.4f}")
        return "  ".join([*parts, f"{row['seconds']:.1f} s", *(["best"] if improved else [])])


def _learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    return {f"lr/{group['name']}": float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups}


def table(rows: list[dict[str, float]]) -> str:
    """Format rows as CSV; a column appears as soon as one row has it."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
