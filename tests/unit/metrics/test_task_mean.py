"""The mean over tasks: all of them, or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_named
from mtl.metrics.evaluator import Evaluator

SPECS = {
    "small": TaskSpec("small", "segmentation", ("speck",)),
    "large": TaskSpec("large", "segmentation", ("disc",)),
    "grade": TaskSpec("grade", "classification", ("a", "b")),
    "value": TaskSpec("value", "regression", ()),
}
THRESHOLDS = {"small": {"speck": 0.5}, "large": {"disc": 0.5}, "grade": {}, "value": {}}


def mean_of(**settings: Any) -> Any:
    return STUDY_METRICS.build({"name": "task_mean", "tasks": ["small", "large"], **settings}, SPECS)


def evaluator_of(build: Any, study: Any, absent: dict[int, str] | None = None) -> Evaluator:
    evaluator, generator = Evaluator(SPECS, {"lesions": study}), np.random.default_rng(3)
    for index in range(6):
        masks = {"small": generator.random((1, 12, 12)) < 0.1, "large": generator.random((1, 12, 12)) < 0.5}
        if index == 0:
            masks["small"][:] = False
        guess = {task: {"probabilities": mask * 0.4 + generator.random(mask.shape) * 0.6} for task, mask in masks.items()}
        truth = {task: {"mask": mask.astype(np.uint8)} for task, mask in masks.items()}
        truth = {task: arrays for task, arrays in truth.items() if (absent or {}).get(index) != task}
        name, group = f"i{index}", f"p{index}"
        evaluator.update(build["result"](name, group, **guess), build["result"](name, group, **truth))
    return evaluator


def test_it_is_the_mean_of_what_the_tasks_say(build: Any) -> None:
    evaluator = evaluator_of(build, mean_of())
    values = evaluator.compute(THRESHOLDS)
    assert list(values["lesions"]) == list(rules_named("segmentation").metric_class.names)
    for name, value in values["lesions"].items():
        assert value == pytest.approx((values["small"][name] + values["large"][name]) / 2)
    assert values["small"]["aupr"] != values["large"]["aupr"]
    table = evaluator.curves(THRESHOLDS)["lesions"]["per_task"]
    assert table["small"]["dice_pooled"] == values["small"]["dice_pooled"] and table["large"]["n"] == 6
    # Computed alone it says the same as beside its tasks.
    alone = evaluator.study["lesions"].compute(evaluator.metrics, THRESHOLDS)
    assert alone == values["lesions"]


def test_chosen_metrics_only(build: Any) -> None:
    values = evaluator_of(build, mean_of(metrics=["aupr", "dice_pooled"])).compute(THRESHOLDS)
    assert list(values["lesions"]) == ["aupr", "dice_pooled"]


def test_it_follows_bootstrap_weights_and_has_an_interval(build: Any) -> None:
    evaluator = evaluator_of(build, mean_of())
    names = [f"p{index}" for index in range(6)]
    weighted = evaluator.compute_by_group(THRESHOLDS, names)(np.array([2, 0, 1, 1, 0, 2]))
    assert weighted["lesions"]["iou_pooled"] == pytest.approx(
        (weighted["small"]["iou_pooled"] + weighted["large"]["iou_pooled"]) / 2
    )
    study = evaluator.summary(THRESHOLDS, bootstrap=50)["study"]["lesions"]
    assert study["ci95"]["dice_pooled"][0] <= study["dice_pooled"] <= study["ci95"]["dice_pooled"][1]


def test_a_mean_over_fewer_tasks_is_no_mean(build: Any) -> None:
    evaluator = evaluator_of(build, mean_of(), absent=dict.fromkeys(range(1, 6), "small"))  # only the empty one is left
    values = evaluator.compute(THRESHOLDS)
    assert np.isnan(values["small"]["dice_pooled"]) and np.isnan(values["lesions"]["dice_pooled"])
    assert np.isfinite(values["large"]["dice_pooled"]) and np.isfinite(values["lesions"]["dice_per_image"])
    summary = evaluator.summary(THRESHOLDS, bootstrap=20)
    assert any("lesions: no mean of" in note and "dice_pooled" in note for note in summary["notes"])
    # One image alone has labels of `small`: resampling it tells nothing.
    assert summary["tasks"]["small"]["ci95"]["dice_per_image"] is None and summary["study"]["lesions"]["ci95"]["aupr"] is None
    assert summary["tasks"]["large"]["ci95"]["dice_per_image"] is not None
    assert any("All labels of small belong to one patient" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ["small", "other"]}, "other"),
        ({"tasks": ["small"]}, "two or more"),
        ({"tasks": ["small", "small"]}, "each once"),
        ({"tasks": ["small", "grade"]}, "share no metric"),
        ({"metrics": ["auroc"]}, "auroc"),
    ],
)
def test_what_cannot_be_averaged_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mean_of(**settings)
