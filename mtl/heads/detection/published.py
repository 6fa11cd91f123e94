"""The Faster R-CNN head of the published malaria network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.detection.faster_rcnn import FasterRCNNHead


class ConvBoxHead(nn.Module):
    """Convolutions before one fully connected layer, as published: 3x3, depthwise 3x3, 1x1, each with BatchNorm and ReLU.

    Args:
        channels: Channels of the pooled proposals, in and out of the convolutions.
        resolution: Cells per side of a pooled proposal.
        width: Channels between the convolutions, and width of the output.
    """

    def __init__(self, channels: int, resolution: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(channels * resolution**2, width)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map [N, channels, resolution, resolution] to [N, width]."""
        return self.fc(self.convolutions(pooled).flatten(1)).relu()


@HEADS.register("faster_rcnn_published")
class PublishedFasterRCNNHead(FasterRCNNHead):
    """Faster R-CNN with the published anchors, samplers and box head (1,014,061 parameters for 3 classes, 64 channels).

    The published run used plain cross-entropy: its focal loss was built but never called. Here the choice is a key.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps (published: 8, 16, 32).
        score_threshold: Lowest score that `decode` returns.
        nms: IoU above which the weaker of two detections of one class is dropped.
        detections_per_image: Most detections per image.
        classification_loss: Loss of the second stage.
        focal_gamma: Focusing exponent of the focal loss.
        focal_alpha: Constant factor of the focal loss.
        class_weights: Weights of the task's classes in the second stage; background weighs 1.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        detections_per_image: int = 300,
        classification_loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
        focal_alpha: float | None = 0.25,
        class_weights: list | dict | None = None,
    ) -> None:
        super().__init__(
            spec,
            channels,
            strides,
            anchor_sizes=[28, 56, 112],
            aspect_ratios=[0.75, 0.85, 0.91, 0.96, 1.0],
            anchor_offset=0.0,
            rpn_pre_nms_top_n_train=4000,
            rpn_pre_nms_top_n_test=2000,
            rpn_post_nms_top_n_train=4000,
            rpn_post_nms_top_n_test=2000,
            box_batch_size_per_image=512,
            score_threshold=score_threshold,
            nms=nms,
            detections_per_image=detections_per_image,
            classification_loss=classification_loss,
            focal_gamma=focal_gamma,
            focal_alpha=focal_alpha,
            class_weights=class_weights,
        )

    def build_box_head(self, channels: int, resolution: int, representation_size: int) -> tuple[nn.Module, int]:
        """Return the published box head."""
        return ConvBoxHead(channels, resolution, representation_size), representation_size
