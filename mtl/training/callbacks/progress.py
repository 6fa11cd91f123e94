"""Progress for people: a bar in a terminal, a line now and then elsewhere; the log has a line per epoch beside them."""

from __future__ import annotations

import io
import logging
import math
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

log = logging.getLogger("mtl")
READ_EVERY = 1.0  # seconds between looks at the loss, for each of which the host waits for the device
REFRESH_EVERY = 0.1
LINE_EVERY = 60.0
WIDTH = 16  # of the bar, so that all there is to say fits into 80 columns


def progress_callbacks(enabled: bool | None) -> list[Callback]:
    """Return what shows progress: a bar if it is asked for or standard output is a terminal, else lines.

    Args:
        enabled: `trainer.enable_progress_bar`; false shows nothing.
    """
    if enabled is False:
        return []
    return [TrainingBar()] if enabled or sys.stdout.isatty() else [ProgressLines()]


class Pace:
    """How far a stage of training is, and how long the rest of it will take at the pace so far, validation included."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._began, self._done, self._total = 0.0, 0, math.inf

    def begin(self, trainer: pl.Trainer, max_steps: int) -> None:
        """Start the clock; a resumed run begins in a later epoch.

        Args:
            trainer: About to train.
            max_steps: Limit of optimizer steps; below 1 there is none.
        """
        self._began, self._done = self._clock(), 0
        self._total = float(((trainer.max_epochs or 0) - trainer.current_epoch) * trainer.num_training_batches)
        if max_steps > 0:
            self._total = min(self._total, (max_steps - trainer.global_step) * trainer.accumulate_grad_batches)

    def count(self) -> None:
        """Count one training batch."""
        self._done += 1

    def left(self) -> str:
        """Return the time that is left at most, since a run may be stopped early; empty before the first batch."""
        if not self._done or not math.isfinite(self._total):
            return ""
        seconds = (self._clock() - self._began) / self._done * max(0.0, self._total - self._done)
        return f"{timedelta(seconds=round(seconds))} left"


def epoch_words(trainer: pl.Trainer) -> str:
    """Return which epoch it is, counted as the log counts."""
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def steps_allowed(module: pl.LightningModule) -> int:
    """Return `trainer.max_steps` of the stage."""
    config: Any = module.config
    return int(config.trainer.max_steps)


def loss_words(module: pl.LightningModule) -> str:
    """Return the loss of the last step: of this rank where there are several. The host waits for the device."""
    losses: Any = module.step_losses
    return f"loss {float(losses['train/loss']):.4f}" if losses else ""


class AboveBar(io.StringIO):
    """Takes the lines of the log while a bar is shown: they stand above it, as long as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        """Print whole lines."""
        self._console.print(text.removesuffix("\n"), soft_wrap=True, markup=False, highlight=False)
        return len(text)


class TrainingBar(ProgressBar):
    """A bar with the epoch, the loss and the time left. It is gone when training ends, and lines of the log stand above it."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._pace = Pace()
        self._progress: Progress | None = None
        self._row: Any = None
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._loss, self._read, self._drawn = "", 0.0, 0.0

    def disable(self) -> None:
        """Show nothing (on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the validation before the first step."""
        self._open()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        self._open()
        self._pace.begin(trainer, steps_allowed(pl_module))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the bar of an epoch."""
        if batch_idx == 0:
            self._show(epoch_words(trainer), 0, self.total_train_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; look at the loss once in a while."""
        self._pace.count()
        if self._progress is not None and time.monotonic() - self._read >= READ_EVERY:
            self._loss, self._read = loss_words(pl_module), time.monotonic()
        self._show(epoch_words(trainer), batch_idx + 1, self.total_train_batches, self._pace.left())

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        *_: Any,
    ) -> None:  # fmt: skip
        """Move the bar of the validation."""
        words = "first validation" if trainer.sanity_checking else f"{epoch_words(trainer)} validation"
        total = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._show(words, batch_idx + 1, sum(total))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error stands alone."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar."""
        self._close()

    def _open(self) -> None:
        if not self._enabled or self._progress is not None:
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=WIDTH), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[left]}"),
        )  # fmt: skip
        before = sys.stdout
        # Drawn by hand: a thread that draws could hold a lock while workers are forked.
        self._progress = Progress(*columns, console=Console(force_terminal=True), transient=True, auto_refresh=False)
        self._row = self._progress.add_task("", visible=False, loss="", left="")
        self._progress.start()
        # What the log writes has to pass the display, which else would be drawn into its lines.
        for handler in log.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._moved.append((handler, before))
                handler.setStream(AboveBar(self._progress.console))

    def _close(self) -> None:
        if self._progress is not None:
            for handler, stream in self._moved:
                handler.setStream(stream)
            self._moved = []
            self._progress.stop()
            self._progress = None

    def _show(self, words: str, done: int, total: float, left: str = "") -> None:
        if self._progress is None:
            return
        self._progress.update(
            self._row, visible=True, description=words, completed=done, total=total, loss=self._loss, left=left
        )
        if done >= total or time.monotonic() - self._drawn >= REFRESH_EVERY:
            self._progress.refresh()
            self._drawn = time.monotonic()


class ProgressLines(Callback):
    """A line in the log about once a minute while an epoch lasts; short epochs have their own line only."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._said = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._pace.begin(trainer, steps_allowed(pl_module))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Let a minute pass from the line of the epoch before."""
        if batch_idx == 0:
            self._said = self._clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the line."""
        self._pace.count()
        if self._clock() - self._said < LINE_EVERY or not trainer.is_global_zero:
            return
        self._said, total = self._clock(), trainer.num_training_batches
        where = f"{epoch_words(trainer)}: batch {batch_idx + 1} of {total}"
        log.info("  ".join(filter(None, [where, loss_words(pl_module), self._pace.left()])))
