"""`mtl predict`: a checkpoint applied to files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.progress import Progress

from mtl.inference.images import find_images, is_case
from mtl.inference.loading import load_predictor
from mtl.inference.outputs import PredictionWriter
from mtl.inference.predictor import Outcome, Predictor
from mtl.inference.volumes import CaseOutcome, predict_case


def predict(
    checkpoint: str,
    source: str,
    output: str,
    batch_size: int = 4,
    device: str = "auto",
    overlays: bool = True,
    masks: bool = True,
    pixel_scale: float | None = None,
) -> list[str]:
    """Predict every image and volume of `source` and write JSON, CSV, PNG and NIfTI files.

    Args:
        checkpoint: File or run directory.
        source: An image, a volume, a folder or a glob.
        output: Folder for the results.
        batch_size: Windows per step.
        device: `auto`, `cpu`, `cuda`, ...
        overlays: Draw overlays.
        masks: Write masks, confidence maps and heatmaps.
        pixel_scale: Stored pixels per reference pixel; None applies the data family's rule.

    Returns:
        One sentence per file that could not be read; those are skipped.
    """
    paths = find_images(source, leave_out=Path(output))
    predictor = load_predictor(checkpoint, device)
    predictor.batch_size = batch_size
    problems = []
    with (
        Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
        PredictionWriter(Path(output), paths, predictor.specs, overlays, masks) as writer,
    ):
        bar = progress.add_task("predicting", total=len(paths))
        for outcome in _outcomes(predictor, paths, pixel_scale):
            if outcome.error is not None:
                problems.append(str(outcome.error))
                print(f"error: {outcome.error}", file=sys.stderr)
            else:
                writer.write(outcome)
            progress.advance(bar)
    what = "volumes" if all(map(is_case, paths)) else "images and volumes" if any(map(is_case, paths)) else "images"
    print(f"{len(paths) - len(problems)} {what} predicted, {len(problems)} skipped: {output}")
    return problems


def _outcomes(predictor: Predictor, paths: list[Path], pixel_scale: float | None) -> Iterator[Outcome | CaseOutcome]:
    for volumes, group in groupby(paths, key=is_case):
        if volumes:
            yield from (predict_case(predictor, path) for path in group)
        else:
            yield from predictor.predict_paths(group, pixel_scale)
