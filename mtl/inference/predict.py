"""`mtl predict`: a checkpoint applied to files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from mtl.config.verbs import SlideConfig
from mtl.core.disk import keeping
from mtl.core.files import file_hash
from mtl.core.plugins import use
from mtl.data.formats.slides import SLIDE_SUFFIXES, is_slide, require_readers
from mtl.inference.images import find_images, is_case
from mtl.inference.loading import load_predictor
from mtl.inference.outputs import PredictionWriter
from mtl.inference.predictor import Outcome, Predictor
from mtl.inference.slides.outputs import SlideOutcome
from mtl.inference.slides.run import SlidePredictor
from mtl.inference.volumes import CaseOutcome, predict_case
from mtl.runs.folder import checkpoint_path


def predict(
    checkpoint: str,
    source: str,
    output: str,
    batch_size: int = 4,
    device: str = "auto",
    overlays: bool = True,
    masks: bool = True,
    pixel_scale: float | None = None,
    plugins: Iterable[str] = (),
    slide: dict[str, Any] | None = None,
) -> list[str]:
    """Predict every image, slide and volume of `source` and write their files.

    Args:
        checkpoint: File or run directory.
        source: An image, a slide, a volume, a folder or a glob.
        output: Folder for the results.
        batch_size: Windows per step.
        device: `auto`, `cpu`, `cuda`, ...
        overlays: Draw overlays, and overviews of slides.
        masks: Write masks, confidence maps and heatmaps.
        pixel_scale: Stored pixels per reference pixel of images; None applies the data family's rule.
        plugins: Modules or paths of files with parts that the checkpoint needs; installed ones are known.
        slide: Keys of `mtl.config.verbs.SlideConfig`.

    Returns:
        One sentence per file that could not be read; those are skipped.
    """
    paths = find_images(source, leave_out=Path(output))
    use(plugins)
    predictor = load_predictor(checkpoint, device)
    predictor.batch_size = batch_size
    forms = {path: form_of(path, predictor) for path in paths}
    slides = None
    if "slide" in forms.values():
        require_readers()
        settings = SlideConfig(**slide or {})
        slides = SlidePredictor(predictor, settings, file_hash(checkpoint_path(checkpoint)), masks, overlays)
    problems, done, finished = [], Counter[str](), 0
    with (
        keeping(
            lambda: f"The files of what was predicted before ({done.total()}) are whole and kept; the table is not written."
        ),
        Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
        PredictionWriter(Path(output), paths, predictor.specs, overlays, masks, slides is not None, predictor.study) as writer,
    ):
        bar = progress.add_task("predicting", total=len(paths))
        for form, group in groupby(paths, key=forms.__getitem__):
            outcomes: Iterator[Outcome | CaseOutcome | SlideOutcome]
            if form == "volume":
                outcomes = (predict_case(predictor, path) for path in group)
            elif form == "slide":
                assert slides is not None
                outcomes = _slides(slides, group, writer, progress)
            else:
                outcomes = predictor.predict_paths(group, pixel_scale)
            for outcome in outcomes:
                if outcome.error is not None:
                    problems.append(str(outcome.error))
                    print(f"error: {outcome.error}", file=sys.stderr)
                else:
                    writer.write(outcome)
                    old = isinstance(outcome, SlideOutcome) and outcome.skipped
                    finished += old
                    done[form] += not old
                progress.advance(bar)
    before = f"{finished} finished before, " if finished else ""
    print(f"{_what(set(forms.values()), done)} predicted, {before}{len(problems)} skipped: {output}")
    return problems


def form_of(path: Path, predictor: Predictor) -> str:
    """Return the form in which a file is predicted: `volume`, `slide` or `image`.

    Networks that do not count in microns know no slides: for them a tiled TIFF is an image like any other.
    """
    if is_case(path):
        return "volume"
    return "slide" if is_slide(path) and (predictor.microns or path.suffix.lower() in SLIDE_SUFFIXES) else "image"


def _slides(
    slides: SlidePredictor, paths: Iterator[Path], writer: PredictionWriter, progress: Progress
) -> Iterator[SlideOutcome]:
    for path in paths:
        bar = progress.add_task(path.name, total=None)

        def advance(done: int, total: int, bar: TaskID = bar) -> None:
            progress.update(bar, completed=done, total=total)

        outcome = slides.predict(path, writer.folder / writer.names[path], advance)
        progress.remove_task(bar)
        if outcome.skipped:
            print(f"{path}: finished before with the same checkpoint and settings, left as it is")
        yield outcome


def _what(forms: set[str], done: Counter[str]) -> str:
    names = [f"{done[form]} {form}{'' if done[form] == 1 else 's'}" for form in ("image", "slide", "volume") if form in forms]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
