"""Classes of detected cells that RoI classification decides: evaluation and prediction count the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny_run

import mtl
from mtl.cli.main import guarded
from mtl.config.plan import Plan
from mtl.data.formats.images import read_rgb
from mtl.runs.results import load_records

TILES = ("data.geometry.mode=tiles", "data.geometry.size=[96,96]", "data.geometry.overlap=32", "data.geometry.scale=0.03")


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def decided(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in its run folder, with a threshold at which cells are found and a classifier that tells them apart."""
    run_dir = tmp_path_factory.mktemp("runs") / "decided"
    words = ("debug=fast", *TILES, "data.group_by=field", "tasks=[detection,roi]", "study_metrics.parasitemia.classes_from=roi")
    tiny_run(smears, run_dir, *words, score=True)
    best = run_dir / "checkpoints" / "best.ckpt"
    image = read_rgb(sorted(smears.glob("*/*/Img/*.jpg"))[0])
    found = mtl.load(best, "cpu").predict(image).tasks
    stored = torch.load(best, weights_only=True)
    stored["mtl"]["thresholds"]["detection"]["score"] = float(found["detection"]["scores"][30])
    # An untrained classifier may say the same of all boxes; its bias is moved so that both red cells occur.
    said = np.log(found["roi"]["probabilities"][:31])
    bias = stored["state_dict"]["model.heads.roi.classifier." + last_layer(stored["state_dict"]) + ".bias"]
    bias[0] -= float(np.median(said[:, 0] - said[:, 1]))
    bias[2] -= 100.0
    torch.save(stored, best.with_name("eager.ckpt"))
    return best.with_name("eager.ckpt")


def last_layer(state: dict[str, Any]) -> str:
    prefix = "model.heads.roi.classifier."
    return str(max(int(name.removeprefix(prefix).partition(".")[0]) for name in state if name.startswith(prefix)))


def test_the_score_is_a_recount_of_what_prediction_writes(decided: Path, smears: Path, tmp_path: Path) -> None:
    """By the class of RoI classification, of the boxes above the threshold only, in images of several windows."""
    words = [f"checkpoint={decided}", f"output={tmp_path}/scores", "report=true", "bootstrap=20", "device=cpu"]
    assert guarded("evaluate", words) == 0
    metrics, run_dir = content(tmp_path / "scores" / "metrics.json"), decided.parents[1]
    plan = Plan.from_stored(content(run_dir / "config.json"), "config.json")
    with (run_dir / "split.csv").open(newline="", encoding="utf-8") as file:
        test = {row["sample_id"] for row in csv.DictReader(file) if row["split"] == "test"}
    records = {record.sample_id: record for record in plan.records if record.sample_id in test}
    errors, by_detector = [], []
    for number, record in enumerate(records.values()):
        words = [f"checkpoint={decided}", f"source={record.path}", f"output={tmp_path}/{number}", "device=cpu"]
        assert guarded("predict", words) == 0
        (file,) = (tmp_path / str(number)).glob("*.json")
        found = content(file)
        objects = found["tasks"]["detection"]["objects"]
        counts = {name: sum(entry["roi"]["class_name"] == name for entry in objects) for name in found["counts"]}
        assert found["counts"] == counts and sum(counts.values()) > 5
        predicted = 100 * counts["Infected"] / (counts["Infected"] + counts["Healthy"])
        assert found["parasitemia"] == pytest.approx(predicted)
        with (tmp_path / str(number) / "predictions.csv").open(newline="", encoding="utf-8") as table:
            assert float(next(csv.DictReader(table))["parasitemia"]) == pytest.approx(predicted, abs=1e-4)
        true = record.class_counts
        errors.append(abs(predicted - 100 * true["Infected"] / (true["Infected"] + true["Healthy"])))
        by_detector.append(sum(entry["detector_class"] == "Infected" for entry in objects) - counts["Infected"])
    assert len(errors) == metrics["n_samples"] > 1 and any(by_detector)
    assert metrics["study"]["parasitemia"]["mae_image"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert "parasitemia: the class of each detected cell is that of task `roi`." in metrics["notes"]
    assert metrics["study"]["parasitemia"]["ci95"]["mae_image"] is not None


def test_records_keep_what_decides(decided: Path) -> None:
    """Stored records are enough to apply other thresholds."""
    from mtl.runs.build import build_evaluator
    from mtl.runs.folder import RunFolder

    run = RunFolder(decided.parents[1])
    records, metrics = load_records(run.records), content(run.metrics)
    evaluator = build_evaluator(Plan.from_stored(content(run.config), "config.json"), records["specs"])
    evaluator.extend(records)
    values = evaluator.compute(metrics["thresholds"])["parasitemia"]
    assert values["mae_image"] == pytest.approx(metrics["study"]["parasitemia"]["mae_image"])
    assert all(len(row["probabilities_of_roi"]) == len(row["scores"]) for row in evaluator.metrics["detection"].records)


def test_nothing_is_kept_where_nothing_asks(tiles_run: Path) -> None:
    rows = load_records(tiles_run / "predictions" / "records.json")["tasks"]["detection"]
    assert rows and all(set(row) == {"sample_id", "group", "source", "scores", "labels", "hits", "truth"} for row in rows)


def test_a_twin_without_the_deciding_task_has_no_such_metric(smears: Path, tmp_path: Path) -> None:
    words = ("debug=fast", "tasks=[detection]", "study_metrics.parasitemia.classes_from=roi")
    tiny_run(smears, tmp_path / "twin", *words, score=True)
    metrics = content(tmp_path / "twin" / "metrics.json")
    assert metrics["study"] == {} and mtl.load(tmp_path / "twin", "cpu").study == {}
