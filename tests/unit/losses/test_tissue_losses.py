"""Losses for one class per pixel where classes differ in size and pixels may be ignored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtl.core.errors import ConfigError
from mtl.core.task import TaskSpec
from mtl.losses.base import build_loss

LAYERS = TaskSpec("tissue", "segmentation", ("a", "b", "c"), multilabel=False)
CHANNELS = TaskSpec("lesions", "segmentation", ("a", "b", "c"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def softmax(logits: torch.Tensor) -> np.ndarray:
    exponent = np.exp(logits.double().numpy())
    return exponent / exponent.sum(1, keepdims=True)


def tissue(ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and classes of three samples: one with some pixels ignored, one with two classes, one without any annotation."""
    logits, target = torch.randn(3, 3, 6, 8), torch.randint(0, 3, (3, 6, 8))
    target[1] = target[1].clamp(max=1)
    if ignored:
        target[0, :2] = 255
        target[2] = 255
    return logits, target


def test_dice_bce_published_is_the_published_sum() -> None:
    logits, target = tissue()
    terms = []
    for row in (0, 1):
        kept = target[row] != 255
        p, x = softmax(logits)[row][:, kept.numpy()], logits[row][:, kept].double().numpy()
        truth = np.eye(3)[target[row][kept]].T
        dice = 2 * (p * truth).sum() / (p.sum() + truth.sum())
        assert dice == pytest.approx((p * truth).sum(0).mean())  # the mean probability of the true class
        entropy = np.maximum(x, 0) - x * truth + np.log1p(np.exp(-np.abs(x)))
        terms.append(1 - dice + 0.01 * entropy.mean())
    loss = build_loss({"name": "dice_bce_published"}, LAYERS)
    assert loss(logits, target).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_dice_cross_entropy_balances_both_parts_over_classes() -> None:
    logits, target = tissue()
    kept = (target != 255).numpy()
    p, t = np.moveaxis(softmax(logits), 1, -1)[kept], target.numpy()[kept]
    share = np.bincount(t, minlength=3) / len(t)
    dice = [1 - 2 * p[t == k, k].sum() / (p[:, k].sum() + (t == k).sum()) for k in range(3)]
    for balance in (0.0, 0.5, 1.0):
        w = (share**-balance * np.array([2.0, 1.0, 3.0]))[t]
        entropy = (w * -np.log(p[np.arange(len(t)), t])).sum() / w.sum()
        config = {"name": "dice_cross_entropy", "balance": balance, "class_weights": [2, 1, 3], "dice_weight": 0.7}
        assert build_loss(config, LAYERS)(logits, target).item() == pytest.approx(0.7 * np.mean(dice) + entropy, rel=1e-5)
    # With balance 1 every class has the same say, however few its pixels.
    entropy = np.mean([-np.log(p[t == k, k]).mean() for k in range(3)])
    config = {"name": "dice_cross_entropy", "balance": 1.0, "dice_weight": 0.0}
    assert build_loss(config, LAYERS)(logits, target).item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dice_cross_entropy_leaves_absent_classes_out(smoothing: float) -> None:
    logits, target = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    target[0, 2:] = 1
    loss = build_loss({"name": "dice_cross_entropy", "balance": 1.0, "label_smoothing": smoothing}, LAYERS)
    p, t = softmax(logits)[0].reshape(3, -1), target.flatten().numpy()
    dice = [1 - 2 * p[k, t == k].sum() / (p[k].sum() + 8) for k in (0, 1)]
    own, all_present = -np.log(p[t, np.arange(16)]).mean(), -np.log(p[:2]).mean() * 2 / 3
    expected = np.mean(dice) + (1 - smoothing) * own + smoothing * all_present
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["dice_bce_published", "dice_cross_entropy"])
def test_ignored_pixels_of_tissue_do_not_matter(name: str) -> None:
    logits, target = tissue()
    loss = build_loss({"name": name}, LAYERS)
    moved = logits.clone()
    moved[0, :, :2] += torch.randn(3, 2, 8)
    moved[2] -= 3
    torch.testing.assert_close(loss(moved, target), loss(logits, target))
    torch.testing.assert_close(loss(logits[:2], target[:2]), loss(logits, target))
    nothing = logits.requires_grad_()
    value = loss(nothing, torch.full_like(target, 255))
    value.backward()
    assert value == 0 and (nothing.grad == 0).all()
    with pytest.raises(ConfigError, match="one class per pixel"):
        build_loss({"name": name}, CHANNELS)
