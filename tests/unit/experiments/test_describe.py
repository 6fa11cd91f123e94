"""Parameter counts, shapes and multiply-adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl.config.plan import Plan
from mtl.core.registry import BALANCERS
from mtl.encoders.base import Adapter
from mtl.experiments.describe import describe, describe_memory, render
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing


class SmallAdapter(Adapter):
    def __init__(self) -> None:
        super().__init__(per_task=False)
        self.inner = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Encoder(nn.Module):
    channels, strides = (8, 16), (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.adapter = SmallAdapter()
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.adapter(self.norm(self.first(images)))
        return x, self.second(x)


class Neck(nn.Module):
    channels, strides = (4,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 4, 1)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.conv(features[1]),)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, features: tuple[Tensor, ...]) -> dict:
        return {"logits": self.conv(features[0]), "levels": [features[0]], "note": 3}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(Geometry(size=(64, 96)), mean=(0.0,) * 3, std=(1.0,) * 3)
        self.encoder = Encoder()
        self.encoder.first.requires_grad_(False)
        self.necks = nn.ModuleDict({"fpn": Neck()})
        self.heads = nn.ModuleDict({"mask": Head()})

    def forward(self, images: Tensor) -> dict:
        return {"mask": self.heads["mask"](self.necks["fpn"](self.encoder(images)))}


@pytest.fixture
def model() -> Model:
    return Model().train()


def test_parameters_are_counted_by_part(model: Model) -> None:
    balancer = BALANCERS.build({"name": "uncertainty"}, ["mask"])
    parameters = describe(model, balancer, (64, 96))["parameters"]
    assert parameters["by_part"] == {
        "backbone": {"total": 224 + 16 + 1152, "trainable": 16 + 1152},
        "adapters": {"total": 64, "trainable": 64},
        "neck.fpn": {"total": 68, "trainable": 68},
        "head.mask": {"total": 10, "trainable": 10},
        "balancer": {"total": 1, "trainable": 1},
    }
    assert parameters["total"] == 1535 and parameters["trainable"] == 1535 - 224
    assert describe(model, None, (64, 96))["parameters"]["total"] == 1534


def test_shapes_and_multiply_adds(model: Model) -> None:
    description = describe(model, None, (64, 96))
    assert description["input"] == [3, 64, 96]
    outputs = {part["part"]: part["outputs"] for part in description["parts"]}
    assert outputs == {
        "encoder": {"/2": [8, 32, 48], "/4": [16, 16, 24]},
        "neck.fpn": {"/4": [4, 16, 24]},
        "head.mask": {"logits": [2, 16, 24], "levels.0": [4, 16, 24]},
    }
    fine, coarse = 32 * 48, 16 * 24
    assert description["multiply_adds"] == fine * (27 * 8 + 64) + coarse * (72 * 16 + 16 * 4 + 4 * 2)


def test_describing_changes_nothing(model: Model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    describe(model, None, (64, 96))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.encoder._forward_hooks


def test_description_is_plain_and_readable(model: Model) -> None:
    description = describe(model, None, (64, 96))
    assert json.loads(json.dumps(description)) == description
    text = render(description)
    assert "backbone" in text and "1,392" in text and "16 x 16 x 24" in text and "multiply-adds" in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_neck_that_is_not_shared_is_shown_per_head(model: Model) -> None:
    class Unshared(Model):
        def forward(self, images: Tensor) -> dict:
            return {"mask": self.heads["mask"](self.necks["fpn"]["mask"](self.encoder(images)))}

    unshared = Unshared()
    unshared.necks = nn.ModuleDict({"fpn": nn.ModuleDict({"mask": Neck()})})
    description = describe(unshared, None, (64, 96))
    assert {part["part"]: part["outputs"] for part in description["parts"]}["neck.fpn.mask"] == {"/4": [4, 16, 24]}
    assert description["parameters"]["by_part"]["neck.fpn"]["total"] == 68


def test_memory_is_shown_with_its_parts(model: Model, tmp_path: Path) -> None:
    words = ["task=malaria_mttl", "backbone=test_resnet", "trainer=cpu", "tasks=[segmentation]", "callbacks=ema"]
    memory = describe_memory(Plan.from_words([*words, f"data.root={tmp_path}"]))["memory"]
    parts = memory["parts"]
    assert memory["peak"] == sum(parts.values()) and memory["labels"] == "all" and memory["batch_size"] == 8
    assert parts["average of the weights"] == parts["weights"] > 0 and parts["optimizer state"] == 2 * parts["gradients"]
    assert parts["activations"] > 8 * 512 * 512 * 4 * 3  # more than the images themselves
    text = render(describe(model, None, (64, 96)) | {"memory": memory})
    assert "batches of 8, every image with all labels" in text and f"{memory['peak'] / 2**20:,.0f}" in text
    assert max(len(line) for line in text.splitlines()) <= 110
