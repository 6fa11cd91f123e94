"""Which images of a split the report shows: the worst and the best of each source."""

from __future__ import annotations

import math
from dataclasses import replace

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult
from mtl.kinds.base import rules_of
from mtl.metrics.evaluator import Evaluator

Thresholds = dict[str, dict[str, float]]
WORST, BEST = "Worst examples", "Best examples"
LONGEST = 1000  # pixels of the longer side of annotated masks that are kept for pictures


class ExampleKeeper:
    """Keeps predictions and truths of the worst and best images while a split is scored; called after each image.

    No more than twice `count` images per source are held, and no mask of the original raster.

    Args:
        evaluator: Has scored an image when it arrives here.
        thresholds: Decision thresholds by task.
        count: Worst and best images to keep per source.

    Attributes:
        results: By sample id, (prediction, truth).
        scores: By sample id, the score of the image alone, for all images seen.
    """

    def __init__(self, evaluator: Evaluator, thresholds: Thresholds, count: int) -> None:
        self.evaluator = evaluator
        self.thresholds = thresholds
        self.count = count
        self.results: dict[str, tuple[ImageResult, ImageResult]] = {}
        self.scores: dict[str, float] = {}

    def __call__(self, prediction: ImageResult, truth: ImageResult) -> None:
        """Take one image."""
        name = truth.sample_id
        self.scores[name] = self.evaluator.image_scores(self.thresholds, {name}).get(name, math.nan)
        self.results[name] = (prediction, masks_for_pictures(truth, self.evaluator.specs) if self.evaluator.native else truth)
        chosen = {name for _, name in self.extremes()}
        self.results = {name: pair for name, pair in self.results.items() if name in chosen}

    def extremes(self) -> list[tuple[str, str]]:
        """Return (heading, sample id), source by source, the worst first; images without a score are left out."""
        sources = {name: truth.source for name, (_, truth) in self.results.items()}
        return extremes({name: self.scores[name] for name in self.results}, sources, self.count)


def extremes(scores: dict[str, float], sources: dict[str, str], count: int) -> list[tuple[str, str]]:
    """Return (heading, sample id) of the worst and best images of each source.

    Args:
        scores: By sample id; NaN is left out.
        sources: By sample id; where there are several, the headings name them.
        count: Worst and best images per source. Of fewer than twice as many, the lower half is worst.
    """
    found = []
    names = sorted(set(sources.values()))
    for source in names:
        mine = [name for name in sorted(scores) if sources[name] == source and math.isfinite(scores[name])]
        mine.sort(key=lambda name: scores[name])
        if len(mine) > 2 * count:
            mine = [*mine[:count], *mine[len(mine) - count :]]
        suffix = f": {source}" if len(names) > 1 else ""
        half = (len(mine) + 1) // 2
        found += [(f"{WORST if place < half else BEST}{suffix}", name) for place, name in enumerate(mine)]
    # All worst examples before all best ones.
    return [
        *(example for example in found if example[0].startswith(WORST)),
        *(example for example in found if example[0].startswith(BEST)),
    ]


def masks_for_pictures(truth: ImageResult, specs: dict[str, TaskSpec]) -> ImageResult:
    """Cut original masks to the part that the working raster shows and shrink them; nothing annotated vanishes."""
    left, top, right, bottom = truth.window.content_box
    factor = min(1.0, LONGEST / max(bottom - top, right - left))
    size = (max(1, round((bottom - top) * factor)), max(1, round((right - left) * factor)))
    box = (left, top, right, bottom)
    tasks = {task: rules_of(specs[task]).for_pictures(specs[task], arrays, box, size) for task, arrays in truth.tasks.items()}
    return replace(truth, tasks=tasks)
