"""Regression: one number per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.imaging.outlines import Size
from mtl.kinds.base import Annotations, RecordChange, TaskKind, TaskPrediction, TrainingStatistics, rounded
from mtl.metrics.regression import RegressionMetric
from mtl.stitching.joiners import MeanJoiner


@KINDS.register("regression")
class Regression(TaskKind):
    """Prediction: `value` () in the unit of the task, and its standard deviation `spread` () where the loss teaches one.

    Target: the number.
    """

    metric_class = RegressionMetric
    lower_is_better = frozenset({"mae", "rmse"})
    image_level = True

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return the number as a float32 scalar."""
        if not annotations.knows(spec.label):
            return None
        return np.float32(annotations.labels[spec.label_name])

    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> Any:
        """Return [B] float32; 0 where absent."""
        import torch

        return torch.tensor([0.0 if row is None else float(row) for row in rows], dtype=torch.float32)

    def truth(self, target: Any) -> Arrays:
        """Return `value` ()."""
        return {"value": np.asarray(target)}

    def joiner(self) -> MeanJoiner:
        """Average over windows."""
        return MeanJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Return the baseline that predicts the mean of training; NaN where the index of the images does not tell it."""
        mean = statistics.means.get(spec.name, float("nan"))
        number = f"{mean:.3g} {spec.unit}".rstrip() if np.isfinite(mean) else "(not known)"
        return {f"training mean {number}": lambda record: {"value": np.float64(mean)}}

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return the number, its unit, and how far it may be off (one standard deviation) where that is known."""
        unit = {"unit": found.spec.unit} if found.spec.unit else {}
        spread = {"spread": rounded(found.arrays["spread"])} if "spread" in found.arrays else {}
        return {"value": rounded(found.arrays["value"]), **unit, **spread}

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return a column named like the task, and one for the standard deviation."""
        return [spec.name, f"{spec.name}_spread"]

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number and its standard deviation."""
        return {spec.name: entry["value"], f"{spec.name}_spread": entry.get("spread", "")}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return the annotated and the predicted number with their unit, and the standard deviation where there is one."""
        numbers = {"annotated": record["truth"], "predicted": record["value"]}
        numbers |= {"spread": record["spread"]} if "spread" in record else {}
        found: dict[str, Any] = {name: float(f"{float(value):.6g}") for name, value in numbers.items()}
        return found | ({"unit": spec.unit} if spec.unit else {})

    def words(self, found: TaskPrediction) -> str:
        """Return the number with its unit."""
        spread = f" ± {float(found.arrays['spread']):.2g}" if "spread" in found.arrays else ""
        return f"{float(found.arrays['value']):.4g}{spread} {found.spec.unit}".rstrip()
