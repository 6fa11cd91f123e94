"""Rows of several tasks pass through one network, each with the adapters of its task, as if each task had passed alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.core.registry import ADAPTERS, ENCODERS
from mtl.encoders.base import Encoder

ROWS = {
    "all of both": {"a": (0, 1, 2), "b": (0, 1, 2)},
    "some of both": {"a": (0, 2), "b": (1, 2)},
    "none in common": {"a": (0, 2), "b": (1,)},
    "none in common, other order": {"a": (1, 2), "b": (0,)},
    "one task": {"b": (0, 2)},
}
every_row = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def build(architecture: str = "test_resnet", kind: str = "bottleneck", **settings: Any) -> Encoder:
    torch.manual_seed(0)
    keys = {"name": "unet", "base_filters": 4} if architecture == "unet" else {"name": "timm", "architecture": architecture}
    encoder: Encoder = ENCODERS.build({**keys, **settings}, True, where="backbone")
    own = {"dropout": 0.0} if kind == "bottleneck" else {}
    ADAPTERS.build({"name": kind, "per_task": True, "rank": 2, **own}, encoder, ["a", "b"], where="peft")
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "adapters" in name or "parametrizations" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.double()  # the two ways differ by rounding alone, which would grow from layer to layer


def images(encoder: Encoder, rows: int = 3) -> Tensor:
    return torch.randn(rows, *encoder.example().shape[1:], generator=torch.Generator().manual_seed(1)).double()


def compare(encoder: Encoder, rows: dict[str, tuple[int, ...]]) -> None:
    """Hold outputs, gradients and statistics of one passage against those of passages one after the other."""
    alone, given = copy.deepcopy(encoder), images(encoder)
    together = encoder.for_tasks(given, rows)
    separate = {task: alone.for_tasks(given[list(own)], {task: tuple(range(len(own)))})[task] for task, own in rows.items()}
    assert together.keys() == separate.keys()
    weights = torch.Generator().manual_seed(2)
    for found in (together, separate):
        weights.manual_seed(2)
        total = torch.stack(
            [(level * torch.randn(level.shape, generator=weights)).mean() for task in rows for level in found[task]]
        ).sum()
        total.backward()
    for task in rows:
        for level, expected in zip(together[task], separate[task], strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-6)
    for (name, parameter), expected in zip(encoder.named_parameters(), alone.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )
    for (name, value), expected in zip(encoder.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@every_row
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_together_is_one_after_the_other(kind: str, rows: dict[str, tuple[int, ...]], checkpointing: bool) -> None:
    encoder = build(kind=kind, freeze="all", gradient_checkpointing=checkpointing).train()
    compare(encoder, rows)


@every_row
def test_statistics_are_of_each_task_alone(rows: dict[str, tuple[int, ...]]) -> None:
    """Norms behind the first adapter train; those before it are frozen."""
    encoder = build(freeze="all", unfreeze=["layer4"]).train()
    assert any(isinstance(module, nn.BatchNorm2d) and module.training for module in encoder.body.modules())
    compare(encoder, rows)


@pytest.mark.parametrize(
    "architecture",
    ["unet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "regnetx_002", "test_nfnet", "test_mambaout",
     "test_byobnet", "densenet121"],
)  # fmt: skip
def test_every_family_of_blocks(architecture: str) -> None:
    compare(build(architecture).eval(), ROWS["some of both"])


def test_what_lies_before_the_first_adapter_sees_each_image_once() -> None:
    encoder = build(freeze="all").train()
    blocks = [name for name, module in encoder.body.named_modules() if type(module).__name__ == "BasicBlock"]
    seen: dict[str, list[int]] = {name: [] for name in ["conv1", *blocks]}
    modules = dict(encoder.body.named_modules())
    for name, rows in seen.items():
        modules[name].register_forward_pre_hook(lambda module, given, rows=rows: rows.append(len(given[0])))
    encoder.for_tasks(images(encoder), {"a": (0, 1), "b": (1,)})
    assert seen == {"conv1": [2], blocks[0]: [2]} | {name: [3] for name in blocks[1:]}


def test_frozen_weights_cost_no_gradient() -> None:
    """No convolution computes the gradient of frozen weights, and none before the first adapter any gradient."""
    encoder = build(freeze="all").train()
    found = encoder.for_tasks(images(encoder), {"a": (0, 1), "b": (1, 2)})
    asked: list[tuple[bool, ...]] = []
    seen, queue = set(), [level.grad_fn for maps in found.values() for level in maps]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "ConvolutionBackward0":
            asked.append(tuple(entry is not None for entry, _ in node.next_functions))
        queue += [entry for entry, _ in node.next_functions]
    own = sum(1 for name, _ in encoder.named_parameters() if "adapters" in name)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.body.modules())
    assert sum(weight for _, weight, *_ in asked) == own
    # Of the stem and the first block no convolution is in the graph at all.
    assert 0 < len(asked) - own < convolutions - 2


def test_adapters_of_a_task_that_nobody_asks_for_get_no_gradient() -> None:
    encoder = build(freeze="all").train()
    torch.stack([level.mean() for level in encoder.for_tasks(images(encoder), {"a": (1,)})["a"]]).sum().backward()
    moved = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in encoder.named_parameters() if ".a." in name}
