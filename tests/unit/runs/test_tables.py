"""One row per image for every kind of task: what is annotated and what is predicted, in the words of the task."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.metrics.evaluator import Evaluator
from mtl.runs.folder import ResultFolder
from mtl.runs.results import save_tables

WINDOW = Window(0, 1, (1, 1), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (8, 8))
SPECS = {
    "cells": TaskSpec("cells", "detection", ("sick", "well")),
    "roi": TaskSpec("roi", "roi_classification", ("sick", "well")),
    "lesion": TaskSpec("lesion", "segmentation", ("speck", "disc")),
    "tissue": TaskSpec("tissue", "segmentation", ("glass", "stroma"), multilabel=False, volumetric=True),
    "peaks": TaskSpec("peaks", "heatmap", ("sick",)),
    "dots": TaskSpec("dots", "points", ("sick",)),
    "grade": TaskSpec("grade", "classification", ("none", "mild", "severe"), ordinal=True),
    "signs": TaskSpec("signs", "multilabel_classification", ("red", "white")),
    "share": TaskSpec("share", "regression", (), unit="%"),
}
THRESHOLDS: dict[str, dict[str, float]] = {
    "cells": {"score": 0.4}, "roi": {}, "lesion": {"speck": 0.3, "disc": 0.5}, "tissue": {}, "peaks": {"score": 0.5},
    "dots": {"score": 0.5}, "grade": {}, "signs": {"red": 0.2, "white": 0.9}, "share": {},
}  # fmt: skip


def boxes(*corners: tuple[float, float]) -> np.ndarray:
    return np.array([[x, y, x + 2, y + 2] for x, y in corners], np.float32)


def image() -> tuple[ImageResult, ImageResult]:
    """One image, a quarter of it a disc of which half is found; of four cells one is missed and one has the other class."""
    disc = np.zeros((2, 8, 8), np.uint8)
    disc[1, :4, :4] = 1
    found_disc = np.zeros((2, 8, 8), np.float32)
    found_disc[1, :2, :4], found_disc[0, 7, 7] = 0.6, 0.35
    where = boxes((0, 0), (4, 0), (0, 4), (4, 4))
    points = np.array([[1.0, 1.0], [5.0, 5.0]])
    found_points = {"points": points[:1], "scores": np.array([0.9], np.float32), "labels": np.zeros(1, np.int64)}
    heat = {"stride": np.float32(1), "sigma": np.float32(1), "heatmap": np.zeros((1, 8, 8), np.float32)}
    truth = {
        "cells": {"boxes": where, "labels": np.array([0, 0, 1, 1])},
        "roi": {"labels": np.array([0, 1, 1]), "ids": np.arange(3)},
        "lesion": {"mask": disc},
        "tissue": {"mask": disc[1], "steps": np.diag([2.0, 1.0, 1.0])},
        "peaks": {"points": points, "labels": np.zeros(2, np.int64)},
        "dots": {"points": points, "labels": np.zeros(2, np.int64), "region": np.ones((8, 8), bool)},
        "grade": {"label": np.array(2)},
        "signs": {"labels": np.array([1.0, np.nan])},
        "share": {"value": np.array(12.5)},
    }
    guess: dict[str, Any] = {
        "cells": {"boxes": where[:3], "labels": np.array([0, 1, 1]), "scores": np.array([0.9, 0.8, 0.3], np.float32)},
        "roi": {"probabilities": np.array([[0.75, 0.25], [0.75, 0.25], [np.nan, np.nan]]), "ids": np.arange(3)},
        "lesion": {"probabilities": found_disc},
        "tissue": {"probabilities": np.stack([1 - found_disc[1], found_disc[1]])},
        "peaks": found_points | heat,
        "dots": found_points | {"radius": np.float32(1)},
        "grade": {"probabilities": np.array([0.2, 0.7, 0.1])},
        "signs": {"probabilities": np.array([0.25, 0.8])},
        "share": {"value": np.array(10.25), "spread": np.array(1.5)},
    }
    return tuple(ImageResult("i/1", "p1", "here", WINDOW, tasks) for tasks in (guess, truth))  # type: ignore[return-value]


EXPECTED: dict[str, dict[str, str]] = {
    # At 0.4 two cells are left, of which one lies on a cell of the other class.
    "cells": {"annotated_sick": "2", "annotated_well": "2", "predicted_sick": "1", "predicted_well": "1", "hits_sick": "1",
              "hits_well": "0"},
    "roi": {"objects": "3", "right": "1", "annotated_sick": "1", "annotated_well": "2", "predicted_sick": "2",
            "predicted_well": "0"},
    "lesion": {"annotated_speck_share": "0.0", "annotated_disc_share": "0.25", "predicted_speck_share": "0.015625",
               "predicted_disc_share": "0.125", "dice_speck": "0.0", "dice_disc": "0.6667"},
    "tissue": {"annotated_glass_share": "0.75", "annotated_glass_mm3": "96.0", "annotated_stroma_share": "0.25",
               "annotated_stroma_mm3": "32.0", "predicted_glass_share": "0.875", "predicted_glass_mm3": "112.0",
               "predicted_stroma_share": "0.125", "predicted_stroma_mm3": "16.0", "dice_glass": "0.9231",
               "dice_stroma": "0.6667"},
    "peaks": {"annotated_sick": "2", "predicted_sick": "1", "hits_sick": "1"},
    "dots": {"annotated_sick": "2", "predicted_sick": "1", "hits_sick": "1"},
    "grade": {"annotated": "severe", "predicted": "mild", "confidence": "0.7", "p_none": "0.2", "p_mild": "0.7",
              "p_severe": "0.1"},
    "signs": {"annotated_red": "1", "annotated_white": "", "predicted_red": "1", "predicted_white": "0", "p_red": "0.25",
              "p_white": "0.8"},
    "share": {"annotated": "12.5", "predicted": "10.25", "spread": "1.5", "unit": "%"},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    evaluator = Evaluator(SPECS, hit_radius=1.0)
    evaluator.update(*image())
    folder = ResultFolder(tmp_path_factory.mktemp("results"))
    save_tables(folder, evaluator, THRESHOLDS)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", SPECS)
def test_a_row_says_what_is_annotated_and_what_is_predicted(task: str, place: ResultFolder) -> None:
    (row,) = rows(place.table(task))
    assert row == {"sample_id": "i/1", "group": "p1", "source": "here", **EXPECTED[task]}


def test_every_kind_has_a_table() -> None:
    assert {spec.kind for spec in SPECS.values()} == set(KINDS.names())


def test_objects_that_are_classified_have_a_row_each(place: ResultFolder) -> None:
    found = rows(place.object_table("roi"))
    said = [(row["object"], row["annotated"], row["predicted"], row["p_sick"]) for row in found]
    assert said == [("1", "sick", "sick", "0.75"), ("2", "well", "sick", "0.75"), ("3", "well", "", "")]
    assert [path.name for path in place.object_table("roi").parent.iterdir()] == ["roi.csv"]


def test_no_task_takes_the_name_of_another_file(place: ResultFolder) -> None:
    assert place.table("cases") != place.cases and place.table("cases").name == "task_cases.csv"
