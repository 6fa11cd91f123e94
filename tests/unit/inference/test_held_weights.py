"""Weights that are cast once: the same numbers to the last bit, and never those of another state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mtl.inference.weights import hold_weights
from mtl.layers import DilatedConvolution, in_float32, ready_for_bfloat16


class Layers(nn.Module):
    """Convolutions of all kinds, a linear layer, and one that stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.dilated = DilatedConvolution(8, 8, 3, padding=2, dilation=2)
        self.linear = nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.dilated(self.depthwise(self.plain(images)))
        return in_float32(self.last, self.linear(maps.mean(dim=(2, 3))))


@pytest.fixture
def pair() -> tuple[Layers, Layers]:
    """A network, and one that holds its weights."""
    torch.manual_seed(0)
    plain = Layers().to(memory_format=torch.channels_last)
    ready_for_bfloat16(plain)
    held = copy.deepcopy(plain)
    hold_weights(held)
    return plain, held


def run(model: nn.Module, images: Tensor, kind: torch.dtype | None) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
        result: Tensor = model(images)
    return result


def casts(model: nn.Module, images: Tensor) -> int:
    """Count the casts of a forward pass in bfloat16."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(model, images, torch.bfloat16)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")


@pytest.mark.parametrize("kind", [torch.bfloat16, None])
def test_held_weights_change_no_bit(pair: tuple[Layers, Layers], kind: torch.dtype | None) -> None:
    plain, held = pair
    images = torch.randn(2, 4, 9, 7)
    assert list(held.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        assert torch.equal(run(held, images, kind), run(plain, images, kind))
    with torch.autocast("cpu", torch.bfloat16):  # where gradients are wanted, they reach the weights
        held(images).sum().backward()
    assert all(parameter.grad is not None for parameter in held.parameters())


def test_weights_are_cast_once_and_again_when_they_change(pair: tuple[Layers, Layers]) -> None:
    plain, held = pair
    images = torch.randn(2, 4, 9, 7)
    run(held, images, torch.bfloat16)
    assert casts(held, images) < casts(plain, images) - 4
    for model in pair:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.25)
    assert torch.equal(run(held, images, torch.bfloat16), run(plain, images, torch.bfloat16))
    again = copy.deepcopy(plain.state_dict())
    held.load_state_dict({name: value * 2 for name, value in again.items()})
    plain.load_state_dict({name: value * 2 for name, value in again.items()})
    assert torch.equal(run(held, images, torch.bfloat16), run(plain, images, torch.bfloat16))


def test_subclasses_stay_what_they_are(pair: tuple[Layers, Layers]) -> None:
    plain, held = pair
    assert all(isinstance(ours, type(theirs)) for ours, theirs in zip(held.modules(), plain.modules(), strict=True))
    kinds = [type(module) for module in held.modules()]
    hold_weights(held)
    assert [type(module) for module in held.modules()] == kinds
