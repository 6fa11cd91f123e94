"""Classification of given boxes on shared features."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.heads.pyramid import RoIPooling, equal_channels, select_levels
from mtl.layers import TolerantBatchNorm1d, attached_zero
from mtl.losses.base import build_loss

# Boxes classified at a time in `decode` and in validation: bounds memory, changes no number.
CHUNK = 1024


@HEADS.register("roi_classifier")
class RoIClassifierHead(Head):
    """Pools each box from the maps and classifies it: RoIAlign, then fully connected layers with norm, ReLU and dropout.

    Trained on annotated boxes; at inference it takes the boxes of a detector.

    Args:
        spec: The task.
        channels: Channels of the maps; equal on all levels.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        levels: Levels to use (level k has stride 2^k); None uses all.
        roi_resolution: Cells per side of a pooled box.
        hidden: Widths of the hidden layers.
        dropout: Dropout after each hidden layer.
        norm: `batch` as published; `layer` does not depend on how many boxes share a batch.
        boxes_per_image: Most boxes of an image in the training loss, drawn at random; None takes all.
        balanced: Draw them with equal chances for every class of the image instead of every box.
    """

    kind = "roi_classification"
    needs_boxes = True
    mixable = False

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        loss: dict,
        levels: list | None = None,
        roi_resolution: int = 7,
        hidden: list = [256, 128],  # noqa: B006 (read as a literal, never changed)
        dropout: list = [0.4, 0.3],  # noqa: B006
        norm: Literal["batch", "layer"] = "layer",
        boxes_per_image: int | None = None,
        balanced: bool = False,
    ) -> None:
        super().__init__(spec, channels, strides)
        if len(hidden) != len(dropout):
            raise ConfigError(
                f"`heads.{spec.name}`: expected one dropout rate per hidden layer; "
                f"found hidden={list(hidden)}, dropout={list(dropout)}."
            )
        self.positions = select_levels(strides, levels, spec.name)
        width = equal_channels(tuple(channels[position] for position in self.positions), spec.name)
        self.pool = RoIPooling(tuple(strides[position] for position in self.positions), roi_resolution)
        layers: list[nn.Module] = []
        size = width * roi_resolution**2
        for wide, rate in zip(hidden, dropout, strict=True):
            normalise = TolerantBatchNorm1d(wide) if norm == "batch" else nn.LayerNorm(wide)
            layers += [nn.Linear(size, wide), normalise, nn.ReLU(inplace=True), nn.Dropout(rate)]
            size = wide
        self.classifier = nn.Sequential(*layers, nn.Linear(size, len(spec.classes)))
        self.criterion = build_loss(loss, spec)
        self.boxes_per_image = boxes_per_image
        self.balanced = balanced

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Hand the maps on: which boxes to classify is known to `loss` and `decode` only."""
        return {"features": [features[position] for position in self.positions], "image_size": image_size}

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute the mean loss over all boxes of the batch: every box counts the same, whichever image it is in."""
        features = output["features"]
        if not any(len(known["labels"]) for known in target):
            return {"class": attached_zero([*self.parameters(), *features])}
        chosen = [self.choose(known["labels"]) for known in target]
        boxes = [known["boxes"][index] for known, index in zip(target, chosen, strict=True)]
        labels = torch.cat([known["labels"][index] for known, index in zip(target, chosen, strict=True)])
        logits = self.classify(features, boxes)
        return {"class": self.criterion(logits, labels)}

    def choose(self, labels: Tensor) -> Tensor:
        """Return the indices of the boxes that enter the loss; all of them in evaluation mode."""
        if not self.training or self.boxes_per_image is None or len(labels) <= self.boxes_per_image:
            return torch.arange(len(labels), device=labels.device)
        chances = torch.ones(len(labels), device=labels.device)
        if self.balanced:
            chances = 1.0 / torch.bincount(labels)[labels]
        return torch.multinomial(chances, self.boxes_per_image)

    def classify(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return float32 logits [sum N, C] of boxes, one tensor per row of the maps."""
        return self.classifier(self.pool(features, boxes).flatten(1)).float()

    @torch.no_grad()
    def decode(self, output: Output, *, boxes: list[Tensor] | None = None, **context: Any) -> list[Prediction]:
        """Classify boxes.

        Args:
            output: Result of `forward`.
            boxes: One [N, 4] tensor in network pixels per row.
            context: Unused.

        Returns:
            Per row `probabilities` [N, C], in the order of the boxes.

        Raises:
            ValueError: No boxes given.
        """
        if boxes is None:
            raise ValueError("roi_classifier.decode needs boxes: one [N, 4] tensor per row of the batch")
        features = output["features"]
        boxes = [row.to(features[0].device) for row in boxes]
        counts = [len(row) for row in boxes]
        found = [features[0].new_zeros((0, len(self.spec.classes)), dtype=torch.float32)]
        for first in range(0, sum(counts), CHUNK):  # of the boxes of all rows, one row after the other
            part, before = [], 0
            for row in boxes:
                part.append(row[max(0, first - before) : max(0, first + CHUNK - before)])
                before += len(row)
            found.append(self.classify(features, part).softmax(dim=1))
        return [{"probabilities": probabilities} for probabilities in torch.cat(found).split(counts)]
