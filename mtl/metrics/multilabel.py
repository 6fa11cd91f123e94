"""Several independent classes per image, each of which may be unknown."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD, predicted_labels
from mtl.core.types import Arrays
from mtl.metrics.base import TaskMetric, mean_of, precision_recall_f1, ratio
from mtl.metrics.binary import BinaryScores, f1_score


class MultilabelMetric(TaskMetric):
    """Independent classes of an image; what is not known of an image (NaN) counts nowhere.

    - `ap_macro` (mAP): mean over classes of the average precision, sum of (R_n - R_(n-1)) P_n over falling thresholds.
    - `auroc_macro`: mean over classes of the area under the ROC curve; a class that is known on one side only has none.
    - `f1_macro`, `f1_micro`: mean F1 over classes, F1 of all entries together, at one threshold per class.
    - `exact_match`: share of the images of which all known classes are right.

    Means are over the classes that occur (of which a positive image is known).
    """

    names = ("ap_macro", "auroc_macro", "f1_macro", "f1_micro", "exact_match")
    class_means = {"ap_macro": "ap", "auroc_macro": "auroc", "f1_macro": "f1"}
    examples = "positives"

    def image_value(self, record: dict[str, Any], thresholds: dict[str, float]) -> float:
        """Return the mean probability of what is known to be true or not, which tells near misses from confident errors."""
        right = np.where(record["truth"] == 1, record["probabilities"], 1 - record["probabilities"])
        return float(mean_of(np.where(np.isnan(record["truth"]), np.nan, right)))

    @property
    def default_thresholds(self) -> dict[str, float]:
        """0.5 for every class."""
        return dict.fromkeys(self.spec.classes, DEFAULT_THRESHOLD)

    def choose_thresholds(self) -> dict[str, float]:
        """Return the threshold of each class with the highest F1; 0.5 for a class that does not occur."""
        return {name: self._scores(index).best_threshold(f1_score) for index, name in enumerate(self.spec.classes)}

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Keep `probabilities` [C] and `truth` [C] (0, 1 or NaN) of one image."""
        return {
            "probabilities": np.asarray(prediction["probabilities"], np.float64).reshape(-1),
            "truth": np.asarray(truth["labels"], np.float64).reshape(-1),
        }

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        if not self.records:
            return dict.fromkeys(self.spec.metrics, float("nan"))
        weight = self.image_weights(weights)
        hits, claimed, truth = self._counts(thresholds, weight)
        occurs = truth > 0
        _, _, f1 = precision_recall_f1(hits, claimed, truth)
        known, right = self._known(), self._right(thresholds)
        judged = weight * known.any(1)
        return {
            "ap_macro": float(mean_of(self._by_class("average_precision", weight))),
            "auroc_macro": float(mean_of(self._by_class("auroc", weight))),
            "f1_macro": float(mean_of(np.where(occurs, f1, np.nan))),
            "f1_micro": float(ratio(2 * hits.sum(), claimed.sum() + truth.sum())) if occurs.any() else float("nan"),
            "exact_match": float(ratio(judged @ (right | ~known).all(1), judged.sum())),
        }

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the per-class table, and the ROC and precision-recall curve of each class."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        weight = self.image_weights(None)
        hits, claimed, truth = self._counts(thresholds, weight)
        precision, recall, f1 = precision_recall_f1(hits, claimed, truth)
        areas = {name: self._by_class(name, weight) for name in ("average_precision", "auroc")}
        known, limits = self._known().sum(0), self.default_thresholds | thresholds
        per_class = {
            name: {
                "ap": float(areas["average_precision"][index]), "auroc": float(areas["auroc"][index]),
                "precision": float(precision[index]), "recall": float(recall[index]), "f1": float(f1[index]),
                "threshold": float(limits[name]), "positives": int(truth[index]), "n": int(known[index]),
            }
            for index, name in enumerate(self.spec.classes)
        }  # fmt: skip
        alarm_rate, hit_rate = ratio(claimed - hits, known - truth), ratio(hits, truth)
        roc, precision_recall = {}, {}
        for index, name in enumerate(self.spec.classes):
            scores = self._scores(index)
            point = {
                "false_positive_rate": float(alarm_rate[index]), "true_positive_rate": float(hit_rate[index]),
                "threshold": float(limits[name]),
            }  # fmt: skip
            roc[name] = {**scores.roc(), "auroc": per_class[name]["auroc"], "operating_point": point}
            if truth[index]:
                precision_recall[name] = scores.precision_recall()
        return {"per_class": per_class, "curves": {"roc": roc, "precision_recall": precision_recall}}

    def notes(self) -> list[str]:
        """Return which classes have no positive image, and how much is not known."""
        if not self.records:
            return []
        truth, known = self.stacked("truth"), self._known()
        without = known.any(0) & ~(truth == 1).any(0)
        silent = [self.spec.classes[index] for index in np.flatnonzero(without)]
        notes = [f"no positive example of {', '.join(silent)} in this split, so no mean contains it."] if silent else []
        if missing := int((~known).sum()):
            notes.append(f"{missing} of {known.size} entries (image and class) are not known and count nowhere.")
        return notes

    def _known(self) -> np.ndarray:
        """[records, C] bool."""
        return self.cached("known", lambda: ~np.isnan(self.stacked("truth")))

    def _claims(self, thresholds: dict[str, float]) -> np.ndarray:
        """[records, C] bool, what is predicted."""
        key = ("claims", tuple(thresholds.get(name) for name in self.spec.classes))
        return self.cached(key, lambda: predicted_labels(self.stacked("probabilities"), self.spec, thresholds))

    def _right(self, thresholds: dict[str, float]) -> np.ndarray:
        """[records, C] bool, where what is predicted is true; never where nothing is known."""
        return self._known() & (self._claims(thresholds) == (self.stacked("truth") == 1))

    def _counts(self, thresholds: dict[str, float], weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, claims and positives, each [C], over the known entries."""
        known, truth = self._known(), self.stacked("truth") == 1
        claims = self._claims(thresholds) & known
        return weight @ (claims & truth), weight @ claims, weight @ truth

    def _scores(self, index: int) -> BinaryScores:
        """The ranked scores of a class, of the images of which it is known."""

        def rank() -> BinaryScores:
            if not self.records:
                return BinaryScores(np.zeros(0), np.zeros(0, bool))
            known = self._known()[:, index]
            return BinaryScores(self.stacked("probabilities")[known, index], self.stacked("truth")[known, index] == 1)

        return self.cached(("scores", index), rank)

    def _by_class(self, name: str, weight: np.ndarray) -> np.ndarray:
        """[C] an area of each class."""
        known = self._known()
        return np.array([getattr(self._scores(c), name)(weight[known[:, c]]) for c in range(len(self.spec.classes))])
