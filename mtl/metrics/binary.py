"""Scores of a yes-or-no question: areas, curves, the best threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mtl.metrics.base import SCORE_GRID, nearest_best, ratio

CURVE_POINTS = 1000  # most points of a curve that is written to a file


class BinaryScores:
    """Ranks scores once, so that areas under many weightings (bootstrap) cost a count each.

    Args:
        scores: [n].
        positive: [n] bool.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        self.positive = np.asarray(positive, bool)
        self.levels, rank = np.unique(np.asarray(scores, np.float64), return_inverse=True)
        self._rank = rank.reshape(-1)

    def counts(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted positives and negatives at each level of the score, rising."""
        weights = np.ones(len(self.positive)) if weights is None else weights
        at_level = [np.bincount(self._rank, weights * mine, len(self.levels)) for mine in (self.positive, ~self.positive)]
        return at_level[0], at_level[1]

    def above(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted positives and negatives from each level on; one entry more than levels, the last is 0."""
        return tuple(np.append(np.cumsum(c[::-1])[::-1], 0.0) for c in self.counts(weights))  # type: ignore[return-value]

    def auroc(self, weights: np.ndarray | None = None) -> float:
        """Return the area under the ROC curve; NaN while only one side counts."""
        gained, other = self.counts(weights)
        below = np.cumsum(other) - other
        return float(ratio(gained @ (below + other / 2), gained.sum() * other.sum()))

    def average_precision(self, weights: np.ndarray | None = None) -> float:
        """Return the sum of (R_n - R_(n-1)) P_n over falling thresholds, without interpolation; NaN without a positive."""
        hits, alarms = self.above(weights)
        precision = ratio(hits, hits + alarms, 0.0)
        return float(ratio(-np.diff(hits) @ precision[:-1], hits[0]))

    def roc(self) -> dict[str, list[float]]:
        """Return the corners of the ROC curve over falling thresholds; NaN on a side that has no sample."""
        hits, alarms = (values[::-1] for values in self.above())
        threshold = np.append(self.levels, np.inf)[::-1]
        keep = _corners(alarms, hits)
        return {
            "false_positive_rate": ratio(alarms[keep], alarms[-1]).tolist(),
            "true_positive_rate": ratio(hits[keep], hits[-1]).tolist(),
            # The first point, where nothing is claimed, has no finite threshold.
            "threshold": [float(value) if np.isfinite(value) else float("nan") for value in threshold[keep]],
        }

    def precision_recall(self) -> dict[str, list[float]]:
        """Return recall and precision over falling thresholds."""
        hits, alarms = (values[-2::-1] for values in self.above())
        keep = _thinned(np.arange(len(hits)))
        recall = ratio(hits[keep], hits[-1] if len(hits) else 0.0)
        return {"recall": recall.tolist(), "precision": ratio(hits[keep], (hits + alarms)[keep]).tolist()}

    def best_threshold(self, measure: Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]) -> float:
        """Return the threshold with the highest value; on a plateau the one nearest to 0.5, which is also the default.

        Tried are the grid of all thresholds, and the values halfway between neighbouring scores and below the lowest, since
        badly calibrated scores may all lie between two steps of the grid.

        Args:
            measure: Gives a value per threshold from the positives and the negatives at or above it, and all of each.
        """
        edges = np.concatenate([[0.0], self.levels])
        tried = np.unique(np.concatenate([SCORE_GRID, (edges[1:] + edges[:-1]) / 2]))
        hits, alarms = (values[np.searchsorted(self.levels, tried)] for values in self.above())
        total = self.positive.sum()
        return nearest_best(measure(hits, alarms, float(total), float(len(self.positive) - total)), tried)


def balanced_accuracy(hits: Any, alarms: Any, positives: float, negatives: float) -> np.ndarray:
    """Return the mean of sensitivity and specificity, which is (1 + Youden's J) / 2; NaN while one side is empty."""
    return (ratio(hits, positives) + 1 - ratio(alarms, negatives)) / 2


def f1_score(hits: Any, alarms: Any, positives: float, negatives: float) -> np.ndarray:
    """Return F1 from counts; NaN where there is nothing to find, whatever is claimed."""
    found: np.ndarray = ratio(2 * np.asarray(hits, np.float64), np.asarray(hits) + alarms + positives)
    return found if positives else np.full_like(found, np.nan)


def _corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Positions of the points of a path along which it turns, ends included."""
    steps = np.diff(x), np.diff(y)
    turns = steps[0][1:] * steps[1][:-1] != steps[0][:-1] * steps[1][1:]
    return _thinned(np.unique(np.concatenate([[0], 1 + np.flatnonzero(turns), [len(x) - 1]])))


def _thinned(index: np.ndarray) -> np.ndarray:
    """At most `CURVE_POINTS` of some positions, evenly spread, ends included."""
    if len(index) <= CURVE_POINTS:
        return index
    return index[np.linspace(0, len(index) - 1, CURVE_POINTS).round().astype(np.int64)]
