"""Scoring a checkpoint again: on its own data, on moved data, on other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl.config.plan import Plan
from mtl.core.errors import TrainingError
from mtl.data.families.malaria.generator import generate_malaria
from mtl.experiments.score import evaluate, evaluate_run, score
from mtl.runs.loading import load_model


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_results_of_the_run_come_out_again(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "elsewhere" / "renamed")
    evaluate(str(run), device="cpu")
    again = run / "evaluation" / "test"
    assert content(again / "metrics.json") == content(run / "metrics.json") == content(finished_run / "metrics.json")
    assert content(again / "predictions" / "records.json") == content(run / "predictions" / "records.json")
    assert (again / "report.html").stat().st_size > 10_000
    metrics = content(again / "metrics.json")
    assert metrics["checkpoint"] == "checkpoints/best.ckpt" and metrics["split"] == "test" and metrics["budget"] == 8
    assert "are kept apart by patient" in metrics["notes"][0]
    before = (run / "metrics.json").read_bytes()
    file = evaluate(str(run / "checkpoints" / "last.ckpt"), device="cpu", bootstrap=0, report=False)
    assert (run / "evaluation" / "last_test" / "metrics.json").is_file() and (run / "metrics.json").read_bytes() == before
    assert file["tasks"]["detection"]["map50"] == metrics["tasks"]["detection"]["map50"]  # one epoch: best is last
    assert not (run / "evaluation" / "last_test" / "report.html").exists()


def test_moved_data_keep_the_split(finished_run: Path, smears: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(smears, tmp_path / "moved")
    metrics = evaluate(str(finished_run), output=str(tmp_path / "out"), data={"root": str(moved)}, device="cpu", report=False)
    expected = content(finished_run / "metrics.json")
    assert metrics["split"] == "test" and metrics["tasks"] == expected["tasks"] and metrics["notes"] == expected["notes"]


@pytest.mark.parametrize(
    ("split", "images", "note"),
    [("val", 2, "were chosen on these images"), ("train", 8, "was trained on these images"), ("all", 12, "among them")],
)
def test_other_splits_say_that_they_are_no_test(finished_run: Path, tmp_path: Path, split: str, images: int, note: str) -> None:
    metrics = evaluate(str(finished_run), split, str(tmp_path / "out"), device="cpu", bootstrap=0, report=False)
    assert metrics["n_samples"] == images and metrics["split"] == split
    assert note in metrics["notes"][0] and "not a test" in metrics["notes"][0]


def test_other_images_are_scored_as_a_whole_and_overlap_is_reported(finished_run: Path, smears: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    trained = next(row[1] for row in rows if row[3] == "train")
    other = tmp_path / "other"
    generate_malaria(other, patients=3, fields=1, seed=99, width=320)  # the same names, other images
    akin = sum(any(row[1] == home.name and row[3] != "test" for row in rows) for home in other.glob("*/*"))
    metrics = evaluate(str(run), data={"root": str(other)}, device="cpu", bootstrap=0)
    assert metrics["split"] == "all" and metrics["n_samples"] == 3 and metrics["budget"] is None
    assert "Not the images of the training run: all 3 labelled images" in metrics["notes"][0]
    assert akin and f"{akin} other images bear the name of a patient of training or selection" in metrics["notes"][1]
    assert not any("were used in training" in note for note in metrics["notes"])
    assert (run / "evaluation" / "data_other" / "report.html").is_file() and not (run / "evaluation" / "test").exists()

    for home in [path for path in other.glob("*/*") if path.name != trained]:
        shutil.rmtree(home)
    shutil.rmtree(next(other.glob(f"*/{trained}")))
    source = next(smears.glob(f"*/{trained}"))
    shutil.copytree(source, other / source.parent.name / "201C9P9thinF")  # training images under another name
    metrics = evaluate(str(run), data={"root": str(other)}, device="cpu", bootstrap=0, report=False)
    assert metrics["n_samples"] == 2 and "2 of them were used in training" in " ".join(metrics["notes"])


def test_group_of_the_settings_names_what_is_kept_apart(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "field.ckpt"
    checkpoint = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["mtl"]["config"]["data"]["group_by"] = "field"
    torch.save(checkpoint, path)
    metrics = evaluate(str(path), output=str(tmp_path / "out"), device="cpu", bootstrap=0, report=False)
    assert metrics["group_by"] == "field" and "mae_field" in metrics["study"]["parasitemia"] and metrics["n_groups"] == 2


def test_roi_classes_are_judged_at_the_annotated_boxes(finished_run: Path, tmp_path: Path) -> None:
    before = content(finished_run / "metrics.json")["tasks"]
    checkpoint = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if name.startswith("model.heads.detection.") and value.is_floating_point():
            value.zero_()
    torch.save(checkpoint, tmp_path / "blind.ckpt")
    evaluation = score(load_model(tmp_path / "blind.ckpt", "cpu"), "test", bootstrap=0)
    after = evaluation.summary["tasks"]
    for name in ("f1_macro", "accuracy", "balanced_accuracy"):
        assert after["roi"][name] == before["roi"][name]
    assert set(np.unique(evaluation.evaluator.metrics["detection"].records[0]["scores"])) == {0.25}  # all classes alike
    annotated = sum(sum(record.class_counts.values()) for record in evaluation.datamodule.records_by_split["test"])
    assert sum(row["n"] for row in after["roi"]["per_class"].values()) == annotated


@pytest.mark.parametrize("kind", ["finished_run", "tiles_run"])
def test_prediction_equals_evaluation(kind: str, request: pytest.FixtureRequest) -> None:
    import mtl
    from mtl.data.formats.images import read_rgb

    run: Path = request.getfixturevalue(kind)
    loaded = load_model(run, "cpu")
    evaluation = score(loaded, "test", bootstrap=0)
    predictor = mtl.load(run, device="cpu")
    predictor.batch_size = loaded.config.data.loader.batch_size
    records = evaluation.datamodule.records_by_split["test"]
    found = list(predictor.predict_batch(read_rgb(Path(record.path)) for record in records))
    assert len(found) == len(evaluation.results) == 2
    for record, prediction in zip(records, found, strict=True):
        ours, truth = evaluation.results[record.sample_id]
        assert (prediction.window.count > 1) == (kind == "tiles_run")
        boxes = prediction.window.original_to_working(prediction.tasks["detection"]["boxes"].reshape(-1, 2, 2)).reshape(-1, 4)
        np.testing.assert_allclose(boxes, ours.tasks["detection"]["boxes"], atol=1e-3)
        np.testing.assert_array_equal(prediction.tasks["detection"]["scores"], ours.tasks["detection"]["scores"])
        np.testing.assert_array_equal(
            prediction.tasks["segmentation"]["probabilities"], ours.tasks["segmentation"]["probabilities"]
        )
        np.testing.assert_array_equal(prediction.tasks["heatmap"]["heatmap"], ours.tasks["heatmap"]["heatmap"])
        height, width = prediction.window.working_size
        assert ours.tasks["segmentation"]["probabilities"].shape[1:] == truth.tasks["segmentation"]["mask"].shape[1:]
        assert ours.tasks["segmentation"]["probabilities"].shape[1:] == (height, width)
        np.testing.assert_array_equal(np.sort(ours.tasks["roi"]["ids"]), np.sort(truth.tasks["roi"]["ids"]))


def test_tiles_score_whole_images(tiles_run: Path) -> None:
    metrics = content(tiles_run / "metrics.json")
    records = content(tiles_run / "predictions" / "records.json")
    assert metrics["n_samples"] == 2 and len(records["samples"]) == 2
    assert all(len(rows) == 2 for rows in records["tasks"].values())
    assert (tiles_run / "report.html").stat().st_size > 10_000


def test_run_without_a_best_checkpoint_says_why(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "checkpoints" / "best.ckpt").unlink()
    plan = Plan.from_stored(content(run / "config.json"), "config.json")
    with pytest.raises(TrainingError, match="selects best"):
        evaluate_run(plan, run, "cpu")
