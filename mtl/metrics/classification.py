"""One class per image, or per annotated object."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD, positive_class, positive_index, predicted_classes
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.metrics.base import TaskMetric, mean_of, precision_recall_f1, ratio
from mtl.metrics.binary import BinaryScores, balanced_accuracy

# Added where the classes are ordered, and where there are two (the second is the positive one).
ORDINAL_METRICS = ("quadratic_kappa",)
BINARY_METRICS = ("sensitivity", "specificity")


class ConfusionMetric(TaskMetric):
    """Base of metrics made from class probabilities of images or objects.

    - `f1_macro`, `balanced_accuracy`: mean F1, mean recall over the classes that occur in the truth.
    - `accuracy`: over all of them.
    - `auroc`: mean over classes of the area of one against the rest; NaN while only one class occurs.

    The most probable class is predicted. Where images have two, a threshold on the probability of the positive one decides
    (`mtl.core.decision`), chosen for the highest balanced accuracy, which is Youden's J: always saying the same scores 0.5
    whatever the shares of the classes, so that a rare class is not given up.

    The first five count them in a confusion matrix [truth, predicted], which has one column more than classes: those that got
    no prediction at all (never correct). These have no score and are in no `auroc`.
    """

    names = ("f1_macro", "accuracy", "balanced_accuracy", "auroc")
    class_means = {"f1_macro": "f1", "balanced_accuracy": "recall", "auroc": "auroc"}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.positive = positive_class(spec)

    @property
    def default_thresholds(self) -> dict[str, float]:
        """0.5 of the positive class of two; empty where the most probable class is predicted."""
        return {self.positive: DEFAULT_THRESHOLD} if self.positive else {}

    def choose_thresholds(self) -> dict[str, float]:
        """Return the threshold of the positive class of two with the highest balanced accuracy."""
        if not self.positive:
            return {}
        return {self.positive: self._scores(positive_index(self.spec)).best_threshold(balanced_accuracy)}

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars of `spec.metrics`, named in the class docstring."""
        weight = self.image_weights(weights)
        values = self._from_matrix(self.confusion_matrix(thresholds, weight))
        values["auroc"] = float(mean_of(self._areas(weight)))
        return {name: values[name] for name in self.spec.metrics}

    def confusion_matrix(self, thresholds: dict[str, float], weight: np.ndarray) -> np.ndarray:
        """[C, C + 1] counts of the images, each weighted; the last column holds those without a prediction."""
        matrix: np.ndarray = np.tensordot(weight, self._matrices(thresholds), 1)
        return matrix

    def confusion(self, thresholds: dict[str, float], weight: np.ndarray) -> dict[str, Any]:
        """Return the counts without the column of missing predictions where it is empty."""
        counts = self.confusion_matrix(thresholds, weight).astype(int)
        return {"confusion": (counts if counts[:, -1].any() else counts[:, :-1]).tolist()}

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table, the confusion matrix and the ROC curve of each class (of two: of the positive one)."""
        weight = self.image_weights(None)
        matrix = self.confusion_matrix(thresholds, weight)
        precision, recall, f1 = self._per_class(matrix)
        areas = self._areas(weight)
        per_class = {
            name: {
                "precision": float(precision[index]), "recall": float(recall[index]), "f1": float(f1[index]),
                "auroc": float(areas[index]), "n": int(matrix[index].sum()),
            }
            for index, name in enumerate(self.spec.classes)
        }  # fmt: skip
        classes, counts = list(self.spec.classes), matrix.astype(int)
        predicted = [*classes, "no prediction"] if counts[:, -1].any() else classes
        confusion = {"classes": classes, "predicted": predicted, "counts": counts[:, : len(predicted)].tolist()}
        return {"per_class": per_class, "curves": {"confusion": confusion, "roc": self._roc(thresholds, matrix, areas)}}

    def scored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return [n, C] probabilities (NaN where there is no prediction), [n] labels and [n] positions of the records."""
        return self.cached("scored images or objects", self._collect)

    def _collect(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes = len(self.spec.classes)
        rows = [np.asarray(record["probabilities"], np.float64).reshape(-1, classes) for record in self.records]
        labels = [np.asarray(record["label"], np.int64).reshape(-1) for record in self.records]
        index = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return np.concatenate([np.zeros((0, classes)), *rows]), np.concatenate([np.zeros(0, np.int64), *labels]), index

    def _predicted(self) -> np.ndarray:
        """[n] bool, which of `scored` got a prediction."""
        return self.cached("predicted", lambda: ~np.isnan(self.scored()[0]).any(1))

    def _matrices(self, thresholds: dict[str, float]) -> np.ndarray:
        """[records, C, C + 1] confusion counts per image."""

        def count() -> np.ndarray:
            probabilities, labels, index = self.scored()
            classes = len(self.spec.classes)
            predicted = predicted_classes(probabilities, self.spec, thresholds)
            predicted[~self._predicted()] = classes
            counts = np.zeros((len(self.records), classes, classes + 1))
            np.add.at(counts, (index, labels, predicted), 1.0)
            return counts

        return self.cached(("confusion", thresholds.get(self.positive)), count)

    def _scores(self, index: int) -> BinaryScores:
        """The ranked scores of a class, of those that have one."""

        def rank() -> BinaryScores:
            probabilities, labels, _ = self.scored()
            return BinaryScores(probabilities[self._predicted(), index], labels[self._predicted()] == index)

        return self.cached(("scores", index), rank)

    def _areas(self, weight: np.ndarray) -> np.ndarray:
        """[C] area under the ROC curve of each class against the rest."""
        by_row = weight[self.scored()[2][self._predicted()]]
        if self.positive:  # of two classes both areas are the same, if probabilities add up to 1
            return np.full(2, self._scores(positive_index(self.spec)).auroc(by_row))
        return np.array([self._scores(c).auroc(by_row) for c in range(len(self.spec.classes))])

    def _roc(self, thresholds: dict[str, float], matrix: np.ndarray, areas: np.ndarray) -> dict[str, Any]:
        """By class the curve, its area, and where on it (of the most probable class: near it) the decisions are."""
        total, claimed = matrix.sum(), matrix.sum(0)
        curves = {}
        for index, name in enumerate(self.spec.classes):
            if self.positive and name != self.positive:
                continue
            truth, hits = matrix[index].sum(), matrix[index, index]
            point: dict[str, float] = {
                "false_positive_rate": float(ratio(claimed[index] - hits, total - truth)),
                "true_positive_rate": float(ratio(hits, truth)),
            }
            if self.positive:
                point["threshold"] = float(thresholds.get(name, DEFAULT_THRESHOLD))
            curves[name] = {**self._scores(index).roc(), "auroc": float(areas[index]), "operating_point": point}
        return curves

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
        """Keep `probabilities` [N, C] (NaN where an object got none) and `label` [N] of the annotated objects of one image."""
        classes = len(self.spec.classes)
        found = np.asarray(prediction["probabilities"], np.float32).reshape(-1, classes)
        place = {identity: row for row, identity in enumerate(np.asarray(prediction["ids"]).tolist())}
        rows = np.array([place.get(identity, -1) for identity in np.asarray(truth["ids"]).tolist()], np.int64)
        probabilities = np.full((len(rows), classes), np.nan, np.float32)
        probabilities[rows >= 0] = found[rows[rows >= 0]]
        return {"probabilities": probabilities, "label": np.asarray(truth["labels"], np.int64).reshape(-1)}

    def notes(self) -> list[str]:
        """Return how many objects have no score."""
        missing = int((~self._predicted()).sum())
        return [f"{missing} annotated objects got no prediction: they count as errors, but are in no AUROC."] if missing else []


class ClassificationMetric(ConfusionMetric):
    """One class per image.

    Adds `quadratic_kappa` (see there) where the classes are ordered; where there are two, `sensitivity` (recall of the
    positive class, see `mtl.core.decision`) and `specificity` (recall of the other one), NaN where the class does not occur.
    """

    @classmethod
    def names_of(cls, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of all tasks, and those of grades and of two classes."""
        return cls.names + (ORDINAL_METRICS if spec.ordinal else ()) + (BINARY_METRICS if len(spec.classes) == 2 else ())

    def image_value(self, record: dict[str, Any], thresholds: dict[str, float]) -> float:
        """Return the probability of the annotated class, which tells a near miss from a confident error."""
        return float(record["probabilities"][record["label"]])

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Keep the probabilities [C] and the label of one image."""
        probabilities = np.asarray(prediction["probabilities"], np.float64).reshape(-1)
        return {"probabilities": probabilities, "label": np.int64(truth["label"])}

    def _from_matrix(self, matrix: np.ndarray) -> dict[str, float]:
        values = super()._from_matrix(matrix)
        if len(matrix) == 2:
            recall, positive = ratio(matrix.diagonal(), matrix.sum(1)), positive_index(self.spec)
            values |= {"sensitivity": float(recall[positive]), "specificity": float(recall[1 - positive])}
        # Every image of such a task has a prediction, so the last column is empty.
        return values | ({"quadratic_kappa": quadratic_kappa(matrix[:, : len(matrix)])} if self.spec.ordinal else {})


def quadratic_kappa(matrix: np.ndarray) -> float:
    """Return Cohen's kappa with quadratic weights: agreement of grades beyond chance, an error weighing its distance squared.

    Source: Cohen, Weighted kappa, Psychological Bulletin 1968. 1 is full agreement, 0 what chance gives with the same shares of
    grades. NaN where chance could not be wrong either (all labels and all predictions in one grade) or nothing was counted.

    Args:
        matrix: [C, C] counts or weights, truth in rows, in the order of the grades.
    """
    grade = np.arange(len(matrix))
    distance = (grade[:, None] - grade[None, :]) ** 2.0
    by_chance = np.outer(matrix.sum(1), matrix.sum(0))
    # Both sides times the number of labels, which then cancels.
    return float(1 - ratio(matrix.sum() * (distance * matrix).sum(), (distance * by_chance).sum()))
