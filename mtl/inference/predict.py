"""`mtl predict`: a checkpoint applied to files."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mtl.config.verbs import SlideConfig
from mtl.core.disk import FULL, keeping
from mtl.core.errors import ConfigError
from mtl.core.files import file_hash
from mtl.core.names import readable
from mtl.core.plugins import use
from mtl.core.progress import Progress, progress_of
from mtl.data.formats.slides import require_readers
from mtl.inference.ahead import ahead
from mtl.inference.images import find_images, form_of
from mtl.inference.loading import load_predictor
from mtl.inference.outputs import PredictionWriter, Written
from mtl.inference.predictor import Outcome, Predictor
from mtl.inference.selection import hidden_classes
from mtl.inference.settings import Limits
from mtl.inference.slides.outputs import SlideOutcome
from mtl.inference.slides.run import SlidePredictor
from mtl.inference.volumes import CaseOutcome, predict_case
from mtl.runs.folder import checkpoint_path
from mtl.runs.precision import AUTO

Found = Outcome | CaseOutcome | SlideOutcome
_Result = tuple[Found, Future[Written | None]]
# What ends a prediction, since the next file would meet it too.
ENDS = FULL | {errno.EROFS}
WRITERS = 2  # threads that draw and write the results of images
WAITING = 2  # images whose results are being written while the next ones are predicted; more would take memory
NAMED = 3  # skipped files that the last line names


@dataclass
class _Tally:
    """What became of the files.

    Attributes:
        done: Files predicted, by form.
        before: Slides that were finished before.
        problems: One sentence for each file that was skipped.
        skipped: The names of these files.
    """

    done: Counter[str] = field(default_factory=Counter)
    before: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        """Note a file that was skipped, and say why."""
        sentence = " ".join(readable(reason).split())
        self.skipped.append(name)
        self.problems.append(sentence)
        print(f"error: {sentence}", file=sys.stderr)

    def line(self, forms: Iterable[str], output: str) -> str:
        """Return how many files were predicted and which were skipped."""
        before = f"{self.before} finished before, " if self.before else ""
        names = ", ".join([*self.skipped[:NAMED], *(["..."] if len(self.skipped) > NAMED else [])])
        skipped = f"{len(self.skipped)} skipped{f' ({names})' if names else ''}"
        return f"{_what(set(forms), self.done)} predicted, {before}{skipped}: {readable(output)}"


def predict(
    checkpoint: str,
    source: str,
    output: str,
    batch_size: int = 4,
    device: str = "auto",
    precision: str | int = AUTO,
    channels_last: str | bool = AUTO,
    overlays: bool = True,
    masks: bool = True,
    tasks: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    thresholds: Limits | None = None,
    when: Limits | None = None,
    pixel_scale: float | None = None,
    plugins: Iterable[str] = (),
    slide: dict[str, Any] | None = None,
) -> list[str]:
    """Predict every image, slide and volume of `source` and write their files.

    A file that cannot be read, or whose results cannot be written, is skipped with a sentence; the others go on.

    Args:
        checkpoint: File or run directory.
        source: An image, a slide, a volume, a folder or a glob.
        output: Folder for the results.
        batch_size: Windows per step.
        device: `auto`, `cpu`, `cuda`, ...
        precision: As in `mtl.runs.precision.usable`: `auto` is that of the training where the device is made for it.
        channels_last: As in `mtl.runs.precision.usable`.
        overlays: Draw overlays, and overviews of slides.
        masks: Write masks, confidence maps and heatmaps.
        tasks: Names of the tasks to predict; None is all.
        classes: Names of the classes that files and pictures show; None is all.
        thresholds: Decision thresholds in place of stored ones (`Predictor.adjusted`).
        when: How likely a class has to be for masks to be shown (`Predictor.adjusted`).
        pixel_scale: Stored pixels per reference pixel of images; None applies the data family's rule.
        plugins: Modules or paths of files with parts that the checkpoint needs; installed ones are known.
        slide: Keys of `mtl.config.verbs.SlideConfig`.

    Returns:
        One sentence per file that was skipped.
    """
    paths = find_images(source, leave_out=Path(output))
    use(plugins)
    predictor = load_predictor(checkpoint, device, precision, channels_last).adjusted(thresholds, tasks, when or {})
    hidden = hidden_classes(predictor.specs, classes) if classes is not None else None
    if hidden is not None:
        predictor = predictor.adjusted(tasks=list(hidden))
    predictor.batch_size = batch_size
    forms = {path: form_of(path, predictor.microns) for path in paths}
    slides = None
    if "slide" in forms.values():
        require_readers()
        if classes is not None or when:
            raise ConfigError("`classes` and `when` do not act on slides, and `source` names some. Leave them out.")
        settings = SlideConfig(**slide or {})
        slides = SlidePredictor(predictor, settings, file_hash(checkpoint_path(checkpoint)), masks, overlays)
    print(f"precision: {predictor.computation}")
    tally = _Tally()
    for note in paths.notes:
        print(note)
    for path, problem in paths.unread.items():
        tally.skip(readable(path.name), problem)
    with (
        keeping(lambda: f"The files of what was predicted before ({tally.done.total()}) are kept; the table is not written."),
        PredictionWriter(
            Path(output), paths, predictor.specs, overlays, masks, slides is not None, predictor.study, hidden
        ) as writer,
        progress_of("predicting", len(paths)) as progress,
    ):
        for form, group in groupby(paths, key=forms.__getitem__):
            outcomes: Generator[Found, None, None]
            if form == "volume":
                outcomes = _volumes(predictor, group, masks, progress)
            elif form == "slide":
                assert slides is not None
                outcomes = _slides(slides, group, writer, progress)
            else:
                outcomes = predictor.predict_paths(group, pixel_scale)
            # A volume or slide that waits would fill the memory, and saves little.
            depth, threads = (WAITING, WRITERS) if form == "image" else (0, 1)
            keep = partial(_keep, writer)
            results: Generator[_Result, None, None] = ahead(partial(_files, writer), outcomes, depth, threads, keep)
            with closing(outcomes), closing(results):
                for outcome, written in results:
                    _take(outcome, written, form, writer, tally)
                    progress.advance()
    print(tally.line(forms.values(), output))
    return tally.problems


def _files(writer: PredictionWriter, outcome: Found) -> Written | None:
    """Write the files of an outcome, if there is something to write; runs in a thread."""
    return None if outcome.error is not None else writer.write_files(outcome)


def _keep(writer: PredictionWriter, written: Written | None) -> None:
    """Write the rows of what was finished when the command came to an early end."""
    if written is not None:
        writer.add(written)


def _take(
    outcome: Found, result: Future[Written | None], form: str, writer: PredictionWriter,
    tally: _Tally,
) -> None:  # fmt: skip
    """Add one outcome to the table, or note why there is nothing to add."""
    name = readable(outcome.path.name)
    if outcome.error is not None:
        tally.skip(name, str(outcome.error))
        return
    try:
        _keep(writer, result.result())
    except OSError as error:
        if error.errno in ENDS:
            raise
        reason = f"its results cannot be written to {writer.folder} ({error.strerror or error})"
        tally.skip(name, f"{outcome.path}: {reason}. Choose another output, or change what lies there.")
    except MemoryError:
        tally.skip(name, f"{outcome.path}: its results do not fit in memory. Set masks=false or overlays=false.")
    else:
        old = isinstance(outcome, SlideOutcome) and outcome.skipped
        tally.before += old
        tally.done[form] += not old


def _volumes(predictor: Predictor, paths: Iterator[Path], maps: bool, progress: Progress) -> Generator[CaseOutcome, None, None]:
    for path in paths:
        with progress.part(readable(path.name)) as part:
            outcome = predict_case(predictor, path, maps, part.reach)
        yield outcome


def _slides(
    slides: SlidePredictor, paths: Iterator[Path], writer: PredictionWriter, progress: Progress
) -> Generator[SlideOutcome, None, None]:
    for path in paths:
        with progress.part(readable(path.name)) as part:
            outcome = slides.predict(path, writer.folder / writer.names[path], part.reach)
        if outcome.skipped:
            print(f"{readable(path)}: finished before with the same checkpoint and settings, left as it is")
        yield outcome


def _what(forms: set[str], done: Mapping[str, int]) -> str:
    names = [f"{done[form]} {form}{'' if done[form] == 1 else 's'}" for form in ("image", "slide", "volume") if form in forms]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
