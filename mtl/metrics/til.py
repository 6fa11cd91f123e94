"""TIL score: the share of the stroma that tumour-infiltrating lymphocytes cover, per slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.metrics.base import SlideMetric, TaskMetric, Truths, bland_altman, mean_of, ratio, weighted_pearson
from mtl.metrics.points import PointsMetric
from mtl.metrics.segmentation import SegmentationMetric

Thresholds = dict[str, dict[str, float]]


def til_score(cells: float, stroma_area_um2: float, cell_diameter_um: float) -> float:
    """Return the percentage of the stroma that the cells cover, each counted as a square.

    The rule of the TIGER challenge's baseline (https://github.com/DIAGNijmegen/pathology-tiger-baseline). It may exceed 100,
    since cells outside the stroma count too.

    Args:
        cells: Number of lymphocytes and plasma cells.
        stroma_area_um2: Area of the tumour-associated stroma in square microns.
        cell_diameter_um: Side of the square in microns.

    Returns:
        Percent; NaN where there is no stroma.
    """
    return float(_percent(np.float64(cells), np.float64(stroma_area_um2), cell_diameter_um))


@STUDY_METRICS.register("til_score")
class TilScore(SlideMetric):
    """Agreement of the TIL score from predicted cells and stroma with that from the annotation.

    Over the images that are labelled for both tasks; cells count from the stored threshold on. Per group (slide) counts and
    areas of its images are added before the division. `<group>` below is what a group is.

    - `mae_<group>`: mean absolute error in percentage points.
    - `pearson_<group>`: Pearson r, NaN below 3 values or when one side is constant.
    - `<group>s_without_stroma`: groups in which no stroma was predicted; their predicted score counts as 0.

    Groups without annotated stroma have no true value and are left out. All are NaN where none is left. Its baseline is the
    mean over the training groups.

    Args:
        specs: Active tasks by name.
        group_by: What a group is.
        tasks: The task that finds the cells and the one that segments the tissue.
        stroma: Class of the latter.
        cell_diameter: Microns; a cell counts as a square of this side.
    """

    unit = "%"
    lower_is_better = ("mae_*", "*s_without_stroma")

    def __init__(
        self, specs: dict[str, TaskSpec], group_by: str = "patient", *, tasks: list = ["cells", "tissue"],  # noqa: B006 (a literal)
        stroma: str = "stroma", cell_diameter: float = 8.0,
    ) -> None:  # fmt: skip
        super().__init__(specs, group_by)
        if missing := [task for task in tasks if task not in specs]:
            raise ConfigError([unknown("task", task, specs, "til_score.tasks") for task in missing])
        kinds = [specs[task].kind for task in tasks]
        if sorted(kinds) != ["points", "segmentation"]:
            raise ConfigError(
                f"Study metric `til_score` has `tasks: {list(tasks)}` ({', '.join(kinds) or 'none'}). Expected one task that "
                "finds points and one that segments."
            )
        self.cells, self.tissue = (tasks[kinds.index(kind)] for kind in ("points", "segmentation"))
        if stroma not in specs[self.tissue].classes:
            raise ConfigError(
                f"Study metric `til_score` needs the class `{stroma}` in task `{self.tissue}`; it has "
                f"{', '.join(specs[self.tissue].classes)}. Name another class as `stroma`, or remove the metric with "
                "'~study_metrics.til_score'."
            )
        if cell_diameter <= 0:
            raise ConfigError(f"Study metric `til_score` has `cell_diameter: {cell_diameter:g}`. Expected microns above 0.")
        self.tasks, self.stroma, self.diameter = (self.cells, self.tissue), stroma, cell_diameter

    def compute(
        self, metrics: dict[str, TaskMetric], thresholds: Thresholds, weights: dict[str, np.ndarray] | None = None,
        values: dict[str, dict[str, float]] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return the scalars named in the class docstring."""
        _, predicted, true, share = self._by_group(metrics, thresholds, weights)
        known = np.isfinite(true) & (share > 0)
        guess, value, share = np.nan_to_num(predicted[known]), true[known], share[known]
        silent = float(share @ np.isnan(predicted[known])) if known.any() else float("nan")
        return {
            f"mae_{self.group_by}": float(ratio(share @ np.abs(guess - value), share.sum())),
            f"pearson_{self.group_by}": weighted_pearson(guess, value, share),
            f"{self.group_by}s_without_stroma": silent,
        }

    def details(self, metrics: dict[str, TaskMetric], thresholds: Thresholds) -> dict[str, Any]:
        """Return what a scatter and a Bland-Altman figure need, and how many groups were left out."""
        names, predicted, true, _ = self._by_group(metrics, thresholds, None)
        known = np.isfinite(true)
        pairs = bland_altman(np.nan_to_num(predicted[known]), true[known])
        pairs["names"] = [name for name, keep in zip(names, known, strict=True) if keep]
        return {"agreement": {self.group_by: pairs}, "without_truth": {self.group_by: int((~known).sum())}, "sign": self.unit}

    def of_slide(self, cells: float, area_um2: float) -> float:
        """Return the TIL score of a slide in percent; NaN where there is no stroma."""
        return til_score(cells, area_um2, self.diameter)

    def training_value(self, records: Sequence[Record], truths: Truths) -> float:
        """Return the mean score over the groups whose images are labelled for both tasks, for which their masks are read."""
        cells: Counter[str] = Counter()
        areas: dict[str, float] = {}
        index = self.specs[self.tissue].classes.index(self.stroma)
        both = [record for record in records if all(record.knows(self.specs[task].label) for task in self.tasks)]
        for truth in truths(both):
            x, y = truth.window.working_pixels_per_reference
            mask = truth.tasks[self.tissue]["mask"]
            inside = mask[index] > 0 if self.specs[self.tissue].multilabel else mask == index
            cells[truth.group] += len(truth.tasks[self.cells]["labels"])
            areas[truth.group] = areas.get(truth.group, 0.0) + np.count_nonzero(inside) / (x * y)
        return float(mean_of(np.array([self.of_slide(cells[group], area) for group, area in areas.items()])))

    def notes(self, values: dict[str, float]) -> list[str]:
        """Return what is not there to compare."""
        if np.isnan(values[f"mae_{self.group_by}"]):
            return [f"no {self.group_by} has images with annotated cells and annotated stroma: there is no score to compare."]
        silent = values[f"{self.group_by}s_without_stroma"]
        return [f"{self.group_by}s in which no stroma was predicted count as 0 %: {silent:.0f}."] if silent else []

    def _by_group(
        self, metrics: dict[str, TaskMetric], thresholds: Thresholds, weights: dict[str, np.ndarray] | None
    ) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Names of the groups with images labelled for both tasks; predicted and true score, and weight, each [groups].

        A group weighs what its images weigh (bootstraps draw whole groups).
        """
        finder, tissue = metrics[self.cells], metrics[self.tissue]
        assert isinstance(finder, PointsMetric) and isinstance(tissue, SegmentationMetric)
        place = {record["sample_id"]: row for row, record in enumerate(tissue.records)}
        pairs = [(row, place[r["sample_id"]]) for row, r in enumerate(finder.records) if r["sample_id"] in place]
        if not pairs:
            return [], *np.zeros((3, 0))
        mine, other = np.array(pairs).T
        counts = finder.counts_at(thresholds[self.cells]["score"])[1], finder.ranking.truth
        areas = tissue.areas(thresholds[self.tissue], self.stroma)
        names, group = np.unique([finder.records[row]["group"] for row in mine], return_inverse=True)
        scores = [
            _percent(np.bincount(group, cells.sum(1)[mine]), np.bincount(group, area[other]), self.diameter)
            for cells, area in zip(counts, areas, strict=True)
        ]
        share = np.zeros(len(names))
        np.maximum.at(share, group, finder.image_weights(None if weights is None else weights[self.cells])[mine])
        return names.tolist(), scores[0], scores[1], share


def _percent(cells: Any, area: Any, diameter: float) -> np.ndarray:
    return ratio(100.0 * cells * diameter**2, area)
