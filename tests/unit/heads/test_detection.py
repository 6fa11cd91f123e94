"""Faster R-CNN and FCOS: anchors, matching, the class loss that is really applied, and learning one image by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads import pyramid
from mtl.heads.detection.faster_rcnn import sizes_per_level
from mtl.heads.pyramid import RoIPooling, overlaps, select_levels

SPEC = TaskSpec("detection", "detection", ("Infected", "Healthy"))
STRIDES = (8, 16, 32)
SIZE = (96, 128)
BOXES = torch.tensor([[10.0, 12, 38, 40], [60, 30, 88, 58], [30, 60, 58, 88]])
LABELS = torch.tensor([0, 1, 1])


def head_of(name: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    return HEADS.build({"name": name, **keys}, SPEC, (32,) * 3, STRIDES)


def maps(rows: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, 32, SIZE[0] // s, SIZE[1] // s, generator=generator) for s in STRIDES)


def target(boxes: torch.Tensor = BOXES, labels: torch.Tensor = LABELS) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": boxes, "labels": labels}]


@pytest.mark.parametrize("name", ["faster_rcnn", pytest.param("faster_rcnn_published", marks=pytest.mark.slow), "fcos"])
def test_learns_one_image_by_heart(name: str) -> None:
    head = head_of(name).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    features = maps()
    for _ in range(40):
        optimizer.zero_grad()
        sum(head.loss(head(features, SIZE), target()).values()).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
    found = head.decode(head(features, SIZE))[0]
    best = {key: value[: len(BOXES)] for key, value in found.items()}
    overlap, partner = box_iou(BOXES, best["boxes"]).max(dim=1)
    assert overlap.min() > 0.6, found
    assert torch.equal(best["labels"][partner], LABELS)


def test_anchor_centres_lie_in_the_middle_of_map_pixels() -> None:
    head, features = head_of("faster_rcnn", aspect_ratios=[1.0]), maps()
    anchors = head.anchors(list(features))
    assert anchors.dtype == torch.float32
    assert len(anchors) == sum(f.shape[-1] * f.shape[-2] for f in features)
    centres, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert centres[0].tolist() == [4, 4] and centres[1].tolist() == [12, 4]
    assert sides[0].tolist() == [28, 28] and sides[-1].tolist() == [112, 112]
    corner = head_of("faster_rcnn", aspect_ratios=[1.0], anchor_offset=0.0).anchors(list(features))
    torch.testing.assert_close(corner + torch.tensor(4.0), torch.cat([anchors[: 12 * 16], corner[12 * 16 :] + 4]))


def test_anchors_keep_their_precision_under_autocast() -> None:
    head = head_of("faster_rcnn")
    exact = head(maps(), SIZE)["anchors"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(tuple(f.bfloat16() for f in maps()), SIZE)
    assert torch.equal(mixed["anchors"], exact)
    assert mixed["deltas"].dtype == torch.float32 and mixed["proposals"][0].dtype == torch.float32


def test_anchors_use_strides_not_sizes() -> None:
    # 100 pixels give 13 map pixels at stride 8; dividing sizes would claim a stride of 7.
    level = torch.zeros(1, 32, 13, 13)
    anchors = head_of("faster_rcnn", levels=[3], aspect_ratios=[1.0], anchor_sizes=[28]).anchors([level])
    assert ((anchors[-1, :2] + anchors[-1, 2:]) / 2).tolist() == [100, 100]


def test_anchor_sizes_are_dealt_out() -> None:
    assert sizes_per_level([28, 56, 112], 3, "t") == ((28,), (56,), (112,))
    assert sizes_per_level([16, 32], 4, "t") == ((16,), (32,), (64,), (128,))
    assert sizes_per_level([16, 32, 64, 128], 2, "t") == ((16, 32), (64, 128))
    assert sizes_per_level([[16, 24], [48, 96]], 2, "t") == ((16, 24), (48, 96))
    for wrong in ([16, 32, 64], [[16], [32, 64]], [[16], [32], [64]], []):
        with pytest.raises(ConfigError, match="anchor_sizes"):
            sizes_per_level(wrong, 2, "t")


def test_focal_loss_and_class_weights_are_really_applied() -> None:
    features = maps()

    def classifier_loss(**keys: Any) -> float:
        head = head_of("faster_rcnn", **keys).eval()
        return head.loss(head(features, SIZE), target())["classifier"].item()

    plain = classifier_loss()
    focal = classifier_loss(classification_loss="focal")
    assert focal < 0.25 * plain  # alpha * (1 - p)^gamma < alpha
    assert classifier_loss(classification_loss="focal", focal_gamma=0.0, focal_alpha=None) == pytest.approx(plain, rel=1e-5)
    assert classifier_loss(classification_loss="focal", focal_gamma=0.5) != pytest.approx(focal)
    assert classifier_loss(class_weights=[20.0, 1.0]) != pytest.approx(plain)
    assert classifier_loss(class_weights={"Healthy": 1.0, "Infected": 1.0}) == pytest.approx(plain)


@pytest.mark.parametrize("name", ["faster_rcnn", "faster_rcnn_published", "fcos"])
def test_score_threshold_is_the_lowest_score(name: str) -> None:
    features = maps(2)
    lowest = []
    for threshold in (0.0, 0.4):
        head = head_of(name, score_threshold=threshold).eval()
        # Untrained scores are all alike.
        if name != "fcos":
            torch.nn.init.normal_(head.roi_heads.box_predictor.cls_score.weight, std=1.0)
        else:
            torch.nn.init.normal_(head.classification.cls_logits.weight, std=0.3)
            torch.nn.init.normal_(head.regression.bbox_ctrness.weight, std=0.3)
        lowest.append(torch.cat([p["scores"] for p in head.decode(head(features, SIZE))]).min())
    assert lowest[0] < 0.4 <= lowest[1]


def test_decode_is_not_capped_at_a_hundred() -> None:
    head = head_of("faster_rcnn", score_threshold=0.0, nms=1.0, rpn_nms=1.0).eval()
    assert len(head.decode(head(maps(), SIZE))[0]["scores"]) == 600
    head = head_of("faster_rcnn", score_threshold=0.0, nms=1.0, rpn_nms=1.0, detections_per_image=7).eval()
    assert len(head.decode(head(maps(), SIZE))[0]["scores"]) == 7


def test_boxes_without_area_do_not_break_the_loss() -> None:
    broken = target(torch.cat([BOXES, torch.tensor([[5.0, 5, 5, 20]])]), torch.cat([LABELS, torch.tensor([0])]))
    for name in ("faster_rcnn", "fcos"):
        head = head_of(name).eval()
        output = head(maps(), SIZE)
        with_it, without = head.loss(output, broken), head.loss(output, target())
        for term, value in without.items():
            assert with_it[term] == value


def test_training_samples_anchors_at_random_and_validation_does_not() -> None:
    head = head_of("faster_rcnn", rpn_batch_size_per_image=16, box_batch_size_per_image=8)
    output = head(maps(), SIZE)
    draws = {head.train().loss(output, target())["objectness"].item() for _ in range(5)}
    fixed = {head.eval().loss(output, target())["objectness"].item() for _ in range(5)}
    assert len(draws) > 1 and len(fixed) == 1


def test_fcos_locations() -> None:
    head = head_of("fcos")
    output = head(maps(), SIZE)
    # A cell of 28 pixels on the finest map only; the smaller of two nested boxes wins; the large one goes to a coarser map.
    boxes = torch.tensor([[20.0, 20, 48, 48], [26, 26, 42, 42], [0, 0, 128, 96]])
    labels, assigned = head.match(output, boxes, torch.tensor([0, 1, 1]))
    map_pixels = output["map_pixels"]
    centres = (map_pixels[:, :2] + map_pixels[:, 2:]) / 2
    finest = torch.arange(len(map_pixels)) < output["per_level"][0]
    inner = torch.nonzero((assigned == boxes[1]).all(1)).flatten()
    assert len(inner) and finest[inner].all()
    assert ((centres[inner] > 26) & (centres[inner] < 42)).all()
    assert (labels[inner] == 1).all()
    large = (assigned == boxes[2]).all(1)
    assert large.any() and not (large & finest).any()
    assert (labels[(assigned == 0).all(1)] == -1).all()
    near = (centres[inner] - torch.tensor([34.0, 34.0])).abs().amax()
    assert near < head.center_sampling_radius * 8


def test_fcos_decodes_what_it_is_taught() -> None:
    head = head_of("fcos", nms=0.5)
    output = head(maps(), SIZE)
    labels, boxes = head.match(output, BOXES, LABELS)
    positive = labels >= 0
    perfect = dict(output)
    perfect["logits"] = torch.full_like(output["logits"], -20.0)
    perfect["logits"][0, positive, labels[positive]] = 20.0
    perfect["deltas"] = torch.zeros_like(output["deltas"])
    perfect["deltas"][0, positive] = head.coder.encode(output["map_pixels"][positive], boxes[positive])
    perfect["centredness"] = torch.full_like(output["centredness"], 20.0)
    found = head.decode(perfect)[0]
    overlap, partner = box_iou(BOXES, found["boxes"]).max(dim=1)
    assert len(found["boxes"]) == 3 and overlap.min() > 0.999
    assert torch.equal(found["labels"][partner], LABELS)
    assert head.loss(perfect, target())["box"] < 1e-5


def test_levels() -> None:
    assert select_levels((4, 8, 16, 32), [5, 3], "t") == [1, 3]
    with pytest.raises(ConfigError, match=r"levels 3 \(/8\), 4 \(/16\), 5 \(/32\); found \[2\]"):
        head_of("fcos", levels=[2])
    with pytest.raises(ConfigError, match="same number of channels"):
        HEADS.build({"name": "fcos"}, SPEC, (8, 16, 32), STRIDES)


def test_pooling_without_a_middle_level() -> None:
    pool = RoIPooling((8, 32), 7)
    features = [torch.full((1, 4, 64, 64), 1.0), torch.full((1, 4, 16, 16), 2.0)]
    boxes = torch.tensor([[10.0, 10, 40, 40], [10, 10, 240, 240], [0, 0, 512, 512]])  # rule: levels 3, 4, 5
    assert pool(features, [boxes]).amax(dim=(1, 2, 3)).tolist() == [1, 1, 2]


@pytest.mark.parametrize("cached", [2**18, 700, 1])  # all rows at once, two of seven, one
def test_overlaps_are_those_of_torchvision(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    boxes, others = (
        torch.cat([corners, corners + 1 + 40 * torch.rand(count, 2, generator=generator)], dim=1)
        for count in (7, 300)
        for corners in [60 * torch.rand(count, 2, generator=generator)]
    )
    assert torch.equal(overlaps(boxes, others), box_iou(boxes, others)) and (overlaps(boxes, others) > 0.3).any()
    assert overlaps(boxes[:0], others).shape == (0, 300) and overlaps(others, boxes[:0]).shape == (300, 0)
