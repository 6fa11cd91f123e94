"""Segmentation: Dice and IoU of hard masks, per image and pooled."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.metrics.base import Arrays, TaskMetric, mean_of, nearest_best, ratio

MASK_GRID = tuple(round(step / 20, 2) for step in range(1, 20))


class SegmentationMetric(TaskMetric):
    """Overlap of hard masks at one stored threshold per class (multilabel), or of the arg max (one class per pixel).

    - `dice_per_image`, `iou_per_image`: per class the mean over images, then the mean over classes. Empty-mask rule: annotated
      and predicted mask both empty = 1; only one of them empty = 0.
    - `dice_pooled`, `iou_pooled`: from pixel counts of all images together, mean over the classes that occur in the truth.

    Because the rule rewards correct silence, the per-class table also holds `dice_nonempty`, the mean over images whose
    annotated mask is not empty. Thresholds are named like the classes; a multiclass task has none.
    """

    @property
    def default_thresholds(self) -> dict[str, float]:
        """One threshold per class."""
        return dict.fromkeys(self.spec.classes, 0.5) if self.spec.multilabel else {}

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Count pixels: `hits`, `predicted` [K, thresholds], `truth` [K], `pixels`; multiclass also `confusion` [K, K]."""
        probabilities, mask = np.asarray(prediction["probabilities"]), np.asarray(truth["mask"])
        classes = len(self.spec.classes)
        expected = (classes, *mask.shape[-2:])
        if probabilities.shape != expected or (self.spec.multilabel and mask.shape != expected):
            raise ValueError(
                f"Task `{self.spec.name}`: predicted masks have shape {probabilities.shape}, annotated {mask.shape}, "
                f"expected {expected}."
            )
        return (
            self._reduce_channels(probabilities, mask > 0) if self.spec.multilabel else self._reduce_index(probabilities, mask)
        )

    def _reduce_channels(self, probabilities: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        grid = np.asarray(MASK_GRID, probabilities.dtype)

        def above(values: np.ndarray) -> list[int]:
            return [int(np.count_nonzero(values >= threshold)) for threshold in grid]

        return {
            "hits": np.array([above(p[m]) for p, m in zip(probabilities, mask, strict=True)], np.int64),
            "predicted": np.array([above(p) for p in probabilities], np.int64),
            "truth": mask.sum((1, 2), dtype=np.int64),
            "pixels": np.int64(mask[0].size),
        }

    def _reduce_index(self, probabilities: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        classes = len(self.spec.classes)
        known = mask != self.spec.ignore_index
        pairs = mask[known].astype(np.int64) * classes + probabilities.argmax(0)[known]
        confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        return {
            "hits": confusion.diagonal()[:, None].copy(),
            "predicted": confusion.sum(0)[:, None],
            "truth": confusion.sum(1),
            "pixels": np.int64(known.sum()),
            "confusion": confusion,
        }

    def choose_thresholds(self) -> dict[str, float]:
        """Pick per class the threshold with the highest mean Dice per image; a class without annotated pixel keeps 0.5."""
        chosen = self.default_thresholds
        if not self.records:
            return chosen
        truth = self.stacked("truth")
        for index, name in enumerate(chosen):
            if truth[:, index].any():
                dice = overlap(self.stacked("hits")[:, index], self.stacked("predicted")[:, index], truth[:, index, None])[0]
                chosen[name] = nearest_best(dice.mean(0), MASK_GRID)
        return chosen

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        names = ("dice_per_image", "iou_per_image", "dice_pooled", "iou_pooled")
        if not self.records:
            return dict.fromkeys(names, float("nan"))
        weight = self.image_weights(weights)
        (dice, iou), pooled = self._per_image(thresholds), self._pooled(thresholds, weight)
        per_image = [float(mean_of(ratio(weight @ values, weight.sum()))) for values in (dice, iou)]
        return dict(zip(names, [*per_image, *(float(mean_of(values)) for values in pooled)], strict=True))

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table, Dice over thresholds (multilabel) and the pixel confusion (multiclass)."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        dice, iou = self._per_image(thresholds)
        pooled_dice, pooled_iou = self._pooled(thresholds, self.image_weights(None))
        truth = self.stacked("truth")
        nonempty = mean_of(np.where(truth > 0, dice, np.nan), axis=0)
        per_class = {
            name: {
                "dice_per_image": float(dice[:, index].mean()), "iou_per_image": float(iou[:, index].mean()),
                "dice_nonempty": float(nonempty[index]), "dice_pooled": float(pooled_dice[index]),
                "iou_pooled": float(pooled_iou[index]), "n": int((truth[:, index] > 0).sum()),
            }
            for index, name in enumerate(self.spec.classes)
        }  # fmt: skip
        if not self.spec.multilabel:
            counts = self.stacked("confusion").sum(0).tolist()
            return {"per_class": per_class, "curves": {"confusion": {"classes": list(self.spec.classes), "counts": counts}}}
        curve = overlap(self.stacked("hits"), self.stacked("predicted"), truth[:, :, None])[0].mean(0)
        by_class = {name: curve[index].tolist() for index, name in enumerate(self.spec.classes)}
        return {"per_class": per_class, "curves": {"dice": {"threshold": list(MASK_GRID), **by_class}}}

    def _counts(self, thresholds: dict[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, predicted and annotated pixels at the thresholds, each [records, K]."""
        column = (
            [_column(thresholds[name]) for name in self.spec.classes] if self.spec.multilabel else [0] * len(self.spec.classes)
        )
        rows = np.arange(len(column))
        return self.stacked("hits")[:, rows, column], self.stacked("predicted")[:, rows, column], self.stacked("truth")

    def _per_image(self, thresholds: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        key = ("per_image", tuple(sorted(thresholds.items())))
        return self.cached(key, lambda: overlap(*self._counts(thresholds)))

    def _pooled(self, thresholds: dict[str, float], weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = ("counts", tuple(sorted(thresholds.items())))
        hits, predicted, truth = (weight @ counts for counts in self.cached(key, lambda: self._counts(thresholds)))
        absent = np.where(truth > 0, 0.0, np.nan)
        return ratio(2 * hits, predicted + truth) + absent, ratio(hits, predicted + truth - hits) + absent


def overlap(hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Dice and IoU from pixel counts; 1 where both masks are empty."""
    return ratio(2 * hits, predicted + truth, 1.0), ratio(hits, predicted + truth - hits, 1.0)


def _column(threshold: float) -> int:
    """Position of a threshold in `MASK_GRID`; pixel counts exist for these values only."""
    column = int(np.argmin([abs(threshold - value) for value in MASK_GRID]))
    if abs(MASK_GRID[column] - threshold) > 1e-6:
        raise ValueError(f"Mask threshold {threshold} is not a multiple of 0.05 between 0.05 and 0.95.")
    return column
