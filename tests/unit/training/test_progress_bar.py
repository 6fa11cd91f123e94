"""What a person sees of training: epochs counted from 1, the loss, the time left, and log lines on lines of their own."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl.training.callbacks import progress
from mtl.training.callbacks.progress import Pace, ProgressLines, TrainingBar, progress_callbacks


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def trainer(epoch: int = 0, step: int = 0) -> Any:
    return SimpleNamespace(
        current_epoch=epoch, max_epochs=3, num_training_batches=4, num_val_batches=[2], num_sanity_val_batches=[2],
        global_step=step, accumulate_grad_batches=1, is_global_zero=True, sanity_checking=False, max_steps=-1,
    )  # fmt: skip


def module(max_steps: int = -1) -> Any:
    settings = SimpleNamespace(trainer=SimpleNamespace(max_steps=max_steps))
    return SimpleNamespace(step_losses={"train/loss": torch.tensor(0.53216)}, config=settings)


def test_the_rest_takes_as_long_as_what_is_done() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.begin(trainer(), -1)
    assert pace.left() == ""
    clock.now = 20.0
    for _ in range(2):
        pace.count()
    assert pace.left() == "0:01:40 left"  # ten of twelve batches, ten seconds each


def test_a_resumed_run_has_only_its_own_epochs_left() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.begin(trainer(epoch=2, step=8), -1)
    clock.now = 5.0
    pace.count()
    assert pace.left() == "0:00:15 left"
    pace.begin(trainer(), 2)  # two optimizer steps are all there is
    clock.now = 10.0
    pace.count()
    assert pace.left() == "0:00:05 left"


def test_without_a_terminal_long_epochs_have_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines, one = ProgressLines(clock), trainer(epoch=1, step=4)
    with caplog.at_level(logging.INFO, "mtl"):
        lines.on_train_start(one, module())
        for batch in range(4):
            lines.on_train_batch_start(one, module(), None, batch)
            clock.now += 40.0
            lines.on_train_batch_end(one, module(), None, None, batch)
    assert caplog.messages == [
        "epoch 2/3: batch 2 of 4  loss 0.5322  0:04:00 left", "epoch 2/3: batch 4 of 4  loss 0.5322  0:02:40 left"
    ]  # fmt: skip


def test_the_bar_counts_as_the_log_does_and_lets_its_lines_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setenv("COLUMNS", "100")
    handler = logging.StreamHandler(screen)
    logger = logging.getLogger("mtl")
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.INFO)
    bar, one = TrainingBar(), trainer()
    bar._pace = Pace(clock)
    bar.setup(one, module(), "fit")
    bar.on_train_start(one, module())
    for batch in range(4):
        bar.on_train_batch_start(one, module(), None, batch)
        clock.now += 10.0
        bar.on_train_batch_end(one, module(), None, None, batch)
    bar.on_validation_batch_end(one, module(), None, None, 0)
    logger.info("epoch 1/3  train/loss 0.5")
    bar.on_train_end(one, module())
    logger.info("trained")
    shown = screen.getvalue()
    assert "epoch 1/3 " in shown and "4/4" in shown and "loss 0.5322" in shown and "0:01:20 left" in shown
    assert "epoch 1/3 validation" in shown and "Epoch 0" not in shown and "0/3" not in shown
    assert "\nepoch 1/3  train/loss 0.5\n" in _plain(shown) and shown.endswith("trained\n")
    assert handler.stream is screen and sys.stdout is screen


def _plain(shown: str) -> str:
    """Replace what moves the cursor to the beginning of an emptied line by the end of a line."""
    return shown.replace("\r\x1b[2K", "\n").replace("\x1b[1A", "")


def test_who_sees_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: False))
    kinds = [[type(callback) for callback in progress_callbacks(asked)] for asked in (None, True, False)]
    assert kinds == [[ProgressLines], [TrainingBar], []]
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert [type(callback) for callback in progress_callbacks(None)] == [TrainingBar]
