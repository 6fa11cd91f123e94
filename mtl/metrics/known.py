"""Means over classes in which a class weighs by how much is known of it."""

from __future__ import annotations

import numpy as np

from mtl.metrics.base import TaskMetric

KNOWN = 10  # examples at which a class weighs half of what it weighs at most


def known_mean(metric: TaskMetric, value: float, thresholds: dict[str, float]) -> float:
    """Return the primary metric with classes weighing n / (n + KNOWN), n being their examples.

    One class of three objects then cannot outweigh what is known well, and well-known classes count almost alike.

    Args:
        metric: With the records of a split.
        value: Its primary metric, returned where it is no mean over classes or no class has an example.
        thresholds: As for `TaskMetric.compute`.
    """
    column = metric.class_means.get(metric.spec.primary_metric)
    rows = metric.details(thresholds)["per_class"].values() if column else ()
    values = np.array([row[column] for row in rows], np.float64)
    examples = np.array([row[metric.examples] for row in rows], np.float64)
    weight = np.where(np.isnan(values), 0.0, examples / (examples + KNOWN))
    if not weight.sum() > 0:
        return value
    return float(weight @ np.nan_to_num(values) / weight.sum())
