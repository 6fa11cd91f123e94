"""A reader is told which unit a split keeps apart, and when earlier training has seen a test patient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.data.families.malaria.smears import Malaria
from mtl.evaluation.results import separation
from mtl.training.fit import seen_before, undecided_thresholds


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"group": group, "split": split} for group, split in pairs]


@pytest.fixture
def cells_checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "cells.ckpt"
    split = rows(("C39P4thinF", "train"), ("C40P5thinF", "test"), ("C41P6thinF", "val"))
    torch.save({"state_dict": {}, "mtl": {"format": 1, "config": {}, "split": split}}, path)
    return str(path)


def smears_with_test(*groups: str) -> SimpleNamespace:
    split = rows(*((group, "test") for group in groups), ("199C39P4thinF", "train"))
    return SimpleNamespace(family=Malaria(), split_rows=lambda: split)


def test_a_test_patient_among_the_training_cells_is_found(cells_checkpoint):
    datamodule = smears_with_test("143C39P4thinF/IMG_1", "150C41P6ThinF", "151C40P5thinF", "152C77P1thinF")
    assert seen_before([cells_checkpoint], datamodule) == ["143C39P4thinF/IMG_1", "150C41P6ThinF"]  # type: ignore[arg-type]


def test_other_weights_say_nothing(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "plain.pth")
    assert seen_before([str(tmp_path / "plain.pth")], smears_with_test("143C39P4thinF")) == []  # type: ignore[arg-type]
    assert seen_before([None], smears_with_test("143C39P4thinF")) == []  # type: ignore[arg-type]


def section(finer: str | None) -> Any:
    return SimpleNamespace(unit="patient", split=SimpleNamespace(val_group_by=finer))


def test_a_finer_validation_unit_is_not_called_kept_apart():
    apart = separation("patient", None)
    finer = separation("patient", "field")
    assert apart == "No patient is in two splits: training, selection and test are kept apart by patient."
    assert finer == "No patient of a test image is in training or selection; those two are kept apart by field only."


def test_a_threshold_that_validation_cannot_choose_is_named() -> None:
    specs = {"presence": TaskSpec("presence", "classification", ("no_tumor", "tumor"), label="class:presence")}

    def record(name: str) -> Record:
        return Record(name, name, "s", "a.png", labels=("class:presence",), class_counts={name: 1})

    (line,) = undecided_thresholds(specs, [record("no_tumor")])
    assert line.startswith("No validation image of task presence shows tumor: the threshold of tumor stays at 0.5")
    assert undecided_thresholds(specs, [record("no_tumor"), record("tumor")]) == []
