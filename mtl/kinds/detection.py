"""Detection: boxes with a class and a score."""

from __future__ import annotations

import numpy as np

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.drawing.layers import Layers
from mtl.kinds.base import RecordChange, TaskPrediction, TrainingStatistics
from mtl.kinds.objects import FoundObjects, without_predictions
from mtl.metrics.base import TaskMetric, mean_of
from mtl.metrics.detection import DetectionMetric
from mtl.stitching.joiners import BoxJoiner


@KINDS.register("detection")
class Detection(FoundObjects):
    """Prediction: `boxes` [N, 4], `scores`, `labels`, above the head's low floor, best first."""

    metric_class = DetectionMetric
    lower_is_better = frozenset({"count_mae"})
    finds = "boxes"
    counted = True
    place = "box"

    def joiner(self) -> BoxJoiner:
        """Join boxes by territory."""
        return BoxJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Detect nothing, and expect the mean count of training."""
        counted = " (count: training mean)" if statistics.images.get(spec.name) else ""
        return {f"nothing detected{counted}": without_predictions}

    def baseline_metrics(self, metric: TaskMetric, statistics: TrainingStatistics) -> dict[str, float]:
        """Return the numbers of no detection, and the count error of the mean count."""
        found, task = super().baseline_metrics(metric, statistics), metric.spec.name
        if statistics.images.get(task):
            expected = sum(statistics.class_counts[task]) / statistics.images[task]
            errors = [abs(record["truth"].sum() - expected) for record in metric.records]
            found["count_mae"] = float(mean_of(np.array(errors)))
        return found

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Add the boxes, the largest class at the back, so that the rare one stays visible, and their counts."""
        spec, kept, scale = found.spec, found.kept, np.tile([found.size[1], found.size[0]], 2).astype(np.float32)
        boxes, labels = found.arrays["boxes"][kept].reshape(-1, 4) / scale, found.arrays["labels"][kept]
        counts = np.bincount(labels.astype(np.int64), minlength=len(spec.classes))
        for index in np.argsort(-counts, kind="stable"):
            layers.boxes.append((spec.classes[index], boxes[labels == index]))
        layers.legend += [(layers.colours[name], f"{name} {counts[i]}") for i, name in enumerate(spec.classes)]
