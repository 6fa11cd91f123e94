"""The smallest segmentation head, behind a neck that does the work."""

from __future__ import annotations

from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead


@HEADS.register("pixelwise")
class PixelwiseHead(SegmentationHead):
    """A 1x1 convolution on the finest map it reads.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps; logits have the finest one.
        loss: The loss (a name and its keys).
    """

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...], *, loss: dict) -> None:
        super().__init__(spec, channels, strides, loss)
        self.logits = nn.Conv2d(channels[0], len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        """Compute logits at the stride of the finest map."""
        logits: Tensor = self.logits(features[0])
        return logits
