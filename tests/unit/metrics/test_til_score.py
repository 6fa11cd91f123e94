"""TIL score by hand: slides of several regions, both rasters, and what is not there to compare."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Record, Window
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.til import til_score
from mtl.runs.build import build_evaluator, dropped_study_metrics

SPECS = {
    "cells": TaskSpec("cells", "points", ("lymphocyte",)),
    "tissue": TaskSpec("tissue", "segmentation", ("tumor", "stroma", "other"), multilabel=False),
}
THRESHOLDS: dict[str, dict[str, float]] = {"cells": {"score": 0.5}, "tissue": {}}
SIDE = 64  # stored pixels of 0.5 um: an image has 1024 um2
# Slide, cells predicted and annotated, rows of stroma predicted and annotated.
ROWS = [
    ("s1", 4, 8, 32, 32),  # s1 in all: 4 cells on 1024 um2 against 10 on 1024 um2
    ("s1", 0, 2, 32, 32),
    ("s2", 2, 2, 64, 32),
    ("s3", 3, 3, 0, 64),  # no stroma predicted: counts as 0
    ("s4", 5, 5, 10, 0),  # no annotated stroma: left out
]


def study(native: bool = False, group_by: str = "slide", rows: Any = ROWS, **keys: Any) -> Evaluator:
    """Each image at half its stored size; `cells` of an image lie on a line, the predicted ones among the annotated."""
    metric = STUDY_METRICS.build({"name": "til_score", **keys}, SPECS)
    evaluator = Evaluator(SPECS, {"til_score": metric}, hit_radius=4.0, group_by=group_by, native=native)
    window = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (32, 32), (32, 32), (32, 32), (SIDE, SIDE), pixel_scale=2.0)
    for index, (slide, found, annotated, predicted_rows, true_rows) in enumerate(rows):
        places = np.stack([np.arange(10) * 3.0 + 1, np.full(10, 16.0)], axis=1).astype(np.float32)
        mask = np.full((SIDE, SIDE), 2, np.uint8)
        mask[:true_rows] = 1
        guess = np.full((SIDE, SIDE), 2)
        guess[:predicted_rows] = 1
        probabilities = np.eye(3, dtype=np.float32)[guess[::2, ::2]].transpose(2, 0, 1)
        points = np.concatenate([places[:found], places[:1]])  # one more, below the threshold
        prediction = {
            "cells": {"points": points, "scores": np.array([0.9] * found + [0.2], np.float32),
                      "labels": np.zeros(found + 1, np.int64)},
            "tissue": {"probabilities": probabilities},
        }  # fmt: skip
        truth = {
            "cells": {"points": places[:annotated], "labels": np.zeros(annotated, np.int64), "region": np.ones((32, 32), bool)},
            "tissue": {"mask": mask if native else mask[::2, ::2]},
        }
        evaluator.update(*(ImageResult(f"i{index}", slide, "s", window, tasks) for tasks in (prediction, truth)))
    return evaluator


def test_the_rule() -> None:
    assert til_score(10, 6400.0, 8.0) == 10.0 and til_score(10, 6400.0, cell_diameter_um=4.0) == 2.5
    assert til_score(0, 100.0, 8.0) == 0.0 and np.isnan(til_score(3, 0.0, 8.0)) and til_score(100, 640.0, 8.0) == 1000.0
    assert isinstance(til_score(1, 1.0, 8.0), float)


@pytest.mark.parametrize("native", [False, True])
def test_slides_add_their_regions(native: bool) -> None:
    """Areas are in microns whatever the raster in which masks are compared."""
    evaluator = study(native)
    values = evaluator.compute(THRESHOLDS)["til_score"]
    pairs = evaluator.curves(THRESHOLDS)["til_score"]["agreement"]["slide"]
    assert pairs["names"] == ["s1", "s2", "s3"]
    assert pairs["true"] == pytest.approx([100 * 10 * 64 / 1024, 100 * 2 * 64 / 512, 100 * 3 * 64 / 1024])
    assert pairs["predicted"] == pytest.approx([100 * 4 * 64 / 1024, 100 * 2 * 64 / 1024, 0.0], rel=0.05 if native else 1e-9)
    errors = np.abs(np.subtract(pairs["predicted"], pairs["true"]))
    assert values["mae_slide"] == pytest.approx(errors.mean())
    assert values["pearson_slide"] == pytest.approx(np.corrcoef(pairs["predicted"], pairs["true"])[0, 1])
    assert values["slides_without_stroma"] == 1


def test_summary_says_how_many_and_what_is_missing() -> None:
    summary = study().summary(THRESHOLDS, bootstrap=20)
    entry = summary["study"]["til_score"]
    assert entry["compared"] == {"slide": 3} and set(entry["ci95"]) == {"mae_slide", "pearson_slide", "slides_without_stroma"}
    assert entry["ci95"]["mae_slide"] is not None
    assert "til_score: slides in which no stroma was predicted count as 0 %: 1." in summary["notes"]
    assert study().curves(THRESHOLDS)["til_score"]["without_truth"] == {"slide": 1}


def test_weights_equal_repeated_slides() -> None:
    step = study().compute_by_group(THRESHOLDS, ["s1", "s2", "s3", "s4"])
    weighted = step(np.array([2, 1, 0, 3]))["til_score"]
    again = [("t1", *row[1:]) for row in ROWS[:2]]
    repeated = study(rows=[*ROWS[:3], *again, ROWS[4]]).compute(THRESHOLDS)["til_score"]
    assert weighted == pytest.approx(repeated)
    assert weighted["slides_without_stroma"] == 0


def test_images_with_one_label_are_left_out() -> None:
    """An image with cells only and one with tissue only make no score, and the reader is told."""
    whole = study()
    apart = Evaluator(SPECS, whole.study, group_by="slide")
    records = whole.records()
    records["tasks"] = {"cells": records["tasks"]["cells"][:2], "tissue": records["tasks"]["tissue"][2:]}
    apart.extend(records)
    values = apart.compute(THRESHOLDS)["til_score"]
    assert all(np.isnan(value) for value in values.values())
    summary = apart.summary(THRESHOLDS, bootstrap=10)
    words = "no slide has images with annotated cells and annotated stroma: there is no score to compare."
    assert f"til_score: {words}" in summary["notes"]
    assert summary["study"]["til_score"]["compared"] == {"slide": 0}
    half = Evaluator(SPECS, whole.study, group_by="slide")
    half.extend({"samples": records["samples"], "tasks": {"cells": whole.records()["tasks"]["cells"],
                                                         "tissue": whole.records()["tasks"]["tissue"][2:]}})  # fmt: skip
    assert half.curves(THRESHOLDS)["til_score"]["agreement"]["slide"]["names"] == ["s2", "s3"]


def test_mean_of_the_truth_is_that_of_the_scores() -> None:
    """What a baseline predicts: the annotation of other images, added up per slide in the same way."""
    metric = study().study["til_score"]
    window = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (32, 32), (32, 32), (32, 32), (SIDE, SIDE), pixel_scale=2.0)
    truths, records = {}, []
    for index, (slide, _, cells, _, rows) in enumerate(ROWS):
        mask = np.full((32, 32), 255, np.uint8)
        mask[: rows // 2] = 1
        tasks = {"cells": {"labels": np.zeros(cells, np.int64)}, "tissue": {"mask": mask}}
        truths[f"i{index}"] = ImageResult(f"i{index}", slide, "s", window, tasks)
        records.append(Record(f"i{index}", slide, "s", "x"))
    half = Record("half", "s9", "s", "x", labels=())  # not labelled for both: its annotation is not read

    def read(chosen: Iterable[Record]) -> Iterator[ImageResult]:
        return (truths[record.sample_id] for record in chosen)

    true = study().curves(THRESHOLDS)["til_score"]["agreement"]["slide"]["true"]
    assert metric.training_value([*records, half], read) == pytest.approx(np.mean(true))
    assert np.isnan(metric.training_value([], read))


def test_keys_change_the_score() -> None:
    plain, wide = (study(**keys).compute(THRESHOLDS)["til_score"] for keys in ({}, {"cell_diameter": 16.0}))
    assert wide["mae_slide"] == pytest.approx(4 * plain["mae_slide"])
    other = study(stroma="other").curves(THRESHOLDS)["til_score"]["agreement"]["slide"]
    assert other["names"] == ["s1", "s2", "s4"]
    assert study(tasks=["tissue", "cells"]).compute(THRESHOLDS)["til_score"] == plain
    assert "mae_patient" in study(group_by="patient").compute(THRESHOLDS)["til_score"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"stroma": "strroma"}, "needs the class `strroma` in task `tissue`; it has tumor, stroma, other"),
        ({"tasks": ["cells", "tisue"]}, "tisue"),
        ({"tasks": ["tissue"]}, "one task that finds points and one that segments"),
        ({"cell_diameter": 0.0}, "microns above 0"),
    ],
)
def test_wrong_settings_say_so(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        STUDY_METRICS.build({"name": "til_score", **keys}, SPECS)


def test_a_class_that_the_data_settings_leave_out_drops_the_metric() -> None:
    """A misspelt one is an error instead."""
    words = ["task=tiger_mtl", "backbone=test_resnet"]
    plan = Plan.from_words([*words, "data.tissue.stroma=null"])
    assert build_evaluator(plan, plan.specs).study == {}
    assert dropped_study_metrics(plan, plan.specs) == [
        "til_score is not computed: tasks cells and tissue have no class stroma here"
    ]
    plan = Plan.from_words([*words, "tasks=[tissue]"])
    assert dropped_study_metrics(plan, plan.specs) == ["til_score is not computed: it needs cells too, not in `tasks`"]
    plan = Plan.from_words([*words, "study_metrics.til_score.stroma=strroma"])
    assert dropped_study_metrics(plan, plan.specs) == []
    with pytest.raises(ConfigError, match="needs the class `strroma`"):
        build_evaluator(plan, plan.specs)


def test_the_rule_needs_no_torch() -> None:
    code = "import sys; from mtl.metrics.til import til_score; "
    code += "print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
