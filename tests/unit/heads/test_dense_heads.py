"""Segmentation, heatmap, box and image classification: what is particular to each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mtl.core.errors import ConfigError
from mtl.core.heatmap import render_heatmap
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.heatmap import find_peaks, project_maps, sum_maps
from mtl.heads.roi import CHUNK

CELLS = TaskSpec("roi", "roi_classification", ("Infected", "Healthy", "WBC"))
PEAKS = TaskSpec("peaks", "heatmap", ("Infected", "WBC"))
SIZE = (64, 96)


def features(strides: tuple[int, ...], channels: int = 8, rows: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(rows, channels, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in strides)


def unet(strides: tuple[int, ...], **keys: Any) -> nn.Module:
    spec = TaskSpec("seg", "segmentation", ("cell",))
    return HEADS.build({"name": "unet", "loss": {"name": "dice_bce"}, **keys}, spec, (8,) * len(strides), strides)


@pytest.mark.parametrize(
    ("strides", "blocks"),
    [
        ((2, 4, 8, 16, 32), [16, 16, 16, 16, 16]),
        ((2, 4, 8, 16, 32), [16, 16]),
        ((4, 8, 16, 32), [16, 16, 16, 16, 16]),  # ConvNeXt, Swin
        ((4, 8, 16, 32), [16, 16, 16]),
        ((2, 4, 8, 16, 16), [16, 16, 16, 16]),  # dilated encoder
        ((16, 16, 16), [16, 16, 16, 16]),  # plain vision transformer
    ],
)
@pytest.mark.parametrize("attention", [None, "scse"])
def test_unet_on_any_pyramid(strides: tuple[int, ...], blocks: list[int], attention: str | None) -> None:
    head: Any = unet(strides, decoder_channels=blocks, attention=attention)
    output = head(features(strides), SIZE)
    assert output["logits"].shape[:2] == (2, 1) and output["size"] == SIZE
    assert [tuple(row["probabilities"].shape) for row in head.decode(output)] == [(1, *SIZE)] * 2


def test_unet_uses_every_map_its_blocks_reach() -> None:
    head, maps = unet((4, 8, 16, 32)), tuple(f.requires_grad_() for f in features((4, 8, 16, 32)))
    head(maps, SIZE)["logits"].square().sum().backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in maps)


def test_unet_refuses_what_cannot_work() -> None:
    with pytest.raises(ConfigError, match="expected 1 to 5 entries"):
        unet((4, 8, 16, 32), decoder_channels=[16] * 6)
    with pytest.raises(ConfigError, match="at least 16"):
        unet((4, 8, 16, 32), decoder_channels=[16, 8], attention="scse")
    with pytest.raises(ConfigError, match=r"levels.*found \[2, 3, 4, 5\]"):
        spec = TaskSpec("seg", "segmentation", ("cell",))
        HEADS.build({"name": "unet_published", "loss": {"name": "dice_bce"}}, spec, (8, 8, 8), (8, 16, 32))


def heatmap_head(**keys: Any) -> Any:
    config = {"name": "heatmap", "loss": {"name": "heatmap_focal"}, **keys}
    return HEADS.build(config, PEAKS, (8,) * 4, (4, 8, 16, 32))


def test_peaks_of_a_drawn_map_are_its_points() -> None:
    points = torch.tensor([[10.0, 20.0], [21.0, 20.0], [70.5, 50.0], [2.0, 2.0], [95.0, 63.0]])
    labels = torch.tensor([0, 0, 1, 0, 1])
    head = heatmap_head(sigma=1.0, peak_window=3)
    drawn = head.render({"points": points, "labels": labels}, head.size(SIZE))[None]
    found = head.decode({"heatmap": drawn})[0]
    assert len(found["points"]) == 5
    distance = torch.cdist(points, found["points"])
    nearest, partner = distance.min(dim=1)
    assert nearest.max() <= 4 / 2**0.5 + 1  # half the diagonal of a cell, and what the overlap of two blobs shifts
    assert torch.equal(found["labels"][partner], labels)
    assert (found["scores"] == 1).all()
    assert found["stride"] == 4 and found["sigma"] == 1


def test_refinement_is_exact_for_a_gaussian() -> None:
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    truth = torch.tensor([7.3, 4.9])
    blob = 0.8 * torch.exp(-((x - truth[0]) ** 2 + (y - truth[1]) ** 2) / (2 * 1.5**2))
    position, _, _ = find_peaks(blob[None, None], 3, 0.1, 10, refine=True)[0]
    torch.testing.assert_close(position, truth[None], atol=1e-3, rtol=0)
    coarse, _, _ = find_peaks(blob[None, None], 3, 0.1, 10, refine=False)[0]
    assert coarse.tolist() == [[7.5, 4.5]]


def test_a_plateau_has_one_peak() -> None:
    flat = torch.zeros(1, 1, 9, 9)
    flat[0, 0, 3:5, 3:6] = 0.7
    assert len(find_peaks(flat, 5, 0.1, 10, refine=True)[0][1]) == 1
    assert len(find_peaks(flat, 5, 0.8, 10, refine=True)[0][1]) == 0


def test_peak_limits_and_window() -> None:
    spikes = torch.zeros(1, 2, 20, 20)
    spikes[0, 0, 2::4, 2::4] = 0.5
    spikes[0, 1, 10, 10] = 0.9
    assert len(find_peaks(spikes, 3, 0.1, 600, False)[0][1]) == 26
    position, scores, labels = find_peaks(spikes, 3, 0.1, 4, False)[0]
    assert scores[0] == pytest.approx(0.9) and labels[0] == 1 and position[0].tolist() == [10.5, 10.5] and len(scores) == 4
    with pytest.raises(ConfigError, match="odd"):
        heatmap_head(peak_window=4)


@pytest.mark.parametrize("strides", [(4,), (4, 8, 16)])
def test_summed_maps_keep_channels_last(strides: tuple[int, ...]) -> None:
    """Convolutions of maps in another format than their weights are several times as slow."""
    maps = tuple(level.contiguous(memory_format=torch.channels_last) for level in features(strides))
    positions, projections = project_maps((8,) * len(strides), strides, 4, 16)
    projections.to(memory_format=torch.channels_last)
    found = sum_maps(maps, positions, projections, (16, 24))
    assert found.is_contiguous(memory_format=torch.channels_last)
    plain = [
        nn.functional.interpolate(project(level), (16, 24), mode="bilinear")
        for project, level in zip(projections, maps, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(plain).sum(dim=0))


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_heatmap_stride_and_prior(stride: int) -> None:
    head = heatmap_head(stride=stride)
    heatmap = head(features((4, 8, 16, 32)), SIZE)["heatmap"]
    assert heatmap.shape == (2, 2, SIZE[0] // stride, SIZE[1] // stride)
    assert heatmap.mean().item() == pytest.approx(0.01, abs=0.005)


def test_target_of_a_class_without_points_is_zero() -> None:
    drawn = render_heatmap(torch.tensor([[5.0, 5.0]]), torch.tensor([0]), 2, (4, 4), 4, 1.0)
    assert drawn[0].max() == 1 and drawn[1].max() == 0


def roi_head(**keys: Any) -> Any:
    torch.manual_seed(0)
    config = {"name": "roi_classifier", "loss": {"name": "cross_entropy"}, **keys}
    return HEADS.build(config, CELLS, (8, 8, 8), (8, 16, 32))


def boxes_of(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)) * 30
    return torch.cat([corner, corner + 24], dim=1)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_single_box_trains(norm: str) -> None:
    head = roi_head(norm=norm).train()
    targets = [{"boxes": boxes_of(1), "labels": torch.tensor([2])}, {"boxes": boxes_of(0), "labels": torch.zeros(0).long()}]
    loss = head.loss(head(features((8, 16, 32)), SIZE), targets)["class"]
    assert loss.isfinite() and loss > 0
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_every_box_counts_the_same() -> None:
    head, maps = roi_head().eval(), features((8, 16, 32))
    targets = [
        {"boxes": boxes_of(5), "labels": torch.tensor([0, 1, 1, 2, 1])},
        {"boxes": boxes_of(1), "labels": torch.tensor([0])},
    ]
    probabilities = [p["probabilities"] for p in head.decode(head(maps, SIZE), boxes=[t["boxes"] for t in targets])]
    own = torch.cat([p[torch.arange(len(p)), t["labels"]] for p, t in zip(probabilities, targets, strict=True)])
    loss = head.loss(head(maps, SIZE), targets)["class"]
    torch.testing.assert_close(loss, -own.log().mean())


def test_chunks_change_no_number() -> None:
    head, maps = roi_head().eval(), features((8, 16, 32), rows=1)
    boxes = boxes_of(CHUNK + 3)
    many = head.decode(head(maps, SIZE), boxes=[boxes])[0]["probabilities"]
    few = head.decode(head(maps, SIZE), boxes=[boxes[-5:]])[0]["probabilities"]
    torch.testing.assert_close(many[-5:], few)
    assert len(many) == CHUNK + 3
    maps = features((8, 16, 32), rows=4)
    rows = [boxes[:0], boxes[: CHUNK - 7], boxes[:20], boxes[:0]]
    together = head.decode(head(maps, SIZE), boxes=rows)
    for number, (own, found) in enumerate(zip(rows, together, strict=True)):
        alone = head.decode(head(tuple(level[number : number + 1] for level in maps), SIZE), boxes=[own])[0]
        torch.testing.assert_close(found, alone)
    with pytest.raises(ValueError, match="needs boxes"):
        head.decode(head(maps, SIZE))


def test_drawing_of_boxes() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    head = roi_head(boxes_per_image=10, balanced=True).train()
    chosen = head.choose(labels)
    assert len(chosen) == len(set(chosen.tolist())) == 10
    rare = sum(int((labels[head.choose(labels)] == 1).sum()) for _ in range(20)) / 20
    plain = roi_head(boxes_per_image=10).train()
    assert rare > 2.5 > sum(int((labels[plain.choose(labels)] == 1).sum()) for _ in range(20)) / 20
    assert len(head.eval().choose(labels)) == 100


def test_hidden_layers_and_dropout_go_together() -> None:
    with pytest.raises(ConfigError, match="one dropout rate per hidden layer"):
        roi_head(hidden=[16])
    spec = TaskSpec("grade", "classification", ("a", "b"))
    head = HEADS.build({"name": "classifier", "hidden": [5, 4], "loss": {"name": "focal"}}, spec, (3, 6), (16, 32))
    assert [type(m).__name__ for m in head.classifier] == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [m.out_features for m in head.classifier if isinstance(m, nn.Linear)] == [5, 4, 2]
    linear = HEADS.build({"name": "classifier", "loss": {"name": "focal"}}, spec, (3, 6), (16, 32))
    assert [type(m).__name__ for m in linear.classifier] == ["Dropout", "Linear"]
