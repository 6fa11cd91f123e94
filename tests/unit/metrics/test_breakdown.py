"""Tables by source, subgroup and case are the metrics of those images alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mtl.metrics.breakdown import by_source, by_subgroup
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.statistics import GroupBootstrap


@pytest.fixture(scope="module")
def study(case_study: Any) -> Evaluator:
    evaluator: Evaluator = case_study()
    return evaluator


def only(study: Evaluator, task: str, keep: Any) -> dict[str, float]:
    metric = study.empty().metrics[task]
    metric.add([record for record in study.metrics[task].records if keep(record)])
    return metric.compute(study.default_thresholds()[task])


@pytest.mark.parametrize("task", ["tumor", "presence"])
def test_subgroups_are_scored_alone(study: Evaluator, task: str) -> None:
    found = by_subgroup(study.metrics[task], study.default_thresholds()[task], GroupBootstrap(study.groups, 50))
    for value, row in found["per_subgroup"]["sex"].items():
        alone = only(study, task, lambda record, value=value: record["attributes"]["sex"] == value)
        assert {name: row[name] for name in alone} == pytest.approx(alone, nan_ok=True)
    assert sum(row["n"] for row in found["per_subgroup"]["sex"].values()) == len(study.metrics[task].records)


def test_small_subgroups_are_flagged_and_judge_nothing(study: Evaluator) -> None:
    found = by_subgroup(study.metrics["presence"], {}, GroupBootstrap(study.groups, 300))
    rows = found["per_subgroup"]
    assert {value: row["few"] for value, row in rows["sex"].items()} == {"female": False, "male": False}
    # Only scans have a grade: 25 slices of five cases are still five groups.
    assert {value: (row["n"], row["n_groups"], row["few"], row["ci95"]) for value, row in rows["grade"].items()} == {
        "high": (25, 5, True, {}),
        "low": (5, 1, True, {}),
    }
    gap = found["subgroup_gaps"]["sex"]
    scores = {value: row["f1_macro"] for value, row in rows["sex"].items()}
    assert gap["metric"] == "f1_macro" and gap["best"] == max(scores, key=lambda value: scores[value])
    assert gap["difference"] == pytest.approx(max(scores.values()) - min(scores.values()))
    low, high = gap["ci95"]
    assert low < gap["difference"] < high and "grade" not in found["subgroup_gaps"]
    low, high = rows["sex"]["male"]["ci95"]["f1_macro"]
    assert low < rows["sex"]["male"]["f1_macro"] < high


def test_attributes_with_one_value_are_skipped(case_study: Any) -> None:
    study = case_study(cases=1, pictures=0, hd95=False)
    assert study.summary(study.default_thresholds(), 10)["tasks"]["presence"]["per_subgroup"] == {}


def test_sources_have_their_confusion(study: Evaluator) -> None:
    metric = study.metrics["presence"]
    found = by_source(metric, {})
    total = np.zeros((2, 2), int)
    for source, row in found.items():
        counts = np.zeros((2, 2), int)
        for record in metric.records:
            if record["source"] == source:
                counts[record["label"], record["probabilities"].argmax()] += 1
        assert row["confusion"] == counts.tolist() and row["n"] == counts.sum()
        assert row["sensitivity"] == pytest.approx(counts[1, 1] / counts[1].sum())
        assert row["specificity"] == pytest.approx(counts[0, 0] / counts[0].sum())
        total += counts
    summary = study.summary(study.default_thresholds(), 0)["tasks"]
    assert summary["presence"]["confusion"] == total.tolist()
    assert list(summary["tumor"]["per_source"]) == ["scans"] and "confusion" not in summary["tumor"]["per_source"]["scans"]


def test_summary_of_volumes(study: Evaluator) -> None:
    summary = study.summary(study.default_thresholds(), 20)
    json.dumps(summary, allow_nan=False)
    tumor = summary["tasks"]["tumor"]
    assert summary["hd95_units"] == {"tumor": "mm"} and tumor["ci95"]["hd95_per_case"] is not None
    rows = [row["edema"] for row in summary["cases"]["tumor"].values()]
    assert len(rows) == 6 and tumor["per_class"]["edema"]["dice_per_case"] == pytest.approx(np.mean([r["dice"] for r in rows]))
    assert tumor["per_class"]["edema"]["hd95_per_case"] == pytest.approx(np.mean([row["hd95"] for row in rows]))
    # Masks are compared at half the size: 3 mm by 2 mm by 2 mm per pixel.
    record = study.metrics["tumor"].records[0]
    assert record["voxel"] == pytest.approx(12.0) and record["attributes"] == {"sex": "female", "grade": "low"}


def test_unit_of_distances_without_spacing_is_said(case_study: Any) -> None:
    study = case_study(cases=2, pictures=0)
    for record in study.metrics["tumor"].records:
        if record["group"] == "case00":
            record["hd95_mm"] = np.bool_(False)
    study.finish()
    notes = study.summary(study.default_thresholds(), 0)["notes"]
    assert any("5 images of unknown spacing" in note for note in notes)
    for record in study.metrics["tumor"].records:
        record["hd95_mm"] = np.bool_(False)
    study.finish()
    assert study.summary(study.default_thresholds(), 0)["hd95_units"] == {"tumor": "pixels of the working raster"}
