"""A network that needs no training: it finds red and blue squares on black by their colour."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing
from mtl.metrics.base import StudyMetric

STRIDE = 4
SPECS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy"), colours=((225, 25, 25), (30, 90, 245))),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy")),
    "segmentation": TaskSpec("segmentation", "segmentation", ("cell",), label="mask:cell"),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    "grade": TaskSpec("grade", "classification", ("none", "some"), label="class:grade"),
}


STUDY = {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)}


class SquareModel(nn.Module):
    """Offers what `MultiTaskModel` offers."""

    def __init__(self, preprocessing: Preprocessing, specs: dict[str, TaskSpec]) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.specs = specs
        self.batches: list[int] = []

    def forward(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, Any]:
        self.batches.append(len(images))
        return dict.fromkeys(self.specs if tasks is None else tasks, images)

    def decode(self, outputs: dict[str, Any], boxes: list[Tensor] | None = None) -> dict[str, list[dict[str, Tensor]]]:
        images = next(iter(outputs.values()))
        rows = [self.row(image) for image in images]
        return {task: [row[task] for row in rows] for task in outputs if task in rows[0]}

    def row(self, image: Tensor) -> dict[str, dict[str, Tensor]]:
        boxes, scores, labels = [], [], []
        pixels = image.numpy()
        for label, channel in ((0, 0), (1, 2)):
            count, _, stats, _ = cv2.connectedComponentsWithStats((pixels[channel] > 0.5).astype(np.uint8))
            for x, y, w, h, area in stats[1:count]:
                boxes.append([x, y, x + w, y + h])
                labels.append(label)
                scores.append(min(0.3 + area / 1000, 0.99))
        tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        score, label = torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
        red = label == 0
        heatmap = nn.functional.avg_pool2d(image[None, :1].clamp(0, 1), STRIDE)[0]
        probabilities = torch.stack([0.9 - 0.8 * label.float(), 0.1 + 0.8 * label.float()], 1)
        return {
            "detection": {"boxes": tensor, "scores": score, "labels": label},
            "roi": {"probabilities": probabilities},
            "segmentation": {"probabilities": (image.amax(0, keepdim=True) > 0.5).float() * 0.9},
            "heatmap": {
                "heatmap": heatmap, "points": (tensor[red, :2] + tensor[red, 2:]) / 2, "scores": score[red],
                "labels": label[red], "stride": torch.tensor(float(STRIDE)), "sigma": torch.tensor(1.0),
            },
            "grade": {"probabilities": torch.tensor([0.25, 0.75])},
        }  # fmt: skip


@pytest.fixture
def make_model():
    def make(geometry: Geometry | None = None, tasks: tuple[str, ...] = tuple(SPECS)) -> SquareModel:
        geometry = geometry or Geometry(mode="tiles", size=(128, 128), scale=0.5, overlap=32)
        preprocessing = Preprocessing(geometry, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return SquareModel(preprocessing, {task: SPECS[task] for task in tasks})

    return make


@pytest.fixture
def study() -> dict[str, StudyMetric]:
    """The study metrics of the suite."""
    return STUDY


@pytest.fixture
def field() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image [400, 600, 3] with squares of 40 px; their boxes and labels (7 infected of 24)."""
    image = np.zeros((400, 600, 3), np.uint8)
    boxes, labels = [], []
    for number, (y, x) in enumerate((y, x) for y in range(20, 380, 96) for x in range(24, 580, 100)):
        label = 0 if number % 4 == 1 or number == 0 else 1
        image[y : y + 40, x : x + 40, 0 if label == 0 else 2] = 255
        boxes.append([x, y, x + 40, y + 40])
        labels.append(label)
    return image, np.array(boxes, np.float32), np.array(labels)
