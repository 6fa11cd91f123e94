"""Points: the middles of small objects, found at a known scale."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import REGION, Arrays, Objects
from mtl.drawing.layers import Layers
from mtl.kinds.base import Annotations, RecordChange, TaskPrediction, TrainingStatistics
from mtl.kinds.objects import FoundObjects, without_predictions
from mtl.metrics.matching import ranked_record
from mtl.metrics.points import DENSEST, PointsMetric
from mtl.stitching.joiners import PointJoiner


@KINDS.register("points")
class Points(FoundObjects):
    """Prediction: `points` [N, 2], `scores`, `labels`, best first, and `radius` (): below it two points are one object.

    Target as of all objects, with `region` [h, w] bool where it is known in which part objects were looked for.
    """

    metric_class = PointsMetric
    lower_is_better = frozenset({"count_mae"})
    fixed_scale = True
    finds = "points"
    counted = True
    place = "point"

    def metric(self, spec: TaskSpec, hit_radius: float) -> PointsMetric:
        """Return a metric that hits within a radius."""
        return PointsMetric(spec, hit_radius)

    def mask_names(self, spec: TaskSpec) -> set[str]:
        """Return the region in which objects were looked for."""
        return {REGION}

    def chosen(self, annotations: Annotations) -> Objects:
        """Return the objects whose point the raster shows."""
        return annotations.pointed

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return the rows of the objects, with the region where there is one."""
        found = super().target(spec, annotations)
        if found is not None and annotations.region is not None:
            found["region"] = annotations.region
        return found

    def joiner(self) -> PointJoiner:
        """Join points by territory."""
        return PointJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Find nothing, or a lattice as dense as the points in training."""
        densities = statistics.densities.get(spec.name, [0.0])
        dense = np.minimum(densities, DENSEST)
        training = ", as in training" if sum(dense) == sum(densities) else ""
        found = {f"a lattice of {sum(dense):,.0f} points per mm2{training}": _lattice(dense)} if sum(dense) else {}
        return found | {"nothing found": without_predictions}

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Add the points and their counts."""
        spec, kept, scale = found.spec, found.kept, np.array([found.size[1], found.size[0]], np.float32)
        width = found.size[1] if found.window is None else found.window.working_size[1]
        layers.dot_radius = _dot_radius(found.arrays) / width
        points, labels = found.arrays["points"][kept].reshape(-1, 2) / scale, found.arrays["labels"][kept]
        for index, name in enumerate(spec.classes):
            layers.dots.append((name, points[labels == index]))
            layers.legend.append((layers.colours[name], f"{name} {int((labels == index).sum())}"))


def _lattice(densities: np.ndarray) -> RecordChange:
    """Predict points that know nothing of the image, evenly spread and as dense per class as said (per mm2).

    The first points of a lattice score best, so that each threshold leaves a sparser one; where in an image they begin differs,
    lest all images gain a point at one threshold. Every point reaches the default threshold of 0.5.
    """

    def change(record: dict[str, Any]) -> dict[str, Any]:
        start = zlib.crc32(record["sample_id"].encode()) / 2**32
        density = (np.arange(len(record["chance"])) + start) / record["frame"]
        placed, labels = np.nonzero((density[:, None] < densities) & (record["chance"] >= 0))
        scores = 1 - 0.5 * density[placed] / densities[labels]
        return ranked_record(scores, labels, record["chance"][placed, labels], record["truth"])

    return change


def _dot_radius(arrays: Arrays) -> float:
    """Return the distance below which two points would be one object; of an annotation, a quarter of a box."""
    if "radius" in arrays:
        return float(arrays["radius"])
    sides = np.asarray(arrays.get("boxes", []), np.float32).reshape(-1, 2, 2)
    return float(np.median(sides[:, 1] - sides[:, 0])) / 4 if len(sides) else 0.0
