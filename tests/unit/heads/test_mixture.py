"""A mixture equals the masked average of its experts, whatever it skips, whatever its schedule and checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mixture_tools import EVERYONE, SIZE, build, features, target_for
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mtl.heads import mixture as module
from mtl.heads.mixture import EPS, MixtureHead, average


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(entry, f"{path}.{key}")


def masked(head: MixtureHead, maps: tuple[Tensor, ...]) -> dict[str, Any]:
    """Run every expert on everything and weigh, written another way."""
    scores = head.gate(maps[-1].mean(dim=(2, 3)))
    scores = scores.softmax(1) if head.competing else scores.sigmoid()
    kept = torch.zeros_like(scores)
    for row, values in enumerate(scores.tolist()):
        ranking = sorted(range(len(values)), key=lambda index: -values[index])
        if head.routing == "top_k":
            ranking = ranking[: head.top_k]
        elif head.routing == "top_p":
            count = next((n for n in range(1, len(values)) if sum(values[i] for i in ranking[:n]) >= head.top_p), len(values))
            ranking = ranking[:count]
        kept[row, ranking] = 1
    weights = scores * kept / ((scores * kept).sum(1, keepdim=True) + EPS)
    outputs = [expert(maps, SIZE) for expert in head.experts]
    result: dict[str, Any] = {"weights": weights, "gate": scores}
    for key, value in outputs[0].items():
        result[key] = value
        if isinstance(value, Tensor) and len(value) == len(weights):
            stacked = torch.stack([output[key] for output in outputs], dim=1)
            result[key] = torch.einsum("be,be...->b...", weights, stacked)
    return result


def rank(head: MixtureHead, order: tuple[int, ...]) -> None:
    """Make the gate prefer experts in this order, for every image."""
    with torch.no_grad():
        head.gate.weight.zero_()
        head.gate.bias.copy_(torch.tensor([-2.0 * order.index(index) for index in range(len(order))]))


ROUTINGS = [
    {"routing": "dense"},
    {"routing": "top_k", "top_k": 1},
    {"routing": "top_k", "top_k": 2, "gate": "sigmoid"},
    {"routing": "top_p", "top_p": 0.8},
    {"routing": "top_p", "top_p": 1.3, "gate": "sigmoid"},
]
routings = pytest.mark.parametrize("keys", ROUTINGS, ids=lambda keys: "-".join(map(str, keys.values())))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@routings
@pytest.mark.parametrize("expert", EVERYONE)
def test_equals_the_masked_average(expert: str, keys: dict[str, Any], training: bool) -> None:
    head = build(expert, **keys).train(training)
    reference = copy.deepcopy(head)
    results = []
    for compute in (lambda maps: head(maps, SIZE), lambda maps: masked(reference, maps)):
        maps = features(grad=True)
        output = compute(maps)
        loss = torch.stack(list(head.loss(output, target_for(head)).values())).sum()
        loss.backward()
        results.append((output, loss, maps))
    (output, loss, maps), (wanted, wanted_loss, wanted_maps) = results
    found = dict(tensors(output))
    assert found.keys() == dict(tensors(wanted)).keys()
    for path, value in tensors(wanted):
        torch.testing.assert_close(found[path], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=1e-6)
    for level, wanted_level in zip(maps, wanted_maps, strict=True):
        if wanted_level.grad is not None:
            torch.testing.assert_close(level.grad, wanted_level.grad, rtol=1e-3, atol=1e-6)
    for (name, parameter), wanted_parameter in zip(head.named_parameters(), reference.parameters(), strict=True):
        gradient, wanted_gradient = parameter.grad, wanted_parameter.grad
        if not training:  # nothing keeps an expert that did not run in the graph, and nothing needs to
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            wanted_gradient = torch.zeros_like(parameter) if wanted_gradient is None else wanted_gradient
        torch.testing.assert_close(
            gradient, wanted_gradient, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@routings
def test_the_loss_reaches_the_gate(keys: dict[str, Any]) -> None:
    head = build(**keys).train()
    output = head(features(), SIZE)
    selected = output["weights"].gt(0)
    assert bool(selected.all()) == (keys["routing"] == "dense")
    head.loss(output, target_for(head))["class"].backward()
    gradient = head.gate.weight.grad
    assert gradient is not None and gradient.isfinite().all()
    # An expert selected alone has the weight 1 whatever its score.
    assert bool(gradient.abs().max() > 1e-3) == (keys.get("top_k") != 1)


@pytest.mark.parametrize("expert", EVERYONE)
def test_statistics_of_a_running_expert_are_those_of_the_whole_batch(expert: str) -> None:
    head = build(expert, routing="top_k", top_k=1).train()
    reference = copy.deepcopy(head)
    used = head(features(), SIZE)["weights"].gt(0).any(dim=0)
    masked(reference, features())
    assert used.any()
    for index, ran in enumerate(used.tolist()):
        own, wanted = head.experts[index].state_dict(), reference.experts[index].state_dict()
        for key in own:
            assert torch.equal(own[key], wanted[key]) or not ran, key


def count_rows(head: MixtureHead) -> list[int]:
    """Rows that each expert sees, counted as they come."""
    seen = [0] * len(head.experts)

    def note(index: int) -> Any:
        def hook(expert: nn.Module, inputs: Any) -> None:
            seen[index] += len(inputs[0][0])

        return hook

    for index, expert in enumerate(head.experts):
        expert.register_forward_pre_hook(note(index))
    return seen


def test_training_skips_experts_that_nobody_selected() -> None:
    head = build("deeplabv3plus", routing="top_k", top_k=2).train()
    rank(head, (2, 0, 1, 3))
    seen = count_rows(head)
    output = head(features(), SIZE)
    assert seen == [5, 0, 5, 0]
    assert output["weights"].gt(0).tolist() == [[True, False, True, False]] * 5
    head.loss(output, target_for(head))["mask"].backward()
    for index, expert in enumerate(head.experts):
        gradients = [parameter.grad for parameter in expert.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients) == (index in (0, 2))  # type: ignore[union-attr]


def test_training_runs_a_selected_expert_on_the_whole_batch() -> None:
    head = build(routing="top_k", top_k=1).train()
    seen = count_rows(head)
    selected = head(features(), SIZE)["weights"].gt(0)
    assert selected.any(dim=0).sum() > 1 and not selected.all(dim=0).any()
    assert seen == [5 * used for used in selected.any(dim=0).tolist()]


def test_evaluation_runs_an_expert_on_the_rows_that_selected_it() -> None:
    head = build(routing="top_p", top_p=0.7).eval()
    seen = count_rows(head)
    selected = head(features(), SIZE)["weights"].gt(0)
    assert len(set(selected.sum(dim=1).tolist())) > 1
    assert seen == selected.sum(dim=0).tolist() and sum(seen) < 4 * 5


def test_synchronised_norms_keep_every_expert_running() -> None:
    """Processes that skip different experts would wait for each other's statistics forever."""
    head = build("deeplabv3plus", routing="top_k", top_k=1).train()
    seen = count_rows(head)
    head.experts[0].sync = nn.SyncBatchNorm(3)
    head(features(), SIZE)
    assert seen == [5] * 4
    head.eval()(features(), SIZE)
    assert sum(seen) == 5 * 4 + 5


# -- routing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.5, [1]), (0.51, [1, 2]), (0.8, [1, 2]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_prefix_that_reaches_p(top_p: float, kept: list[int]) -> None:
    head = build(routing="top_p", top_p=top_p)
    assert head.select(torch.tensor([[0.125, 0.5, 0.3125, 0.0625]])).nonzero()[:, 1].tolist() == kept


def test_top_p_sums_raw_sigmoid_scores() -> None:
    head = build(routing="top_p", gate="sigmoid", top_p=0.8)
    scores = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.5, 0.25, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    assert head.select(scores).sum(dim=1).tolist() == [1, 2, 4, 4]
    assert bool(head.select(torch.full((1, 4), torch.nan)).any())


@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_top_k_keeps_exactly_k(top_k: int) -> None:
    head = build(routing="top_k", top_k=top_k)
    kept = head.select(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.4, 0.1, 0.3, 0.2]]))
    assert kept.sum(dim=1).tolist() == [top_k, top_k]
    assert kept[1].nonzero().flatten().tolist() == sorted([0, 2, 3, 1][:top_k])


def test_weights_are_renormalised() -> None:
    head = build(routing="top_k", gate="sigmoid", top_k=2).eval()
    output = head(features(), SIZE)
    torch.testing.assert_close(output["weights"].sum(dim=1), torch.ones(5), rtol=0, atol=1e-4)
    expected = torch.where(output["weights"] > 0, output["gate"], 0.0)
    torch.testing.assert_close(output["weights"], expected / expected.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_one_expert_is_that_expert() -> None:
    head = build("unet", experts=1).eval()
    alone = head.experts[0](features(), SIZE)["logits"]
    torch.testing.assert_close(head(features(), SIZE)["logits"], alone, rtol=1e-4, atol=1e-5)


def test_experts_start_differently_and_the_gate_alone_is_added() -> None:
    head = build()
    first, second = (torch.cat([p.flatten() for p in expert.parameters()]) for expert in list(head.experts)[:2])
    assert not torch.equal(first, second)
    assert sum(p.numel() for p in head.parameters()) == 4 * len(first) + 6 * 4 + 4


def test_average_looks_into_containers() -> None:
    weights, plan = torch.tensor([[0.25, 0.75], [1.0, 0.0]]), [(0, None), (1, None)]
    values = [
        {
            "a": [torch.full((2, 3), value)],
            "b": (torch.full((2,), value), 7),
            "cells": torch.arange(5.0),
            "ids": torch.arange(2),
        }
        for value in (1.0, 5.0)
    ]
    found = average(values, weights, plan)
    assert found["a"][0].tolist() == [[4.0] * 3, [1.0] * 3]
    assert found["b"][0].tolist() == [4.0, 1.0] and found["b"][1] == 7 and isinstance(found["b"], tuple)
    assert found["cells"] is values[0]["cells"] and found["ids"] is values[0]["ids"]
    partial = average([torch.ones(2, 1), torch.full((1, 1), 5.0)], weights, [(0, None), (1, torch.tensor([0]))])
    assert partial.tolist() == [[4.0], [1.0]]


# -- schedule ----------------------------------------------------------------------------------------------------------


def used(head: MixtureHead) -> float:
    return float(head(features(), SIZE)["weights"].gt(0).sum(dim=1).float().mean())


@pytest.mark.parametrize("training", [True, False])
def test_schedule(training: bool) -> None:
    head = build(routing="top_k", top_k=1, dense_until=0.5).train(training)
    found = []
    for progress in (0.0, 0.49, 0.5, 0.9, 0.0):
        head.set_progress(progress)
        found.append(used(head))
    assert found == [4, 4, 1, 1, 4]
    assert used(build(routing="top_k", top_k=1).train(training)) == 1  # sparse from the start
    assert used(build(routing="dense").train(training)) == 4


@pytest.mark.parametrize("training", [True, False])
def test_a_checkpoint_routes_as_its_epoch_did(training: bool) -> None:
    source = build(routing="top_k", top_k=1, dense_until=0.5)
    for progress, expected in ((0.6, 1), (0.1, 4)):
        source.set_progress(progress)
        target = build(routing="top_k", top_k=1, dense_until=0.5).train(training)
        target.set_progress(1 - progress)
        target.load_state_dict(source.state_dict())
        assert used(target) == expected
        assert used(copy.deepcopy(source).train(training)) == expected


def test_an_average_of_weights_that_copies_buffers_alone_routes_alike() -> None:
    head = build(routing="top_k", top_k=1, dense_until=0.5)
    mean = AveragedModel(head, avg_fn=lambda a, b, n: b if not a.is_floating_point() else a, use_buffers=True).eval()
    assert used(mean.module) == 4  # type: ignore[arg-type]
    head.set_progress(0.7)
    mean.update_parameters(head)
    mean.update_parameters(head)
    assert used(mean.module) == 1  # type: ignore[arg-type]


def test_dense_training_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build(routing="top_k", dense_until=0.5).train()
    monkeypatch.setattr(module.MixtureHead, "_plan", lambda *_: pytest.fail("asked which experts run"))
    head.sparse = head.sparse.to("meta")  # cannot be read
    head(features(), SIZE)
