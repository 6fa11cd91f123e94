"""Parts of the network see the rows that are labelled for their tasks, and nothing else changes by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.config.plan import Plan
from mtl.layers import floating, take_rows
from mtl.model import MultiTaskModel
from mtl.runs.build import model_config

SHARED = ("necks.own={name: fpn, width: 16, shared: false}", "heads.segmentation.features=own", "heads.heatmap.features=own")
VARIANTS = {
    "plain": (),
    "copies": tuple(f"+{word}" if word.startswith("necks") else word for word in SHARED),
    "bottleneck": ("peft=bottleneck",),
    "lora": ("peft=lora", "peft.per_task=true"),
}
WORDS = ("task=malaria_mttl", "backbone=test_resnet", "head@heads.detection=fcos", "data.geometry.size=[64,64]")
ROWS = {"detection": (0, 3), "roi": (0, 3), "segmentation": (1, 2), "heatmap": (2,)}
TASKS = tuple(ROWS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str = "plain") -> MultiTaskModel:
    torch.manual_seed(0)
    model = MultiTaskModel.from_config(json.loads(json.dumps(model_config(Plan.from_words([*WORDS, *VARIANTS[variant]])))))
    with torch.no_grad():  # adapters start as zero and would tell no tasks apart
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def target_of(task: str) -> Any:
    if task == "segmentation":
        return (torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    box = torch.tensor([[8.0, 10, 30, 34], [34, 20, 60, 44]])
    labels = torch.tensor([0, 0 if task == "heatmap" else 1])
    row = {"boxes": box, "labels": labels, "points": (box[:, :2] + box[:, 2:]) / 2, "ids": torch.arange(2)}
    return [row] * 4


def losses(model: MultiTaskModel, outputs: dict[str, Any], rows: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    found = {}
    for task in outputs:
        head: Any = model.heads[task]
        found[task] = torch.stack(list(head.loss(outputs[task], take_rows(target_of(task), rows[task])).values())).sum()
    return found


def gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[int]]]:
    """Note how many rows each module sees at each call."""
    seen: dict[str, list[int]] = {name: [] for name in modules}

    def note(name: str) -> Any:
        return lambda module, given: seen[name].append(len(given[0][0] if isinstance(given[0], tuple) else given[0]))

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


@every_variant
def test_a_fully_labelled_batch_is_what_it_was_bit_for_bit(variant: str) -> None:
    rows, found = dict.fromkeys(TASKS, (0, 1, 2, 3)), []
    for given in (None, rows):
        model = build(variant).train()
        torch.manual_seed(5)
        outputs = model(images(), rows=given)
        torch.stack(list(losses(model, outputs, rows).values())).sum().backward()
        found.append((list(floating(outputs)), gradients(model), model.state_dict()))
    (outputs, grads, state), (others, other_grads, other_state) = found
    assert len(outputs) == len(others) > 8 and all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True))
    assert grads.keys() == other_grads.keys() and all(torch.equal(grads[name], other_grads[name]) for name in grads)
    assert all(torch.equal(state[name], other_state[name]) for name in state)


@every_variant
def test_gradients_of_a_mixed_batch_are_those_of_the_labelled_rows_alone(variant: str) -> None:
    """In evaluation mode, where rows do not see each other through norms; elsewhere this is what a head sees."""
    model = build(variant).eval()
    torch.stack(list(losses(model, model(images(), rows=ROWS), ROWS).values())).sum().backward()
    mixed = gradients(model)
    model.zero_grad()
    for task, rows in ROWS.items():
        alone = model(images()[list(rows)], [task])
        head: Any = model.heads[task]
        torch.stack(list(head.loss(alone[task], take_rows(target_of(task), rows)).values())).sum().backward()
    separate = gradients(model)
    assert mixed.keys() == separate.keys()
    for name in mixed:
        torch.testing.assert_close(mixed[name], separate[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_each_part_sees_the_rows_that_count() -> None:
    model = build("copies").train()
    parts = {task: model.heads[task] for task in TASKS} | {"encoder": model.encoder, "fpn": model.necks["fpn"]}
    parts |= {f"own.{task}": model.necks.get_submodule(f"own.{task}") for task in ("segmentation", "heatmap")}
    with counted(parts) as seen:
        model(images(), rows=ROWS)
    expected = {task: [len(rows)] for task, rows in ROWS.items()} | {"encoder": [4], "fpn": [2]}
    assert seen == expected | {"own.segmentation": [2], "own.heatmap": [1]}
    with counted(parts) as seen:
        outputs = model(images(), rows={**ROWS, "detection": (), "roi": (), "heatmap": ()})
    assert list(outputs) == ["segmentation"]
    assert {name for name, calls in seen.items() if calls} == {"encoder", "own.segmentation", "segmentation"}


@pytest.mark.parametrize("labelled", [("detection", "roi"), ("segmentation",), ()], ids=["boxes", "masks", "nothing"])
@every_variant
def test_every_parameter_gets_a_gradient_of_zero_where_nothing_is_labelled(variant: str, labelled: tuple[str, ...]) -> None:
    model = build(variant).train()
    rows = {task: ROWS[task] if task in labelled else () for task in TASKS}
    outputs = model(images(), TASKS, rows)
    found = losses(model, outputs, rows)
    nothing = {task: model.unread(task, TASKS, rows, outputs) for task in TASKS if task not in labelled}
    assert all(float(value) == 0 for value in nothing.values())
    torch.stack([*found.values(), *nothing.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    for task in nothing:
        assert not any(parameter.grad.any() for parameter in model.heads[task].parameters() if parameter.grad is not None)
    # What did take part is not touched by it.
    moved = gradients(model)
    model.zero_grad()
    if labelled:
        torch.manual_seed(0)
        again = build(variant).train()
        torch.stack(list(losses(again, again(images(), TASKS, rows), rows).values())).sum().backward()
        assert {name for name, value in moved.items() if value.any()} <= gradients(again).keys()


def test_parts_with_norms_that_processes_share_always_run() -> None:
    """A process that left such a part out would keep the others waiting."""
    model = build("copies").train()
    model.heads["heatmap"].add_module("shared_norm", nn.SyncBatchNorm(3))
    rows = {**ROWS, "segmentation": (), "heatmap": ()}
    with counted({task: model.heads[task] for task in TASKS}) as seen:
        outputs = model(images(), TASKS, rows)
    assert seen == {"detection": [2], "roi": [2], "segmentation": [1], "heatmap": [1]}
    reached = model.unread("segmentation", TASKS, rows, outputs)
    assert float(reached) == 0 and torch.autograd.grad(reached, outputs["segmentation"]["logits"])[0].any() == False  # noqa: E712
    with counted({task: model.heads[task] for task in TASKS}) as seen:
        model.eval()(images(), TASKS, rows)
    assert seen["heatmap"] == []


@pytest.mark.parametrize("rows", [(0, 1, 2, 3), (1, 2), (0, 3), (2,), ()])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_taken_rows_and_their_gradient(rows: tuple[int, ...], layout: torch.memory_format) -> None:
    values = torch.randn(4, 3, 5, 6).contiguous(memory_format=layout).requires_grad_()
    taken = take_rows(values, rows)
    assert torch.equal(taken, values[list(rows)]) and (len(rows) < 2 or taken.is_contiguous(memory_format=layout))
    weights = torch.randn(taken.shape)
    found = torch.autograd.grad((taken * weights).sum(), values)[0]
    expected = torch.zeros(4, 3, 5, 6)
    expected[list(rows)] = weights
    assert torch.equal(found, expected)
    assert take_rows(["a", "b", "c", "d"], rows) == [["a", "b", "c", "d"][row] for row in rows]
