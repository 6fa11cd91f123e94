"""A run that was interrupted and resumed equals one that was not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import pytest
from tiny_runs import DENSE, before_step, checkpoint, differing, history, resume_run, stop_at, tiny_run, words

from mtl.core.errors import ConfigError, DataError, TrainingError
from mtl.core.processes import this_process
from mtl.core.types import Sample, TaskBatch
from mtl.data.pipeline.dataset import SampleDataset
from mtl.runs.history import training_summary
from mtl.training.module import MultiTaskModule

EVERYTHING = (
    "balancer=uncertainty", "callbacks=ema", "data.loader.sampler=class_aware", "peft=bottleneck", "peft.dropout=0.5",
    "trainer.accumulate_grad_batches=3", "scheduler.warmup_epochs=1", "trainer.max_epochs=3", "optimizer.lr=0.01",
    "data.loader.samples_per_epoch=8",
)  # fmt: skip
SLOW = pytest.mark.slow
VARIANTS = [
    pytest.param((*DENSE, *EVERYTHING), id="everything"),
    pytest.param(
        (
            *DENSE,
            "scheduler=plateau",
            "scheduler.patience=1",
            "scheduler.threshold=1.0",
            "trainer.max_epochs=4",
            "monitor_smoothing=2",
        ),
        id="plateau of a moving mean",
    ),
    pytest.param((*DENSE, "scheduler=step", "data.loader.num_workers=1", "trainer.max_epochs=3"), id="step schedule, worker"),
    pytest.param((*DENSE, "trainer.max_epochs=3", "trainer.max_steps=10"), id="max_steps", marks=SLOW),
    pytest.param((*DENSE, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"), id="sparse validation", marks=SLOW),
    pytest.param(("trainer.max_epochs=3", "balancer=uncertainty"), id="all tasks", marks=SLOW),
    pytest.param(
        (*DENSE, "balancer=mgda", "callbacks=ema", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3"), id="gradients"
    ),
]


def assert_equal_runs(straight: Path, resumed: Path) -> None:
    assert history(straight) == history(resumed)
    for name in ("last", "best"):
        first, second = checkpoint(straight, name), checkpoint(resumed, name)
        assert differing(first["state_dict"], second["state_dict"]) == []
        assert first["mtl"]["epoch"] == second["mtl"]["epoch"]
        assert first["mtl"]["thresholds"] == second["mtl"]["thresholds"]
        if "current_model_state" in first:
            assert differing(first["current_model_state"], second["current_model_state"]) == []
        for key in ("optimizer_states", "lr_schedulers"):
            assert repr(first[key]) == repr(second[key])
        assert first["mtl"]["plateau"] == second["mtl"]["plateau"]
        assert first["mtl"]["monitored"] == second["mtl"]["monitored"] != []


@pytest.mark.parametrize("settings", VARIANTS)
def test_resumed_equals_uninterrupted(settings: tuple[str, ...], smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "straight", *settings)
    with before_step(stop_at(1, 1)), pytest.raises(TrainingError) as stopped:  # in the middle of the second epoch
        tiny_run(smears, tmp_path / "resumed", *settings)
    assert stopped.value.exit_code == 130
    assert f"last.ckpt holds epoch 1. Go on with: python train.py resume={tmp_path / 'resumed'}" in str(stopped.value)
    assert len(history(tmp_path / "resumed")) == 1
    resume_run(tmp_path / "resumed")
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_an_interrupted_first_epoch_begins_anew(smears: Path, tmp_path: Path) -> None:
    settings = (*DENSE, "trainer.max_epochs=1")
    tiny_run(smears, tmp_path / "straight", *settings)
    with before_step(stop_at(0, 2)), pytest.raises(TrainingError, match="No epoch was finished yet") as stopped:
        tiny_run(smears, tmp_path / "resumed", *settings)
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "resumed" / "checkpoints").exists()
    resume_run(tmp_path / "resumed")
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_a_loader_that_is_killed_is_one_sentence_and_the_run_goes_on(smears: Path, tmp_path: Path) -> None:
    read, main = SampleDataset.__getitem__, os.getpid()

    def killed(self: SampleDataset, index: int) -> Sample:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    with patch.object(SampleDataset, "__getitem__", killed), pytest.raises(TrainingError) as stopped:
        tiny_run(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=1", "data.loader.num_workers=1")
    pattern = (
        r"A process that loads data is gone: DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly)\. "
        r"The system does that when memory.*No epoch was finished yet\. "
        r"Go on with: python train\.py resume=\S+/run data\.loader\.num_workers=<fewer>"
    )
    assert re.fullmatch(pattern, str(stopped.value)), stopped.value
    resume_run(tmp_path / "run", "data.loader.num_workers=0", "data.loader.prefetch=auto")
    assert "data loading: in the process that trains (auto: " in (tmp_path / "run" / "log.txt").read_text()
    assert len(history(tmp_path / "run")) == 1


def test_a_run_whose_folder_disappears_is_an_error_and_does_not_come_back(smears: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def remove(module: MultiTaskModule, batch: TaskBatch, index: int) -> None:
        if (module.current_epoch, index) == (1, 0):
            shutil.rmtree(run_dir)

    with before_step(remove), pytest.raises(TrainingError, match=r"run` was removed or replaced while the run was writing it"):
        tiny_run(smears, run_dir, *DENSE, "trainer.max_epochs=3")
    assert not run_dir.exists()


def test_a_run_that_still_trains_is_not_resumed(smears: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tiny_run(smears, run_dir, *DENSE, "trainer.max_epochs=1")
    left = run_dir / "checkpoints" / ".best.ckpt.999999999.partial"
    left.write_text("of a killed process")
    with before_step(never):
        resume_run(run_dir)
    assert sorted(path.name for path in left.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    other = {**asdict(this_process()), "pid": os.getppid(), "began": ""}
    (run_dir / "lock.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=rf"{run_dir}` is being written by process {os.getppid()} on "):
        resume_run(run_dir, "trainer.max_epochs=2")
    assert len(history(run_dir)) == 1


def never(*_: object) -> None:
    raise AssertionError("no step was expected")


def test_a_finished_run_is_only_scored_again(smears: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    metrics, _ = tiny_run(smears, run_dir, *DENSE, "trainer.max_epochs=1", score=True)
    rows, weights = history(run_dir), checkpoint(run_dir)["state_dict"]
    for path in ("metrics.json", "metrics.csv", "checkpoints/best.ckpt"):  # as if killed right after last.ckpt was written
        (run_dir / path).unlink()
    with before_step(never):
        again, _ = resume_run(run_dir, score=True)
    assert again["tasks"] == metrics["tasks"] and again["training"] == metrics["training"]
    assert (history(run_dir), differing(checkpoint(run_dir)["state_dict"], weights)) == (rows, [])


def test_a_run_that_was_stopped_early_stays_stopped(smears: Path, tmp_path: Path) -> None:
    stopping = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1.0")
    tiny_run(smears, tmp_path / "run", *DENSE, *stopping, "trainer.max_epochs=9")
    rows, summary = history(tmp_path / "run"), training_summary(tmp_path / "run", 9)
    assert summary is not None and (summary["epochs"], summary["samples_seen"], summary["stopped_early"]) == (2, 16, True)
    with before_step(never):
        resume_run(tmp_path / "run")
    assert history(tmp_path / "run") == rows


def test_a_run_keeps_its_configuration(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=1", "optimizer.lr=0.003")
    with pytest.raises(ConfigError, match=r"optimizer\.lr=1.* cannot be combined with resume"):
        resume_run(tmp_path / "run", "optimizer.lr=1")
    with pytest.raises(ConfigError, match="is not a run"):
        resume_run(tmp_path, "trainer.max_epochs=2")
    for name, before, after, error, message in (
        ("config.json", '"lr": 0.003', '"lr": 0.03', ConfigError, r"`optimizer\.lr` is 0\.03, in last\.ckpt 0\.003\. Restore"),
        ("split.csv", ",train,", ",left_out,", DataError, r"1 of 12 samples differ \(first: .* is in left_out, .* in train\)"),
    ):
        file = tmp_path / "run" / name
        original = file.read_text()
        assert before in original
        file.write_text(edited := original.replace(before, after, 1))
        with pytest.raises(error, match=message):
            resume_run(tmp_path / "run", "trainer.max_epochs=2")
        assert file.read_text() == edited and len(history(tmp_path / "run")) == 1
        file.write_text(original)
    resume_run(tmp_path / "run", "trainer.max_epochs=2")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["trainer"]["max_epochs"], config["resume"], len(history(tmp_path / "run"))) == (2, None, 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["trainer.devices=1", "trainer=ddp_cpu", "trainer.devices=2"])
def test_ctrl_c_in_a_terminal(processes: str, smears: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mtl",
        "train",
        *words(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=5000", processes),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.count("\n") == 1 and errors.startswith("error: Interrupted. last.ckpt holds epoch ")
    assert f"resume={tmp_path / 'run'}" in errors
    assert checkpoint(tmp_path / "run")["mtl"]["epoch"] == len(history(tmp_path / "run")) - 1
