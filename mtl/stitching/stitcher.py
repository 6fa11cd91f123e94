"""From predictions per window to one prediction per image, in the working raster.

Objects count in the territory of their window (`territories`), maps are blended where windows overlap (`blending`); what that
means for each kind of task is said in `joiners`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, ImageResult, SampleMeta, Window
from mtl.stitching.joiners import ORIGIN, Joiner


class Stitcher:
    """Collects the windows of images, in any order, and joins them.

    Only images with missing windows are held, each with one float32 accumulator per map.

    Args:
        specs: The tasks, by name; predictions of other tasks are refused.
    """

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = dict(specs)
        self._open: dict[tuple[str, str], _Image] = {}
        self._complete: list[ImageResult] = []

    def add(self, meta: SampleMeta, predictions: Mapping[str, Arrays]) -> None:
        """Take one window.

        Args:
            meta: Which image and which window of it.
            predictions: By task, numpy arrays in network pixels as `Head.decode` gives them. detection: any further array
                with one row per box travels with its box. roi_classification: `probabilities`, `ids` and `boxes`.
        """
        key = (meta.source, meta.sample_id)
        image = self._open.setdefault(key, _Image(meta))
        if meta.window.index in image.windows:
            raise ValueError(f"window {meta.window.index} of `{meta.sample_id}` was added twice")
        image.windows[meta.window.index] = meta.window
        for task, prediction in predictions.items():
            joiner = image.joiners.setdefault(task, self.specs[task].rules.joiner())
            joiner.add(meta.window, prediction)
        if len(image.windows) == meta.window.count:
            self._complete.append(self._open.pop(key).result())

    def pop_complete(self) -> list[ImageResult]:
        """Return the images whose windows have all arrived since the last call."""
        complete, self._complete = self._complete, []
        return complete

    @property
    def pending(self) -> list[str]:
        """Sample ids of images that still miss windows."""
        return [sample_id for _, sample_id in self._open]


@dataclass
class _Image:
    meta: SampleMeta
    windows: dict[int, Window] = field(default_factory=dict)
    joiners: dict[str, Joiner] = field(default_factory=dict)

    def result(self) -> ImageResult:
        windows = [self.windows[index] for index in sorted(self.windows)]
        found = {task: joiner.result(windows) for task, joiner in self.joiners.items() if not joiner.of_boxes}
        boxes = next((arrays for arrays in found.values() if ORIGIN in arrays), None)
        found |= {task: joiner.result(windows, boxes) for task, joiner in self.joiners.items() if joiner.of_boxes}
        tasks = {task: {key: value for key, value in found[task].items() if key != ORIGIN} for task in self.joiners}
        return ImageResult(self.meta.sample_id, self.meta.group, self.meta.source, windows[0], tasks)
