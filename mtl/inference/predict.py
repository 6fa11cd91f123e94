"""`mtl predict`: a checkpoint applied to files."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.progress import Progress

from mtl.inference.images import find_images
from mtl.inference.loading import load_predictor
from mtl.inference.outputs import PredictionWriter


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
    """Predict every image of `source` and write JSON, CSV and PNG files.

    Args:
        checkpoint: File or run directory.
        source: An image, a folder or a glob.
        output: Folder for the results.
        batch_size: Windows per step.
        device: `auto`, `cpu`, `cuda`, ...
        overlays: Draw overlays.
        masks: Write masks and heatmaps.
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
        for outcome in predictor.predict_paths(paths, pixel_scale):
            if outcome.error is not None:
                problems.append(str(outcome.error))
                print(f"error: {outcome.error}", file=sys.stderr)
            else:
                writer.write(outcome)
            progress.advance(bar)
    print(f"{len(paths) - len(problems)} images predicted, {len(problems)} skipped: {output}")
    return problems
