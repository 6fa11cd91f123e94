"""One number per image."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.types import Arrays
from mtl.metrics.base import TaskMetric, bland_altman, ratio, weighted_pearson


class RegressionMetric(TaskMetric):
    """One number per image, in the unit of the task.

    - `pearson`: Pearson r (NaN below 3 images or where one side is constant). It is the primary metric unless
      `evaluation.primary` says otherwise: bounded by 1, and comparable between tasks of any unit. It does not see a wrong
      offset or scale.
    - `mae`, `rmse`: mean absolute error and root of the mean squared error.
    - `r2`: coefficient of determination, 1 - squared errors / squared deviations of the truth from its mean; 0 is as good as
      that mean and there is no lower bound. NaN where the truth is constant.
    """

    names = ("pearson", "mae", "rmse", "r2")
    image_metric = "mae"

    @property
    def default_thresholds(self) -> dict[str, float]:
        """None."""
        return {}

    def choose_thresholds(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Keep both values, and the predicted standard deviation `spread` where there is one."""
        record = {
            "value": np.float64(np.asarray(prediction["value"]).item()),
            "truth": np.float64(np.asarray(truth["value"]).item()),
        }
        return record | ({"spread": np.float64(np.asarray(prediction["spread"]).item())} if "spread" in prediction else {})

    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalars named in the class docstring."""
        if not self.records:
            return dict.fromkeys(self.spec.metrics, float("nan"))
        weight = self.image_weights(weights)
        predicted, truth = self.stacked("value"), self.stacked("truth")
        error = predicted - truth
        return {
            "pearson": weighted_pearson(predicted, truth, weight),
            "mae": float(ratio(weight @ np.abs(error), weight.sum())),
            "rmse": float(np.sqrt(ratio(weight @ error**2, weight.sum()))),
            "r2": determination(predicted, truth, weight),
        }

    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return what a scatter and a Bland-Altman figure need, with the names of the images and the unit as `sign`."""
        if not self.records:
            return {"per_class": {}, "curves": {}}
        pairs = bland_altman(self.stacked("value"), self.stacked("truth"))
        pairs["names"] = [record["sample_id"] for record in self.records]
        return {"per_class": {}, "curves": {"agreement": {"image": pairs}, "sign": self.spec.unit}}


def determination(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Return the coefficient of determination R2 of [n] predictions, each counted `weights` times; NaN if truth is constant."""
    keep = weights > 0
    predicted, truth, weights = predicted[keep], truth[keep], weights[keep]
    if not len(truth) or np.ptp(truth) == 0:
        return float("nan")
    deviation = truth - weights @ truth / weights.sum()
    return float(1 - (weights @ (predicted - truth) ** 2) / (weights @ deviation**2))
