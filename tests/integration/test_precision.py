"""A run on a machine that is made for bfloat16, and what says so afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import DENSE, before_step, checkpoint, differing, resume_run, stop_at, tiny_run

import mtl
from mtl.core.errors import ConfigError
from mtl.data.formats.images import read_rgb
from mtl.experiments.score import evaluate
from mtl.inference.predict import predict
from mtl.runs import precision

SAID = "bf16-mixed, channels_last=true"


@pytest.fixture(scope="module")
def bfloat16_machine(float32_machine: None) -> Any:
    """Let `auto` be bfloat16, as on a machine that is made for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "made_for_bfloat16", lambda kind: "avx512_bf16")
        yield patch


@pytest.fixture(scope="module")
def run(smears: Path, tmp_path_factory: pytest.TempPathFactory, bfloat16_machine: Any) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "half"
    tiny_run(smears, run_dir, *DENSE, "trainer.max_epochs=1", score=True)
    return run_dir


def test_a_run_says_what_it_chose(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["trainer"]["precision"] == "bf16-mixed" and config["runtime"]["channels_last"] is True
    assert checkpoint(run)["mtl"]["config"]["trainer"]["precision"] == "bf16-mixed"
    chosen = f"{SAID} (auto: this cpu has avx512_bf16)"
    assert f"precision: {chosen}\n" in (run / "log.txt").read_text()
    assert json.loads((run / "environment.json").read_text())["precision"] == chosen
    assert json.loads((run / "metrics.json").read_text())["computation"] == {"precision": "bf16-mixed", "channels_last": True}
    report = (run / "report.html").read_text()
    assert '<th scope="row">Precision</th><td>bf16-mixed, channels_last</td>' in report and chosen in report


def test_an_evaluation_computes_as_validation_did(run: Path, bfloat16_machine: Any, tmp_path: Path) -> None:
    stored = checkpoint(run, "best")["mtl"]["validation"]
    again = evaluate(str(run), "val", str(tmp_path / "val"), report=False)
    for task in ("segmentation", "heatmap"):
        for name, value in again["tasks"][task].items():
            if f"val/{task}/{name}" in stored:
                np.testing.assert_equal(value if value is not None else np.nan, stored[f"val/{task}/{name}"])
    first, same = (
        json.loads((run / "metrics.json").read_text()),
        evaluate(str(run), output=str(tmp_path / "test"), report=False),
    )
    assert same["tasks"] == first["tasks"] and same["computation"] == first["computation"]
    full = evaluate(str(run), output=str(tmp_path / "32"), report=False, precision=32)
    assert full["computation"] == {"precision": "32-true", "channels_last": False} and full["tasks"] != first["tasks"]
    assert full["tasks"]["segmentation"]["aupr"] == pytest.approx(first["tasks"]["segmentation"]["aupr"], abs=0.02)


def test_predictions_say_their_precision(
    run: Path, smears: Path, bfloat16_machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted(smears.rglob("*.jpg"))[0]
    pixels = read_rgb(picture)
    half, full = mtl.load(run), mtl.load(run, precision=32)
    assert str(half.computation) == SAID and str(full.computation) == "32-true, channels_last=false"
    found, exact = half.predict(pixels), full.predict(pixels)
    assert (found.precision, exact.precision) == ("bf16-mixed", "32-true")
    ours, theirs = (prediction.tasks["segmentation"]["probabilities"] for prediction in (found, exact))
    assert ours.dtype == np.float32 and 0 < np.abs(ours - theirs).max() < 0.05
    predict(str(run), str(picture), str(tmp_path), overlays=False, masks=False)
    assert f"precision: {SAID}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / f"{picture.stem}.json").read_text())["precision"] == "bf16-mixed"
    with pytest.MonkeyPatch.context() as patch:  # a machine that is not made for it
        patch.setattr(precision, "made_for_bfloat16", lambda kind: "")
        assert mtl.load(run).computation == full.computation
        assert str(mtl.load(run, precision="bf16-mixed").computation) == SAID
    with pytest.raises(ConfigError, match="expected auto, 32"):
        mtl.load(run, precision="half")


def test_a_run_goes_on_as_it_began(smears: Path, tmp_path: Path, bfloat16_machine: Any) -> None:
    """On a machine that is not made for bfloat16, and to the same weights."""
    settings = (*DENSE, "trainer.max_epochs=2", "optimizer.name=adamw")
    with before_step(stop_at(1, 1)), pytest.raises(Exception, match=r"[Ii]nterrupted"):
        tiny_run(smears, tmp_path / "run", *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "made_for_bfloat16", lambda kind: "")
        resume_run(tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"precision: {SAID} (as configured; this cpu is not made for bfloat16, so that it is slow)" in log
    tiny_run(smears, tmp_path / "whole", *settings)
    resumed, whole = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "whole")
    assert differing(resumed["state_dict"], whole["state_dict"]) == []
    moments = [content["optimizer_states"][0]["state"] for content in (resumed, whole)]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[1])
