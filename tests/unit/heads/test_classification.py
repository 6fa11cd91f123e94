"""Image classifiers: what the loss decides about their outputs, and the published expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec

GRADES = TaskSpec("grade", "classification", ("none", "mild", "severe", "worst"), ordinal=True)
SIZE = (64, 96)


def build(name: str, spec: TaskSpec = GRADES, loss: str = "cross_entropy", **keys: Any) -> Any:
    torch.manual_seed(0)
    return HEADS.build({"name": name, "loss": {"name": loss}, **keys}, spec, (4, 8), (8, 16))


def maps(rows: int = 3, height: int = 4, width: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, c, height * f, width * f, generator=generator) for c, f in ((4, 2), (8, 1)))


@pytest.mark.parametrize("name", ["classifier", "classifier_published"])
def test_the_loss_decides_on_outputs_and_probabilities(name: str) -> None:
    plain, ordinal = (build(name, loss=loss, dropout=0.0).eval() for loss in ("cross_entropy", "ordinal"))
    for head, outputs in ((plain, 4), (ordinal, 3)):
        output = head(maps(), SIZE)
        assert output["logits"].shape == (3, outputs)
        found = torch.stack([row["probabilities"] for row in head.decode(output)])
        torch.testing.assert_close(found, head.criterion.probabilities(output["logits"]))
        torch.testing.assert_close(found.sum(1), torch.ones(3))
        assert found.shape == (3, 4)
        loss = head.loss(output, torch.tensor([0, 1, 3]))["class"]
        torch.testing.assert_close(loss, head.criterion(output["logits"], torch.tensor([0, 1, 3])))


def test_ordinal_needs_grades() -> None:
    with pytest.raises(ConfigError, match="no order"):
        build("classifier", TaskSpec("cell", "classification", ("a", "b")), "ordinal")


def test_mixture_of_ordinal_classifiers() -> None:
    expert = {"name": "classifier", "loss": {"name": "ordinal"}}
    head: Any = HEADS.build({"name": "mixture", "expert": expert}, GRADES, (4, 8), (8, 16)).eval()
    found = torch.stack([row["probabilities"] for row in head.decode(head(maps(), SIZE))])
    assert found.shape == (3, 4) and found.min() >= 0
    torch.testing.assert_close(found.sum(1), torch.ones(3))


@pytest.mark.parametrize("size", [(2, 3), (11, 16), (23, 34)])
def test_published_expert_takes_maps_of_any_size(size: tuple[int, int]) -> None:
    head = build("classifier_published", reduce=6, hidden=5)
    seen: list[Any] = []
    head.reduce.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape[-2:], output.shape[-2:])))
    assert head(maps(height=size[0], width=size[1]), SIZE)["logits"].shape == (3, 4)
    assert seen == [((11, 16), (6, 8))]


def test_published_expert_is_linear_up_to_its_hidden_layer() -> None:
    head = build("classifier_published", reduce=6, hidden=5)
    assert [type(m).__name__ for m in head.reduce] == ["Conv2d", "Conv2d"]
    assert [type(m).__name__ for m in head.classifier] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert all(m.bias is not None for m in head.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    with pytest.raises(ConfigError, match="pool"):
        build("classifier_published", pool=[11])
