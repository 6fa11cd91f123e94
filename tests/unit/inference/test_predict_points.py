"""The kind `points` from arrays to files and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from slide_tools import CELLS, TISSUE, generate, make_predictor

from mtl.core.task import TaskSpec
from mtl.drawing.paint import paint
from mtl.evaluation.grid import draw_grid
from mtl.inference.outputs import PredictionWriter, csv_columns
from mtl.inference.pictures import draw_example, layers_of
from mtl.inference.predictor import Outcome

YELLOW = (255, 235, 0)
TWO = {"cells": TaskSpec("cells", "points", ("lymphocyte", "plasma"), colours=(YELLOW, None))}


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((np.abs(picture.astype(int) - colour) <= 40).all(axis=2))


def test_what_is_found_is_counted_and_said() -> None:
    prediction = make_predictor().predict(generate(150, 200), 2.0)
    cells = prediction.tasks["cells"]
    sure = int((cells["scores"] >= 0.7).sum())
    assert 0 < sure < len(cells["scores"]) and prediction.counts == {"lymphocyte": sure}
    assert prediction.detection_task is None and prediction.study == {}
    found = prediction.objects("cells")
    assert set(found) == {"points", "scores", "labels"} and len(found["points"]) == sure
    content = prediction.to_json()
    assert content["counts"] == {"lymphocyte": sure} and "parasitemia" not in content
    rows = content["tasks"]["cells"]["points"]
    assert len(rows) == sure and rows[0]["class"] == "lymphocyte" and rows[0]["point"] == found["points"][0].round(2).tolist()


def test_coordinates_are_those_of_the_stored_image() -> None:
    image = generate(150, 200)
    large = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    at_half, at_full = make_predictor().predict(image, 2.0), make_predictor().predict(large, 4.0)
    np.testing.assert_allclose(at_full.tasks["cells"]["points"], 2 * at_half.tasks["cells"]["points"])
    assert at_full.tasks["cells"]["radius"] == at_half.tasks["cells"]["radius"]  # working pixels


def test_rows_of_the_table(tmp_path: Path) -> None:
    specs = {"cells": CELLS, "tissue": TISSUE}
    columns = csv_columns(specs)
    assert {"object", "x", "y", "n_lymphocyte", "tissue_stroma_area_ratio"} <= set(columns) and "parasitemia" not in columns
    assert "til_score" not in columns and {"til_score", "stroma_area_um2"} <= set(csv_columns(specs, slides=True))
    path, image, predictor = tmp_path / "a.png", generate(100, 130), make_predictor()
    prediction = predictor.predict(image, 2.0)
    with PredictionWriter(tmp_path / "out", [path], predictor.specs) as writer:
        writer.write(Outcome(path, image, prediction))
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == prediction.counts["lymphocyte"] > 0
    assert all(row["task"] == "cells" and row["n_lymphocyte"] == str(len(rows)) and row["x_min"] == "" for row in rows)
    assert [float(rows[0][key]) for key in "xy"] == prediction.objects("cells")["points"][0].round(2).tolist()


def test_circles_are_as_large_as_the_distance_at_which_cells_are_one() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    points = np.array([[40, 50], [60, 50], [100, 80]], np.float32)
    arrays = {"points": points, "scores": np.array([0.9, 0.8, 0.2]), "labels": np.array([0, 1, 0]), "radius": np.array(6.0)}
    layers = layers_of({"cells": arrays}, TWO, (100, 150), {"cells": {"score": 0.5}})
    assert [text for _, text in layers.legend] == ["lymphocyte 1", "plasma 1"]
    picture = paint(grey, layers)  # twice the size
    ring = coloured(picture, YELLOW)
    assert np.abs(ring.mean(axis=0) - [100, 80]).max() < 1 and abs(ring.max(axis=0) - ring.min(axis=0) - 24).max() <= 3
    assert (picture[100, 80] == 128).all() and (picture[160, 200] == 128).all()  # open; below the threshold
    assert len(coloured(picture, layers.legend[1][0]))
    small = paint(np.full((20, 30, 3), 128, np.uint8), layers)
    assert 1 <= len(coloured(small, YELLOW)) <= 12  # a spot


def test_annotation_and_prediction_stand_side_by_side() -> None:
    image = generate(96, 128)
    prediction = make_predictor().predict(image, 2.0)
    points = np.array([[30, 40], [90, 60]], np.float32)
    boxes = np.concatenate([points - 8, points + 8], axis=1)
    region = np.ones((96, 128), bool)
    truth = {"cells": {"points": points, "labels": np.zeros(2, int), "boxes": boxes, "ids": np.arange(2), "region": region}}
    picture = draw_example(image, truth, {"cells": CELLS}, (96, 128))
    assert len(coloured(picture[:96], YELLOW)) > 20
    panels = draw_grid(image, truth, prediction.tasks, {"cells": CELLS}, (96, 128), prediction.thresholds)
    assert len(coloured(panels, YELLOW)) > 20
    nothing = {"cells": {key: value[:0] for key, value in truth["cells"].items()}}
    assert not len(coloured(draw_example(image, nothing, {"cells": CELLS}, (96, 128))[:96], YELLOW))
