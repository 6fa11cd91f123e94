"""One-to-one matching of predicted and annotated objects, and what can be read off a ranked list of matches."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.metrics.base import TaskMetric

# The ten IoU thresholds of COCO (Lin et al. 2014, https://cocodataset.org/#detection-eval).
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the [N, M] float64 intersection over union of [N, 4] and [M, 4] boxes (x_min, y_min, x_max, y_max)."""
    first, second = np.asarray(first, np.float64).reshape(-1, 4), np.asarray(second, np.float64).reshape(-1, 4)
    width = np.minimum(first[:, None, 2], second[None, :, 2]) - np.maximum(first[:, None, 0], second[None, :, 0])
    height = np.minimum(first[:, None, 3], second[None, :, 3]) - np.maximum(first[:, None, 1], second[None, :, 1])
    overlap = width.clip(min=0) * height.clip(min=0)
    area_first = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    area_second = (second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1])
    union = area_first[:, None] + area_second[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def match_boxes(iou: np.ndarray) -> np.ndarray:
    """Match detections to annotations greedily, as COCO does, at the ten IoU thresholds at once.

    In order of the rows each detection takes the free annotation with the highest IoU (the later one on a tie), if that
    reaches the threshold. A detection is never affected by one below it, so the matches among the detections above a score
    are those of the full list: flags can be reused at every decision threshold.

    Args:
        iou: [N, M] detections of one class and image, sorted by descending score, against its annotations.

    Returns:
        [N] int64; bit k is set where the detection is a true positive at `IOU_THRESHOLDS[k]`.
    """
    hits = np.zeros(iou.shape[0], np.int64)
    rows, columns = np.nonzero(iou >= IOU_THRESHOLDS[0])
    order = np.lexsort((-columns, -iou[rows, columns], rows))
    reached = (iou[rows, columns][:, None] >= IOU_THRESHOLDS) @ (1 << np.arange(10))
    taken = [0] * iou.shape[1]
    found = [0] * iou.shape[0]
    # Bit arithmetic on the few pairs above the lowest threshold; the loop is about 1 ms for 600 detections.
    for row, column, bits in zip(rows[order].tolist(), columns[order].tolist(), reached[order].tolist(), strict=True):
        new = bits & ~taken[column] & ~found[row]
        taken[column] |= new
        found[row] |= new
    hits[:] = found
    return hits


def match_points(points: np.ndarray, targets: np.ndarray, radius: float) -> np.ndarray:
    """Match points to annotated ones greedily: each, in order, takes the nearest free one within the radius.

    One-to-one, and like `match_boxes` stable under a score threshold: what hits among the points above a score is read off the
    full list. The flags of a largest possible matching could not be reused like that.

    Args:
        points: [N, 2] sorted by descending score.
        targets: [M, 2] in the same unit.
        radius: Largest distance that counts as a hit.

    Returns:
        [N] int64, 1 where the point is a hit.
    """
    hits = np.zeros(len(points), np.int64)
    rows, columns, distance = _close_pairs(_xy(points), _xy(targets), radius)
    order = np.lexsort((columns, distance, rows))
    taken = [False] * len(targets)
    found = [False] * len(points)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if not found[row] and not taken[column]:
            found[row] = taken[column] = True
    hits[:] = found
    return hits


def _close_pairs(first: np.ndarray, second: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of all pairs of [N, 2] and [M, 2] points within the radius, and their distance, each [pairs].

    Only pairs in a strip of x are measured: all N x M distances of a large region would fill the memory.
    """
    order = np.argsort(second[:, 0], kind="stable")
    x = second[order, 0]
    # The strip is a little too wide, so that rounding loses no pair at exactly the radius.
    begin = np.searchsorted(x, first[:, 0] - 1.001 * radius, side="left")
    counts = np.searchsorted(x, first[:, 0] + 1.001 * radius, side="right") - begin
    rows = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = order[np.repeat(begin, counts) + within]
    distance = np.linalg.norm(first[rows] - second[columns], axis=1)
    close = distance <= radius
    return rows[close], columns[close], distance[close]


def _xy(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, np.float64).reshape(-1, 2)


def ranked_record(scores: np.ndarray, labels: np.ndarray, hits: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Build the record of one image: all predictions by descending score, and annotations per class."""
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    return {
        "scores": np.asarray(scores, np.float32)[order],
        "labels": np.asarray(labels, np.int64)[order],
        "hits": np.asarray(hits, np.int64)[order],
        "truth": np.asarray(truth, np.int64),
    }


class RankedPredictions:
    """Predictions of all images of a split in one ranking, with what counts as a hit.

    Args:
        records: From `ranked_record`.
        classes: Number of classes C.
    """

    def __init__(self, records: list[dict[str, Any]], classes: int) -> None:
        self.images, self.classes = len(records), classes
        scores = np.concatenate([np.zeros(0, np.float32), *[record["scores"] for record in records]])
        order = np.argsort(-scores, kind="stable")
        counts = [len(record["scores"]) for record in records]
        self.scores = scores[order]
        self.labels = np.concatenate([np.zeros(0, np.int64), *[record["labels"] for record in records]])[order]
        self.hits = np.concatenate([np.zeros(0, np.int64), *[record["hits"] for record in records]])[order]
        self.image = np.repeat(np.arange(self.images), counts)[order]
        self.truth = np.stack([record["truth"] for record in records]) if records else np.zeros((0, classes), np.int64)
        self._positions: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
        self._runs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def table(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return hits at the lowest matching threshold and predictions, each [images, C], with score >= `threshold`."""
        keep = self.scores >= np.float32(threshold)
        entry = self.image[keep] * self.classes + self.labels[keep]
        size, shape = self.images * self.classes, (self.images, self.classes)
        hits = np.bincount(entry, weights=self.hits[keep] & 1, minlength=size).reshape(shape)
        return hits, np.bincount(entry, minlength=size).astype(np.float64).reshape(shape)

    def sweep(self, grid: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return hits and predictions over all images, each [thresholds, C]."""
        hits, predicted = np.zeros((len(grid), self.classes)), np.zeros((len(grid), self.classes))
        for label in range(self.classes):
            mine = self.labels == label
            kept = np.searchsorted(-self.scores[mine], -np.asarray(grid, np.float32), side="right")
            predicted[:, label] = kept
            hits[:, label] = np.concatenate([[0], np.cumsum(self.hits[mine] & 1)])[kept]
        return hits, predicted

    def interpolated_precision(self, label: int, weights: np.ndarray, levels: int = len(IOU_THRESHOLDS)) -> np.ndarray | None:
        """Return the [levels, 101] precision at `RECALLS`: the highest one at this recall or more; its mean is COCO's AP.

        Args:
            label: Class index.
            weights: [images] how often each image counts. Counting an image twice equals evaluating it twice, since the
                interpolated precision depends on the ends of a run of equal detections only.
            levels: How many of `IOU_THRESHOLDS`, from the lowest.

        Returns:
            None without annotations of the class.
        """
        annotated = float(weights @ self.truth[:, label])
        if annotated <= 0:
            return None
        images, hits = self._of(label)
        weight = weights[images]
        claims = np.cumsum(weight)
        # The envelope of the precision is decided at the hits, so only those are kept.
        ranked = hits[:levels]
        return np.stack([interpolate_precision(np.cumsum(weight[hit]), claims[hit], annotated) for hit in ranked])

    def operating_points(self, label: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what each decision threshold gives: one entry per distinct score, the highest first.

        A threshold takes all predictions of equal score, whatever image they are in.

        Args:
            label: Class index.
            weights: [images] how often each image counts.

        Returns:
            Hits at the lowest matching threshold, and false positives, each [thresholds].
        """
        if label not in self._runs:
            mine = self.labels == label
            last = np.flatnonzero(np.diff(self.scores[mine], append=np.float32(-np.inf)))
            self._runs[label] = (self.image[mine], (self.hits[mine] & 1) > 0, last)
        images, hit, last = self._runs[label]
        weight = weights[images]
        found = np.cumsum(weight * hit)[last]
        return found, np.cumsum(weight)[last] - found

    def _of(self, label: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Image of each prediction of a class, and the positions of the hits per IoU threshold."""
        if label not in self._positions:
            mine = self.labels == label
            bits = self.hits[mine]
            self._positions[label] = (self.image[mine], [np.flatnonzero((bits >> k) & 1) for k in range(len(IOU_THRESHOLDS))])
        return self._positions[label]


def interpolate_precision(found: np.ndarray, claimed: np.ndarray, annotated: float) -> np.ndarray:
    """Return the [101] highest precision at each of `RECALLS` or more.

    Args:
        found: [n] hits among the best predictions, rising.
        claimed: [n] how many predictions these are.
        annotated: Number of annotations.
    """
    precision = np.divide(found, claimed, out=np.zeros_like(found), where=claimed > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return np.concatenate([envelope, [0.0]])[np.searchsorted(found / annotated, RECALLS, side="left")]


class RankedMetric(TaskMetric):
    """A metric over scored objects, matched to annotated ones: its records come from `ranked_record`."""

    @property
    def default_thresholds(self) -> dict[str, float]:
        """One score threshold for all classes."""
        return {"score": 0.5}

    @property
    def ranking(self) -> RankedPredictions:
        """All predictions of all images."""
        return self.cached("ranking", lambda: RankedPredictions(self.records, len(self.spec.classes)))
