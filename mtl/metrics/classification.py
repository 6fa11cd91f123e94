"""Classes of images and of annotated objects, and image-level numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.metrics.base import Arrays, TaskMetric, bland_altman, mean_of, precision_recall_f1, ratio, weighted_pearson


class ConfusionMetric(TaskMetric):
    """Base of metrics made from a confusion matrix [truth, predicted]; the class with the highest probability is predicted.

    - `f1_macro`, `balanced_accuracy`: mean F1, mean recall over the classes that occur in the truth.
    - `accuracy`: over all cases.

    The matrix has one column more than classes: cases that got no prediction at all (never correct).
    """

    @property
    def default_thresholds(self) -> dict[str, float]:
        """None: the highest probability decides."""
        return {}

    def choose_thresholds(self) -> dict[str, float]:
        """Return nothing: the highest probability decides."""
        return {}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        return self._from_matrix(self.confusion_matrix(self.image_weights(weights)))

    def confusion_matrix(self, weight: np.ndarray) -> np.ndarray:
        """[C, C + 1] counts of the images, each weighted; the last column holds cases without a prediction."""
        matrix: np.ndarray = np.tensordot(weight, self._matrices(), 1)
        return matrix

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table and the confusion matrix."""
        matrix = self._matrices().sum(0)
        precision, recall, f1 = self._per_class(matrix)
        per_class = {
            name: {
                "precision": float(precision[index]), "recall": float(recall[index]), "f1": float(f1[index]),
                "n": int(matrix[index].sum()),
            }
            for index, name in enumerate(self.spec.classes)
        }  # fmt: skip
        classes, counts = list(self.spec.classes), matrix.astype(int)
        predicted = [*classes, "no prediction"] if counts[:, -1].any() else classes
        confusion = {"classes": classes, "predicted": predicted, "counts": counts[:, : len(predicted)].tolist()}
        return {"per_class": per_class, "curves": {"confusion": confusion}}

    def _matrices(self) -> np.ndarray:
        """[records, C, C + 1] confusion counts per image."""
        classes = len(self.spec.classes)
        return self.stacked("confusion").astype(np.float64) if self.records else np.zeros((0, classes, classes + 1))

    def _per_class(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes = len(matrix)
        return precision_recall_f1(matrix[:, :classes].diagonal(), matrix.sum(0)[:classes], matrix.sum(1))

    def _from_matrix(self, matrix: np.ndarray) -> dict[str, float]:
        _, recall, f1 = self._per_class(matrix)
        occurs = matrix.sum(1) > 0
        return {
            "f1_macro": float(mean_of(np.where(occurs, f1, np.nan))),
            "accuracy": float(ratio(matrix.diagonal().sum(), matrix.sum())),
            "balanced_accuracy": float(mean_of(np.where(occurs, recall, np.nan))),
        }


class RoiClassificationMetric(ConfusionMetric):
    """Classes of annotated objects, counted over all objects; prediction and truth are joined by object id."""

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Count the objects of one image: `confusion` [C, C + 1]."""
        classes = len(self.spec.classes)
        probabilities = np.asarray(prediction["probabilities"]).reshape(-1, classes)
        winner = dict(zip(np.asarray(prediction["ids"]).tolist(), probabilities.argmax(1).tolist(), strict=True))
        confusion = np.zeros((classes, classes + 1), np.int64)
        for identity, label in zip(np.asarray(truth["ids"]).tolist(), np.asarray(truth["labels"]).tolist(), strict=True):
            confusion[label, winner.get(identity, classes)] += 1
        return {"confusion": confusion}


class ClassificationMetric(ConfusionMetric):
    """One class per image.

    Adds `auroc`, the mean over classes of one-against-rest (NaN while only one class occurs); where the classes are ordered
    `quadratic_kappa` (see `quadratic_kappa`); where there are two, `sensitivity` (recall of the second class, the positive one)
    and `specificity` (recall of the first), NaN where the class does not occur.
    """

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Keep the probabilities [C] and the label of one image."""
        probabilities, label = np.asarray(prediction["probabilities"], np.float64).reshape(-1), int(truth["label"])
        confusion = np.zeros((len(self.spec.classes), len(self.spec.classes) + 1), np.int64)
        confusion[label, int(probabilities.argmax())] = 1
        return {"confusion": confusion, "probabilities": probabilities, "label": np.int64(label)}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars of the base class and those that the class docstring adds."""
        values = super().compute(thresholds, weights)
        areas = self._areas(self.image_weights(weights)) if self.records else np.array([np.nan])
        values["auroc"] = float(mean_of(areas))
        return {name: values[name] for name in self.spec.metrics}

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Add the area of each class to the table."""
        found = super().details(thresholds)
        for name, area in zip(self.spec.classes, self._areas(self.image_weights(None)) if self.records else [], strict=False):
            found["per_class"][name]["auroc"] = float(area)
        return found

    def _from_matrix(self, matrix: np.ndarray) -> dict[str, float]:
        values = super()._from_matrix(matrix)
        if len(matrix) == 2:
            specificity, sensitivity = ratio(matrix.diagonal(), matrix.sum(1))
            values |= {"sensitivity": float(sensitivity), "specificity": float(specificity)}
        # Every image of such a task has a prediction, so the last column is empty.
        return values | ({"quadratic_kappa": quadratic_kappa(matrix[:, : len(matrix)])} if self.spec.ordinal else {})

    def _areas(self, weight: np.ndarray) -> np.ndarray:
        labels, probabilities = self.stacked("label"), self.stacked("probabilities")
        return np.array([area_under_roc(probabilities[:, c], labels == c, weight) for c in range(len(self.spec.classes))])


class RegressionMetric(TaskMetric):
    """One number per image: `pearson` (NaN below 3 images or when constant), `mae`, `rmse`."""

    @property
    def default_thresholds(self) -> dict[str, float]:
        """None."""
        return {}

    def choose_thresholds(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Keep both values."""
        return {
            "value": np.float64(np.asarray(prediction["value"]).item()),
            "truth": np.float64(np.asarray(truth["value"]).item()),
        }

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        if not self.records:
            return dict.fromkeys(("pearson", "mae", "rmse"), float("nan"))
        weight = self.image_weights(weights)
        predicted, truth = self.stacked("value"), self.stacked("truth")
        error = predicted - truth
        return {
            "pearson": weighted_pearson(predicted, truth, weight),
            "mae": float(ratio(weight @ np.abs(error), weight.sum())),
            "rmse": float(np.sqrt(ratio(weight @ error**2, weight.sum()))),
        }

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return what a scatter and a Bland-Altman figure need."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        pairs = bland_altman(self.stacked("value"), self.stacked("truth"))
        return {"per_class": {}, "curves": {"agreement": {"image": pairs}}}


def area_under_roc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Return the probability that a positive case scores higher than a negative one, ties counting half.

    Args:
        scores: [n].
        positive: [n] bool.
        weights: [n] how often each case counts.
    """
    levels, rank = np.unique(scores, return_inverse=True)
    gained = np.bincount(rank, weights * positive, minlength=len(levels))
    other = np.bincount(rank, weights * ~positive, minlength=len(levels))
    below = np.cumsum(other) - other
    return float(ratio(gained @ (below + other / 2), gained.sum() * other.sum()))


def quadratic_kappa(matrix: np.ndarray) -> float:
    """Return Cohen's kappa with quadratic weights: agreement of grades beyond chance, an error weighing its distance squared.

    Source: Cohen, Weighted kappa, Psychological Bulletin 1968. 1 is full agreement, 0 what chance gives with the same shares of
    grades. NaN where chance could not be wrong either (all cases and all predictions in one grade) or nothing was counted.

    Args:
        matrix: [C, C] counts or weights, truth in rows, in the order of the grades.
    """
    grade = np.arange(len(matrix))
    distance = (grade[:, None] - grade[None, :]) ** 2.0
    by_chance = np.outer(matrix.sum(1), matrix.sum(0))
    # Both sides times the number of cases, which then cancels.
    return float(1 - ratio(matrix.sum() * (distance * matrix).sum(), (distance * by_chance).sum()))
