"""Writes what a run leaves behind after every epoch: checkpoints, `metrics.csv` and a line in the log."""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from mtl.core.files import link_or_copy
from mtl.runs.folder import RunFolder
from mtl.runs.history import write_history
from mtl.runs.lock import require_held

log = logging.getLogger("mtl")
Row = dict[str, Any]  # numbers by column, and the name of the stage


class RunRecorder(Checkpoint):
    """Saves the last checkpoint after every epoch, and it as the best one whenever the monitored metric improves, or always.

    A sub-class of `Checkpoint`, because Lightning runs those after the module has logged its epoch.

    Args:
        run_dir: The run directory.
        monitor: Name of the metric that selects the best checkpoint.
        higher_is_better: Its direction.
        stage: Stage of a curriculum; epochs, steps and samples are counted on from those of the stages before.
        earlier: Rows of these stages.
        select: `best`, or `last`: every epoch that was validated replaces the one before.
    """

    def __init__(
        self,
        run_dir: Path,
        monitor: str,
        higher_is_better: bool,
        stage: str = "",
        earlier: Sequence[Row] = (),
        select: str = "best",
    ) -> None:
        self.run_dir = run_dir
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.stage = stage
        self.select = select
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.last_epoch = -1
        self.rows: list[Row] = list(earlier)
        self.samples = int(earlier[-1]["samples"]) if earlier else 0
        self.stopped = False
        self._validated = False
        self._started = time.monotonic()

    @property
    def before(self) -> tuple[int, int]:
        """Epochs and optimizer steps of the stages before."""
        earlier = [row for row in self.rows if row.get("stage", "") != self.stage]
        return (int(earlier[-1]["epoch"]) + 1, int(earlier[-1]["step"])) if earlier else (0, 0)

    @property
    def last(self) -> Path:
        """Return the checkpoint of the last finished epoch."""
        return RunFolder(self.run_dir).last

    @property
    def best(self) -> Path:
        """Return the checkpoint with the best monitored value."""
        return RunFolder(self.run_dir).best

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must remember."""
        return {
            "best_value": self.best_value, "best_epoch": self.best_epoch, "last_epoch": self.last_epoch, "rows": self.rows,
            "samples": self.samples, "stopped": self.stopped,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the interrupted run."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
        self.last_epoch, self.rows = state_dict["last_epoch"], list(state_dict["rows"])
        self.samples, self.stopped = state_dict["samples"], state_dict["stopped"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let Ctrl-C end a forked rank without a word; the process that forked it says what there is to say."""
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete what a run that was killed between two files of an epoch had not written any more."""
        if self.last_epoch >= 0 and trainer.is_global_zero:
            write_history(self.run_dir, self.rows)
            if self.best_epoch == self.last_epoch:
                self._publish()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave at once when the resumed run had been stopped early: the Trainer does not remember that."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of an epoch, count samples."""
        if batch_idx == 0:
            self._started = time.monotonic()
            self._validated = False
        self.samples += len(batch) * trainer.world_size

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log at which step of the run the figures of a validation were taken."""
        self._count_on(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that this epoch was validated; the Trainer repeats older figures for one that was not."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch."""
        self._count_on(trainer, pl_module)
        epochs, steps = self.before
        epoch = epochs + trainer.current_epoch
        if epoch <= self.last_epoch:  # Lightning repeats the hook when it resumes at an epoch's end
            return
        self.last_epoch, self.stopped = epoch, trainer.should_stop
        values = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if "/" in key and (self._validated or not key.startswith("val/"))
        }
        row: Row = {
            **({"stage": self.stage} if self.stage else {}), "epoch": epoch, "step": steps + trainer.global_step,
            "samples": self.samples, **values, **learning_rates(trainer),
            "seconds": round(time.monotonic() - self._started, 3),
        }  # fmt: skip
        self.rows.append(row)
        improved = self._improves(values.get(self.monitor), trainer) if self.select == "best" else self._validated
        if improved:
            self.best_value, self.best_epoch = values.get(self.monitor), epoch
        if trainer.is_global_zero:
            require_held(self.run_dir)
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            if improved:
                self._publish()
            write_history(self.run_dir, self.rows)
            log.info(self._line(row, trainer.current_epoch, improved, trainer.max_epochs))
            if self.stopped:
                done = trainer.current_epoch + 1
                log.info(f"stopped after epoch {done}, before trainer.max_epochs={trainer.max_epochs} was reached")

    def _improves(self, value: float | None, trainer: pl.Trainer) -> bool:
        if value is None or not math.isfinite(value) or trainer.sanity_checking:
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if self.higher_is_better else value < self.best_value

    def _publish(self) -> None:
        """Make the last checkpoint the best one; the next epoch replaces the last one by a rename, so the content stays."""
        link_or_copy(self.last, self.best)

    def _count_on(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let loggers count epochs and steps over all stages; the Trainer takes a metric `step` for the step of the others."""
        epochs, steps = self.before
        pl_module.log_dict({"epoch": float(epochs + trainer.current_epoch), "step": float(steps + trainer.global_step)})

    def _line(self, row: Row, epoch: int, improved: bool, epochs: int | None) -> str:
        stage = f"{self.stage} " if self.stage else ""
        parts = [f"{stage}epoch {epoch + 1}/{epochs}", f"train/loss {row.get('train/loss', math.nan):.4f}"]
        parts += [f"{key} {row[key]:.4f}" for key in ("val/loss", "val/score") if key in row]
        if self.monitor not in ("val/loss", "val/score") and self.monitor in row:
            parts.append(f"{self.monitor} {row[self.monitor]:.4f}")
        mine = [earlier["seconds"] for earlier in self.rows if earlier.get("stage", "") == self.stage]
        rest = round(sum(mine) / max(len(mine), 1) * ((epochs or 0) - epoch - 1))
        left = [f"{timedelta(seconds=rest)} left"] if rest > 0 and not self.stopped else []
        best = ["best"] if improved and self.select == "best" else []
        return "  ".join([*parts, f"{row['seconds']:.1f} s", *left, *best])


def learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    """Return the learning rate of every part."""
    return {f"lr/{group['name']}": float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups}
