"""What the choice of a checkpoint rests on is counted, and said where it is little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.evaluation.selection import describe_selection, few_examples, monitored_tasks, selection_basis

SPECS = {
    "detection": TaskSpec("detection", "detection", ("ring", "red"), members=(("ring", "schizont"), ("red",))),
    "grade": TaskSpec("grade", "classification", ("low", "high"), label="class:grade"),
    "load": TaskSpec("load", "regression", (), label="class:load"),
}


def stage(monitor: str = "val/score", select: str = "best", limit: float | None = None, **weights: float) -> Any:
    evaluation = SimpleNamespace(score_weights=weights)
    config = SimpleNamespace(
        monitor=monitor,
        monitor_smoothing=3,
        select=select,
        evaluation=evaluation,
        trainer=SimpleNamespace(limit_val_batches=limit),
    )
    return SimpleNamespace(tasks=tuple(SPECS), config=config)


def validation(images: int = 24, rings: int = 3, groups: int = 12) -> list[Record]:
    """All images have objects, one in two a grade; the first `rings` show a parasite."""
    return [
        Record(
            f"s{number:02d}", f"p{number % groups}", "s", "x",
            class_counts={"ring": 0, "schizont": int(number < rings), "red": 40}
            | ({"low": number % 4 // 2, "high": 1 - number % 4 // 2} if number % 2 == 0 else {}),
            labels=("objects", "class:load") + (("class:grade",) if number % 2 == 0 else ()),
        )
        for number in range(images)
    ]  # fmt: skip


def test_the_tasks_behind_a_monitor():
    study: Any = {"parasitemia": SimpleNamespace(tasks=("detection", "grade"))}
    assert monitored_tasks(stage(), study) == list(SPECS)
    assert monitored_tasks(stage(grade=0.0), study) == ["detection", "load"]
    assert monitored_tasks(stage("val/loss", grade=0.0), study) == list(SPECS)
    assert monitored_tasks(stage("val/grade/f1_macro"), study) == ["grade"]
    assert monitored_tasks(stage("val/parasitemia/mae_image"), study) == ["detection", "grade"]


def test_objects_images_and_groups_are_counted():
    basis = selection_basis(stage(), SPECS, ["detection", "grade", "load"], validation())
    assert basis == {
        "monitor": "val/score", "monitor_smoothing": 3, "select": "best", "limit": None, "images": 24, "groups": 12,
        "tasks": {
            "detection": {"images": 24, "groups": 12, "classes": {"ring": 3, "red": 960}},
            "grade": {"images": 12, "groups": 6, "classes": {"low": 6, "high": 6}},
            "load": {"images": 24, "groups": 12, "classes": {}},
        },
    }  # fmt: skip
    line = describe_selection(basis, "patient")
    assert "val/score rests on validation, groups by patient: detection 24 images of 12 groups (ring 3, red 960); grade" in line
    part = selection_basis(stage(limit=0.5), SPECS, ["detection"], validation())
    assert "of which trainer.limit_val_batches=0.5 scores a part only" in describe_selection(part, "patient")


def test_few_examples_are_a_warning_with_what_to_do():
    (warning,) = few_examples(selection_basis(stage(), SPECS, ["detection", "grade", "load"], validation()))
    assert "3 of ring (detection), 6 of low (grade), 6 of high (grade), 6 groups (grade). Below 10 objects" in warning
    assert "monitor_smoothing=3, select=last or evaluation.class_weighting=known" in warning
    assert "1 groups (load)" in few_examples(selection_basis(stage(), SPECS, ["load"], validation(groups=1)))[0]


@pytest.mark.parametrize(("tasks", "settings", "rings"), [(["detection"], {}, 10), (["grade"], {"select": "last"}, 3)])
def test_enough_or_no_choice_at_all_is_no_warning(tasks: list[str], settings: dict[str, str], rings: int):
    basis = selection_basis(stage(**settings), SPECS, tasks, validation(rings=rings))
    assert few_examples(basis) == []
    assert ("select=last" in describe_selection(basis, "patient")) == (settings != {})
