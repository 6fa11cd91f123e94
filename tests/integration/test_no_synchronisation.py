"""A training step leaves the device alone: it reads one number, that of the loss, and never decodes or scores.

No GPU is needed. Everything that a batch brings to the device, and whatever is computed from it, is marked; what would make
the host wait for a marked tensor is noted: its values, its shape where that depends on values, its way to the host.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.heads import heatmap
from mtl.heads.points import base, blobs, centres
from mtl.model import MultiTaskModel
from mtl.runs.build import build_balancer, build_model
from mtl.training.module import MultiTaskModule

SIDE = 64
READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive")
TO_HOST = ("tolist", "numpy", "cpu", "__array__")


class Watch(TorchDispatchMode):
    """Notes what waits for tensors that stem from the given ones."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.alive: list[Any] = []  # so that no address is used twice
        self.marked: set[int] = set()
        self.mark(tensors)

    def mark(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self.alive.append(tensor.untyped_storage())
                self.marked.add(tensor.untyped_storage().data_ptr())

    def is_marked(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self.marked

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, _ = tree_flatten((args, kwargs))
        name = function.overloadpacket.__name__
        masks = tree_leaves(args[1]) if name.startswith("index") and len(args) > 1 else []
        if name in READS and any(map(self.is_marked, given)):
            self.waits.append(name)
        # A mask must be counted; one that lies on the host becomes an index there, whose copy to the device waits as well.
        if any(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks) and any(map(self.is_marked, given)):
            self.waits.append(f"{name} by a mask")
        result = function(*args, **(kwargs or {}))
        if any(map(self.is_marked, given)):
            self.mark(result)
        return result


class WatchMethods(TorchFunctionMode):
    """Notes copies to the host, which show in no operation as long as everything lies on the CPU."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in TO_HOST and self.watch.is_marked(args[0]):
            self.watch.waits.append(name)
        return function(*args, **(kwargs or {}))


class Untouchable:
    """Stands for what scores predictions."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a training step asked the evaluator for `{name}`")


def build(head: str) -> MultiTaskModule:
    words = ["task=tiger_mtl", "backbone=test_resnet", f"head@heads.cells={head}", f"data.geometry.size=[{SIDE},{SIDE}]"]
    plan = Plan.from_words([*words, "data.geometry.overlap=0", "necks.aspp.width=16", "necks.decoder.width=16"])
    torch.manual_seed(0)
    model, balancer = build_model(plan, load_weights=False), build_balancer(plan.config.balancer, plan.config.tasks)
    module = MultiTaskModule(model, balancer, Untouchable(), plan)  # type: ignore[arg-type]
    module.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    return module.train()


def batch_of(cells: int) -> TaskBatch:
    """Three windows: one with tissue, one with cells, one with both, of which the cells are none."""
    generator = torch.Generator().manual_seed(cells)

    def target(count: int) -> dict[str, Tensor]:
        points = torch.rand(count, 2, generator=generator) * (SIDE - 16) + 8
        labels = torch.zeros(count, dtype=torch.int64)
        return {"points": points, "boxes": torch.cat([points - 8, points + 8], dim=1), "labels": labels, "ids": labels}

    tissue = torch.randint(0, 3, (3, SIDE, SIDE), generator=generator)
    tissue[0, :8] = 255
    targets = {"tissue": tissue, "cells": [target(0), target(cells), target(0)]}
    present = {"tissue": torch.tensor([True, False, True]), "cells": torch.tensor([False, True, True])}
    return TaskBatch(torch.rand(3, 3, SIDE, SIDE, generator=generator), targets, present, [])


def waits_of(module: MultiTaskModule, batch: TaskBatch) -> list[str]:
    watch = Watch([batch.images, batch.targets])
    with WatchMethods(watch), watch:
        module.training_step(batch, 0).backward()
    return watch.waits


def forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("a training step looked for points")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiTaskModel, "decode", forbid)
    monkeypatch.setattr(base, "suppress", forbid)
    for module in (heatmap, blobs, centres):
        monkeypatch.setattr(module, "find_peaks", forbid)


@pytest.mark.parametrize("head", ["centres", "blobs"])
def test_a_training_step_waits_for_the_loss_alone(head: str, no_decoding: None) -> None:
    module = build(head)
    for part in module.model.heads.values():
        part.decode = forbid
    for cells in (0, 3, 200):
        assert waits_of(module, batch_of(cells)) == ["_local_scalar_dense"], cells  # is it finite?
    assert all(parameter.grad is not None for parameter in module.model.parameters())


def test_with_boxes_the_number_of_waits_does_not_grow_with_the_cells(no_decoding: None) -> None:
    module = build("box_centres")
    few, many = (waits_of(module, batch_of(cells)) for cells in (3, 200))
    assert len(few) == len(many)


def test_what_waits_is_noticed() -> None:
    watched, other = torch.arange(6.0), torch.tensor([True, False] * 3)
    watch = Watch([watched])
    with WatchMethods(watch), watch:
        derived = (watched * 2).view(2, 3)[1]
        float(derived[0])
        derived.tolist()
        watched[watched > 2].sum()
        watched[other].sum()
        other.tolist()
        other.nonzero()
    assert watch.waits == ["_local_scalar_dense", "tolist", "index by a mask", "index by a mask"]
