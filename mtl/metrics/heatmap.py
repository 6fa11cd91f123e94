"""Heatmaps: error of the map and localisation of its peaks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.metrics.base import SCORE_GRID, nearest_best, pearson, precision_recall_f1, ratio
from mtl.metrics.matching import RankedMetric, match_points, ranked_record


class HeatmapMetric(RankedMetric):
    """Error of the map and hits of its peaks.

    - `mse`, `mae`, `pearson`: over the pixels of all maps and classes together, against the rendered reference map.
    - `peak_precision`, `peak_recall`, `peak_f1`: peaks with score >= the threshold `score`, matched one-to-one to annotated
      points of their class within `hit_radius`, counted over all images and classes. Images without points add false
      positives only, so the numbers stay defined.

    Args:
        spec: The task.
        hit_radius: Largest distance of a hit in reference pixels (default: half a red cell of the smears).
    """

    names = ("peak_f1", "peak_precision", "peak_recall", "mse", "mae", "pearson")

    def __init__(self, spec: TaskSpec, hit_radius: float = 72.0) -> None:
        super().__init__(spec)
        self.hit_radius = hit_radius

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Reduce one image to pixel sums [K, 8] and matched peaks."""
        predicted = np.asarray(prediction["heatmap"], np.float64)
        targets = np.asarray(truth["points"], np.float32).reshape(-1, 2)
        target_labels = np.asarray(truth["labels"], np.int64)
        reference = self._reference(targets, target_labels, prediction, predicted.shape)
        x, y = predicted.reshape(len(predicted), -1), reference.reshape(len(reference), -1)
        count = np.full(len(x), x.shape[1])
        # Per class: n, sum x, sum y, sum xx, sum yy, sum xy, sum |x - y|, sum (x - y)^2; x predicted, y reference.
        sums = [count, x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1), np.abs(x - y).sum(1)]

        order = np.argsort(-np.asarray(prediction["scores"], np.float32), kind="stable")
        labels = np.asarray(prediction["labels"], np.int64)[order]
        points = np.asarray(prediction["points"], np.float64).reshape(-1, 2)[order] / scale
        hits = np.zeros(len(order), np.int64)
        for label in np.unique(labels):
            mine = labels == label
            hits[mine] = match_points(points[mine], targets[target_labels == label] / scale, self.hit_radius)
        annotated = np.bincount(target_labels, minlength=len(self.spec.classes))
        record = ranked_record(np.asarray(prediction["scores"])[order], labels, hits, annotated)
        return record | {"sums": np.stack([*sums, ((x - y) ** 2).sum(1)], axis=1)}

    def _reference(self, points: np.ndarray, labels: np.ndarray, prediction: Arrays, shape: tuple[int, ...]) -> np.ndarray:
        import torch

        from mtl.core.heatmap import render_heatmap

        stride, sigma = float(prediction["stride"]), float(prediction["sigma"])
        rendered = render_heatmap(
            torch.from_numpy(points), torch.from_numpy(labels), len(self.spec.classes), (shape[1], shape[2]), stride, sigma
        )
        if tuple(rendered.shape) != shape:
            raise ValueError(f"Task `{self.spec.name}`: predicted heatmap has shape {shape}, expected {tuple(rendered.shape)}.")
        return rendered.numpy().astype(np.float64)

    def choose_thresholds(self) -> dict[str, float]:
        """Pick the peak threshold with the highest F1."""
        return {"score": nearest_best(self._f1_curve(), SCORE_GRID)}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        if not self.records:
            return dict.fromkeys(("peak_f1", "peak_precision", "peak_recall", "mse", "mae", "pearson"), float("nan"))
        weight = self.image_weights(weights)
        threshold = thresholds["score"]
        tables = self.cached(("table", threshold), lambda: [table.sum(1) for table in self.ranking.table(threshold)])
        counts = [weight @ column for column in (*tables, self.ranking.truth.sum(1))]
        precision, recall, f1 = (float(value) for value in precision_recall_f1(*counts))
        sums = weight @ self.cached("sums", lambda: self.stacked("sums").sum(1))
        return {
            "peak_f1": f1, "peak_precision": precision, "peak_recall": recall, "mse": float(ratio(sums[7], sums[0])),
            "mae": float(ratio(sums[6], sums[0])), "pearson": pearson(sums[:6]),
        }  # fmt: skip

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table and peak F1 over thresholds."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        hits, predicted = self.ranking.table(thresholds["score"])
        truth = self.ranking.truth
        precision, recall, f1 = precision_recall_f1(hits.sum(0), predicted.sum(0), truth.sum(0))
        sums = self.stacked("sums").sum(0)
        per_class = {
            name: {
                "peak_precision": float(precision[index]), "peak_recall": float(recall[index]), "peak_f1": float(f1[index]),
                "mse": float(ratio(sums[index, 7], sums[index, 0])), "pearson": pearson(sums[index, :6]),
                "n": int(truth[:, index].sum()),
            }
            for index, name in enumerate(self.spec.classes)
        }  # fmt: skip
        curve = {"threshold": list(SCORE_GRID), "pooled": self._f1_curve().tolist()}
        return {"per_class": per_class, "curves": {"f1": curve}}

    def _f1_curve(self) -> np.ndarray:
        """F1 of the peaks of all classes over `SCORE_GRID`; NaN where nothing is annotated."""
        hits, predicted = self.ranking.sweep(SCORE_GRID)
        truth = self.ranking.truth.sum()
        f1 = precision_recall_f1(hits.sum(1), predicted.sum(1), truth)[2]
        return f1 if truth > 0 else np.full(len(SCORE_GRID), np.nan)
