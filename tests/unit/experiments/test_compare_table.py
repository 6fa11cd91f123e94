"""The comparison: fair or refused, direction-aware, paired."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mtl.core.decision import box_probabilities
from mtl.core.errors import ConfigError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec, higher_is_better
from mtl.core.types import ImageResult, Window
from mtl.evaluation.summaries import RunSummary
from mtl.experiments.comparison import check_comparable, comparison_table, delta_m, rows_to_csv, signed_gain, write_comparison
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.statistics import GroupBootstrap
from mtl.report.comparison import mean_baseline

SPECS = {
    "a": TaskSpec("a", "regression", (), primary="mae"),
    "b": TaskSpec("b", "classification", ("x", "y"), primary="accuracy"),
}
BASELINE = {"b": {"name": "always x", "metrics": {"accuracy": 0.55}}}


def run(arm: str, seed: int, error: float, right: float, tasks: tuple[str, ...] = ("a", "b")) -> RunSummary:
    """Forty patients with one image each; the same patients are hard for everybody."""
    specs = {task: SPECS[task] for task in tasks}
    evaluator, generator = Evaluator(specs), np.random.default_rng(0)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
    for index in range(40):
        hardness, label = generator.uniform(0.5, 1.5), int(generator.random() < 0.5)
        wrong = generator.random() > right
        guess = {
            "a": {"value": np.array(index + error * hardness * (1 + 0.01 * seed))},
            "b": {"probabilities": np.eye(2)[label ^ wrong]},
        }
        truth = {"a": {"value": np.array(float(index))}, "b": {"label": np.array(label)}}
        pair = ({task: entry[task] for task in tasks} for entry in (guess, truth))
        evaluator.update(*(ImageResult(f"i{index:02d}", f"p{index:02d}", "s", window, found) for found in pair))
    return RunSummary(arm, seed, evaluator, evaluator.default_thresholds(), "hash", 1000, baseline=BASELINE)


def arms() -> list[RunSummary]:
    single = [run("stl", seed, 1.0, 0.7, (task,)) for seed in (0, 1) for task in ("a", "b")]
    return [*single, *[run("mtl", seed, 0.5, 0.7) for seed in (0, 1)]]


def test_arm_of_single_task_runs_meets_a_multi_task_arm() -> None:
    markdown, rows = comparison_table(arms(), "stl", bootstrap=200)
    found = {(row["arm"], row["task"], row["metric"]): row for row in rows}
    ours = found["mtl", "a", "mae"]
    assert ours["seeds"] == 2 and ours["std"] > 0 and ours["reference"] == "stl"
    assert ours["difference"] == pytest.approx(ours["mean"] - found["stl", "a", "mae"]["mean"])
    assert ours["low"] < ours["difference"] < ours["high"] < 0
    # Same answers in task b: the paired difference is exactly zero although each accuracy is uncertain.
    same = found["mtl", "b", "accuracy"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert "| *baseline: always x* |" in markdown and "0.550" in markdown
    # mae halves: +50 %, accuracy stays: 0 %.
    assert "| mtl | +25.0 ± 0.0 [+25.0, +25.0] | a, b |" in markdown and "One seed" not in markdown
    assert "mae ↓" in markdown and "accuracy ↑" in markdown


def test_rows_and_page_are_reproducible(tmp_path: Path) -> None:
    assert comparison_table(arms(), "stl", bootstrap=50) == comparison_table(arms(), "stl", bootstrap=50)
    page = write_comparison(tmp_path / "out", arms(), "stl", 20, "mtl compare suite=x")
    assert "mtl compare suite=x" in page.read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert {row["arm"] for row in rows} == {"stl", "mtl"} and float(rows[0]["mean"]) > 0
    assert "nan" not in rows_to_csv([{**rows[0], "std": float("nan")}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_hash": "other"}, "split"),
        ({"budget": 2000}, "budget"),
        ({"thresholds_source": "test"}, "thresholds"),
        ({"image_size": "512"}, "image size"),
        ({"augmentation": "none"}, "augmentation"),
        ({"resolution": "native"}, "size at which masks are compared"),
    ],
)
def test_unfair_comparisons_are_refused(change: dict[str, object], words: str) -> None:
    runs = arms()
    runs[-1] = replace(runs[-1], **change)
    with pytest.raises(ConfigError, match=f"differ in: .*{words}.*mtl seed 1"):
        comparison_table(runs)


def test_a_run_that_decides_without_a_threshold_is_refused() -> None:
    """As of an earlier release: with the same network its sensitivity would differ by the rule alone."""
    runs = arms()
    runs[-1] = replace(runs[-1], thresholds={**runs[-1].thresholds, "b": {}})
    with pytest.raises(ConfigError, match=r"thresholds of task b \(none, .*; evaluate the older runs again\)"):
        check_comparable(runs)


def test_everything_that_differs_is_listed_in_one_sentence() -> None:
    runs = arms()
    runs[-1] = replace(runs[-1], split_hash="other", budget=5)
    with pytest.raises(ConfigError) as error:
        check_comparable(runs)
    assert len(error.value.problems) == 1 and "split" in str(error.value) and "budget" in str(error.value)


def test_seeds_and_repetitions_must_agree() -> None:
    with pytest.raises(ConfigError, match="seeds of task a"):
        comparison_table(arms()[:-1])
    with pytest.raises(ConfigError, match="number of runs with task a"):
        comparison_table([*arms(), run("mtl", 1, 0.5, 0.7)])
    with pytest.raises(ConfigError, match="`none` has no run"):
        comparison_table(arms(), "none")


def test_splits_may_differ_between_seeds() -> None:
    """Folds: every arm sees the same fold for a seed."""
    check_comparable([replace(entry, split_hash=f"fold{entry.seed}") for entry in arms()])


def test_gain_knows_the_direction() -> None:
    assert signed_gain(0.9, 0.6, "map50") == pytest.approx(50)
    assert signed_gain(0.5, 1.0, "mae") == pytest.approx(50)
    assert np.isnan(signed_gain(1.0, 0.0, "map50"))
    assert delta_m({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.6}, SPECS) == pytest.approx(50)
    assert not higher_is_better("mae_patient") and not higher_is_better("count_mae") and higher_is_better("pearson_patient")
    assert not higher_is_better("slides_without_stroma") and not higher_is_better("hd95_per_case")
    assert higher_is_better("map50") and not higher_is_better("rmse") and higher_is_better("f1_macro")


def test_the_baseline_is_the_mean_over_folds():
    runs = [
        SimpleNamespace(baseline={"roi": {"name": "always Healthy", "metrics": {"f1_macro": value, "auroc": None}}})
        for value in (0.2, 0.4)
    ]
    assert mean_baseline(runs, "roi") == {"name": "always Healthy", "metrics": {"f1_macro": pytest.approx(0.3), "auroc": None}}
    assert mean_baseline(runs, "detection") is None


def test_source_alone_stands_in_the_table() -> None:
    guess = {"name": "from the source alone (scans y)", "metrics": {"accuracy": 0.625}, "per_source": {}}
    with_guess = {"b": {**BASELINE["b"], "from_source": guess}}
    markdown, _ = comparison_table([replace(entry, baseline=with_guess) for entry in arms()], "stl", bootstrap=5)
    table = markdown.split("### b")[1]
    assert "| *baseline: from the source alone (scans y)* |" in table and "0.625" in table and "always x" in table
    assert "source alone" not in comparison_table(arms(), "stl", bootstrap=5)[0]


# -- tasks whose labels come from different images -----------------------------------------------------------------------

RETINA = {
    "grade": TaskSpec("grade", "classification", ("a", "b"), label="class:grade", ordinal=True),
    "small": TaskSpec("small", "segmentation", ("speck",), label="mask:specks"),
    "large": TaskSpec("large", "segmentation", ("disc",), label="mask:discs"),
}


def retina(arm: str, seed: int, tasks: tuple[str, ...], skill: float, groups: int = 8) -> RunSummary:
    """Graded images of sixteen patients, masks of other `groups` patients; a run sees what is labelled for its tasks."""
    specs = {task: RETINA[task] for task in tasks}
    both = {"small", "large"} <= specs.keys()
    study = {"lesions": STUDY_METRICS.build({"name": "task_mean", "tasks": ["small", "large"]}, specs)} if both else {}
    evaluator, generator = Evaluator(specs, study), np.random.default_rng(seed)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
    for index in range(16 + groups):
        graded, label = index < 16, index % 2
        masks = {"small": generator.random((1, 8, 8)) < 0.2, "large": generator.random((1, 8, 8)) < 0.5}
        found = {task: {"probabilities": np.where(generator.random((1, 8, 8)) < skill, m, ~m)} for task, m in masks.items()}
        guess = found | {"grade": {"probabilities": np.eye(2)[label if generator.random() < skill else 1 - label]}}
        truth = {"grade": {"label": label}} if graded else {task: {"mask": mask} for task, mask in masks.items()}
        pair = ({task: entry[task] for task in tasks if task in entry} for entry in (guess, truth))
        if any(task in truth for task in tasks):
            source = "graded" if graded else "masks"
            evaluator.update(*(ImageResult(f"i{index:02d}", f"p{index:02d}", source, window, part) for part in pair))
    return RunSummary(arm, seed, evaluator, evaluator.default_thresholds(), "hash", 100)


def test_study_metric_of_single_task_runs_is_made_from_them_together() -> None:
    runs = [retina("stl", seed, (task,), 0.8) for seed in (0, 1) for task in RETINA]
    runs += [retina("mtl", seed, tuple(RETINA), 0.9) for seed in (0, 1)]
    markdown, rows = comparison_table(runs, "stl", bootstrap=60)
    found = {(row["arm"], row["task"], row["metric"]): row for row in rows}
    for arm in ("stl", "mtl"):
        mean = found[arm, "lesions", "dice_pooled"]
        parts = [found[arm, task, "dice_pooled"]["mean"] for task in ("small", "large")]
        assert mean["seeds"] == 2 and mean["mean"] == pytest.approx(np.mean(parts))
    ours = found["mtl", "lesions", "aupr"]
    assert ours["low"] < ours["difference"] < ours["high"] and "### lesions" in markdown
    assert found["mtl", "grade", "quadratic_kappa"]["low"] != ""
    assert "| mtl |" in markdown.split("### Δm")[1] and "grade, small, large" in markdown
    # Eight patients have masks, sixteen others grades.
    assert "Intervals of small, large rest on 8 groups (patient) only" in markdown and "24 patients" in markdown
    assert not runs[0].evaluator.study and len(runs[0].evaluator.specs) == 1


def test_study_metric_is_missing_where_an_arm_lacks_a_task() -> None:
    runs = [retina("stl", 0, ("small",), 0.8), retina("stl", 0, ("grade",), 0.8), retina("mtl", 0, tuple(RETINA), 0.9)]
    markdown, rows = comparison_table(runs, "stl", bootstrap=20)
    assert {row["arm"] for row in rows if row["task"] in ("lesions", "large")} == {"mtl"}
    assert all(row["difference"] == "" for row in rows if row["task"] == "lesions") and "nan" not in markdown


def test_til_score_of_single_task_runs_is_made_from_them_together(cell_study: Callable[..., Evaluator]) -> None:
    """Cells from one network, tissue from another: the images are brought together by name."""
    whole = cell_study()
    thresholds = whole.thresholds()
    runs = [RunSummary("mtl", 0, whole, thresholds, "hash", 100)]
    for task, spec in whole.specs.items():
        alone = Evaluator({task: spec}, hit_radius=4.0, group_by="slide", native=True)
        alone.extend({"samples": whole.records()["samples"], "tasks": {task: whole.records()["tasks"][task]}})
        runs.append(RunSummary("stl", 0, alone, {task: thresholds[task]}, "hash", 100))
    markdown, rows = comparison_table(runs, "stl", bootstrap=30)
    found = {(row["arm"], row["task"], row["metric"]): row for row in rows}
    for metric in ("mae_slide", "pearson_slide"):
        ours = found["mtl", "til_score", metric]
        assert ours["mean"] == found["stl", "til_score", metric]["mean"] == whole.compute(thresholds)["til_score"][metric]
        assert (ours["difference"], ours["low"], ours["high"]) == (0, 0, 0)
    assert "sensitivity_at_300 ↑" in markdown and "mae_slide ↓" in markdown and "slides_without_stroma ↓" in markdown
    assert found["mtl", "cells", "froc"]["mean"] > 0


def test_one_patient_gives_no_interval() -> None:
    runs = [retina(arm, 0, tuple(RETINA), skill, groups=1) for arm, skill in (("stl", 0.8), ("mtl", 0.9))]
    markdown, rows = comparison_table(runs, "stl", bootstrap=50)
    ours = {(row["task"], row["metric"]): row for row in rows if row["arm"] == "mtl"}
    for name in ("small", "lesions"):
        assert ours[name, "dice_pooled"]["low"] == "" and ours[name, "dice_pooled"]["difference"] > 0
    assert ours["grade", "accuracy"]["low"] != "" and "All labels of small, large belong to one patient" in markdown


def judged(arm: str, right: int, of: int = 50, seed: int = 0) -> RunSummary:
    """One image of each of fifty patients, the first `right` of which are classified rightly."""
    evaluator = Evaluator({"b": SPECS["b"]})
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
    for index in range(of):
        pair = ({"b": {"probabilities": np.eye(2)[int(index >= right)]}}, {"b": {"label": np.array(0)}})
        evaluator.update(*(ImageResult(f"i{index:02d}", f"p{index:02d}", "s", window, found) for found in pair))
    return RunSummary(arm, seed, evaluator, evaluator.default_thresholds(), "hash", 1000)


def test_one_seed_is_called_one_seed_and_its_gain_has_an_interval_over_groups() -> None:
    page, _ = comparison_table([judged("stl", 25), judged("mtl", 30)], "stl", bootstrap=200)
    assert "One seed: no spread over seeds can be given." in page and "would rank alike if they were trained again" in page
    counts = GroupBootstrap([f"p{index:02d}" for index in range(50)], 200, 0).counts
    reference, ours = counts[:, :25].sum(1), counts[:, :30].sum(1)
    low, high = np.percentile(100 * (ours - reference) / reference, [2.5, 97.5])
    assert 0 < low < 20 < high and f"| mtl | +20.0 [{low:+.1f}, {high:+.1f}] | b |" in page
    assert "95 % bootstrap interval of Δm over groups" in page and "has no interval" not in page
    # Two seeds: per resample the mean of both, of which one gains twice as much.
    pairs = [judged("stl", 25), judged("mtl", 30), judged("stl", 25, seed=1), judged("mtl", 35, seed=1)]
    both, _ = comparison_table(pairs, "stl", bootstrap=200)
    low, high = np.percentile(50 * (ours + counts[:, :35].sum(1) - 2 * reference) / reference, [2.5, 97.5])
    assert f"| mtl | +30.0 ± 14.1 [{low:+.1f}, {high:+.1f}] | b |" in both and "One seed" not in both


def test_a_gain_without_an_interval_says_why() -> None:
    without, _ = comparison_table([judged("stl", 25), judged("mtl", 30)], "stl", bootstrap=0)
    assert (
        "| mtl | +20.0 | b |" in without and "Δm of `mtl` has no interval over groups: " in without and "bootstrap=0" in without
    )
    runs = [retina(arm, 0, ("grade", "small"), skill, groups=1) for arm, skill in (("stl", 0.8), ("mtl", 0.9))]
    lonely, _ = comparison_table(runs, "stl", bootstrap=50)
    assert "has no interval over groups: the labels of small belong to one group." in lonely


@pytest.mark.parametrize(("patients", "bootstrap", "interval"), [(1, 20, False), (2, 20, True), (2, 1, True), (2, 0, False)])
def test_intervals_need_two_patients_and_one_resample(patients: int, bootstrap: int, interval: bool) -> None:
    def judged(arm: str, error: float) -> RunSummary:
        evaluator = Evaluator({"a": SPECS["a"]})
        window = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
        for index in range(4):
            pair = ({"a": {"value": np.array(error * (index + 1))}}, {"a": {"value": np.array(0.0)}})
            group = f"p{index % patients}"
            evaluator.update(*(ImageResult(f"i{index}", group, "s", window, found) for found in pair))
        return RunSummary(arm, 0, evaluator, evaluator.default_thresholds(), "hash", 1000)

    _, rows = comparison_table([judged("stl", 1.0), judged("mtl", 2.0)], "stl", bootstrap=bootstrap)
    ours = next(row for row in rows if (row["arm"], row["metric"]) == ("mtl", "mae"))
    assert ours["difference"] == pytest.approx(2.5)
    assert (ours["low"] != "", ours["high"] != "") == (interval, interval)


def test_reference_of_zero_gives_a_dash_and_a_small_one_a_warning() -> None:
    zero, rows = comparison_table([judged("stl", 0), judged("mtl", 25)], "stl", bootstrap=20)
    assert "| mtl | – | b |" in zero and "is 0 or undefined" in zero and "inf" not in zero and "nan" not in zero
    assert "inf" not in rows_to_csv(rows)
    small, _ = comparison_table([judged("stl", 1), judged("mtl", 2)], "stl", bootstrap=20)
    assert "| mtl | +100.0 [" in small and "which is small for b (0.020)" in small
    plain, _ = comparison_table([judged("stl", 25), judged("mtl", 30)], "stl", bootstrap=20)
    assert "which is small" not in plain and "is 0 or undefined" not in plain


def test_undefined_in_one_seed_leaves_no_nan_on_the_page() -> None:
    runs = [retina(arm, seed, ("small", "grade"), skill) for arm, skill in (("stl", 0.8), ("mtl", 0.9)) for seed in (0, 1)]
    empty = runs[-1].evaluator.metrics["small"]
    records = [record | {"truth": record["truth"] * 0, "hits": record["hits"] * 0} for record in empty.records]
    empty.reset()
    empty.add(records)
    markdown, _ = comparison_table(runs, "stl", bootstrap=20)
    assert not re.search(r"\b(nan|inf)\b", markdown)


CELLS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy")),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy")),
}


def smear(arm: str, tasks: tuple[str, ...], **keys: str) -> RunSummary:
    """Three images with two infected of four cells; the detector finds all and calls one infected, RoI classification two."""
    specs = {task: CELLS[task] for task in tasks}
    study = {"parasitemia": STUDY_METRICS.build({"name": "parasitemia", **keys}, specs)} if "detection" in tasks else {}
    evaluator = Evaluator(specs, study)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
    boxes, true, said = np.zeros((4, 4)), np.array([0, 0, 1, 1]), np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    for index in range(3):
        found = {"boxes": boxes, "labels": np.array([0, 1, 1, 1]), "scores": np.ones(4, np.float32)}
        found |= {box_probabilities("roi"): said} if keys else {}
        guess = {"detection": found, "roi": {"probabilities": said, "ids": np.arange(4)}}
        truth = {"detection": {"boxes": boxes, "labels": true}, "roi": {"labels": true, "ids": np.arange(4)}}
        pair = ({task: entry[task] for task in tasks} for entry in (guess, truth))
        evaluator.update(*(ImageResult(f"i{index}", f"p{index}", "s", window, part) for part in pair))
    return RunSummary(arm, 0, evaluator, evaluator.default_thresholds(), "hash", 100)


@pytest.mark.parametrize("order", [1, -1])
def test_arms_keep_their_own_settings_of_a_study_metric(order: int) -> None:
    """Single-task runs have no boxes that another network classified, whatever the arm beside them does."""
    runs = [
        smear("detector", ("detection", "roi")), smear("decided", ("detection", "roi"), classes_from="roi"),
        smear("stl", ("detection",)), smear("stl", ("roi",)),
    ]  # fmt: skip
    _, rows = comparison_table(runs[::order], "detector", bootstrap=10)
    found = {row["arm"]: row["mean"] for row in rows if (row["task"], row["metric"]) == ("parasitemia", "mae_image")}
    assert found == {"detector": 25.0, "decided": 0.0, "stl": 25.0}
