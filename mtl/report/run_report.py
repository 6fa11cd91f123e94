"""Gathers what a run left behind into its `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.json_text import parse_json
from mtl.drawing.paint import fit
from mtl.drawing.palette import colours_of
from mtl.inference.pictures import draw_example
from mtl.kinds.base import rules_of
from mtl.report.grid import draw_grid, wants_grid
from mtl.report.page import Example, ReportContent, write_report
from mtl.runs.folder import RunFolder
from mtl.runs.history import history_columns, read_history

if TYPE_CHECKING:
    from mtl.core.task import TaskSpec
    from mtl.core.types import ImageResult
    from mtl.evaluation.results import Evaluation

LONGEST = 760  # pixels of the longer side of a panel; the page holds a dozen of them


def write_run_report(evaluation: Evaluation, metrics: dict[str, Any], folder: Path, run_dir: Path) -> Path:
    """Write the report of an evaluation into `folder`, with the training curves of the run it belongs to."""
    plan = evaluation.plan
    rows = read_history(run_dir)
    history, _ = history_columns(rows)
    environment = _read(RunFolder(run_dir).environment)
    content = ReportContent(
        metrics=metrics,
        curves=evaluation.evaluator.curves(evaluation.loaded.thresholds),
        commit=environment.get("commit") or "",
        duration=float(np.nansum(history["seconds"])) if "seconds" in history else None,
        history=rows,
        best_epoch=float(evaluation.loaded.epoch),
        best_stage=evaluation.loaded.stage,
        kept_apart=evaluation.chosen.kept_apart,
        split_sizes=_split_sizes(evaluation),
        examples=_examples(evaluation),
        colours=colours_of(evaluation.loaded.model.specs.values()),
        config=plan.to_dict(),
        environment=environment,
    )
    return write_report(folder, content)


def _split_sizes(evaluation: Evaluation) -> dict[str, tuple[int, int]]:
    rows = evaluation.loaded.split
    return {
        name: (sum(row["split"] == name for row in rows), len({row["group"] for row in rows if row["split"] == name}))
        for name in ("train", "val", "test")
    }


def _examples(evaluation: Evaluation) -> list[Example]:
    """Draw the kept images: annotation and prediction side by side, or as one grid where there are many masks."""
    model, thresholds = evaluation.loaded.model, evaluation.loaded.thresholds
    records = {record.sample_id: record for record in evaluation.datamodule.records}
    examples = []
    for group, name in evaluation.examples.extremes():
        prediction, truth = evaluation.results[name]
        window = prediction.window
        # The part that the network saw: maps, boxes and points are given in its working raster.
        stored = evaluation.datamodule.family.read_image(records[name])
        image = fit(window.cut(model.preprocessing.picture(stored)), LONGEST)
        example = Example(name, evaluation.examples.scores[name], image, group=group)
        if wants_grid(model.specs):
            example.prediction = draw_grid(
                image, truth.tasks, prediction.tasks, model.specs, window.working_size, thresholds
            )  # fmt: skip
        else:
            _add_references(truth, prediction, model.specs)
            example.prediction = _draw(evaluation, image, prediction, thresholds)
            example.truth = _draw(evaluation, image, truth, None)
        examples.append(example)
    return examples


def _add_references(truth: ImageResult, prediction: ImageResult, specs: dict[str, TaskSpec]) -> None:
    """Give the annotation what is needed to draw it like the prediction, so that both show the same panels."""
    for task, arrays in truth.tasks.items():
        if task in prediction.tasks:
            truth.tasks[task] = rules_of(specs[task]).reference(specs[task], arrays, prediction.tasks[task])


def _draw(evaluation: Evaluation, image: np.ndarray, result: ImageResult, thresholds: Any) -> np.ndarray:
    specs, study = evaluation.loaded.model.specs, evaluation.evaluator.study
    return draw_example(image, result.tasks, specs, result.window.working_size, thresholds, LONGEST, study)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
