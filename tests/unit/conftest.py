"""Small studies: volumes and pictures (two sources, masks in one of them, subgroups), and slides with tissue and cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.metrics.evaluator import Evaluator

SIZE, SLICES = 24, 5
SPECS = {
    "tumor": TaskSpec("tumor", "segmentation", ("core", "edema"), label="mask:tumor", volumetric=True),
    "presence": TaskSpec("presence", "classification", ("no_tumor", "yes_tumor"), label="class:presence"),
}
REGION_SPECS = {
    "tissue": TaskSpec("tissue", "segmentation", ("tumor", "stroma", "other"), multilabel=False),
    "cells": TaskSpec("cells", "points", ("lymphocyte",), members=(("lymphocyte",),)),
}
WINDOW = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE), (2 * SIZE, 2 * SIZE))


@pytest.fixture(scope="session")
def case_study() -> Callable[..., Evaluator]:
    return study


@pytest.fixture(scope="session")
def cell_study() -> Callable[..., Evaluator]:
    return tissue_and_cells


def ball(centre: np.ndarray, radius: float) -> np.ndarray:
    z, y, x = np.mgrid[:SLICES, :SIZE, :SIZE]
    return ((z - centre[0]) * 3) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2  # type: ignore[no-any-return]


def volume(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and masks, each [slices, 2, H, W]."""
    centre = np.array([2, 12, 12]) + generator.normal(0, 1.0, 3)
    radius = generator.uniform(4, 7)
    truth = np.stack([ball(centre, radius * 0.6), ball(centre, radius)], axis=1)
    shifted = centre + generator.normal(0, 0.8, 3)
    guess = np.stack([ball(shifted, radius * 0.5), ball(shifted, radius * 1.1)], axis=1)
    return np.where(guess, 0.8, 0.1).astype(np.float32), truth.astype(np.uint8)


def study(cases: int = 6, pictures: int = 24, hd95: bool = True, **settings: Any) -> Evaluator:
    """Cases of the source `scans` with masks and presence, pictures of the source `web` with presence only."""
    evaluator, generator = Evaluator(SPECS, **settings), np.random.default_rng(3)
    if hd95:
        evaluator.measure_surfaces(evaluator.default_thresholds())
    for case in range(cases):
        probabilities, masks = volume(generator)
        attributes = {"sex": ("female", "male")[case % 2], "grade": "high" if case else "low"}
        for index in range(SLICES):
            present = int(masks[index].any())
            score = float(np.clip(generator.normal(0.3 + 0.4 * present, 0.2), 0, 1))
            guess = {
                "tumor": {"probabilities": probabilities[index]},
                "presence": {"probabilities": np.array([1 - score, score])},
            }
            truth = {"tumor": {"mask": masks[index]}, "presence": {"label": np.array(present)}}
            name, group = f"case{case:02d}/{index}", f"case{case:02d}"
            known = ImageResult(name, group, "scans", WINDOW, truth, attributes, (3.0, 1.0, 1.0))
            evaluator.update(ImageResult(name, group, "scans", WINDOW, guess), known)
    for index in range(pictures):
        present = index % 2
        score = float(np.clip(generator.normal(0.3 + 0.4 * present, 0.3), 0, 1))
        name, attributes = f"web{index:03d}", {"sex": "female" if index % 4 < 2 else "male"}
        guess = {"presence": {"probabilities": np.array([1 - score, score])}}
        known = ImageResult(name, name, "web", WINDOW, {"presence": {"label": np.array(present)}}, attributes)
        evaluator.update(ImageResult(name, name, "web", WINDOW, guess), known)
    evaluator.finish()
    return evaluator


def tissue_and_cells(slides: int = 6) -> Evaluator:
    """Two regions per slide, one of them without tissue labels in the last slide."""
    study = {"til_score": STUDY_METRICS.build({"name": "til_score"}, REGION_SPECS)}
    evaluator = Evaluator(REGION_SPECS, study, hit_radius=4.0, group_by="slide", native=True)
    generator = np.random.default_rng(0)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (128, 128), (128, 128), (128, 128), (128, 128), pixel_scale=2.0)
    for index in range(2 * slides):
        cells = generator.uniform(0, 128, (int(generator.integers(5, 25)), 2))
        points = np.concatenate([cells + generator.normal(0, 3, cells.shape), generator.uniform(0, 128, (6, 2))])
        mask = np.zeros((128, 128), np.uint8)
        mask[:, generator.integers(40, 100) :] = 1
        mask[:10] = 255
        guess = np.where(mask == 255, 0, np.roll(mask, 5, axis=1))
        predicted: dict[str, Any] = {
            "cells": {"points": points, "scores": generator.uniform(0, 1, len(points)), "labels": np.zeros(len(points), int)},
            "tissue": {"probabilities": np.eye(3, dtype=np.float32)[guess].transpose(2, 0, 1)},
        }
        truth: dict[str, Any] = {
            "cells": {"points": cells, "labels": np.zeros(len(cells), int), "region": mask != 255},
            "tissue": {"mask": mask},
        }
        if index == 2 * slides - 1:
            del truth["tissue"]
        about = (f"r{index:02d}", f"s{index // 2}", ("rumc", "tcga")[index // 2 % 2], window)
        evaluator.update(*(ImageResult(*about, tasks) for tasks in (predicted, truth)))
    return evaluator
