"""A network for MR slices that needs no training: what is bright is tumour."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl.core.task import TaskSpec
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing

REGIONS = ("whole_tumor", "tumor_core", "enhancing_tumor")
SPECS = {
    "whole_tumor": TaskSpec("whole_tumor", "segmentation", ("whole_tumor",), label="mask:whole_tumor", volumetric=True),
    "tumor_regions": TaskSpec(
        "tumor_regions", "segmentation", REGIONS, label="mask:tumor_regions", volumetric=True, labels=((2, 1, 4), (1, 4), (4,))
    ),
    "presence": TaskSpec("presence", "classification", ("no_tumor", "tumor"), label="class:presence"),
}
STRETCH = Geometry(mode="stretch", size=(64, 64))
LETTERBOX = Geometry(mode="letterbox", size=(64, 64))
FOREGROUND = {"method": "zscore", "limit": 4.0}


class BrightModel(nn.Module):
    """Offers what `MultiTaskModel` offers; probabilities are the last channel, shifted for the inner regions."""

    def __init__(self, geometry: Geometry = STRETCH, channels: int = 1, foreground: bool = False, tasks: Any = None) -> None:
        super().__init__()
        unit = 0.0, 1.0
        self.preprocessing = Preprocessing(
            geometry, mean=(unit[0],) * channels, std=(unit[1],) * channels, foreground=FOREGROUND if foreground else None
        )
        self.specs = {task: SPECS[task] for task in tasks or ("whole_tumor", "presence")}
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> dict[str, Any]:
        self.seen.append(images)
        return dict.fromkeys(self.specs, images)

    def decode(self, outputs: dict[str, Any], boxes: Any = None) -> dict[str, list[dict[str, Tensor]]]:
        images = next(iter(outputs.values()))
        bright = images[:, -1:].clamp(0, 1)
        share = (bright > 0.5).float().mean(dim=(1, 2, 3))
        rows = {
            "whole_tumor": [{"probabilities": row} for row in bright],
            "tumor_regions": [{"probabilities": torch.cat([row, row - 0.2, row - 0.4]).clamp(0, 1)} for row in bright],
            "presence": [{"probabilities": torch.stack([1 - s, s])} for s in (share > 0).float() * 0.6 + 0.2],
        }
        return {task: rows[task] for task in self.specs}


def head(size: tuple[int, int], square: tuple[int, int, int, int], level: float = 0.3, bright: float = 1.0) -> np.ndarray:
    """A grey ellipse on black with a brighter rectangle (top, left, bottom, right)."""
    y, x = np.mgrid[: size[0], : size[1]]
    inside = ((y - size[0] / 2) / (0.45 * size[0])) ** 2 + ((x - size[1] / 2) / (0.45 * size[1])) ** 2 < 1
    # A little texture: a head without any contrast is blank.
    image = np.where(inside, level * (1 + 0.1 * np.sin(x / 3.0)), 0.0).astype(np.float32)
    image[square[0] : square[2], square[1] : square[3]] = bright
    return image
