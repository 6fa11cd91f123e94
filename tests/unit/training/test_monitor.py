"""What selects a checkpoint: the monitored metric, smoothed or not, or the end of training."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.module import MultiTaskModule
from mtl.training.monitor import moving_mean

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([0.2], 3, 0.2),
        ([0.2, 0.4], 3, 0.3),
        ([0.9, 0.2, 0.4, 0.6], 3, 0.4),
        ([0.9, 0.2, 0.4, 0.6], 1, 0.6),
        ([0.2, NAN, 0.6], 3, 0.4),
        ([0.2, 0.6, NAN], 3, NAN),
        ([NAN], 2, NAN),
        ([], 2, NAN),
    ],
)
def test_the_mean_of_the_last_validations(values: list[float], count: int, expected: float):
    assert moving_mean(values, count) == pytest.approx(expected, nan_ok=True)


def test_a_first_validation_before_training_is_not_part_of_it():
    logged: dict[str, float] = {}
    config = SimpleNamespace(monitor="val/score", monitor_smoothing=2)
    module: Any = SimpleNamespace(
        trainer=SimpleNamespace(sanity_checking=True), monitored=[], config=config, log_dict=logged.update
    )
    MultiTaskModule._smooth(module, {"val/score": 0.9})
    assert module.monitored == [] and logged == {}
    module.trainer.sanity_checking = False
    for value in (0.2, 0.4, 0.5):
        MultiTaskModule._smooth(module, {"val/score": value})
    assert module.monitored == [0.2, 0.4, 0.5] and logged == {"val/monitor": 0.45}


def recorded(tmp_path: Any, select: str, values: list[float | None]) -> list[int | None]:
    """Return `best_epoch` after each epoch; an epoch of None was not validated."""
    recorder = RunRecorder(tmp_path, "val/score", True, select=select)
    recorder._publish = lambda: None  # type: ignore[method-assign]
    best = []
    for epoch, value in enumerate(values):
        recorder._validated = value is not None
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, global_step=epoch, should_stop=False, sanity_checking=False, is_global_zero=True, max_epochs=9,
            callback_metrics={"val/score": 0.0 if value is None else value}, optimizers=[], save_checkpoint=lambda path: None,
        )  # fmt: skip
        recorder.on_train_epoch_end(trainer, SimpleNamespace(log_dict=lambda values: None))  # type: ignore[arg-type]
        best.append(recorder.best_epoch)
    return best


def test_the_last_validated_epoch_can_be_the_one_that_is_kept(tmp_path: Any):
    values = [0.5, 0.9, 0.2, NAN, None]
    assert recorded(tmp_path, "best", values) == [0, 1, 1, 1, 1]
    assert recorded(tmp_path, "last", values) == [0, 1, 2, 3, 3]
