"""Each loss against a formula written another way, and at the edges where losses usually break."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.heatmap import render_heatmap
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec
from mtl.losses.base import build_loss

CELLS = TaskSpec("roi", "roi_classification", ("Infected", "Healthy", "WBC"))
LAYERS = TaskSpec("tissue", "segmentation", ("a", "b", "c"), multilabel=False)
CHANNELS = TaskSpec("lesions", "segmentation", ("a", "b", "c"))
PEAKS = TaskSpec("peaks", "heatmap", ("a", "b"))
GRADES = TaskSpec("grade", "classification", ("none", "mild", "severe", "worst"), ordinal=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def softmax(logits: torch.Tensor) -> np.ndarray:
    exponent = np.exp(logits.double().numpy())
    return exponent / exponent.sum(1, keepdims=True)


def test_cross_entropy_is_a_mean_weighted_by_class() -> None:
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 1, 0])
    weights = [23.0, 1.0, 100.0]
    p = softmax(logits)[np.arange(6), target]
    w = np.array(weights)[target]
    expected = (w * -np.log(p)).sum() / w.sum()
    assert LOSSES.build({"name": "cross_entropy", "class_weights": weights}, CELLS)(logits, target).item() == pytest.approx(
        expected
    )
    by_name = {"Healthy": 1, "Infected": 23, "WBC": 100, "Platelet": 5}
    assert LOSSES.build({"name": "cross_entropy", "class_weights": by_name}, CELLS)(logits, target).item() == pytest.approx(
        expected
    )


def test_cross_entropy_smoothing_and_ignored_pixels() -> None:
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = 255
    loss = build_loss({"name": "cross_entropy", "label_smoothing": 0.1}, LAYERS)
    seen = target != 255
    log = logits.log_softmax(1).movedim(1, -1)[seen]
    truth = 0.9 * F.one_hot(target[seen], 3) + 0.1 / 3
    torch.testing.assert_close(loss(logits, target), -(truth * log).sum(1).mean())
    # What an ignored pixel says does not matter.
    moved = logits.clone()
    moved[0, :, :2] += 5
    torch.testing.assert_close(loss(moved, target), loss(logits, target))


def test_softmax_focal() -> None:
    logits, target = torch.randn(7, 3), torch.randint(0, 3, (7,))
    p = softmax(logits)[np.arange(7), target]
    expected = (0.25 * (1 - p) ** 2 * -np.log(p)).mean()
    assert build_loss({"name": "focal"}, CELLS)(logits, target).item() == pytest.approx(expected, rel=1e-5)
    plain = build_loss({"name": "focal", "gamma": 0.0, "alpha": None, "class_weights": [2, 1, 5]}, CELLS)
    torch.testing.assert_close(plain(logits, target), F.cross_entropy(logits, target, torch.tensor([2.0, 1.0, 5.0])))


def test_focal_on_independent_channels() -> None:
    logits, target = torch.randn(2, 3, 4, 4), (torch.rand(2, 3, 4, 4) > 0.6).float()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    t = target.numpy()
    cell = np.where(t == 1, 0.25 * (1 - p) ** 2 * -np.log(p), 0.75 * p**2 * -np.log(1 - p))
    assert build_loss({"name": "focal"}, CHANNELS)(logits, target).item() == pytest.approx(cell.mean(), rel=1e-5)
    w = np.array([1.0, 3.0, 0.5])[None, :, None, None] * np.ones_like(cell)
    weighted = build_loss({"name": "focal", "class_weights": [1.0, 3.0, 0.5]}, CHANNELS)(logits, target)
    assert weighted.item() == pytest.approx((w * cell).sum() / w.sum(), rel=1e-5)


def test_cross_entropy_focal_is_the_published_sum() -> None:
    logits, target = torch.randn(7, 4), torch.randint(0, 4, (7,))
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    t = np.eye(4)[target]
    cell = np.where(t == 1, 0.75 * (1 - p) ** 4 * -np.log(p), 0.25 * p**4 * -np.log(1 - p))
    entropy = -np.log(softmax(logits)[np.arange(7), target])
    loss = build_loss({"name": "cross_entropy_focal"}, GRADES)
    assert loss(logits, target).item() == pytest.approx(entropy.mean() + cell.mean(), rel=1e-5)
    w = np.array([1.0, 2.0, 5.0, 9.0])[target]
    weighted = {"name": "cross_entropy_focal", "class_weights": [1, 2, 5, 9], "focal_weight": 10.0}
    expected = ((entropy + 10 * cell.mean(1)) * w).sum() / w.sum()
    assert build_loss(weighted, GRADES)(logits, target).item() == pytest.approx(expected, rel=1e-5)
    smooth = build_loss({"name": "cross_entropy_focal", "label_smoothing": 0.1, "focal_weight": 0.0}, GRADES)
    torch.testing.assert_close(smooth(logits, target), F.cross_entropy(logits, target, label_smoothing=0.1))


def test_dice_focal_is_the_published_sum_where_no_channel_is_empty() -> None:
    logits, target = torch.randn(2, 3, 6, 5), (torch.rand(2, 3, 6, 5) > 0.5).float()
    p, t = logits.sigmoid(), target
    dice = (2 * (p * t).sum((2, 3)) + 1e-6) / (p.sum((2, 3)) + t.sum((2, 3)) + 1e-6)
    cell = torch.where(t == 1, -0.75 * (1 - p) ** 4 * p.log(), -0.25 * p**4 * (1 - p).log())
    loss = build_loss({"name": "dice_focal"}, CHANNELS)
    torch.testing.assert_close(loss(logits, target), 1 - dice.mean() + cell.mean())
    # An empty channel is left to the focal part, as in dice_bce.
    target[1, 2] = 0
    cell = torch.where(t == 1, -0.75 * (1 - p) ** 4 * p.log(), -0.25 * p**4 * (1 - p).log())
    expected = 0.5 * (1 - torch.cat([dice[0], dice[1, :2]]).mean()) + 3 * cell.mean()
    weighted = build_loss({"name": "dice_focal", "dice_weight": 0.5, "focal_weight": 3.0}, CHANNELS)
    torch.testing.assert_close(weighted(logits, target), expected)


def test_dice_focal_with_one_class_per_pixel() -> None:
    logits, target = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    target[0, 0] = 255
    dice = build_loss({"name": "dice_bce", "bce_weight": 0.0, "dice_weight": 1.0}, LAYERS)
    focal = build_loss({"name": "focal", "gamma": 4.0, "alpha": 0.75}, LAYERS)
    both = build_loss({"name": "dice_focal"}, LAYERS)
    torch.testing.assert_close(both(logits, target), dice(logits, target) + focal(logits, target))


def corn(logits: torch.Tensor, target: torch.Tensor) -> float:
    """The paper's loss, task by task over the samples that its condition selects."""
    total, answers = 0.0, 0
    for k in range(logits.shape[1]):
        for row, grade in zip(logits.double(), target.tolist(), strict=True):
            if grade > k - 1:
                p = 1 / (1 + math.exp(-row[k]))
                total -= math.log(p if grade > k else 1 - p)
                answers += 1
    return total / answers


def test_ordinal() -> None:
    logits, target = torch.randn(9, 3), torch.tensor([0, 1, 2, 3, 3, 0, 1, 2, 0])
    loss = build_loss({"name": "ordinal"}, GRADES)
    assert loss(logits, target).item() == pytest.approx(corn(logits, target), rel=1e-5)
    # A whole-number weight is worth as many copies of the sample.
    weighted = build_loss({"name": "ordinal", "class_weights": [1, 1, 2, 3]}, GRADES)
    copies = torch.tensor([1, 1, 2, 3])[target]
    repeated = corn(logits.repeat_interleave(copies, dim=0), target.repeat_interleave(copies))
    assert weighted(logits, target).item() == pytest.approx(repeated, rel=1e-5)


def test_ordinal_probabilities() -> None:
    loss = build_loss({"name": "ordinal"}, GRADES)
    assert loss.outputs(4) == 3
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0], [-9.0, 40.0, 40.0], [9.0, -9.0, 40.0], [90.0, 90.0, -90.0]])
    p = loss.probabilities(logits)
    torch.testing.assert_close(p[0], torch.tensor([0.5, 0.25, 0.125, 0.125]))
    assert p.argmax(1).tolist() == [0, 3, 0, 1, 2]
    p = loss.probabilities(torch.randn(200, 3) * 8)
    torch.testing.assert_close(p.sum(1), torch.ones(200))
    above = 1 - p.cumsum(1)
    assert p.min() >= 0 and (above.diff(dim=1) <= 1e-6).all()


def test_ordinal_learns_an_order() -> None:
    """One feature, four grades along it: grades are found and the cumulative probabilities rise with the feature."""
    x, layer = torch.linspace(-2, 2, 64)[:, None], torch.nn.Linear(1, 3)
    target = torch.arange(64) // 16
    loss, optimizer = build_loss({"name": "ordinal"}, GRADES), torch.optim.Adam(layer.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(layer(x), target).backward()
        optimizer.step()
    p = loss.probabilities(layer(x)).detach()
    assert (p.argmax(1) == target).float().mean() > 0.95
    assert ((p * torch.arange(4)).sum(1).diff() > 0).all()


def test_by_default_a_loss_takes_one_logit_per_class_and_softmax() -> None:
    loss, logits = build_loss({"name": "cross_entropy"}, CELLS), torch.randn(4, 3)
    assert loss.outputs(3) == 3
    torch.testing.assert_close(loss.probabilities(logits), logits.softmax(1))


def test_dice_bce_pooled_is_the_published_formula() -> None:
    logits, target = torch.randn(3, 1, 6, 6), (torch.rand(3, 1, 6, 6) > 0.5).float()
    target[1] = 0
    p = logits.sigmoid()
    dice = (2 * (p * target).sum() + 1e-6) / (p.sum() + target.sum() + 1e-6)
    expected = 0.5 * F.binary_cross_entropy(p, target) + 0.5 * (1 - dice)
    torch.testing.assert_close(build_loss({"name": "dice_bce", "pooled": True}, CHANNELS)(logits, target), expected)


def test_dice_bce_per_image_leaves_dice_of_empty_channels_out() -> None:
    logits, target = torch.randn(2, 3, 6, 6), (torch.rand(2, 3, 6, 6) > 0.5).float()
    target[1, 2] = 0
    p = logits.sigmoid()
    dices = [
        1 - 2 * (p[b, k] * target[b, k]).sum() / (p[b, k].sum() + target[b, k].sum())
        for b in range(2)
        for k in range(3)
        if (b, k) != (1, 2)
    ]
    expected = 0.3 * F.binary_cross_entropy(p, target) + 0.7 * torch.stack(dices).mean()
    loss = build_loss({"name": "dice_bce", "dice_weight": 0.7, "bce_weight": 0.3}, CHANNELS)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-4, atol=1e-5)
    perfect = (target * 2 - 1) * 50
    assert loss(perfect, target).item() < 1e-5


def test_dice_bce_multiclass_ignores() -> None:
    logits, target = torch.randn(1, 3, 5, 5), torch.randint(0, 3, (1, 5, 5))
    target[0, 0] = 255
    seen = target[0] != 255
    p, t = logits.softmax(1)[0][:, seen], F.one_hot(target[0][seen], 3).T
    dice = 1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1))
    entropy = F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(
        build_loss({"name": "dice_bce"}, LAYERS)(logits, target), 0.5 * dice.mean() + 0.5 * entropy, rtol=1e-4, atol=1e-5
    )


def sobel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |d/dx| + mean |d/dy| distance, by explicit sums over the neighbourhood."""
    total = 0.0
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for axis in (kernel, kernel.T):
        maps = []
        for image in (a, b):
            padded = np.pad(image, 1)
            h, w = image.shape
            maps.append(sum(axis[i, j] * padded[i : i + h, j : j + w] for i in range(3) for j in range(3)))
        total += np.abs(maps[0] - maps[1]).mean()
    return total


def test_tversky_boundary_is_the_published_formula() -> None:
    p, t = torch.rand(2, 1, 8, 9), torch.rand(2, 1, 8, 9)
    tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    index = (tp + 1e-5) / (tp + 0.7 * fp + 0.3 * fn + 1e-5)
    boundary = np.mean([sobel_distance(p[b, 0].numpy(), t[b, 0].numpy()) for b in range(2)])
    expected = 0.8 * (1 - index.item()) ** 0.75 + 0.2 * boundary
    assert build_loss({"name": "tversky_boundary"}, PEAKS)(p, t).item() == pytest.approx(expected, rel=1e-4)


def test_tversky_weights_say_which_error_costs_more() -> None:
    truth = torch.zeros(1, 1, 8, 8)
    truth[0, 0, 2:6, 2:6] = 1
    too_much, too_little = truth.clone(), truth.clone()
    too_much[0, 0, 6, 2:6], too_little[0, 0, 5, 2:6] = 1, 0
    published = build_loss({"name": "tversky_boundary", "boundary_weight": 0.0}, PEAKS)
    swapped = build_loss({"name": "tversky_boundary", "boundary_weight": 0.0, "fp_weight": 0.3, "fn_weight": 0.7}, PEAKS)
    assert published(too_much, truth) > published(too_little, truth)
    assert swapped(too_much, truth) < swapped(too_little, truth)


def test_heatmap_focal() -> None:
    points, labels = torch.tensor([[10.0, 6.0], [20.0, 25.0]]), torch.tensor([0, 1])
    truth = render_heatmap(points, labels, 2, (8, 8), 4, 1.0)[None]
    prediction = torch.rand(1, 2, 8, 8) * 0.9 + 0.05
    total = 0.0
    for p, t in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
        total -= (1 - p) ** 2 * math.log(p) if t == 1 else (1 - t) ** 4 * p**2 * math.log(1 - p)
    assert build_loss({"name": "heatmap_focal"}, PEAKS)(prediction, truth).item() == pytest.approx(total / 2, rel=1e-4)


def test_mse_refuses_to_broadcast() -> None:
    loss = build_loss({"name": "mse"}, PEAKS)
    assert loss(torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, 1, 3, 3)).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="equal shapes"):
        loss(torch.zeros(2, 1, 3, 3), torch.zeros(2, 3, 3))


EDGES: list[tuple[str, TaskSpec, torch.Tensor, torch.Tensor]] = [
    ("cross_entropy", LAYERS, torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)),
    ("focal", LAYERS, torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)),
    ("dice_bce", LAYERS, torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)),
    ("focal", CHANNELS, torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
    ("dice_bce", CHANNELS, torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
    ("dice_bce", CHANNELS, torch.full((1, 3, 4, 4), 6e4), torch.zeros(1, 3, 4, 4)),
    ("dice_focal", LAYERS, torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)),
    ("dice_cross_entropy", LAYERS, torch.full((1, 3, 4, 4), 6e4), torch.zeros(1, 4, 4, dtype=torch.int64)),
    ("dice_bce_published", LAYERS, torch.full((1, 3, 4, 4), -6e4), torch.full((1, 4, 4), 2)),
    ("dice_focal", CHANNELS, torch.full((1, 3, 4, 4), 6e4), torch.zeros(1, 3, 4, 4)),
    ("dice_focal", CHANNELS, torch.full((1, 3, 4, 4), -6e4), torch.ones(1, 3, 4, 4)),
    ("cross_entropy_focal", CELLS, torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([1])),
    ("cross_entropy_focal", CELLS, torch.tensor([[60.0, -60.0, 0.0]]), torch.tensor([0])),
    ("ordinal", GRADES, torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([3])),
    ("ordinal", GRADES, torch.tensor([[-6e4, 6e4, 0.0]]), torch.tensor([0])),
    ("cross_entropy", CELLS, torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([1])),
    ("focal", CELLS, torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([1])),
    ("focal", CELLS, torch.tensor([[60.0, -60.0, 0.0]]), torch.tensor([0])),
    ("heatmap_focal", PEAKS, torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)),
    ("heatmap_focal", PEAKS, torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)),
    ("heatmap_focal", PEAKS, torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)),
    ("tversky_boundary", PEAKS, torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)),
    ("tversky_boundary", PEAKS, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)),
    ("mse", PEAKS, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)),
]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(("name", "spec", "prediction", "target"), EDGES)
def test_finite_at_the_edges(name: str, spec: TaskSpec, prediction: torch.Tensor, target: torch.Tensor, half: bool) -> None:
    prediction = (prediction.half() if half else prediction).clone().requires_grad_()
    value = build_loss({"name": name}, spec)(prediction, target)
    assert value.dtype == torch.float32 and value.isfinite() and value >= 0
    value.backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    if (target == 255).all():
        assert value == 0


@pytest.mark.parametrize("name", LOSSES.names())
def test_float32_under_autocast(name: str) -> None:
    kind = LOSSES.entry(name).constants["kinds"][0]
    spec = TaskSpec("t", kind, ("a", "b"), ordinal=True)
    prediction: Any = torch.rand(2, 2, 8, 8)
    target: Any = torch.rand(2, 2, 8, 8).round()
    if kind == "classification":
        prediction, target = torch.randn(4, 1 if name == "ordinal" else 2), torch.tensor([0, 1, 1, 0])
    if kind in ("multilabel_classification", "regression"):
        prediction = torch.randn(4, 2 if kind == "multilabel_classification" or name == "gaussian" else 1)
        target = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
        target = target if kind == "multilabel_classification" else target[:, 0]
    if name in ("dice_bce_published", "dice_cross_entropy"):
        spec, target = replace(spec, multilabel=False), target[:, 0].long()
    loss = build_loss({"name": name}, spec)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(prediction, target)
    assert mixed.dtype == torch.float32
    assert mixed == loss(prediction, target)  # not merely close: the same arithmetic


def test_mistakes_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"does not fit a heatmap task.*heatmap_focal"):
        build_loss({"name": "dice_bce"}, PEAKS)
    with pytest.raises(ConfigError, match="expected 3 weights"):
        build_loss({"name": "cross_entropy", "class_weights": [1, 2]}, CELLS)
    with pytest.raises(ConfigError, match="missing for WBC"):
        build_loss({"name": "cross_entropy", "class_weights": {"Infected": 1, "Healthy": 2}}, CELLS)
    with pytest.raises(ConfigError, match="independent channels"):
        build_loss({"name": "cross_entropy"}, CHANNELS)
    with pytest.raises(ConfigError, match=r"does not fit a segmentation task.*dice_focal"):
        build_loss({"name": "ordinal"}, CHANNELS)
    with pytest.raises(ConfigError, match=r"classes of `grade` have no order.*cross_entropy"):
        build_loss({"name": "ordinal"}, TaskSpec("grade", "classification", ("a", "b")))
    with pytest.raises(ConfigError, match="must be positive"):
        build_loss({"name": "focal", "class_weights": [0, 1, 1]}, CELLS)
    with pytest.raises(ConfigError, match="gama"):
        build_loss({"name": "focal", "gama": 1}, CELLS)


def test_every_loss_has_a_yaml_with_its_defaults() -> None:
    from pathlib import Path

    import yaml

    import mtl

    folder = Path(mtl.__file__).parents[1] / "configs" / "loss"
    assert {path.stem for path in folder.glob("*.yaml")} == set(LOSSES.names())
    for name, entry in LOSSES.entries().items():
        config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config.pop("name") == name
        assert config == {key: parameter.default for key, parameter in entry.parameters.items()}, name
