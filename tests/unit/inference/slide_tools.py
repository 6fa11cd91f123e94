"""Small slides, and a network for them that needs no training: it tells tissue by colour and finds dark dots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.heads.heatmap import find_peaks
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing
from mtl.inference.predictor import Predictor

TISSUE = TaskSpec("tissue", "segmentation", ("tumor", "stroma", "other"), label="mask:tissue", multilabel=False)
CELLS = TaskSpec("cells", "points", ("lymphocyte",), resolution=2.0, colours=((255, 235, 0),))
TILES = Geometry(mode="tiles", size=(64, 64), scale=2.0, overlap=32, fill=255)
RADIUS = 6.0
COLOURS = {"tumor": (150, 60, 170), "stroma": (235, 130, 175), "glass": (242, 242, 244)}
DARK = (40, 20, 90)


class DotModel(nn.Module):
    """Offers what `MultiTaskModel` offers; every pixel depends on its neighbours at most 2 pixels away.

    A pixel is tumour, stroma or other by the nearest of three colours; a cell is a dark spot.
    """

    def __init__(self, geometry: Geometry = TILES, tasks: tuple[str, ...] = ("tissue", "cells")) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(geometry, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.specs = {task: {"tissue": TISSUE, "cells": CELLS}[task] for task in tasks}
        self.seen = 0

    def forward(self, images: Tensor) -> dict[str, Any]:
        self.seen += len(images)
        return dict.fromkeys(self.specs, nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False))

    def decode(self, outputs: dict[str, Any], boxes: Any = None) -> dict[str, list[dict[str, Tensor]]]:
        smooth = next(iter(outputs.values()))
        rows: dict[str, list[dict[str, Tensor]]] = {}
        if "tissue" in self.specs:
            colours = torch.tensor(list(COLOURS.values())).view(1, 3, 3, 1, 1) / 255
            logits = -60 * (smooth[:, None] - colours).square().sum(dim=2)
            rows["tissue"] = [{"probabilities": row} for row in logits.softmax(dim=1)]
        if "cells" in self.specs:
            dark = (0.55 - smooth[:, :1]).clamp(0, 1) * 2
            rows["cells"] = [
                {"points": points, "scores": scores, "labels": labels, "radius": torch.tensor(RADIUS)}
                for points, scores, labels in find_peaks(dark, 7, 0.1, 500, False)
            ]
        return rows


def make_predictor(geometry: Geometry = TILES, tasks: tuple[str, ...] = ("tissue", "cells"), **options: Any) -> Predictor:
    model = DotModel(geometry, tasks)
    study = {"til_score": STUDY_METRICS.build({"name": "til_score"}, model.specs)} if len(tasks) > 1 else {}
    settings = {"batch_size": 3, "pixel_scale": 2.0, "microns": True, "thresholds": {"cells": {"score": 0.7}}, "study": study}
    return Predictor(model, device="cpu", **{**settings, **options})


def generate(height: int, width: int, seed: int = 0, dots: int = 60) -> np.ndarray:
    """Tissue left of a wavy line, with nests of tumour and dark dots of several depths; glass on the right."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.empty((height, width, 3), np.uint8)
    image[:] = COLOURS["glass"]
    tissue = x < width * (0.75 + 0.05 * np.sin(y / 17))
    image[tissue] = COLOURS["stroma"]
    for _ in range(4):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width * 0.6), rng.uniform(0.08, 0.2) * width
        image[((y - cy) ** 2 + (x - cx) ** 2 < r * r) & tissue] = COLOURS["tumor"]
    for cy, cx in rng.uniform((3, 3), (height - 3, width * 0.7), (dots, 2)):
        spot = (y + 0.5 - cy) ** 2 + (x + 0.5 - cx) ** 2 < 3.2**2
        image[spot] = np.rint(np.asarray(DARK) * rng.uniform(1, 1.9)).astype(np.uint8)
    noise = rng.integers(-6, 7, (height, width, 1))
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray, spacing: float | None = 0.5, tile: int = 64, **options: Any) -> Path:
    """Write a tiled TIFF; without a spacing the resolution tags say 72 dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = (72, 72) if spacing is None else (10_000 / spacing, 10_000 / spacing)
    options = {"compression": "zlib", "photometric": "rgb" if image.ndim == 3 else "minisblack", **options}
    tifffile.imwrite(
        path, image, tile=(tile, tile) if tile else None, resolution=resolution,
        resolutionunit="INCH" if spacing is None else "CENTIMETER", metadata=None, **options,
    )  # fmt: skip
    return path
