"""Runs of earlier releases: their checkpoints predict and score the same numbers, go on, and can be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtl
from mtl.config.defaults import completed
from mtl.config.plan import Plan
from mtl.core.errors import CheckpointError, ConfigError, DataError
from mtl.experiments.arms import load_run
from mtl.experiments.comparison import comparison_table
from mtl.experiments.score import evaluate
from mtl.experiments.train import train
from mtl.runs.checkpoint import read_checkpoint
from mtl.runs.folder import RunFolder
from mtl.runs.resume import resumed_plan
from mtl.runs.stored import FORMAT, converted_config, read_config

OLD = RunFolder(Path(__file__).parents[1] / "fixtures" / "format1")


@pytest.fixture
def run(brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy of the old run beside the data that it was trained with, with its best checkpoint as the last one too."""
    monkeypatch.chdir(tmp_path)
    Path("brains").symlink_to(brains)
    shutil.copytree(OLD.path, "run")
    copy = RunFolder(Path("run"))
    shutil.copyfile(copy.best, copy.last)
    return copy


def picture() -> np.ndarray:
    """A textured disc with a bright spot, drawn by a formula."""
    y, x = np.mgrid[:64, :64]
    image = np.where((y - 32) ** 2 + (x - 32) ** 2 < 26**2, 60 + (7 * y + 11 * x) % 97, 0)
    image[(y - 26) ** 2 + (x - 40) ** 2 < 49] = 220
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def test_the_fixture_is_of_the_first_format() -> None:
    about = torch.load(OLD.best, weights_only=True)["mtl"]
    assert about["format"] == 1 < FORMAT
    assert read_checkpoint(OLD.best)["mtl"]["format"] == FORMAT


def test_predictions_are_those_of_the_release_that_trained() -> None:
    found = mtl.load(OLD.path).predict(picture()).tasks
    np.testing.assert_allclose(found["presence"]["probabilities"], [0.2954407, 0.7045593], atol=1e-5)
    mask = found["whole_tumor"]["probabilities"]
    assert mask.shape == (1, 64, 64)
    np.testing.assert_allclose(mask[0, [26, 20, 50], [40, 20, 30]], [0.99974805, 0.14902622, 0.10562862], atol=1e-5)
    np.testing.assert_allclose(mask.mean(dtype=np.float64), 652.7060650363564 / 4096, atol=1e-5)


def test_scores_are_those_of_the_release_that_trained(run: RunFolder) -> None:
    before = json.loads(run.metrics.read_text())
    again = evaluate(str(run.path), device="cpu", report=False)
    assert again["n_samples"] == before["n_samples"] == 13
    for task, scores in before["tasks"].items():
        for name in scores["ci95"]:
            expected = np.nan if scores[name] is None else scores[name]
            value = np.nan if again["tasks"][task][name] is None else again["tasks"][task][name]
            np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=f"{task} {name}")


def test_an_interrupted_run_goes_on(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.metrics.unlink()
    epoch = read_checkpoint(run.last)["epoch"]
    monkeypatch.setattr("mtl.experiments.score.evaluate_run", lambda *args, **more: {})
    train(resumed_plan(str(run.path), [f"trainer.max_epochs={epoch + 2}"]))
    after = torch.load(run.last, weights_only=True)
    assert after["epoch"] == epoch + 1 and after["mtl"]["format"] == FORMAT


def test_a_stage_starts_from_an_old_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    """Its two classes were judged without a threshold, so that its figures need not come out again."""
    words = ["task=brain_joint", "stages=none", f"+stages.again.start={run.best}", "+stages.again.epochs=1"]
    older = json.loads(run.config.read_text())
    keep = (
        "backbone.base_filters", "backbone.depth", "data.geometry.size", "data.min_tumor_pixels", "data.split.ratios",
        "heads.presence.hidden", "seed",
    )  # fmt: skip
    for key in keep:
        value: Any = older
        for part in key.split("."):
            value = value[part]
        words.append(f"{key}={value}".replace(" ", ""))
    words += ["data.root=brains", "data.cache.enabled=false", "trainer=cpu", "evaluation.bootstrap=0", "evaluation.cases=0"]
    metrics, _ = train(Plan.from_words([*words, f"paths.run_dir={tmp_path / 'next'}"]))
    assert metrics["tasks"].keys() == {"whole_tumor", "presence"}


def test_an_old_run_is_compared_with_itself(run: RunFolder) -> None:
    table, rows = comparison_table([load_run("old", 5, run.path), load_run("new", 5, run.path)], bootstrap=5)
    assert "whole_tumor" in table
    assert {row["difference"] for row in rows if row["arm"] == "new" and row["mean"] == row["mean"]} == {0.0}


def remove(config: dict[str, Any], path: str) -> Any:
    *parents, last = path.split(".")
    for parent in parents:
        config = config[parent]
    return config.pop(last)


@pytest.mark.parametrize(
    "key",
    [
        "stages", "runtime", "callbacks.ema", "evaluation.hd95", "trainer.profiler", "heads.presence.loss.label_smoothing",
        "heads.whole_tumor.upsampling", "backbone.gradient_checkpointing", "data.min_brain_share", "study_metrics", "peft",
    ],
)  # fmt: skip
def test_a_key_that_came_later_is_filled_in(key: str) -> None:
    """Stored configurations stay valid when the schema or a part gains a key with a default."""
    whole = json.loads(OLD.config.read_text())
    older = json.loads(OLD.config.read_text())
    value = remove(older, key)
    now = converted_config(older)
    found = remove(now, key)
    if key == "runtime":  # some of its keys came later still
        found = {name: found[name] for name in value}
    assert found == value or key in ("data.min_brain_share", "peft", "evaluation.hd95")
    assert now["data"].pop("largest_loss") == 1.0  # nothing was refused then
    remove(whole, key)
    assert kept(now, whole)
    Plan.from_config(completed(older))


def kept(now: Any, before: Any) -> bool:
    """Tell whether all that was there is there unchanged."""
    return all(kept(now[key], value) for key, value in before.items()) if isinstance(before, dict) else bool(now == before)


def test_what_a_configuration_holds_is_never_changed() -> None:
    whole = json.loads(OLD.config.read_text()) | {"gone": 1}
    whole["data"]["gone"] = whole["heads"]["presence"]["gone"] = 2
    assert kept(json.loads(json.dumps(completed(whole))), whole)


@pytest.mark.parametrize("value", ["2", None, 2.5])
def test_a_format_that_is_no_number_is_one_sentence(run: RunFolder, value: object) -> None:
    content = torch.load(run.best, weights_only=True)
    torch.save(content | {"mtl": content["mtl"] | {"format": value}}, run.best)
    with pytest.raises(CheckpointError, match="no number"):
        read_checkpoint(run.best)


def test_a_newer_format_is_refused(run: RunFolder) -> None:
    content = torch.load(run.best, weights_only=True)
    torch.save(content | {"mtl": content["mtl"] | {"format": FORMAT + 1}}, run.best)
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}; this release reads up to {FORMAT}"):
        mtl.load(run.path)


def test_damaged_files_of_a_run_are_one_sentence(run: RunFolder) -> None:
    scores = json.loads(run.metrics.read_text())
    run.metrics.write_text(json.dumps({key: value for key, value in scores.items() if key != "budget"}))
    with pytest.raises(DataError, match="lacks `budget`"):
        load_run("old", 5, run.path)
    run.metrics.write_text(json.dumps(scores))
    whole = run.records.read_text()
    records = json.loads(whole)
    records["specs"]["presence"]["shade"] = 1
    run.records.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"not what this release writes.*shade"):
        load_run("old", 5, run.path)
    for edit in ({"samples": 5}, {"tasks": []}, {"specs": {}}, {"samples": []}):
        run.records.write_text(json.dumps(json.loads(whole) | edit))
        with pytest.raises(DataError, match="not what this release writes"):
            load_run("old", 5, run.path)
    run.records.write_text(whole)
    run.metrics.write_text(json.dumps(scores | {"thresholds": None}))
    with pytest.raises(DataError, match="no usable `thresholds`"):
        load_run("old", 5, run.path)
    run.metrics.write_text(json.dumps(scores))
    run.split.rename("elsewhere.csv")
    with pytest.raises(DataError, match=r"lacks split.csv"):
        load_run("old", 5, run.path)
    Path("elsewhere.csv").rename(run.split)
    for content, words in (("{", "is damaged"), ("[]", "is not the configuration of a run")):
        run.config.write_text(content)
        with pytest.raises(ConfigError, match=words):
            load_run("old", 5, run.path)
    run.config.unlink()
    with pytest.raises(ConfigError, match="is not a run"):
        read_config(run)
