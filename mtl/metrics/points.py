"""Points of cells: free-response curve per area, F1 at one threshold, average precision, counts."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.metrics.base import SCORE_GRID, mean_of, nearest_best, precision_recall_f1, ratio
from mtl.metrics.matching import RECALLS, RankedMetric, interpolate_precision, match_points, ranked_record

# Operating points of the cell detection score of TIGER (https://tiger.grand-challenge.org): false positives per mm2.
FALSE_POSITIVES_PER_MM2 = (10, 20, 50, 100, 200, 300)
MM2 = 1e-6  # per square micron
# False positives per mm2 at which the curve is drawn: 20 per decade from 5 to 500, and the operating points.
CURVE_RATES = tuple(
    sorted({*FALSE_POSITIVES_PER_MM2, *(round(5 * 10 ** (step / 20), 3) for step in range(41))}),
)
# Below this area one false positive is more than the first operating point allows.
SMALL_AREA = 1 / FALSE_POSITIVES_PER_MM2[0]
DENSEST = 5000  # points per mm2 of the densest lattice that baselines can be made of


class PointsMetric(RankedMetric):
    """Scored points against annotated ones, one to one within `hit_radius`, in the region where cells were looked for.

    - `sensitivity_at_R`: the highest share of annotated points that any decision threshold finds with at most R false positives
      per mm2, counts and areas of all images together. A threshold takes all predictions of equal score. Finding nothing has no
      false positive, so the value is 0 where even the highest score has too many; beyond the last prediction the curve goes on
      level. This is how the TIGER challenge reads its curve (https://tiger.grand-challenge.org/Evaluation); reading it by
      linear interpolation, as others do, gives the same value or more.
    - `froc`: mean of these over 10, 20, 50, 100, 200 and 300 false positives per mm2.
    - `precision`, `recall`, `f1`: at the threshold `score`, all classes counted together.
    - `ap`: area under the precision-recall curve, interpolated at 101 recalls as in COCO.
    - `count_mae`: mean over images of |predicted - annotated| number of points, all classes together.

    Sensitivities and `ap` are means over the classes that have annotations, NaN where none has. Points are matched within their
    class, the best first, each to the nearest free annotated point. A prediction outside the region that hits nothing is not
    counted; an annotated point always is.

    Args:
        spec: The task.
        hit_radius: Largest distance of a hit in microns, the reference pixels of such a task.
    """

    names = (
        "froc", "f1", "precision", "recall", "ap", "count_mae", *(f"sensitivity_at_{rate}" for rate in FALSE_POSITIVES_PER_MM2),
    )  # fmt: skip
    class_means = {"froc": "froc", "ap": "ap"}
    image_metric = "f1"  # FROC of one image jumps

    def __init__(self, spec: TaskSpec, hit_radius: float = 4.0) -> None:
        super().__init__(spec)
        self.hit_radius = hit_radius

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Match the points of one image.

        Returns:
            What `ranked_record` gives, `area` of the region and of the whole `frame` in mm2, and `chance` [n, classes] int8 for
            baselines: what each point of a `lattice`, in its order, would be as the prediction of a class: 1 a hit, 0 a false
            positive, -1 not counted. There are n = floor(frame * DENSEST) + 1 of them.
        """
        region = np.asarray(truth["region"], bool)
        targets = np.asarray(truth["points"], np.float64).reshape(-1, 2) / scale
        target_labels = np.asarray(truth["labels"], np.int64)
        order = np.argsort(-np.asarray(prediction["scores"], np.float32), kind="stable")
        labels = np.asarray(prediction["labels"], np.int64)[order]
        points = np.asarray(prediction["points"], np.float64).reshape(-1, 2)[order]
        hits = np.zeros(len(order), np.int64)
        for label in np.unique(labels):
            mine = labels == label
            hits[mine] = match_points(points[mine] / scale, targets[target_labels == label], self.hit_radius)
        counted = (hits > 0) | _inside(region, points)
        classes = len(self.spec.classes)
        annotated = np.bincount(target_labels, minlength=classes)
        record = ranked_record(
            np.asarray(prediction["scores"])[order][counted], labels[counted], hits[counted], annotated
        )  # fmt: skip

        pixel = MM2 / (scale[0] * scale[1])
        frame = region.size * pixel
        scattered = lattice(int(frame * DENSEST) + 1, _seed(targets)) * region.shape[::-1]
        outside = ~_inside(region, scattered)
        chance = np.zeros((len(scattered), classes), np.int8)
        for label in range(classes):
            found = match_points(scattered / scale, targets[target_labels == label], self.hit_radius)
            chance[:, label] = np.where(outside & (found == 0), -1, found)
        return record | {"area": np.float64(np.count_nonzero(region) * pixel), "frame": np.float64(frame), "chance": chance}

    def choose_thresholds(self) -> dict[str, float]:
        """Pick the score threshold with the highest F1."""
        return {"score": nearest_best(self._f1_curve()[:, -1], SCORE_GRID)}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        if not self.records:
            return dict.fromkeys(self.spec.metrics, float("nan"))
        weight = self.image_weights(weights)
        by_class, curve = self._curves(weight, FALSE_POSITIVES_PER_MM2)
        sensitivity = mean_of(by_class, axis=0)
        hits, predicted = (table.sum(1) for table in self.counts_at(thresholds["score"]))
        truth = self.ranking.truth.sum(1)
        precision, recall, f1 = precision_recall_f1(*(weight @ counts for counts in (hits, predicted, truth)))
        return {
            "froc": float(sensitivity.mean()), "f1": float(f1), "precision": float(precision), "recall": float(recall),
            "ap": float(mean_of(curve.mean(axis=1))),
            "count_mae": float(ratio(weight @ np.abs(predicted - truth), weight.sum())),
            **{f"sensitivity_at_{rate}": float(v) for rate, v in zip(FALSE_POSITIVES_PER_MM2, sensitivity, strict=True)},
        }  # fmt: skip

    def counts_at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return hits and predictions, each [records, classes], at a score threshold."""
        return self.cached(("table", threshold), lambda: self.ranking.table(threshold))

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table, the free-response and precision-recall curves and F1 over thresholds."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        weight, truth = self.image_weights(None), self.ranking.truth
        hits, predicted = self.counts_at(thresholds["score"])
        precision, recall, f1 = precision_recall_f1(hits.sum(0), predicted.sum(0), truth.sum(0))
        sensitivity, curve = self._curves(weight, CURVE_RATES)
        froc = self._curves(weight, FALSE_POSITIVES_PER_MM2)[0].mean(axis=1)
        error, area = np.abs(predicted - truth).mean(0), float(self.stacked("area").sum())
        per_class = {
            name: {
                "froc": float(froc[k]), "f1": float(f1[k]), "precision": float(precision[k]), "recall": float(recall[k]),
                "ap": float(curve[k].mean()), "count_mae": float(error[k]), "n": int(truth[:, k].sum()),
                "per_mm2": float(ratio(truth[:, k].sum(), area)),
            }
            for k, name in enumerate(self.spec.classes)
        }  # fmt: skip
        annotated = {name: k for k, name in enumerate(self.spec.classes) if per_class[name]["n"]}
        by_threshold = self._f1_curve()
        lines = {name: by_threshold[:, k].tolist() for k, name in enumerate(self.spec.classes)}
        pooled = {"pooled": by_threshold[:, -1].tolist()} if len(lines) > 1 else {}
        return {
            "per_class": per_class,
            "curves": {
                "froc": {
                    "rate": list(CURVE_RATES), "sensitivity": {name: sensitivity[k].tolist() for name, k in annotated.items()},
                    "hit_radius": self.hit_radius, "area_mm2": area,
                },
                "precision_recall": {
                    name: {"recall": RECALLS.tolist(), "precision": curve[k].tolist()} for name, k in annotated.items()
                },
                "f1": {"threshold": list(SCORE_GRID), **lines, **pooled},
            },
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Return a note where the area is too small for the first operating points."""
        area = float(self.stacked("area").sum()) if self.records else SMALL_AREA
        if area >= SMALL_AREA:
            return []
        return [
            f"cells were looked for in {area:.2g} mm2, where a single false positive is {ratio(1, area):.0f} per mm2: "
            "sensitivities at lower rates are those without any."
        ]

    def _curves(self, weight: np.ndarray, rates: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Sensitivity at the rates, [classes, rates], and precision at `RECALLS`, [classes, 101]; NaN without annotations."""
        classes = len(self.spec.classes)
        sensitivity, precision = np.full((classes, len(rates)), np.nan), np.full((classes, len(RECALLS)), np.nan)
        # Rounding of the area must not cost a false positive that is just allowed.
        allowed = np.asarray(rates, np.float64) * (weight @ self.stacked("area")) * (1 + 1e-9)
        for label, annotated in enumerate((weight @ self.ranking.truth).tolist()):
            if annotated > 0:
                hits, false = self.ranking.operating_points(label, weight)
                last = np.searchsorted(false, allowed, side="right")
                sensitivity[label] = np.concatenate([[0.0], hits])[last] / annotated
                precision[label] = interpolate_precision(hits, hits + false, annotated)
        return sensitivity, precision

    def _f1_curve(self) -> np.ndarray:
        """[thresholds, classes + 1] F1 over `SCORE_GRID`, of all classes together at the end; NaN without annotations."""
        hits, predicted = self.ranking.sweep(SCORE_GRID)
        counts = hits, predicted, np.broadcast_to(self.ranking.truth.sum(0), hits.shape)
        whole = [np.concatenate([values, values.sum(1, keepdims=True)], axis=1) for values in counts]
        return np.where(whole[2] > 0, precision_recall_f1(*whole)[2], np.nan)


def lattice(count: int, seed: int = 0) -> np.ndarray:
    """Return [count, 2] points (x, y) in the unit square whose first k, for any k, cover it evenly.

    The additive recurrence of the plastic number: M. Roberts, The unreasonable effectiveness of quasirandom sequences (2018).

    Args:
        count: Number of points.
        seed: Of the place at which the recurrence starts; the unevenness of several lattices should not add up.
    """
    plastic = 1.32471795724474602596
    start = np.random.default_rng(seed).random(2)
    return (start + np.arange(count)[:, None] * np.array([1 / plastic, 1 / plastic**2])) % 1.0


def _seed(targets: np.ndarray) -> int:
    """Give a number that differs from image to image and is the same in every process."""
    return zlib.crc32(targets.astype(np.float32).tobytes())


def _inside(region: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N] bool, True where the pixel of a point lies in the region; points on the far edge belong to the last pixel."""
    column, row = (
        np.clip(np.floor(points[:, axis]).astype(np.int64), 0, region.shape[1 - axis] - 1) for axis in (0, 1)
    )  # fmt: skip
    inside: np.ndarray = region[row, column]
    return inside
