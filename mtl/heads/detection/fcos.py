"""FCOS on shared features: torchvision's convolution towers and box coding, without its wrapper."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.heads.pyramid import equal_channels, sanitize_boxes, select_levels


@HEADS.register("fcos")
class FCOSHead(Head):
    """One-stage detector without anchors: class, distances to the four sides and centredness per location (Tian et al. 2020).

    A location is the middle of a map pixel. It answers for the smallest object that contains it, whose centre is near and whose
    size suits the level. An object narrower than the finest stride may contain no location at all; use a finer map then.

    Args:
        spec: The task.
        channels: Channels of the maps; equal on all levels.
        strides: Strides of the maps.
        levels: Levels to use (level k has stride 2^k); None uses all.
        convolutions: 3x3 convolutions in each of the two towers.
        prior_probability: Score of every location before training.
        center_sampling_radius: How near to an object's centre its locations lie, in strides per axis.
        size_limit: A level answers for objects whose farthest side is less than this many strides away; the next level takes
            over there. The coarsest level has no limit.
        focal_alpha: Weight of positives in the focal loss.
        focal_gamma: Focusing exponent of the focal loss.
        score_threshold: Lowest score (geometric mean of class probability and centredness) that `decode` returns.
        nms: IoU above which the weaker of two detections of one class is dropped.
        candidates_per_level: Most detections of a level that enter NMS.
        detections_per_image: Most detections per image; must exceed the densest image.
    """

    kind = "detection"

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        levels: list | None = None,
        convolutions: int = 2,
        prior_probability: float = 0.01,
        center_sampling_radius: float = 1.5,
        size_limit: float = 8.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        candidates_per_level: int = 1000,
        detections_per_image: int = 600,
    ) -> None:
        super().__init__(spec, channels, strides)
        self.positions = select_levels(strides, levels, spec.name)
        self.strides = tuple(strides[position] for position in self.positions)
        width = equal_channels(tuple(channels[position] for position in self.positions), spec.name)
        norm = partial(nn.GroupNorm, math.gcd(32, width))
        self.classification = FCOSClassificationHead(width, 1, len(spec.classes), convolutions, prior_probability, norm)
        self.regression = FCOSRegressionHead(width, 1, convolutions, norm)
        # Distances pass a ReLU; from a bias of 0 half of the locations would start without a gradient.
        nn.init.ones_(self.regression.bbox_reg.bias)
        self.coder = BoxLinearCoder(normalize_by_size=True)
        self.center_sampling_radius = center_sampling_radius
        self.size_limit = size_limit
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.score_threshold = score_threshold
        self.nms = nms
        self.candidates_per_level = candidates_per_level
        self.detections_per_image = detections_per_image

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Predict at every location.

        Returns:
            logits: [B, A, C]. deltas: [B, A, 4] distances in strides. centredness: [B, A] logits. map_pixels: [A, 4] as boxes
            in network pixels. per_level: locations per level. image_size: As given.
        """
        maps = [features[position] for position in self.positions]
        logits = self.classification(maps)
        deltas, centredness = self.regression(maps)
        return {
            "logits": logits.float(),
            "deltas": deltas.float(),
            "centredness": centredness.float().squeeze(2),
            "map_pixels": torch.cat([map_boxes(level, stride) for level, stride in zip(maps, self.strides, strict=True)]),
            "per_level": [level.shape[-2] * level.shape[-1] for level in maps],
            "image_size": image_size,
        }

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute focal, GIoU and centredness loss, each summed over the rows and divided by their positives."""
        logits, deltas, centredness = output["logits"], output["deltas"], output["centredness"]
        with torch.autocast(logits.device.type, enabled=False):
            matched = [self.match(output, *sanitize_boxes(known["boxes"], known["labels"])) for known in target]
            labels, boxes = torch.stack([entry[0] for entry in matched]), torch.stack([entry[1] for entry in matched])
            positive = labels >= 0
            count = positive.sum().clamp(min=1)
            truth = torch.zeros_like(logits)
            truth[positive, labels[positive]] = 1.0
            classification = sigmoid_focal_loss(logits, truth, self.focal_alpha, self.focal_gamma, reduction="sum")
            map_pixels = output["map_pixels"].expand(len(target), -1, -1)[positive]
            predicted = self.coder.decode(deltas[positive], map_pixels)
            box = generalized_box_iou_loss(predicted, boxes[positive], reduction="sum")
            sides = self.coder.encode(map_pixels, boxes[positive])
            across, along = sides[:, 0::2], sides[:, 1::2]
            centred = (across.amin(1) / across.amax(1) * along.amin(1) / along.amax(1)).sqrt()
            centring = F.binary_cross_entropy_with_logits(centredness[positive], centred, reduction="sum")
        return {"classification": classification / count, "box": box / count, "centredness": centring / count}

    def match(self, output: Output, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Assign objects to the locations of one image.

        Returns:
            [A] int64 labels, -1 for background, and [A, 4] boxes (zeros for background).
        """
        map_pixels, per_level = output["map_pixels"], output["per_level"]
        if len(boxes) == 0:
            return labels.new_full((len(map_pixels),), -1), boxes.new_zeros((len(map_pixels), 4))
        centres = (map_pixels[:, :2] + map_pixels[:, 2:]) / 2
        strides = map_pixels[:, 2] - map_pixels[:, 0]
        object_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        near = (centres[:, None] - object_centres).abs().amax(dim=2) < self.center_sampling_radius * strides[:, None]
        sides = torch.cat([centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]], dim=2)
        farthest = sides.amax(dim=2)
        upper = self.size_limit * strides
        lower = torch.cat([upper.new_zeros(per_level[0]), *(part / 2 for part in upper.split(per_level)[1:])])
        upper = torch.cat([*upper.split(per_level)[:-1], upper.new_full((per_level[-1],), torch.inf)])
        fits = near & (sides.amin(dim=2) > 0) & (farthest >= lower[:, None]) & (farthest < upper[:, None])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        area, index = torch.where(fits, areas, torch.inf).min(dim=1)
        matched = area.isfinite()
        return labels[index].where(matched, -1), boxes[index] * matched[:, None]

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `boxes`, `scores` and 0-based `labels` of all detections above `score_threshold`, best first."""
        scores = (output["logits"].sigmoid() * output["centredness"].sigmoid()[..., None]).sqrt()
        classes = scores.shape[2]
        predictions = []
        for row_scores, row_deltas in zip(scores, output["deltas"], strict=True):
            chosen, start = [], 0
            for count in output["per_level"]:
                flat = row_scores[start : start + count].flatten()
                best = flat.topk(min(self.candidates_per_level, len(flat))).indices
                chosen.append(best[flat[best] >= self.score_threshold] + start * classes)
                start += count
            index = torch.cat(chosen)
            location, labels = index.div(classes, rounding_mode="floor"), index % classes
            boxes = clip_boxes_to_image(
                self.coder.decode(row_deltas[location], output["map_pixels"][location]), output["image_size"]
            )
            kept_scores = row_scores.flatten()[index]
            solid = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(dim=1)
            boxes, kept_scores, labels = boxes[solid], kept_scores[solid], labels[solid]
            keep = batched_nms(boxes, kept_scores, labels, self.nms)[: self.detections_per_image]
            predictions.append({"boxes": boxes[keep], "scores": kept_scores[keep], "labels": labels[keep]})
        return predictions


def map_boxes(level: Tensor, stride: int) -> Tensor:
    """Return the pixels of a map as boxes in network pixels, [h * w, 4] float32, row by row."""
    height, width = level.shape[-2:]
    y = torch.arange(height, device=level.device, dtype=torch.float32) * stride
    x = torch.arange(width, device=level.device, dtype=torch.float32) * stride
    top, left = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))
    return torch.stack([left, top, left + stride, top + stride], dim=1)
