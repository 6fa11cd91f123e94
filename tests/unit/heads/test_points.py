"""Heads that find points: suppression, decoding of known maps, targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl.core.errors import ConfigError
from mtl.core.heatmap import render_heatmap
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.points.base import suppress

CELLS = TaskSpec("cells", "points", ("lymphocyte", "other"), resolution=2.0)  # half a micron per pixel
SIZE = (96, 128)
LOSSES = {"blobs": "dice_bce", "centres": "heatmap_focal"}
CONFIGS: dict[str, dict[str, Any]] = {
    "blobs": {"name": "blobs", "loss": {"name": "dice_bce"}},
    "centres": {"name": "centres", "loss": {"name": "heatmap_focal"}},
    "box_centres": {"name": "box_centres", "detector": {"name": "fcos", "features": "fpn"}},
}


def build(name: str, spec: TaskSpec = CELLS, **keys: Any) -> Any:
    torch.manual_seed(0)
    return HEADS.build({**CONFIGS[name], **keys}, spec, (16,), (4,))


def target_of(points: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    labels = torch.zeros(len(points), dtype=torch.int64) if labels is None else labels
    return {"points": points, "labels": labels, "boxes": torch.cat([points - 8, points + 8], dim=1), "ids": labels}


def hits(truth: Tensor, found: Tensor, distance: float) -> None:
    """Every point was found once, and nothing else."""
    assert len(found) == len(truth)
    gaps = torch.cdist(truth, found)
    assert gaps.min(dim=1).values.max() <= distance and len(set(gaps.argmin(dim=1).tolist())) == len(truth)


# -- suppression -------------------------------------------------------------------------------------------------------


def one_by_one(points: list[list[float]], radius: float) -> list[bool]:
    """The rule, written as it is told."""
    kept: list[int] = []
    for i, (x, y) in enumerate(points):
        if not any((points[j][0] - x) ** 2 + (points[j][1] - y) ** 2 < radius**2 for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(points))]


@pytest.mark.parametrize(
    ("count", "spread", "radius"), [(0, 9, 3.0), (1, 9, 3.0), (400, 60, 5.0), (300, 12, 4.0), (200, 30, 0.0)]
)
def test_suppression_is_the_greedy_rule(count: int, spread: int, radius: float) -> None:
    # Whole numbers, so that distances equal to the radius occur.
    points = torch.randint(0, spread, (count, 2), generator=torch.Generator().manual_seed(count)).float()
    assert suppress(points, radius).tolist() == one_by_one(points.tolist(), radius)


def test_in_a_chain_every_second_point_stays() -> None:
    chain = torch.stack([torch.arange(40.0), torch.zeros(40)], dim=1)
    assert suppress(chain, 1.5).tolist() == [index % 2 == 0 for index in range(40)]


def test_points_as_far_apart_as_the_radius_stay() -> None:
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert suppress(pair, 5.0).tolist() == [True, True]
    assert suppress(pair, 5.01).tolist() == [True, False]


# -- centres -----------------------------------------------------------------------------------------------------------


def perfect(head: Any, points: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    """What a head would say that knows the answer."""
    target = target_of(points, labels)
    size = (SIZE[0] // head.stride, SIZE[1] // head.stride)
    heatmap = render_heatmap(target["points"], target["labels"], 2, size, head.stride, head.sigma)
    cells = (points / head.stride).floor()
    offset = torch.full((2, *size), 0.5)
    offset[:, cells[:, 1].long(), cells[:, 0].long()] = (points / head.stride - cells).T
    return {"heatmap": heatmap[None], "offset": offset[None]}


@pytest.mark.parametrize("stride", [2, 4])
def test_centres_are_found_to_the_fraction_of_a_pixel(stride: int) -> None:
    points = torch.tensor([[10.3, 20.9], [26.3, 20.9], [60.0, 7.5], [0.2, 0.1], [127.9, 95.8], [64.5, 50.25]])
    labels = torch.tensor([0, 0, 1, 0, 1, 0])
    head = build("centres", stride=stride)
    (found,) = head.decode(perfect(head, points, labels))
    order = torch.cdist(points, found["points"]).argmin(dim=1)
    torch.testing.assert_close(found["points"][order], points, atol=1e-4, rtol=0)
    assert torch.equal(found["labels"][order], labels) and (found["scores"] == 1).all()
    assert len(found["scores"]) == 6 and found["radius"] == 4.0  # 2 microns


def test_a_crowd_of_centres() -> None:
    """Cells in a lattice, 4 microns apart: 800 in a window of 112 x 128 microns."""
    y, x = torch.meshgrid(torch.arange(28) * 8 + 3.7, torch.arange(32) * 8 + 4.2, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    head = build("centres", TaskSpec("cells", "points", ("a", "b"), resolution=2.0))
    heatmap = render_heatmap(points, torch.zeros(len(points)).long(), 2, (112, 128), 2, head.sigma)
    (found,) = head.decode({"heatmap": heatmap[None], "offset": torch.full((1, 2, 112, 128), 0.5)})
    hits(points, found["points"], 2.0)


def test_lengths_of_centres_are_in_microns() -> None:
    coarse = build("centres", TaskSpec("cells", "points", ("a",), resolution=0.5), sigma=8.0, suppression_radius=6.0)
    assert coarse.sigma == pytest.approx(8.0 * 0.5 / 2) and coarse.radius == 3.0


def test_offsets_are_learnt_at_the_centres_only() -> None:
    head = build("centres")
    points = [torch.tensor([[10.5, 20.5]]), torch.tensor([[64.0, 50.0], [3.2, 4.6]]), torch.zeros(0, 2)]
    offset = torch.rand(3, 2, 48, 64).requires_grad_()
    value = head.offset_loss(offset[[0, 2]], [target_of(points[0]), target_of(points[2])])
    # The point (10.5, 20.5) lies at (.25, .25) of cell (5, 10).
    torch.testing.assert_close(value, (offset[0, :, 10, 5] - 0.25).abs().sum())
    value.backward()
    touched = offset.grad.nonzero().tolist()
    assert touched == [[0, 0, 10, 5], [0, 1, 10, 5]]
    both = head.offset_loss(offset, [target_of(some) for some in points])
    at = offset[[0, 1, 1], :, [10, 25, 2], [5, 32, 1]]
    torch.testing.assert_close(both, (at - torch.tensor([[0.25, 0.25], [0.0, 0.0], [0.6, 0.3]])).abs().sum() / 3)


def test_nothing_is_found_in_an_empty_map() -> None:
    for name in CONFIGS:
        head = build(name, CELLS).eval()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
            last = head.logits if name != "box_centres" else head.detector.classification.cls_logits
            last.bias.fill_(-9.0)
            (found,) = head.decode(head((torch.randn(1, 16, 24, 32),), SIZE))
        assert found["points"].shape == (0, 2) and found["scores"].shape == found["labels"].shape == (0,)


# -- blobs -------------------------------------------------------------------------------------------------------------


def certain(head: Any, points: Tensor) -> dict[str, Any]:
    truth = head.render(target_of(points), SIZE)
    logits = truth.clamp(0.01, 0.99).logit() if head.shape == "gaussian" else (2 * truth - 1) * 4
    return {"logits": logits[None], "size": SIZE}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("shape", ["disc", "square", "gaussian"])
def test_blobs_are_found_at_their_middles(shape: str, background: bool) -> None:
    points = torch.tensor([[20.3, 20.7], [60.0, 40.0], [100.5, 70.2], [1.0, 50.0], [126.0, 94.0]])
    head = build("blobs", shape=shape, background=background)
    (found,) = head.decode(certain(head, points))
    hits(points, found["points"], 4.0)
    inside = torch.cdist(points[:3], found["points"]).min(dim=1).values
    assert inside.max() <= 1.0  # the others are cut by the border
    assert found["radius"] == 8.0 and (found["labels"] == 0).all()


@pytest.mark.parametrize("gap", [[16.0, 0.0], [0.0, 14.0], [11.4, 11.4]])
def test_discs_that_touch_are_two_cells(gap: list[float]) -> None:
    points = torch.tensor([[50.0, 40.0], [50.0 + gap[0], 40.0 + gap[1]]])
    head = build("blobs")
    hits(points, head.decode(certain(head, points))[0]["points"], 1.5)


def test_without_smoothing_a_flat_blob_is_found_at_its_rim() -> None:
    points, found = torch.tensor([[60.0, 40.0]]), []
    for smoothing in (0.0, 1.5):
        head = build("blobs", shape="square", smoothing=smoothing)
        (row,) = head.decode(certain(head, points))
        assert len(row["points"]) == 1
        found.append(float(torch.cdist(points, row["points"])))
    assert found[0] > 9 and found[1] < 1


def test_a_background_channel_is_what_no_class_has() -> None:
    head = build("blobs", background=True, shape="gaussian")
    drawn = head.render(target_of(torch.tensor([[60.0, 40.0], [66.0, 40.0]]), torch.tensor([0, 1])), SIZE)
    assert drawn.shape == (3, *SIZE)
    torch.testing.assert_close(drawn[0], 1 - torch.maximum(drawn[1], drawn[2]))
    (found,) = head.decode({"logits": torch.zeros(1, 3, *SIZE), "size": SIZE})
    torch.testing.assert_close(found["scores"], torch.full_like(found["scores"], 1 / 3))


def test_the_published_loss_of_blobs_takes_both_channels_as_independent() -> None:
    spec = TaskSpec("cells", "points", ("lymphocyte",), resolution=2.0)
    loss = {"name": "dice_bce", "dice_weight": 0.0, "bce_weight": 1.0}
    head = build("blobs", spec, loss=loss, background=True, shape="square")
    target = target_of(torch.tensor([[60.5, 40.5]]))
    output = head((torch.randn(1, 16, *SIZE),), SIZE)
    lymphocyte = torch.zeros(SIZE)
    lymphocyte[32:49, 52:69] = 1
    truth = torch.stack([1 - lymphocyte, lymphocyte])[None]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output["logits"], truth)
    torch.testing.assert_close(head.loss(output, [target])["blobs"], expected)


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_box_centres_are_the_detectors_boxes_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build("box_centres", suppression_radius=3.0)
    boxes = torch.tensor([[10.0, 10, 26, 26], [12, 12, 28, 28], [12, 12, 28, 28], [40, 40, 50, 60]])
    row = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "labels": torch.tensor([0, 0, 1, 1])}
    monkeypatch.setattr(head.detector, "decode", lambda output: [row])
    (found,) = head.decode({})
    # Three boxes are one cell, whatever the detector makes of its class.
    assert found["points"].tolist() == [[18, 18], [45, 50]]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6]) and found["labels"].tolist() == [0, 1]


def test_every_small_box_has_a_location_on_the_map_of_stride_4() -> None:
    """Locations are 4 pixels apart, so that a box 8 pixels wide holds one of them wherever it lies."""
    fine, coarse = build("box_centres"), HEADS.build(CONFIGS["box_centres"], CELLS, (16,), (8,))
    generator = torch.Generator().manual_seed(0)
    middles = torch.rand(200, 2, generator=generator) * torch.tensor([110.0, 80.0]) + 8
    target = target_of(middles)
    target["boxes"] = torch.cat([middles - 3.5, middles + 3.5], dim=1)
    missed = []
    for head, stride in ((fine, 4), (coarse, 8)):
        output = head((torch.randn(1, 16, SIZE[0] // stride, SIZE[1] // stride),), SIZE)
        unmatched = 0
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            labels, _ = head.detector.match(output, box[None], label[None])
            unmatched += int((labels >= 0).sum() == 0)
        missed.append(unmatched)
    assert missed[0] == 0 and missed[1] > 20


def test_mistakes_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"heads\.cells\.suppression_radius=-1"):
        build("centres", suppression_radius=-1.0)
    with pytest.raises(ConfigError, match=r"heads\.cells\.detector` is `unet`, a segmentation head"):
        build("box_centres", detector={"name": "unet"})
    with pytest.raises(ConfigError, match=r"heads\.cells\.detector` must be a head"):
        build("box_centres", detector={})
    with pytest.raises(ConfigError, match="independent channels"):
        build("blobs", loss={"name": "cross_entropy"})
    with pytest.raises(ConfigError, match="does not fit a heatmap task"):
        build("centres", loss={"name": "dice_bce"})
    expert = {"name": "box_centres", "detector": {"name": "faster_rcnn"}}
    with pytest.raises(ConfigError, match="cannot be averaged"):
        HEADS.build({"name": "mixture", "expert": expert}, CELLS, (16,), (4,))


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("centres", "stride", (0, 3, -2)), ("centres", "sigma", (0.0, -1.0)), ("centres", "width", (0,)),
        ("centres", "prior_probability", (0.0, 1.0)), ("centres", "max_points", (0,)), ("blobs", "max_points", (0,)),
        ("blobs", "radius", (0.0, -4.0)), ("blobs", "smoothing", (-0.5,)),
    ],
)  # fmt: skip
def test_values_without_a_meaning_are_refused(name: str, key: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"heads\.cells\.{key}={value}`: expected"):
            build(name, **{key: value})


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "keys"),
    [
        ("blobs", 100, {}),
        ("blobs", 100, {"background": True, "shape": "gaussian"}),
        ("centres", 80, {"width": 16}),
        ("box_centres", 120, {"detector": {"name": "fcos", "convolutions": 1}}),
    ],
)
def test_a_few_cells_are_learnt_and_found(name: str, steps: int, keys: dict[str, Any]) -> None:
    """Two windows of spots, seen through one convolution: all points are found again, also where spots touch."""
    spec = TaskSpec("cells", "points", ("lymphocyte",), resolution=2.0)
    points = [torch.tensor([[20.0, 24.0], [36.0, 24.0], [90.3, 60.7], [60.0, 80.5]]), torch.tensor([[64.4, 48.2]])]
    images = torch.stack([render_heatmap(some, torch.zeros(len(some)).long(), 1, SIZE, 1.0, 3.0) for some in points])
    torch.manual_seed(0)
    stem = torch.nn.Conv2d(1, 16, 20, stride=4, padding=8)
    head = build(name, spec, **keys)
    optimizer = torch.optim.Adam([*stem.parameters(), *head.parameters()], lr=2e-2)
    targets = [target_of(some) for some in points]
    for _ in range(steps):
        optimizer.zero_grad()
        terms = head.loss(head((stem(images).relu(),), SIZE), targets)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        found = head.decode(head((stem(images).relu(),), SIZE))
    for truth, row in zip(points, found, strict=True):
        sure = row["scores"] >= 0.3
        hits(truth, row["points"][sure], 4.0)


@pytest.mark.parametrize("name", ["centres", "blobs"])
def test_where_nobody_looked_nothing_is_learnt(name: str) -> None:
    """No loss and no gradient outside the region, except around annotated cells: those are known to be there."""
    head = build(name, **({"background": True} if name == "blobs" else {}))
    key = "logits" if name == "blobs" else "heatmap"
    target = target_of(torch.tensor([[20.0, 30.0], [100.0, 40.0]]))
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[:, :64] = True

    def loss_of(maps: Tensor, known: dict[str, Tensor]) -> Tensor:
        output = head((torch.zeros(1, 16, SIZE[0] // 4, SIZE[1] // 4),), SIZE)
        return head.loss({**output, key: maps}, [known])[name if name == "blobs" else "heatmap"]

    shape = head((torch.zeros(1, 16, SIZE[0] // 4, SIZE[1] // 4),), SIZE)[key].shape
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(maps, {**target, "region": region}), maps)
    scale = SIZE[1] / shape[3]
    moved = gradient[0].abs().sum(dim=0) > 0
    x, y = torch.meshgrid(torch.arange(shape[3]) * scale, torch.arange(shape[2]) * scale, indexing="xy")
    assert not moved[(x > 72) & ((x - 100).abs() + (y - 40).abs() > 40)].any()
    assert moved[x < 56].all() and moved[int(40 / scale), int(100 / scale)]
    everywhere = {**target, "region": torch.ones(SIZE, dtype=torch.bool)}
    torch.testing.assert_close(loss_of(maps, everywhere), loss_of(maps, target))
