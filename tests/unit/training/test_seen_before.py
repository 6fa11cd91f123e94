"""A reader is told when earlier training has seen a test patient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtl.data.families.malaria.smears import Malaria
from mtl.training.fit import seen_before


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
