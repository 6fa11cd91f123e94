"""Gathers what a run left behind into its `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.json_text import parse_json
from mtl.data.pipeline.split_words import unused_words
from mtl.data.pipeline.splits import SPLITS
from mtl.drawing.paint import fit
from mtl.drawing.palette import colours_of
from mtl.evaluation.pictures import draw_pair
from mtl.report.page import Example, ReportContent, write_report
from mtl.runs.folder import RunFolder
from mtl.runs.history import history_columns, read_history

if TYPE_CHECKING:
    from mtl.evaluation.results import Evaluation

ALL_COUNTED = "every image of the split is counted, also those that the run did not use"
LONGEST = 760  # pixels of the longer side of a panel; the page holds a dozen of them


def write_run_report(evaluation: Evaluation, metrics: dict[str, Any], folder: Path, run_dir: Path) -> Path:
    """Write the report of an evaluation into `folder`, with the training curves of the run it belongs to."""
    plan = evaluation.plan
    rows = read_history(run_dir)
    history, _ = history_columns(rows)
    sizes, split_note = split_sizes(evaluation)
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
        split_sizes=sizes,
        split_note=split_note,
        examples=_examples(evaluation),
        colours=colours_of(evaluation.loaded.model.specs.values()),
        config=plan.to_dict(),
        environment=environment,
    )
    return write_report(folder, content)


def split_sizes(evaluation: Evaluation) -> tuple[dict[str, tuple[int, int]], str]:
    """Return (images, groups) by split as the log of the run counts them, and what beside them is not used.

    Where training images are missing, or all are from elsewhere, only the split that the checkpoint holds is at hand, which
    counts all images.
    """
    if evaluation.chosen.trained:
        table = evaluation.datamodule.split_sizes
        return {row["split"]: (row["images"], row["groups"]) for row in table}, unused_words(table)
    rows = evaluation.loaded.split
    sizes = {
        name: (sum(row["split"] == name for row in rows), len({row["group"] for row in rows if row["split"] == name}))
        for name in SPLITS
    }
    return sizes, ALL_COUNTED


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
        example.prediction, example.truth = draw_pair(
            image, truth, prediction, model.specs, thresholds, LONGEST, evaluation.evaluator.study
        )
        examples.append(example)
    return examples


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
