"""What a comparison refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtl.config.load import load_run_config
from mtl.core.errors import ConfigError, DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.experiments import arms as comparison
from mtl.experiments.arms import Run, _check_budget, _check_shared, _plan

SPECS = {"grade": TaskSpec("grade", "classification", ("a", "b"), label="class:grade"),
         "mask": TaskSpec("mask", "segmentation", ("speck",), label="mask:specks")}  # fmt: skip
GRADED = [Record(f"g{n}", "p", "graded", "x", labels=("class:grade",)) for n in range(5)]
SEGMENTED = [Record(f"m{n}", "p", "masks", "x", labels=("mask:specks",)) for n in range(3)]


def configs(samples: int | None, resolution: str = "native", primary: str = "") -> dict[Run, dict[str, Any]]:
    found = {}
    for arm, tasks in (("mtl", ["grade", "mask"]), ("stl", ["grade"]), ("stl", ["mask"])):
        run = Run(arm, tasks[0] if arm == "stl" else None, 0, Path(arm), tuple(tasks))
        found[run] = {
            "seed": 0, "tasks": tasks, "data": {"loader": {"samples_per_epoch": samples}},
            "stages": {}, "trainer": {"max_epochs": 2},
            "evaluation": {
                "hit_radius": 1.0, "resolution": resolution if arm == "mtl" else "native",
                "primary": {"grade": primary} if primary and arm == "mtl" else {},
            },
        }  # fmt: skip
    return found


def family(monkeypatch: pytest.MonkeyPatch, records: list[Record]) -> None:
    monkeypatch.setattr(
        comparison, "build_family", lambda data: SimpleNamespace(specs=lambda: SPECS, records=lambda: list(records))
    )


def test_epochs_of_different_length_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    family(monkeypatch, GRADED + SEGMENTED)
    with pytest.raises(ConfigError, match=r"8 for grade\+mask, 5 for grade, 3 for mask.*samples_per_epoch"):
        _check_budget(configs(None))
    _check_budget(configs(40))


def test_every_image_labelled_for_every_task_is_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    family(monkeypatch, [Record(f"r{n}", "p", "s", "x") for n in range(4)])
    _check_budget(configs(None))


def test_finished_runs_need_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> list[Record]:
        raise DataError("No data folder.")

    monkeypatch.setattr(comparison, "build_family", lambda data: SimpleNamespace(specs=lambda: SPECS, records=gone))
    _check_budget(configs(None))


def test_masks_must_be_compared_at_one_size() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.resolution"):
        _check_shared(configs(40, "working"))
    with pytest.raises(ConfigError, match=r"evaluation\.primary"):
        _check_shared(configs(40, primary="auroc"))
    _check_shared(configs(40))


def test_an_arm_can_be_another_suite_of_the_same_data(tmp_path: Path) -> None:
    arms = {"hard": [], "moe": ["task=idrid_moe", "heads.grade.experts=2"], "stl": []}
    runs = _plan("idrid_mtl", 1, arms, ["backbone=resnet18", "tasks=[grade,edema]"], tmp_path)
    assert [(run.arm, run.task, run.overrides[0]) for run in runs] == [
        ("hard", None, "task=idrid_mtl"), ("moe", None, "task=idrid_moe"),
        ("stl", "grade", "task=idrid_mtl"), ("stl", "edema", "task=idrid_mtl"),
    ]  # fmt: skip
    _check_shared({run: load_run_config(list(run.overrides)) for run in runs})
