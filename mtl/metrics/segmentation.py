"""Segmentation: overlap of hard masks, per image and pooled, and the area under the precision-recall curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.raster import to_original
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, ImageResult
from mtl.metrics.base import TaskMetric, mean_of, nearest_best, precision_recall_f1, ratio, weighted_mean
from mtl.metrics.surface import step_vectors
from mtl.metrics.volumes import Cases, finish_surfaces, measure_surfaces, sum_cases

VOLUME_METRICS = ("dice_per_case", "iou_per_case", "mae_volume_mm3")  # where the images are slices of volumes
MASK_GRID = tuple(round(step / 20, 2) for step in range(1, 20))
# Thresholds of the precision-recall curve, falling; at 0 everything is predicted, so it needs no count of its own.
STEPS = 32
CURVE_GRID = tuple(step / STEPS for step in range(STEPS, 0, -1))

# Metrics that count a mask which is empty in both as 1.
_WITH_EMPTY = ("dice_per_image", "iou_per_image", "dice_per_case", "iou_per_case")
# Names in the table of classes, where nothing is averaged over classes.
_COLUMNS = {"precision_pooled": "precision", "recall_pooled": "recall"}


class SegmentationMetric(TaskMetric):
    """Overlap of hard masks at one stored threshold per class (multilabel), or of the arg max (one class per pixel).

    - `dice_per_image`, `iou_per_image`: per class the mean over images, then the mean over classes. Empty-mask rule: annotated
      and predicted mask both empty = 1; only one of them empty = 0. Where a pixel has one class, those that occur in no image
      are left out: a class that is not asked for would count as solved.
    - `dice_pooled`, `iou_pooled`, `precision_pooled`, `recall_pooled`: from pixel counts of all images together, mean over the
      classes that occur in the truth.
    - `aupr`: area under the precision-recall curve of all pixels together, mean over the classes that occur in the truth; NaN
      where a pixel has one class (there is no threshold). The IDRiD challenge (Porwal et al., Medical Image Analysis
      2020) cuts its 8-bit maps at 33 equally spaced thresholds; so does this, at 0, 1/32 .. 1. The area is the sum of
      (R_n - R_{n-1}) P_n over falling thresholds, without interpolation between them, which would be too kind. At threshold 0
      everything is predicted, so the area of a constant map is the share of annotated pixels.

    - `dice_nonempty`, `iou_nonempty`: as per image, over the images whose annotated mask is not empty, because the rule above
      rewards correct silence; NaN where there is none.

    Where the images are slices of volumes (cases; a group may have several), also:

    - `dice_per_case`, `iou_per_case`: pixels are summed over the slices of a case before the division; mean over cases, then
      over classes. The empty-mask rule holds for whole cases.
    - `mae_volume_mm3`: mean over cases and classes of |predicted - annotated volume|; NaN where no voxel size is known.

    After `measure_surfaces`, at the thresholds given there (see `mtl.metrics.surface.hd95`):

    - `hd95_per_image`, volumes also `hd95_per_case` (in three dimensions): mean over images (cases), then over classes. Both
      masks empty: not counted; one empty: the diagonal of the image (volume). In millimetres over the images whose spacing is
      known; in pixels of the compared raster where none is.

    Thresholds are named like the classes; a multiclass task has none.
    """

    names = (
        "dice_per_image", "iou_per_image", "dice_pooled", "iou_pooled", "precision_pooled", "recall_pooled", "aupr",
        "dice_nonempty", "iou_nonempty",
    )  # fmt: skip
    class_means = {name: _COLUMNS.get(name, name) for name in (*names, *VOLUME_METRICS)}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._surface_thresholds: dict[str, float] | None = None

    @classmethod
    def names_of(cls, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of all tasks, and those of volumes where the images are slices."""
        return cls.names + (VOLUME_METRICS if spec.volumetric else ())

    def score(self, prediction: ImageResult, truth: ImageResult, native: bool) -> dict[str, Any]:
        """Compare masks in the raster of the truth: the original one takes enlarged probabilities."""
        found, known = prediction.tasks[self.spec.name], truth.tasks[self.spec.name]
        scale = truth.window.working_pixels_per_reference
        if native:
            maps = [to_original(channel, prediction.window) for channel in found["probabilities"]]
            found, scale = found | {"probabilities": np.stack(maps)}, (truth.window.pixel_scale,) * 2
        if truth.spacing is not None:
            # In millimetres, to the next slice, row and column of the raster in which masks are compared.
            x, y = (1.0, 1.0) if native else truth.window.scale
            lengths = np.asarray(truth.spacing, np.float64) / (1.0, y, x)
            known = known | {"steps": step_vectors(lengths, truth.skew)}
        return self.reduce(found, known, scale)

    @property
    def without_example(self) -> str:
        """Independent masks may rightly be empty."""
        kept = "only means over images contain it, by the rule for empty masks"
        return kept if self.spec.multilabel else super().without_example

    def measure_surfaces(self, thresholds: dict[str, float]) -> None:
        """Also measure distances of surfaces in the images to come, in masks cut at these thresholds; `finish` ends it."""
        self._surface_thresholds = dict(thresholds)

    def finish(self) -> None:
        """Measure whole volumes, whose slices have all arrived, and drop their masks."""
        finish_surfaces(self.records)
        super().finish()

    @property
    def default_thresholds(self) -> dict[str, float]:
        """One threshold per class."""
        return dict.fromkeys(self.spec.classes, 0.5) if self.spec.multilabel else {}

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Count pixels.

        Returns:
            `hits`, `predicted` [K, thresholds], `truth` [K], `pixels`, and `pixel_area`, the square reference pixels of one;
            multilabel also `curve_hits` and `curve_predicted` [K, 32] at `CURVE_GRID`, multiclass also `confusion` [K, K].
            Slices of volumes: `voxel`, mm3 per pixel from the `steps` [3, 3] that the truth may hold, else NaN. What
            `measure_surfaces` (`mtl.metrics.volumes`) gives, where asked.
        """
        probabilities, mask = np.asarray(prediction["probabilities"]), np.asarray(truth["mask"])
        classes = len(self.spec.classes)
        expected = (classes, *mask.shape[-2:])
        if probabilities.shape != expected or (self.spec.multilabel and mask.shape != expected):
            raise ValueError(
                f"Task `{self.spec.name}`: predicted masks have shape {probabilities.shape}, annotated {mask.shape}, "
                f"expected {expected}."
            )
        reduce = self._reduce_channels if self.spec.multilabel else self._reduce_index
        record, steps = reduce(probabilities, mask), truth.get("steps")
        record["pixel_area"] = np.float64(1 / (scale[0] * scale[1]))
        if self.spec.volumetric:
            record["voxel"] = np.float64(np.nan if steps is None else abs(np.linalg.det(steps)))
        if self._surface_thresholds is not None:
            hard = self._hard_masks(probabilities, mask, self._surface_thresholds)
            record |= measure_surfaces(*hard, steps, self.spec.volumetric)
        return record

    def _hard_masks(
        self, probabilities: np.ndarray, mask: np.ndarray, thresholds: dict[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and annotated masks, each [K, H, W] bool."""
        if self.spec.multilabel:
            levels = np.array([thresholds[name] for name in self.spec.classes], probabilities.dtype)
            return probabilities >= levels[:, None, None], mask > 0
        classes = np.arange(len(self.spec.classes))[:, None, None]
        known = mask != self.spec.ignore_index
        return (probabilities.argmax(0) == classes) & known, mask == classes

    def _reduce_channels(self, probabilities: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        counts: dict[str, list[Any]] = {"hits": [], "predicted": [], "curve_hits": [], "curve_predicted": []}
        truth = []
        for channel, inside in zip(probabilities, mask, strict=True):
            annotated = inside > 0
            truth.append(np.count_nonzero(annotated))
            # What lies below the lowest threshold, nearly all of a large image, is never counted.
            kept = channel >= channel.dtype.type(CURVE_GRID[-1])
            for suffix, values in (("predicted", channel[kept]), ("hits", channel[kept & annotated])):
                counts[suffix].append([np.count_nonzero(values >= threshold) for threshold in _grid(values.dtype)])
                counts[f"curve_{suffix}"].append(_counts_on_curve(values))
        tables = {key: np.array(rows, np.int64) for key, rows in counts.items()}
        return {**tables, "truth": np.array(truth, np.int64), "pixels": np.int64(mask[0].size)}

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
        if not self.records:
            return dict.fromkeys(self.spec.metrics, float("nan"))
        return {
            name: float(mean_of(values)) for name, values in self._by_class(thresholds, self.image_weights(weights)).items()
        }

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table; multilabel: Dice over thresholds and precision over recall; multiclass: the confusion."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        weight, truth = self.image_weights(None), self.stacked("truth")
        columns = self._by_class(thresholds, weight)
        per_class = {
            name: {_COLUMNS.get(key, key): float(values[index]) for key, values in columns.items()}
            | {"n": int((truth[:, index] > 0).sum())}
            for index, name in enumerate(self.spec.classes)
        }
        if not self.spec.multilabel:
            counts = self.stacked("confusion").sum(0).tolist()
            return {"per_class": per_class, "curves": {"confusion": {"classes": list(self.spec.classes), "counts": counts}}}
        by_threshold = overlap(self.stacked("hits"), self.stacked("predicted"), truth[:, :, None])[0].mean(0)
        by_class = {name: by_threshold[index].tolist() for index, name in enumerate(self.spec.classes)}
        curve = self._curve(weight)
        sweep = {
            name: {"threshold": [*CURVE_GRID, 0.0], "recall": curve[0][index].tolist(), "precision": curve[1][index].tolist()}
            for index, name in enumerate(self.spec.classes)
            if truth[:, index].any()
        }
        return {
            "per_class": per_class,
            "curves": {"dice": {"threshold": list(MASK_GRID), **by_class}, "precision_recall": sweep},
        }

    @property
    def distances_in_mm(self) -> bool | None:
        """Whether distances of surfaces are in millimetres; None where none was measured."""
        return bool(self.stacked("hd95_mm").any()) if self._measured("hd95") else None

    def areas(self, thresholds: dict[str, float], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted and annotated area of a class, each [records], in square reference pixels.

        Pixels to ignore are in neither.
        """
        column = self.spec.classes.index(name)
        _, predicted, truth = self.counts(thresholds)
        return predicted[:, column] * self.stacked("pixel_area"), truth[:, column] * self.stacked("pixel_area")

    def _measured(self, key: str) -> bool:
        return bool(self.records) and key in self.records[0]

    def case_table(self, thresholds: dict[str, float]) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the table of the volumes: by case and class the overlap, volumes in mm3 and, where measured, `hd95`."""
        if not self.spec.volumetric or not self.records:
            return {}
        found = self._case_counts(thresholds, self.image_weights(None))
        dice, iou = overlap(found.hits, found.predicted, found.truth)
        columns = {"dice": dice, "iou": iou, **({"hd95": self._case_distances()} if self._measured("hd95_case") else {})}
        columns |= {"volume_predicted_mm3": found.predicted_mm3, "volume_annotated_mm3": found.truth_mm3}
        return {
            case: {
                name: {"slices": int(found.slices[row])} | {key: float(values[row, k]) for key, values in columns.items()}
                for k, name in enumerate(self.spec.classes)
            }
            for row, case in enumerate(found.names)
        }

    def _by_class(self, thresholds: dict[str, float], weight: np.ndarray) -> dict[str, np.ndarray]:
        """All metrics by name, each [K]."""
        dice, iou = self._per_image(thresholds)
        annotated = self.cached("annotated", lambda: np.where(self.stacked("truth") > 0, 0.0, np.nan))
        per_image = [ratio(weight @ values, weight.sum()) for values in (dice, iou)]
        nonempty = [weighted_mean(values + annotated, weight) for values in (dice, iou)]
        values = [*per_image, *self._pooled(thresholds, weight), area_under_steps(*self._curve(weight)), *nonempty]
        found = dict(zip(self.names, values, strict=True))
        if self.spec.volumetric:
            cases = self._case_counts(thresholds, weight)
            for name, per_case in zip(("dice", "iou"), overlap(cases.hits, cases.predicted, cases.truth), strict=True):
                found[f"{name}_per_case"] = weighted_mean(per_case, cases.share)
            found["mae_volume_mm3"] = weighted_mean(np.abs(cases.predicted_mm3 - cases.truth_mm3), cases.share)
        if self._measured("hd95"):
            found["hd95_per_image"] = weighted_mean(self._distances("hd95"), weight)
        if self._measured("hd95_case"):
            found["hd95_per_case"] = weighted_mean(self._case_distances(), cases.share)
        if not self.spec.multilabel:
            absent = np.where(weight @ self.stacked("truth") > 0, 0.0, np.nan)
            found |= {name: found[name] + absent for name in _WITH_EMPTY if name in found}
        return found

    def _case_counts(self, thresholds: dict[str, float], weight: np.ndarray) -> Cases:
        key = ("counts", tuple(sorted(thresholds.items())))
        return sum_cases(self, *self.cached(key, lambda: self.counts(thresholds)), weight)

    def _case_distances(self) -> np.ndarray:
        """[cases, K]; every slice of a case holds the distance of the case."""
        first = np.unique(self.case_index()[1], return_index=True)[1]
        return self.cached("case distances", lambda: self._distances("hd95_case")[first])

    def _distances(self, key: str) -> np.ndarray:
        """[records, K]; NaN for pixels where others are in millimetres."""
        other = self.stacked("hd95_mm") != self.distances_in_mm
        return np.where(other[:, None], np.nan, self.stacked(key))

    def counts(self, thresholds: dict[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, predicted and annotated pixels at the thresholds, each [records, K]."""
        column = (
            [_column(thresholds[name]) for name in self.spec.classes] if self.spec.multilabel else [0] * len(self.spec.classes)
        )
        rows = np.arange(len(column))
        return self.stacked("hits")[:, rows, column], self.stacked("predicted")[:, rows, column], self.stacked("truth")

    def _per_image(self, thresholds: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        key = ("per_image", tuple(sorted(thresholds.items())))
        return self.cached(key, lambda: overlap(*self.counts(thresholds)))

    def _pooled(self, thresholds: dict[str, float], weight: np.ndarray) -> tuple[np.ndarray, ...]:
        """Dice, IoU, precision and recall from the pixels of all images, each [K]; NaN for classes that do not occur."""
        key = ("counts", tuple(sorted(thresholds.items())))
        hits, predicted, truth = (weight @ counts for counts in self.cached(key, lambda: self.counts(thresholds)))
        absent = np.where(truth > 0, 0.0, np.nan)
        precision, recall, dice = precision_recall_f1(hits, predicted, truth)
        return dice + absent, ratio(hits, predicted + truth - hits) + absent, precision + absent, recall + absent

    def _curve(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision [K, 33] over falling thresholds; precision is NaN where nothing is predicted."""
        if not self.spec.multilabel:
            return (np.full((len(self.spec.classes), STEPS + 1), np.nan),) * 2
        hits, predicted = (np.tensordot(weight, table, 1) for table in self.cached("curve", self._curve_tables))
        return ratio(hits, hits[:, -1:]), ratio(hits, predicted)

    def _curve_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Hits and predicted pixels [records, K, 33] over falling thresholds, 0 at the end."""
        truth = self.stacked("truth")[:, :, None]
        pixels = np.broadcast_to(self.stacked("pixels")[:, None, None], truth.shape)
        hits = np.concatenate([self.stacked("curve_hits"), truth], axis=2)
        return hits.astype(np.float64), np.concatenate([self.stacked("curve_predicted"), pixels], axis=2).astype(np.float64)


def overlap(hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Dice and IoU from pixel counts; 1 where both masks are empty."""
    return ratio(2 * hits, predicted + truth, 1.0), ratio(hits, predicted + truth - hits, 1.0)


def area_under_steps(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the sum of (R_n - R_{n-1}) P_n along the last axis; NaN where recall is not defined.

    Args:
        recall: [..., n], rising, from thresholds that fall; 0 is put in front.
        precision: [..., n]; where nothing is predicted (NaN) recall does not rise either.
    """
    gained = np.diff(recall, axis=-1, prepend=0.0)
    return (gained * np.nan_to_num(precision)).sum(-1)


def _grid(dtype: np.dtype) -> np.ndarray:
    """`MASK_GRID` in the precision of the probabilities, so that 0.35 in the one is 0.35 in the other."""
    return np.asarray(MASK_GRID, dtype)


def _counts_on_curve(values: np.ndarray) -> np.ndarray:
    """[32] how many values reach each threshold of `CURVE_GRID`."""
    # Multiplying by a power of two is exact, so a value on a threshold falls into the right bin.
    bins = np.minimum(values * values.dtype.type(STEPS), STEPS).astype(np.uint8)
    return np.cumsum(np.bincount(bins, minlength=STEPS + 1)[:0:-1])


def _column(threshold: float) -> int:
    """Position of a threshold in `MASK_GRID`; pixel counts exist for these values only."""
    column = int(np.argmin([abs(threshold - value) for value in MASK_GRID]))
    if abs(MASK_GRID[column] - threshold) > 1e-6:
        raise ValueError(f"Mask threshold {threshold} is not a multiple of 0.05 between 0.05 and 0.95.")
    return column
