"""What a task's metric does: keep one small record per whole image, decide at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from mtl.core.task import TaskSpec

Arrays = dict[str, np.ndarray]


class TaskMetric(ABC):
    """Scores one task over whole images.

    `update` reduces an image to a small record (numpy, picklable); everything else works on records, so that ranks exchange
    records once per epoch, thresholds are re-applied without a forward pass, and a bootstrap is a re-weighting.

    Attributes:
        records: One dict per image, each with `sample_id`, `group` and `source`.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.records: list[dict[str, Any]] = []

    @abstractmethod
    def reduce(self, prediction: Arrays, truth: Arrays, scale: tuple[float, float]) -> dict[str, Any]:
        """Reduce one image to a record; `scale` is (x, y) working pixels per reference pixel."""

    @abstractmethod
    def choose_thresholds(self) -> dict[str, float]:
        """Pick the decision thresholds on the records at hand (validation, by the caller's promise)."""

    @abstractmethod
    def compute(self, thresholds: dict[str, float], weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the scalar metrics (names of `KIND_METRICS` at least).

        Args:
            thresholds: From `choose_thresholds` on validation, or the defaults.
            weights: [records] how often each image counts (bootstrap); None counts each once.
        """

    @abstractmethod
    def details(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return `per_class` tables and curves (plain lists) for `metrics.json` and the report."""

    @property
    @abstractmethod
    def default_thresholds(self) -> dict[str, float]:
        """Thresholds in force before any were chosen."""
