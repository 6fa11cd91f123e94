"""Detection: COCO average precision without a cap, and counts at one decision threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.decision import box_probabilities
from mtl.core.types import Arrays
from mtl.metrics.base import SCORE_GRID, mean_of, nearest_best, precision_recall_f1, ratio
from mtl.metrics.matching import IOU_THRESHOLDS, RECALLS, RankedMetric, box_iou, match_boxes, ranked_record

LEVELS = len(IOU_THRESHOLDS)
LEVEL_75 = 5


class DetectionMetric(RankedMetric):
    """Average precision over all detections, and precision, recall, F1 and counts at the threshold `score`.

    - `map`, `map50`, `map75`: COCO average precision, mean over the classes that have annotations.
    - `f1_macro`: mean of the per-class F1 over classes that have annotations; `*_pooled`: all classes counted together.
      Matching is one-to-one within a class at IoU 0.5.
    - `count_mae`: mean over images of |predicted - annotated| number of objects, all classes together; per class in the table.

    The threshold is the grid value with the highest `f1_macro`.
    """

    names = ("map50", "map", "map75", "f1_macro", "f1_pooled", "precision_pooled", "recall_pooled", "count_mae")
    class_means = {"map50": "ap50", "map": "ap", "map75": "ap75", "f1_macro": "f1"}
    image_metric = "f1_pooled"  # average precision of one image jumps

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Match the detections of one image; see `ranked_record`."""
        order = np.argsort(-np.asarray(prediction["scores"], np.float32), kind="stable")
        boxes = np.asarray(prediction["boxes"]).reshape(-1, 4)[order]
        labels = np.asarray(prediction["labels"], np.int64)[order]
        truth_boxes, truth_labels = np.asarray(truth["boxes"]).reshape(-1, 4), np.asarray(truth["labels"], np.int64)
        hits = np.zeros(len(order), np.int64)
        for label in np.unique(labels):
            mine = labels == label
            hits[mine] = match_boxes(box_iou(boxes[mine], truth_boxes[truth_labels == label]))
        counts = np.bincount(truth_labels, minlength=len(self.spec.classes))
        # What other tasks say of the boxes stays with them, so that it is decided when thresholds are known.
        others = {key: np.asarray(value)[order] for key, value in prediction.items() if key.startswith(box_probabilities(""))}
        return ranked_record(np.asarray(prediction["scores"])[order], labels, hits, counts) | others

    def choose_thresholds(self) -> dict[str, float]:
        """Pick the score threshold with the highest macro F1."""
        return {"score": nearest_best(self._f1_curve()[1], SCORE_GRID)}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        weight = self.image_weights(weights)
        precision = self._average_precisions(weight)
        hits, predicted = self.counts_at(thresholds["score"])
        truth = self.ranking.truth
        sums = [weight @ table for table in (hits, predicted, truth)]
        pooled = [float(value) for value in precision_recall_f1(*[total.sum() for total in sums])]
        f1 = np.where(sums[2] > 0, precision_recall_f1(*sums)[2], np.nan)
        error = np.abs(predicted.sum(1) - truth.sum(1))
        return {
            "map50": float(mean_of(precision[:, 0])),
            "map": float(mean_of(precision)),
            "map75": float(mean_of(precision[:, LEVEL_75])),
            "f1_macro": float(mean_of(f1)),
            "f1_pooled": pooled[2],
            "precision_pooled": pooled[0],
            "recall_pooled": pooled[1],
            "count_mae": float(ratio(weight @ error, weight.sum())),
        }

    def counts_at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return true positives (IoU 0.5) and detections, each [records, classes], at a score threshold."""
        return self.cached(("table", threshold), lambda: self.ranking.table(threshold))

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table, the precision-recall curve at IoU 0.5 and F1 over thresholds."""
        weight = self.image_weights(None)
        precision = self._average_precisions(weight)
        hits, predicted = self.counts_at(thresholds["score"])
        truth = self.ranking.truth
        scores = np.stack(precision_recall_f1(hits.sum(0), predicted.sum(0), truth.sum(0)))
        errors = np.abs(predicted - truth).mean(0) if len(truth) else np.full(len(self.spec.classes), np.nan)
        per_class, curves = {}, {}
        for index, name in enumerate(self.spec.classes):
            per_class[name] = {
                "ap": float(mean_of(precision[index])), "ap50": float(precision[index, 0]),
                "ap75": float(precision[index, LEVEL_75]), "precision": float(scores[0, index]),
                "recall": float(scores[1, index]), "f1": float(scores[2, index]),
                "count_mae": float(errors[index]), "n": int(truth[:, index].sum()),
            }  # fmt: skip
            curve = self.ranking.interpolated_precision(index, weight, levels=1)
            if curve is not None:
                curves[name] = {"recall": RECALLS.tolist(), "precision": curve[0].tolist()}
        by_class, macro = self._f1_curve()
        threshold_curve = {"threshold": list(SCORE_GRID), "macro": macro.tolist()} | {
            name: by_class[:, index].tolist() for index, name in enumerate(self.spec.classes)
        }
        return {"per_class": per_class, "curves": {"precision_recall": curves, "f1": threshold_curve}}

    def _average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """[classes, 10] average precision, NaN for classes without annotations."""
        curves = [self.ranking.interpolated_precision(label, weights) for label in range(len(self.spec.classes))]
        return np.array([np.full(LEVELS, np.nan) if curve is None else curve.mean(1) for curve in curves])

    def _f1_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """F1 over `SCORE_GRID`: [thresholds, classes] (NaN for classes without annotations) and their mean [thresholds]."""
        hits, predicted = self.ranking.sweep(SCORE_GRID)
        truth = self.ranking.truth.sum(0)
        f1 = np.where(truth > 0, precision_recall_f1(hits, predicted, truth)[2], np.nan)
        return f1, mean_of(f1, axis=1)
