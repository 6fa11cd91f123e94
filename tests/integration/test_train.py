"""What a run leaves behind, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import DENSE, before_step, checkpoint, history, resume_run, tiny_run, words

from mtl.core.errors import ConfigError, TrainingError
from mtl.core.task import TaskSpec
from mtl.training.module import MultiTaskModule

RUN_FILES = {
    "config.json", "split.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "metrics.json",
    "predictions/records.json", "report.html", "log.txt", "environment.json", "predictions/objects/roi.csv",
    *(f"predictions/{task}.csv" for task in ("detection", "roi", "segmentation", "heatmap")),
}  # fmt: skip


def test_a_run_leaves_what_the_documentation_says(finished_run: Path) -> None:
    files = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    figures = {name for name in files if name.startswith("figures/")}
    assert files - figures - {name for name in files if name.startswith("evaluation/")} == RUN_FILES
    assert {Path(name).suffix for name in figures} == {".svg"}
    rows = history(finished_run)
    assert [(row["epoch"], row["step"], row["samples"]) for row in rows] == [("0", "2", "4")]
    assert {"train/loss", "val/loss", "val/score", "val/detection/map50", "lr/backbone", "weight/roi"} <= rows[0].keys()
    log = (finished_run / "log.txt").read_text()
    assert log.count(" epoch 1/1 ") == 1 and "kept apart by patient" in log
    config = json.loads((finished_run / "config.json").read_text())
    assert config["resume"] is None and config["data"]["geometry"]["size"] == [128, 128]
    metrics = json.loads((finished_run / "metrics.json").read_text())
    seconds = metrics["training"].pop("seconds")
    assert metrics["training"] == {"epochs": 1, "steps": 2, "samples_seen": 4, "stopped_early": False}
    basis = metrics["selection"]
    assert (basis["monitor"], basis["monitor_smoothing"], basis["select"]) == ("val/score", 1, "best")
    assert (basis["images"], basis["groups"], basis["tasks"]["detection"]["classes"]["WBC"]) == (2, 1, 5)
    assert log.count(" INFO val/score rests on validation, groups by patient: detection 2 images of 1 groups") == 1
    assert log.count(" WARNING note: val/score, which selects best.ckpt, rests on few examples: 5 of WBC (detection)") == 1
    assert any("rests on few examples: 5 of WBC (detection)" in note for note in metrics["notes"])
    assert 0 < seconds < 300 and metrics["split"] == "test" and metrics["group_by"] == "patient"


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_speaks_for_itself(name: str, finished_run: Path) -> None:
    content = checkpoint(finished_run, name)  # loaded with weights_only=True
    about = content["mtl"]
    specs = {spec["name"]: TaskSpec.from_dict(spec) for spec in about["model"]["specs"]}
    assert list(specs) == ["detection", "roi", "segmentation", "heatmap"]
    assert specs["roi"].classes == ("Infected", "Healthy", "WBC")
    assert len(about["model"]["preprocessing"]["mean"]) == len(about["model"]["preprocessing"]["std"]) == 3
    assert set(about["thresholds"]) == set(specs) and about["epoch"] == 0
    assert {row["split"] for row in about["split"]} == {"train", "val", "test"}
    assert about["config"]["suite"] == "malaria_mttl"
    assert all(key.startswith(("model.", "balancer.")) for key in content["state_dict"])  # nothing is stored twice


def test_a_directory_is_used_once(finished_run: Path, smears: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished_run / "log.txt").read_text()
    from mtl.cli.main import guarded

    assert guarded("train", words(smears, finished_run, *DENSE)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"`{finished_run}` holds a run already" in error and f"resume={finished_run}" in error
    assert (finished_run / "log.txt").read_text() == before


def test_a_start_that_failed_leaves_the_name_free(smears: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`optimizer\.options` do not suit|Unknown option `nonsense`"):
        tiny_run(smears, tmp_path / "run", *DENSE, "optimizer.options={nonsense:1}")
    with pytest.raises(ConfigError, match="`trainer` settings cannot be used here"):
        tiny_run(smears, tmp_path / "run", *DENSE, "trainer.strategy=nonsense")
    with pytest.raises(ConfigError, match="no epoch would be validated"):
        tiny_run(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=4")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be made|is a file"):
        tiny_run(smears, tmp_path / "file" / "run", *DENSE)
    tiny_run(smears, tmp_path / "run", *DENSE, "debug=fast")
    assert len(history(tmp_path / "run")) == 1


def test_runs_without_a_name_get_one_each(smears: Path, tmp_path: Path) -> None:
    config = [word for word in words(smears, tmp_path, *DENSE, "debug=fast") if not word.startswith("paths.run_dir")]
    from tiny_runs import go

    from mtl.config.plan import Plan

    found = [go(Plan.from_words([*config, f"paths.output_root={tmp_path}"]))[1]["run_dir"] for _ in range(2)]
    assert found[0] != found[1] and {path.parent for path in found} == {tmp_path / "malaria_mttl"}


def test_a_loss_that_is_not_finite_ends_the_run_with_one_sentence(
    smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtl.cli.main import guarded

    def spoil(module: MultiTaskModule, batch: object, index: int) -> None:
        if (module.current_epoch, index) == (1, 2):
            with torch.no_grad():
                next(module.model.heads["heatmap"].parameters()).fill_(float("nan"))

    with before_step(spoil):
        status = guarded("train", words(smears, tmp_path / "run", *DENSE, "trainer.max_epochs=3"))
    error = capsys.readouterr().err
    assert status == 5 and error.count("\n") == 1
    assert "The loss of heatmap (samples " in error and "is not finite (NaN or infinite) in epoch 2, step 6" in error
    assert f"The last good checkpoint is {tmp_path}/run/checkpoints/last.ckpt of epoch 1; best.ckpt stays too" in error
    assert len(history(tmp_path / "run")) == 1
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint(tmp_path / "run")["state_dict"].values())


def test_a_full_disk_leaves_the_last_epoch(smears: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    run_dir = disk / "run"
    try:
        with (
            before_step(lambda module, *_: fill(disk) if module.current_epoch == 1 else None),
            pytest.raises(TrainingError) as full,
        ):
            tiny_run(smears, run_dir, *DENSE, "heads.segmentation.decoder_channels=[16,8,8,8]", "trainer.max_epochs=3")
        assert "could not be written: No space left on device" in str(full.value) and f"resume={run_dir}" in str(full.value)
        assert checkpoint(run_dir)["mtl"]["epoch"] == 0
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
        (disk / "filler").unlink()
        resume_run(run_dir)
        assert len(history(run_dir)) == 3
    finally:
        logging.getLogger("mtl").handlers.clear()
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError:
            return


def test_one_class_trains_without_the_metric_that_needs_two(smears: Path, tmp_path: Path) -> None:
    metrics, _ = tiny_run(
        smears,
        tmp_path / "run",
        "tasks=[detection,segmentation]",
        "data.classes=1",
        "data.group_by=field",
        "debug=fast",
        score=True,
    )
    assert metrics["study"] == {} and metrics["group_by"] == "field"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("parasitemia is not computed: task detection has no class Healthy here") == 1
    assert "kept apart by field" in log


@pytest.mark.slow
def test_the_terminal_shows_our_lines_only(smears: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHONWARN")}
    done = subprocess.run(
        [sys.executable, "-m", "mtl", "train", *words(smears, tmp_path / "run", "debug=fast", "logger=tensorboard")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    starts = ("run: ", "split holdout", "note: val", "val/score", "epoch 1/1", "trained for", "test split", "  ", "report: ")
    assert [line for line in done.stdout.splitlines() if not line.startswith(starts)] == []


@pytest.mark.slow
def test_a_sweep_makes_one_run_per_value(smears: Path, tmp_path: Path) -> None:
    sweep = [word for word in words(smears, tmp_path, *DENSE, "debug=fast") if not word.startswith("paths.run_dir")]
    done = subprocess.run(
        [sys.executable, "-m", "mtl", "train", "-m", *sweep, f"paths.output_root={tmp_path}", "optimizer.lr=0.001,0.002"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    runs = sorted((tmp_path / "malaria_mttl").iterdir())
    rates = [json.loads((run / "config.json").read_text())["optimizer"]["lr"] for run in runs]
    assert sorted(rates) == [0.001, 0.002] and all((run / "report.html").is_file() for run in runs)
