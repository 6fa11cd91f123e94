"""Tissue masks and cells from regions that rarely have both: the whole job, single-task twins, three ways to find points."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import go, history

from mtl.config.plan import Plan

SMALL = (
    "task=tiger_mtl", "backbone=test_resnet", "trainer=cpu", "data.geometry.size=[128,128]", "data.geometry.overlap=32",
    "data.loader.batch_size=4", "evaluation.bootstrap=10", "evaluation.cases=1", "trainer.max_epochs=1",
    "necks.aspp.width=16", "necks.decoder.width=16", "data.split.ratios=[0.5,0.2,0.3]",
)  # fmt: skip


def run(regions: Path, run_dir: Path, *words: str, score: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    return go(Plan.from_words([*SMALL, f"data.root={regions}", f"paths.run_dir={run_dir}", *words]), score)


def test_the_whole_job(regions: Path, tmp_path: Path) -> None:
    """Trained, scored and reported, then predicted from the checkpoint alone: points lie inside the region."""
    import mtl
    from mtl.data.formats.images import read_rgb

    metrics, _ = run(regions, tmp_path / "run", "heads.cells.score_threshold=0.0", score=True)
    tissue, cells, til = metrics["tasks"]["tissue"], metrics["tasks"]["cells"], metrics["study"]["til_score"]
    assert set(tissue["per_class"]) == {"tumor", "stroma", "other"} and 0 <= tissue["dice_pooled"] <= 1
    sensitivities = [cells[f"sensitivity_at_{rate}"] for rate in (10, 20, 50, 100, 200, 300)]
    assert sensitivities == sorted(sensitivities) and cells["froc"] == pytest.approx(np.mean(sensitivities))
    assert til["compared"]["slide"] > 0 and math.isfinite(til["mae_slide"])
    assert metrics["baseline"]["cells"]["metrics"]["froc"] is not None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "FROC" in page and "til_score" in page
    assert float(history(tmp_path / "run")[-1]["val/cells/froc"]) >= 0

    image = next((regions / "wsirois" / "roi-level-annotations" / "tissue-cells" / "images").glob("*.png"))
    pixels = read_rgb(image)
    prediction = mtl.load(tmp_path / "run").predict(pixels)
    height, width = pixels.shape[:2]
    points = prediction.tasks["cells"]["points"]
    assert len(points) and ((points >= 0) & (points <= (width, height))).all()
    assert prediction.mask("tissue").shape == (height, width)
    assert json.dumps(prediction.to_json())


@pytest.mark.parametrize("head", ["blobs", "box_centres"])
def test_other_heads_train_and_score(head: str, regions: Path, tmp_path: Path) -> None:
    words = [f"head@heads.cells={head}", "trainer.limit_train_batches=1"]
    words += ["necks.fpn.width=16"] if head == "box_centres" else ["heads.cells.shape=gaussian"]
    metrics, _ = run(regions, tmp_path / "run", *words, score=True)
    assert metrics["tasks"]["cells"]["n"] > 0 and metrics["tasks"]["cells"]["froc"] is not None


def test_twins_share_the_split_and_train_on_what_is_labelled(regions: Path, tmp_path: Path) -> None:
    splits = {}
    for task in ("tissue", "cells"):
        _, objects = run(regions, tmp_path / task, f"tasks=[{task}]", "trainer.limit_train_batches=1")
        rows = (tmp_path / task / "split.csv").read_text().splitlines()[1:]
        splits[task] = sorted(rows)
        label = objects["datamodule"].specs[task].label
        assert all(record.knows(label) for record in objects["datamodule"].training_records)
        assert set(objects["module"].model.necks) == {"aspp", "decoder"}
    assert splits["tissue"] == splits["cells"]


def test_each_task_may_have_a_decoder_of_its_own(regions: Path, tmp_path: Path) -> None:
    _, objects = run(regions, tmp_path / "run", "necks.decoder.shared=false", "trainer.limit_train_batches=1")
    necks = objects["module"].model.necks
    assert set(necks["decoder"]) == {"tissue", "cells"} and not hasattr(necks["aspp"], "tissue")
