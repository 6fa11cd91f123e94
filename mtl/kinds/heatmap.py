"""Heatmaps: a map with a peak at every object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtl.core.heatmap import render_heatmap
from mtl.core.raster import to_original
from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Objects
from mtl.drawing.layers import Layers
from mtl.drawing.palette import PEAK_COLOUR
from mtl.kinds.base import Annotations, RecordChange, TaskPrediction, TrainingStatistics
from mtl.kinds.objects import FoundObjects, without_predictions
from mtl.metrics.heatmap import HeatmapMetric
from mtl.stitching.joiners import PeakJoiner


@KINDS.register("heatmap")
class Heatmap(FoundObjects):
    """Prediction: `heatmap` [K, h, w], `stride` (working pixels), `sigma` (map pixels); peaks: `points`, `scores`, `labels`."""

    metric_class = HeatmapMetric
    lower_is_better = frozenset({"mse", "mae"})
    finds = "points"
    place = "point"

    def metric(self, spec: TaskSpec, hit_radius: float) -> HeatmapMetric:
        """Return a metric whose peaks hit within a radius."""
        return HeatmapMetric(spec, hit_radius)

    def chosen(self, annotations: Annotations) -> Objects:
        """Return the objects whose peak may be drawn."""
        return annotations.peaks

    def joiner(self) -> PeakJoiner:
        """Blend maps, join peaks by territory."""
        return PeakJoiner()

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Predict zero everywhere."""
        return {"zero everywhere": _zero}

    def maps(self, found: TaskPrediction) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield the map of each class, 16 bit."""
        assert found.window is not None
        names = found.spec.classes if len(found.spec.classes) > 1 else ("",)
        for name, channel in zip(names, found.arrays["heatmap"], strict=True):
            full = to_original(channel, found.window, stride=float(found.arrays["stride"]))
            yield "heatmap", name, np.rint(np.clip(full, 0, 1) * 65535).astype(np.uint16)

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Add the peaks, and the highest value of all classes as heat."""
        arrays, scale = found.arrays, np.array([found.size[1], found.size[0]], np.float32)
        layers.points = np.concatenate([layers.points, arrays["points"][found.kept].reshape(-1, 2) / scale])
        layers.legend.append((PEAK_COLOUR, f"{found.spec.name} {len(layers.points)}"))
        if "heatmap" in arrays:
            layers.heat = np.clip(np.asarray(arrays["heatmap"], np.float32).max(axis=0), 0.0, 1.0)
            raster = np.array(found.size if found.window is None else found.window.working_size)
            covered = np.array(layers.heat.shape) * float(arrays["stride"])
            layers.heat_extent = (float(covered[0] / raster[0]), float(covered[1] / raster[1]))

    def reference(self, spec: TaskSpec, truth: Arrays, prediction: Arrays) -> Arrays:
        """Return the annotation with a map like the predicted one, so that both show the same panels."""
        import torch

        stride, sigma = float(prediction["stride"]), float(prediction["sigma"])
        points, labels = torch.from_numpy(truth["points"]), torch.from_numpy(truth["labels"])
        height, width = prediction["heatmap"].shape[1:]
        heatmap = render_heatmap(points, labels, len(spec.classes), (height, width), stride, sigma)
        return {**truth, "heatmap": heatmap.numpy(), "stride": prediction["stride"]}


def _zero(record: dict[str, Any]) -> dict[str, Any]:
    sums = record["sums"].copy()
    sums[:, [1, 3, 5]] = 0
    sums[:, 6], sums[:, 7] = sums[:, 2], sums[:, 4]
    return without_predictions(record) | {"sums": sums}
