"""A split that lacks labels or classes of a task says so before training, by task and class."""

from __future__ import annotations

from typing import Any

from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.data.pipeline.coverage import label_gaps

PRESENCE = TaskSpec("presence", "classification", ("no_tumor", "tumor"), label="class:presence")
GRADE = TaskSpec("grade", "classification", ("low", "middle", "high"), label="class:grade", ordinal=True)
LOAD = TaskSpec("load", "regression", (), label="class:load")


def record(name: str, label: str = "class:presence", **more: Any) -> Record:
    return Record(name, name, "s", "a.png", labels=(label,), class_counts={name: 1}, **more)


def test_a_threshold_that_validation_cannot_choose_is_named() -> None:
    both = [record("no_tumor"), record("tumor")]
    assert label_gaps({"presence": PRESENCE}, {"train": both, "val": both, "test": both}) == []
    assert label_gaps({"presence": PRESENCE}, {"train": both, "val": both[:1], "test": both}) == [
        "val: task presence has no `tumor`, so that the threshold of tumor stays at 0.5."
    ]


def test_missing_labels_and_classes_are_named_by_split() -> None:
    graded = [record("low", "class:grade"), record("high", "class:grade")]
    assert label_gaps({"grade": GRADE}, {"train": graded, "val": [], "test": [record("tumor")]}) == [
        "train: task grade has no `middle`.",
        "val: task grade has no labelled image, so that nothing can choose its thresholds.",
        "test: task grade has no labelled image, so that it is not tested.",
    ]


def test_nothing_is_claimed_of_what_the_index_does_not_count() -> None:
    bare = [Record("a", "a", "s", "a.png", labels=("class:grade", "class:load"), values={"load": 0.0})]
    assert label_gaps({"grade": GRADE, "load": LOAD}, {"train": bare}) == []
    told = [Record("a", "a", "s", "a.png", labels=("class:grade",), values={"grade": 1})]
    assert label_gaps({"grade": GRADE}, {"test": told}) == ["test: task grade has no `low`, `high`."]
