"""Whole slides: read, predicted and joined in bands of rows, so that memory grows with the width of a slide only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from mtl.config.verbs import SlideConfig
from mtl.core.decision import DEFAULT_THRESHOLD
from mtl.core.errors import ConfigError
from mtl.core.types import Arrays, SampleMeta, Window
from mtl.imaging.geometry import Geometry
from mtl.inference.ahead import ahead
from mtl.inference.predictor import Predictor, points_to_original
from mtl.inference.slides.raster import Resized, Tissue, overview_size
from mtl.kinds.base import rules_of
from mtl.metrics.base import SlideMetric
from mtl.stitching.blending import BlendedMaps
from mtl.stitching.joiners import PointJoiner
from mtl.stitching.territories import Neighbourhood

NO_TISSUE = 0  # in masks of slides; the classes follow from 1
Surrounded = tuple[Window, Neighbourhood]  # a window, and where those around it lie


class Scan:
    """One pass of a network over a slide.

    Windows, their order, their blending and their territories are those of `Predictor.predict`; what the network says about a
    slide does not depend on how it is cut into bands. Windows without tissue are not looked at, and outside tissue there is
    neither a class nor a point.

    Args:
        predictor: Of a network trained on windows of a fixed scale.
        raster: The slide at the network's scale.
        pixel_scale: Stored pixels per micron, as far as windows are concerned.
        tissue: Where to look; None is everywhere.
        cells: Task that finds points, or None.
        classes: Task with one class per pixel, or None.

    Attributes:
        window: Any window of the slide, for sizes and scales.
        areas: [K, h, w] int32 working pixels of each class in each square of a grid of the size of the overview.
        points: After `bands`: `points` [N, 2] in stored pixels, `scores` and `labels`, best first.
        looked_at: Windows that went through the network.
    """

    def __init__(
        self, predictor: Predictor, raster: Resized, pixel_scale: float, tissue: Tissue | None, cells: str | None,
        classes: str | None,
    ) -> None:  # fmt: skip
        self.predictor, self.raster, self.tissue = predictor, raster, tissue
        self.cells, self.classes = cells, classes
        self.geometry: Geometry = predictor.model.preprocessing.geometry
        self.pixel_scale = pixel_scale
        self.window = next(self._rows())[0]
        self.height, self.width = self.window.working_size
        self.grid = overview_size(self.window.working_size)
        count = len(predictor.specs[classes].classes) if classes else 0
        self.areas = np.zeros((count, *self.grid), np.int32)
        self.points: Arrays = {}
        self.looked_at = 0
        self._maps, self._points = BlendedMaps(rows=self.geometry.size[0]), PointJoiner()
        self._around: dict[int, Neighbourhood] = {}

    @property
    def square_pixels(self) -> float:
        """Working pixels in a square of `areas`."""
        return self.height * self.width / (self.grid[0] * self.grid[1])

    def bands(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[np.ndarray]:
        """Run the network and yield the classes of finished rows, from top to bottom.

        Args:
            progress: Called with rows done and rows in all.

        Yields:
            [rows, width] uint8: `NO_TISSUE`, or 1 + the index of the class (`tissue_values`).
        """
        for meta, arrays in self.predictor.predict_windows(self._crops()):
            window = meta.window
            for band in self._finished(int(window.offset[1])):
                progress(self._maps.top, self.height)
                yield band
            self.looked_at += 1
            around = self._around.pop(window.index)
            if self.classes is not None:
                self._maps.add(window, arrays[self.classes]["probabilities"])
            if self.cells is not None:
                where = None if self.tissue is None else self.tissue.at
                self._points.add_claimed(window, arrays[self.cells], around, where)
        for band in self._finished(self.height):
            progress(self._maps.top, self.height)
            yield band
        self.points = self._join()

    def square_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns of the squares of `areas` in which points [N, 2] (stored pixels) lie."""
        height, width = self.window.original_size
        found = (points * np.array([self.grid[1] / width, self.grid[0] / height])).astype(np.int64)
        return np.clip(found[:, 1], 0, self.grid[0] - 1), np.clip(found[:, 0], 0, self.grid[1] - 1)

    def _rows(self) -> Iterator[list[Window]]:
        return self.geometry.rows(self.raster.full, self.pixel_scale)

    def _windows(self) -> Iterator[Surrounded]:
        """Yield the windows that show tissue, each with the windows near it."""
        for row, near in surrounded(self._rows(), self.geometry.size[0] // self.geometry.step[0] + 1):
            around = Neighbourhood(near)
            for window in row:
                if self.tissue is None or self.tissue.within(*_rectangle(window)).any():
                    yield window, around

    def _crops(self) -> Iterator[tuple[SampleMeta, np.ndarray]]:
        for (window, around), pixels in ahead(self._read, self._windows(), 2 * self.predictor.batch_size):
            self._around[window.index] = around
            yield SampleMeta(self.raster.slide.path.name, "", "", window), pixels.result()

    def _read(self, surrounded_window: Surrounded) -> np.ndarray:
        """Return the network image [C, h, w] of a window; runs in the thread that reads."""
        window, preprocessing = surrounded_window[0], self.predictor.model.preprocessing
        pixels = self.raster.read(*_rectangle(window))
        return preprocessing.normalize(self.geometry.crop(pixels, replace(window, offset=(0.0, 0.0))))

    def _finished(self, until: int) -> Iterator[np.ndarray]:
        """Yield what no window from row `until` on can change."""
        while self._maps.top < until:
            top = self._maps.top
            yield self._classes(top, *self._maps.pop(min(self.geometry.size[0], until - top)))

    def _classes(self, top: int, maps: np.ndarray, seen: np.ndarray) -> np.ndarray:
        if self.classes is None or not seen.size:
            return np.full((self._maps.top - top, self.width), NO_TISSUE, np.uint8)
        spec = self.predictor.specs[self.classes]
        if spec.multilabel:
            limit = self.predictor.thresholds.get(self.classes, {}).get(spec.classes[0], DEFAULT_THRESHOLD)
            found = (maps[0] >= np.float32(limit)).astype(np.uint8)
        else:
            found = (1 + np.argmax(maps, axis=0)).astype(np.uint8)
        found[~seen] = NO_TISSUE
        if self.tissue is not None:
            found[~self.tissue.within(0, top, self.width, len(found))] = NO_TISSUE
        self._measure(found, top)
        return found

    def _measure(self, found: np.ndarray, top: int) -> None:
        """Add the pixels of each class to the squares of the grid."""
        rows = ((np.arange(top, top + len(found)) + 0.5) * self.grid[0] / self.height).astype(np.int64)
        columns = ((np.arange(self.width) + 0.5) * self.grid[1] / self.width).astype(np.int64)
        lines, starts = np.unique(rows, return_index=True)
        across = np.searchsorted(columns, np.arange(self.grid[1]))
        for index, area in enumerate(self.areas):
            sums = np.add.reduceat((found == index + 1).astype(np.int32), across, axis=1)
            area[lines] += np.add.reduceat(sums, starts, axis=0)

    def _join(self) -> Arrays:
        if not self._points.parts:
            empty = np.zeros(0, np.float32)
            return {"points": np.zeros((0, 2), np.float32), "scores": empty, "labels": np.zeros(0, np.int64)}
        found = self._points.result([])
        found["points"] = points_to_original(found["points"], self.window)
        return found


def scan_tasks(predictor: Predictor, settings: SlideConfig) -> tuple[str | None, str | None]:
    """Return the tasks that a slide is asked for, (points, classes), as far as the network has them.

    Args:
        predictor: Of the network.
        settings: As given; what they leave out is taken from the run.

    Raises:
        ConfigError: The network cannot be used on slides; the message says why.
    """
    preprocessing = predictor.model.preprocessing
    problems = []
    if not predictor.microns or preprocessing.geometry.mode != "tiles":
        problems.append(
            "This network was not trained at a fixed number of pixels per micron, which slides need. Take a checkpoint of a "
            "data family with such a scale and data.geometry.mode=tiles."
        )
    whole = {"clahe": preprocessing.clahe is not None, "crop": preprocessing.crop_border is not None}
    whole |= {"circle": preprocessing.circle, "foreground": preprocessing.foreground is not None}
    problems += [
        f"This network was trained with data.preprocessing.{name}, which looks at a whole image; a slide is read part by part. "
        "Take a checkpoint that was trained without it."
        for name, used in whole.items()
        if used
    ]
    specs, asked = predictor.specs, completed_settings(predictor, settings)
    cells = asked.cells if asked.cells in specs and rules_of(specs[asked.cells]).fixed_scale else None
    tissue = asked.tissue if asked.tissue in specs and rules_of(specs[asked.tissue]).areas else None
    if cells is None and tissue is None and not problems:
        problems.append(
            f"This network has neither {_task(asked.cells)} that finds points nor {_task(asked.tissue)} with a mask; "
            f"it has {', '.join(predictor.specs)}. Set slide.cells or slide.tissue."
        )
    if tissue is not None and predictor.specs[tissue].multilabel and len(predictor.specs[tissue].classes) > 1:
        problems.append(
            f"The classes of `{tissue}` are independent masks, but the mask of a slide has one class per pixel. Set "
            "slide.tissue to another task, or to a name that no task has, to do without."
        )
    if settings.tumor_bulk and (tissue is None or settings.tumor not in predictor.specs[tissue].classes) and not problems:
        problems.append(
            f"`slide.tumor_bulk=true` needs the class `{settings.tumor}` of {_task(asked.tissue)}, which this network has "
            "not. Set slide.tumor and slide.tissue, or slide.tumor_bulk=false."
        )
    if (
        settings.stroma is not None
        and cells
        and tissue
        and settings.stroma not in predictor.specs[tissue].classes
        and not problems
    ):
        problems.append(
            f"`slide.stroma={settings.stroma}` is no class of the task `{tissue}`; it has "
            f"{', '.join(predictor.specs[tissue].classes)}. Set slide.stroma to one of them."
        )
    if problems:
        raise ConfigError(problems)
    return cells, tissue


def completed_settings(predictor: Predictor, settings: SlideConfig) -> SlideConfig:
    """Fill in what the command leaves to the run: the tasks and the class of its study metric that scores slides.

    Without one, the first task of each kind is looked at, and there is no class whose area would make a score.
    """
    metric = slide_metric(predictor)
    points = [task for task, spec in predictor.specs.items() if rules_of(spec).fixed_scale]
    masks = [task for task, spec in predictor.specs.items() if rules_of(spec).areas]
    of_run = {
        "cells": metric.cells if metric else next(iter(points), None),
        "tissue": metric.tissue if metric else next(iter(masks), None),
        "stroma": metric.stroma if metric else None,
    }
    return settings.model_copy(update={key: value for key, value in of_run.items() if getattr(settings, key) is None})


def slide_metric(predictor: Predictor) -> SlideMetric | None:
    """Return the study metric that a slide has a value of: the first of the run."""
    return next((metric for metric in predictor.study.values() if isinstance(metric, SlideMetric)), None)


def _task(name: str | None) -> str:
    return "a task" if name is None else f"a task `{name}`"


def tissue_values(predictor: Predictor, task: str) -> dict[str, int]:
    """Return the value that each class has in a slide's mask."""
    return {name: index + 1 for index, name in enumerate(predictor.specs[task].classes)}


def surrounded(rows: Iterable[list[Any]], reach: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield each row together with the entries of all rows that are at most `reach` rows away, itself included."""
    coming, before = iter(rows), deque[list[Any]](maxlen=reach)
    after = deque(islice(coming, reach + 1))
    while after:
        yield after[0], [entry for row in (*before, *after) for entry in row]
        before.append(after.popleft())
        after.extend(islice(coming, 1))


def _rectangle(window: Window) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a window's content in the working raster."""
    return int(window.offset[0]), int(window.offset[1]), window.valid[1], window.valid[0]
