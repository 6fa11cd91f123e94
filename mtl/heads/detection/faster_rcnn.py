"""Faster R-CNN on shared features: torchvision's parts without its wrapper, so one backbone pass serves all tasks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.heads.detection.sampling import ReproducibleSampler
from mtl.heads.pyramid import RoIPooling, equal_channels, overlaps, sanitize_boxes, select_levels
from mtl.layers import attached_zero
from mtl.losses.base import class_weight_tensor
from mtl.losses.classification import softmax_cross_entropy, softmax_focal


@HEADS.register("faster_rcnn")
class FasterRCNNHead(Head):
    """Two-stage detector (Ren et al. 2015, FPN form of Lin et al. 2017).

    Args:
        spec: The task.
        channels: Channels of the maps; equal on all levels.
        strides: Strides of the maps.
        levels: Levels to use (level k has stride 2^k); None uses all.
        anchor_sizes: Anchor side in network pixels: one list per level, or a flat list that is dealt out to the levels, finest
            first; missing levels get twice the size of the level before.
        aspect_ratios: Height / width of the anchors at every location.
        anchor_offset: Position of the anchor centres within a map pixel: 0.5 its middle, 0 its corner (torchvision).
        rpn_pre_nms_top_n_train: Proposals per level that enter NMS in training.
        rpn_pre_nms_top_n_test: The same in evaluation.
        rpn_post_nms_top_n_train: Proposals per image that leave NMS in training.
        rpn_post_nms_top_n_test: The same in evaluation.
        rpn_nms: IoU above which the weaker of two proposals is dropped.
        rpn_fg_iou: Anchors with this IoU or more are objects.
        rpn_bg_iou: Anchors with less are background; those in between do not count.
        rpn_batch_size_per_image: Anchors per image in the loss.
        rpn_positive_fraction: Largest share of objects among them.
        box_fg_iou: Proposals with this IoU or more are objects.
        box_bg_iou: Proposals with less are background.
        box_batch_size_per_image: Proposals per image in the loss.
        box_positive_fraction: Largest share of objects among them.
        roi_resolution: Cells per side of a pooled proposal.
        representation_size: Width of the fully connected layers.
        score_threshold: Lowest score that `decode` returns.
        nms: IoU above which the weaker of two detections of one class is dropped.
        detections_per_image: Most detections per image; must exceed the densest image.
        classification_loss: Loss of the second stage.
        focal_gamma: Focusing exponent of the focal loss.
        focal_alpha: Constant factor of the focal loss.
        class_weights: Weights of the task's classes in the second stage (list or name: weight); background weighs 1.
    """

    kind = "detection"
    mixable = False
    class_weights: Tensor | None

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        levels: list | None = None,
        anchor_sizes: list = [28, 56, 112],  # noqa: B006 (read as a literal, never changed)
        aspect_ratios: list = [0.5, 1.0, 2.0],  # noqa: B006
        anchor_offset: float = 0.5,
        rpn_pre_nms_top_n_train: int = 1000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 600,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms: float = 0.7,
        rpn_fg_iou: float = 0.7,
        rpn_bg_iou: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        box_fg_iou: float = 0.5,
        box_bg_iou: float = 0.5,
        box_batch_size_per_image: int = 256,
        box_positive_fraction: float = 0.25,
        roi_resolution: int = 7,
        representation_size: int = 256,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        detections_per_image: int = 600,
        classification_loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
        focal_alpha: float | None = 0.25,
        class_weights: list | dict | None = None,
    ) -> None:
        super().__init__(spec, channels, strides)
        for stage, low, high in (("rpn", rpn_bg_iou, rpn_fg_iou), ("box", box_bg_iou, box_fg_iou)):
            if low > high:
                raise ConfigError(
                    f"`heads.{spec.name}.{stage}_bg_iou` is {low}, above `{stage}_fg_iou`, {high}: a box would be both "
                    "background and object. Lower the first or raise the second."
                )
        self.positions = select_levels(strides, levels, spec.name)
        self.strides = tuple(strides[position] for position in self.positions)
        width = equal_channels(tuple(channels[position] for position in self.positions), spec.name)
        self.anchor_offset = anchor_offset
        self.classification_loss = classification_loss
        self.focal_gamma = focal_gamma
        self.focal_alpha = focal_alpha
        weights = class_weight_tensor(spec, class_weights)
        with_background = None if weights is None else torch.cat([torch.ones(1), weights])
        self.register_buffer("class_weights", with_background, persistent=False)

        sizes = sizes_per_level(anchor_sizes, len(self.strides), spec.name)
        anchors = AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(width, anchors.num_anchors_per_location()[0]),
            rpn_fg_iou,
            rpn_bg_iou,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            rpn_nms,
        )
        box_head, features = self.build_box_head(width, roi_resolution, representation_size)
        self.roi_heads = RoIHeads(
            RoIPooling(self.strides, roi_resolution),
            box_head,
            FastRCNNPredictor(features, len(spec.classes) + 1),
            box_fg_iou,
            box_bg_iou,
            box_batch_size_per_image,
            box_positive_fraction,
            None,
            score_threshold,
            nms,
            detections_per_image,
        )
        self.rpn.box_similarity = self.roi_heads.box_similarity = overlaps
        self.rpn.fg_bg_sampler = ReproducibleSampler(rpn_batch_size_per_image, rpn_positive_fraction)
        self.roi_heads.fg_bg_sampler = ReproducibleSampler(box_batch_size_per_image, box_positive_fraction)

    def build_box_head(self, channels: int, resolution: int, representation_size: int) -> tuple[nn.Module, int]:
        """Return the module between pooled proposals and the predictor, and the width of its output."""
        return TwoMLPHead(channels * resolution**2, representation_size), representation_size

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Score anchors and propose boxes.

        Returns:
            features: The maps in use. anchors: [A, 4]. objectness: [B, A]. deltas: [B, A, 4]. proposals: B tensors [N, 4].
            image_size: As given.
        """
        maps = [features[position] for position in self.positions]
        objectness, deltas = self.rpn.head(maps)
        per_level = [scores[0].numel() for scores in objectness]
        rows = len(maps[0])
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        flat_objectness, flat_deltas = flat_objectness.float().view(rows, -1), flat_deltas.float().view(rows, -1, 4)
        anchors = self.anchors(maps)
        with torch.no_grad(), torch.autocast(maps[0].device.type, enabled=False):
            boxes = self.rpn.box_coder.decode(flat_deltas.reshape(-1, 4), [anchors] * rows).view(rows, -1, 4)
            proposals, _ = self.rpn.filter_proposals(boxes, flat_objectness, [image_size] * rows, per_level)
        return {
            "features": maps,
            "anchors": anchors,
            "objectness": flat_objectness,
            "deltas": flat_deltas,
            "proposals": proposals,
            "image_size": image_size,
        }

    def anchors(self, maps: list[Tensor]) -> Tensor:
        """Return the anchors of one image, [A, 4] float32 in network pixels.

        torchvision derives strides from sizes and takes the dtype of the maps; in half precision, coordinates would be rounded
        to whole pixels or worse.
        """
        generator, device = self.rpn.anchor_generator, maps[0].device
        generator.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        grids = generator.grid_anchors([list(level.shape[-2:]) for level in maps], strides)
        shifts = [self.anchor_offset * stride for stride in self.strides]
        return torch.cat([grid + shift for grid, shift in zip(grids, shifts, strict=True)])

    def loss(self, output: Output, target: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute the four losses over the sampled anchors and proposals.

        In evaluation mode the sample is the same on every call.
        """
        # torchvision keeps 0 for the background.
        truth = []
        for known in target:
            boxes, labels = sanitize_boxes(known["boxes"], known["labels"])
            truth.append({"boxes": boxes, "labels": labels + 1})
        for sampler in (self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler):
            sampler.fixed = not self.training
        with torch.autocast(output["objectness"].device.type, enabled=False):
            objectness, rpn_box = self.rpn_loss(output, truth)
        classifier, box = self.box_loss(output, truth)
        return {"objectness": objectness, "rpn_box": rpn_box, "classifier": classifier, "box": box}

    def rpn_loss(self, output: Output, truth: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Compute objectness and box loss of the sampled anchors."""
        anchors = [output["anchors"]] * len(truth)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, truth)
        targets = self.rpn.box_coder.encode(matched, anchors)
        return self.rpn.compute_loss(output["objectness"].reshape(-1), output["deltas"].flatten(0, 1), labels, targets)

    def box_loss(self, output: Output, truth: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Compute class and box loss of the sampled proposals."""
        heads = self.roi_heads
        proposals, _, labels_per_row, targets_per_row = heads.select_training_samples(output["proposals"], truth)
        labels, targets = torch.cat(labels_per_row), torch.cat(targets_per_row)
        if len(labels) == 0:
            zero = attached_zero([*heads.parameters(), *output["features"]])
            return zero, zero
        logits, deltas = self.classify(output["features"], proposals)
        if self.classification_loss == "focal":
            classifier = softmax_focal(logits, labels, self.focal_gamma, self.focal_alpha, self.class_weights)
        else:
            classifier = softmax_cross_entropy(logits, labels, self.class_weights)
        positive = torch.where(labels > 0)[0]
        own = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
        box = F.smooth_l1_loss(own, targets[positive], beta=1 / 9, reduction="sum") / len(labels)
        return classifier, box

    def classify(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return float32 class logits [N, C + 1] and deltas [N, 4 (C + 1)] of boxes, one tensor per row."""
        pooled = self.roi_heads.box_roi_pool(features, boxes)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), deltas.float()

    @torch.no_grad()
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return `boxes`, `scores` and 0-based `labels` of all detections above `score_threshold`, best first."""
        proposals = output["proposals"]
        logits, deltas = self.classify(output["features"], proposals)
        with torch.autocast(logits.device.type, enabled=False):
            found = self.roi_heads.postprocess_detections(logits, deltas, proposals, [output["image_size"]] * len(proposals))
        return [{"boxes": boxes, "scores": scores, "labels": labels - 1} for boxes, scores, labels in zip(*found, strict=True)]


def sizes_per_level(sizes: list, levels: int, task: str) -> tuple[tuple[float, ...], ...]:
    """Deal anchor sizes out to levels.

    Args:
        sizes: One list per level, or a flat list.
        levels: Number of levels.
        task: Name of the task, for the error message.

    Raises:
        ConfigError: The sizes cannot be dealt out evenly.
    """
    if sizes and all(isinstance(entry, list | tuple) for entry in sizes):
        if len(sizes) != levels or len({len(entry) for entry in sizes}) != 1:
            raise ConfigError(
                f"`heads.{task}.anchor_sizes`: expected {levels} lists of equal length, one per level; found {list(sizes)}."
            )
        return tuple(tuple(float(size) for size in entry) for entry in sizes)
    flat = [float(size) for size in sizes]
    while 0 < len(flat) < levels:
        flat.append(2 * flat[-1])
    if not flat or len(flat) % levels:
        raise ConfigError(
            f"`heads.{task}.anchor_sizes`: {len(flat)} sizes cannot be dealt out evenly to {levels} levels; "
            "give one list per level."
        )
    share = len(flat) // levels
    return tuple(tuple(flat[index * share : (index + 1) * share]) for index in range(levels))
