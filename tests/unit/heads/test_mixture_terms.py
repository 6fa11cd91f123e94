"""What a mixture adds to the loss, what it lets others watch, what its gate learns and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mixture_tools import AUXILIARY, CHANNELS, CLASSES, EXPERTS, SIZE, STRIDES, build, features, target_for
from torch import Tensor

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec

# -- loss and monitoring -----------------------------------------------------------------------------------------------


def test_loss_is_that_of_an_expert_on_the_average() -> None:
    head = build("deeplabv3plus").train()
    output = head(features(), SIZE)
    terms = head.loss(output, target_for(head))
    own = head.experts[0].loss({"logits": output["logits"], "size": SIZE}, target_for(head))  # type: ignore[operator]
    assert terms == own


def terms_of(gate: Tensor, weights: Tensor | None = None, **keys: Any) -> dict[str, float]:
    head = build(experts=gate.shape[1], **({f"{name}_weight": 1.0 for name in AUXILIARY} | keys)).train()
    output = {"gate": gate, "weights": gate if weights is None else weights}
    return {name: value.item() for name, value in head.auxiliary(output).items()}


def test_auxiliary_terms_by_hand() -> None:
    gate = torch.tensor([[0.9, 0.3], [0.5, 0.5], [0.2, 0.6]])
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = terms_of(gate, weights)
    assert found["l1"] == pytest.approx(0.5)
    p = [1.6 / 3, 1.4 / 3]
    assert found["load_balance"] == pytest.approx(sum(0.5 * (math.log(0.5) - math.log(value)) for value in p) / 2, rel=1e-4)
    q = [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]
    assert found["entropy"] == pytest.approx(sum(v * math.log(v) for row in q for v in row) / 3, rel=1e-4)
    assert found["importance"] == pytest.approx(0.0, abs=1e-6)
    assert found["load"] == pytest.approx(2 * (2 / 3 * 0.5 + 2 / 3 * 0.5), rel=1e-4)


def test_auxiliary_terms_at_the_published_start() -> None:
    """Sigmoid gates of four experts near one half: the published first step shows .49, -.17 and -1.39."""
    found = terms_of(torch.full((6, 4), 0.4935))
    assert found["l1"] == pytest.approx(0.987 / 2) and found["load_balance"] == pytest.approx(-0.340 / 2, abs=1e-3)
    assert found["entropy"] == pytest.approx(-2.771 / 2, abs=2e-3)


def test_importance_and_load_ask_for_even_use() -> None:
    even, skewed = torch.eye(4), torch.tensor([[1.0, 0, 0, 0]] * 4)
    assert terms_of(even)["importance"] == pytest.approx(0, abs=1e-6)
    assert terms_of(skewed)["importance"] == pytest.approx(3.0, rel=1e-4)  # population variance over squared mean
    assert terms_of(even)["load"] == pytest.approx(1.0, rel=1e-4) and terms_of(skewed)["load"] == pytest.approx(4.0, rel=1e-4)


def test_published_terms_are_lowest_at_uniform_scores() -> None:
    def both(value: float) -> float:
        found = terms_of(torch.full((2, 4), value))
        return found["l1"] + found["load_balance"]

    assert min((0.05, 0.15, 0.25, 0.35, 0.6, 0.95), key=both) == 0.25


def test_terms_enter_weighted_and_in_training_only() -> None:
    gate = torch.rand(5, 4)
    output = {"gate": gate, "weights": gate}
    head = build(l1_weight=0.5, importance_weight=2.0).train()
    found = head.auxiliary(output)
    assert set(found) == {"l1", "importance"}
    torch.testing.assert_close(found["l1"], 0.5 * gate.mean())
    real = head(features(), SIZE)
    assert set(head.loss(real, target_for(head))) == {"class", "l1", "importance"}
    assert set(head.eval().loss(real, target_for(head))) == {"class"}
    assert set(build().train().loss(real, target_for(head))) == {"class"}


@pytest.mark.parametrize("name", AUXILIARY)
def test_every_term_moves_the_gate(name: str) -> None:
    head = build(**{f"{name}_weight": 1.0}, routing="top_k", top_k=1).train()
    output = head(features(), SIZE)
    head.auxiliary(output)[name].backward()
    moved = head.gate.weight.grad
    assert moved is not None and moved.isfinite().all()
    assert bool(moved.abs().max() > 1e-6) == (name != "l1")  # softmax scores have a constant mean
    assert all(p.grad is None or not p.grad.any() for p in head.experts.parameters())


def test_monitoring() -> None:
    head = build(experts=3)
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    found = head.monitor({"weights": weights})
    assert head.monitored == ("expert_1", "expert_2", "expert_3", "experts_used") == tuple(found)
    assert [value.item() for value in found.values()] == pytest.approx([0.75, 0.25, 0.0, 1.5])
    assert all(value.ndim == 0 and not value.requires_grad for value in found.values())
    plain = head.experts[0]
    assert plain.monitored == () and plain.monitor({}) == {}  # type: ignore[operator]


def test_the_gate_learns_who_is_right() -> None:
    """Two constant experts, each right for one half of the images: routing, not the experts, must separate them."""
    head = build(classes=("a", "b"), experts=2, routing="top_p", top_p=0.7).train()
    for index, expert in enumerate(head.experts):
        for name, parameter in expert.named_parameters():
            parameter.requires_grad_(False)
            parameter.zero_() if not name.endswith("3.bias") else parameter.copy_(torch.tensor([4.0, -4.0]) * (1 - 2 * index))
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(16) % 2
    maps = tuple(torch.randn(16, 6, 4, 4, generator=generator) + (labels * 2 - 1).view(-1, 1, 1, 1) for _ in range(2))
    optimizer = torch.optim.Adam(head.gate.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(maps, SIZE), labels)["class"].backward()
        optimizer.step()
    output = head.eval()(maps, SIZE)
    assert torch.equal(output["weights"].argmax(dim=1), labels)
    assert output["weights"].gt(0).sum() < 32


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["faster_rcnn", "faster_rcnn_published", "roi_classifier", "mixture"])
def test_heads_that_cannot_be_averaged_are_refused(name: str) -> None:
    assert not getattr(HEADS.get(name), "mixable", True)
    with pytest.raises(ConfigError, match="cannot be averaged"):
        HEADS.build({"name": "mixture", "expert": {"name": name}}, TaskSpec("t", "detection", CLASSES), CHANNELS, STRIDES)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert": {"width": 3}}, r"heads\.task\.expert.*`name`"),
        ({"expert": {"name": "unett"}}, "Did you mean `unet`"),
        ({"expert": {"name": "classifier", "hiden": []}}, "hiden"),
        ({"expert": EXPERTS["unet"][0]}, "segmentation head, but `task` is classification"),
        ({"experts": 0}, "experts=0"),
        ({"routing": "top_k", "top_k": 5}, r"top_k=5.*1 to 4"),
        ({"routing": "top_k", "top_k": 0}, "top_k=0"),
        ({"routing": "top_p", "top_p": 0.0}, "top_p=0.0"),
        ({"dense_until": 50.0}, "dense_until=50.0"),
    ],
)
def test_mistakes_are_explained(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**keys) if "expert" not in keys else HEADS.build(
            {"name": "mixture", **keys}, TaskSpec("task", "classification", CLASSES), CHANNELS, STRIDES
        )


def test_features_of_the_expert_are_left_to_the_model() -> None:
    config = {"name": "mixture", "expert": {**EXPERTS["classifier"][0], "features": "aspp"}}
    head = HEADS.build(config, TaskSpec("task", "classification", CLASSES), CHANNELS, STRIDES)
    assert head.kind == "classification" and len(head.decode(head.eval()(features(), SIZE))) == 5
