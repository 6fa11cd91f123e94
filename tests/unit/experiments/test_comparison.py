"""What a comparison refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError, DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.experiments.arms import Run, _check_budget, _check_shared, _plan

SPECS = {"grade": TaskSpec("grade", "classification", ("a", "b"), label="class:grade"),
         "mask": TaskSpec("mask", "segmentation", ("speck",), label="mask:specks")}  # fmt: skip
GRADED = [Record(f"g{n}", "p", "graded", "x", labels=("class:grade",)) for n in range(5)]
SEGMENTED = [Record(f"m{n}", "p", "masks", "x", labels=("mask:specks",)) for n in range(3)]


class SmallPlan:
    """What a comparison asks of a plan."""

    total_epochs = 2

    def __init__(self, tasks: list[str], samples: int | None, evaluation: dict[str, Any], records: list[Record] | None) -> None:
        self.values = {
            "seed": 0, "tasks": tasks, "data": {"loader": {"samples_per_epoch": samples}},
            "stages": {}, "trainer": {"max_epochs": 2}, "evaluation": evaluation,
        }  # fmt: skip
        loader = SimpleNamespace(samples_per_epoch=samples)
        self.config = SimpleNamespace(tasks=tasks, stages={}, data=SimpleNamespace(loader=loader))
        self.stages = [SimpleNamespace(name="", tasks=tasks, sources=None)]
        self.family = SimpleNamespace(specs=lambda: SPECS)
        self._records = records

    @property
    def records(self) -> list[Record]:
        if self._records is None:
            raise DataError("No data folder.")
        return self._records

    def to_dict(self) -> dict[str, Any]:
        return self.values


def plans(
    samples: int | None, resolution: str = "native", primary: str = "", records: list[Record] | None = None
) -> dict[Run, Any]:
    found = {}
    for arm, tasks in (("mtl", ["grade", "mask"]), ("stl", ["grade"]), ("stl", ["mask"])):
        run = Run(arm, tasks[0] if arm == "stl" else None, 0, Path(arm), tuple(tasks))
        evaluation = {
            "hit_radius": 1.0, "resolution": resolution if arm == "mtl" else "native",
            "primary": {"grade": primary} if primary and arm == "mtl" else {},
        }  # fmt: skip
        found[run] = SmallPlan(tasks, samples, evaluation, records)
    return found


def test_epochs_of_different_length_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"8 for grade\+mask, 5 for grade, 3 for mask.*samples_per_epoch"):
        _check_budget(plans(None, records=GRADED + SEGMENTED))
    _check_budget(plans(40, records=GRADED + SEGMENTED))


def test_every_image_labelled_for_every_task_is_one_budget() -> None:
    _check_budget(plans(None, records=[Record(f"r{n}", "p", "s", "x") for n in range(4)]))


def test_finished_runs_need_no_data() -> None:
    _check_budget(plans(None))


def test_masks_must_be_compared_at_one_size() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.resolution"):
        _check_shared(plans(40, "working"))
    with pytest.raises(ConfigError, match=r"evaluation\.primary"):
        _check_shared(plans(40, primary="auroc"))
    _check_shared(plans(40))


def test_an_arm_can_be_another_suite_of_the_same_data(tmp_path: Path) -> None:
    arms = {"hard": [], "moe": ["task=idrid_moe", "heads.grade.experts=2"], "stl": []}
    runs = _plan("idrid_mtl", 1, arms, ["backbone=resnet18", "tasks=[grade,edema]"], tmp_path)
    assert [(run.arm, run.task, run.overrides[0]) for run in runs] == [
        ("hard", None, "task=idrid_mtl"), ("moe", None, "task=idrid_moe"),
        ("stl", "grade", "task=idrid_mtl"), ("stl", "edema", "task=idrid_mtl"),
    ]  # fmt: skip
    _check_shared({run: Plan.from_words(list(run.overrides)) for run in runs})
