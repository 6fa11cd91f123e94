"""What every encoder offers to necks, heads and adapters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl.layers import take_rows

if TYPE_CHECKING:
    from mtl.encoders.keys import KeyReport

# The task whose adapters are in use. A context variable, so that threads of a server do not see each other's task.
ACTIVE_TASK: ContextVar[str | None] = ContextVar("ACTIVE_TASK", default=None)
SHARED = "shared"


class Adapter(nn.Module):
    """Marks modules that hold adapter parameters and picks the set in use.

    Args:
        per_task: One set per task instead of one shared set.
    """

    def __init__(self, per_task: bool) -> None:
        super().__init__()
        self.per_task = per_task

    def active_set(self) -> str | None:
        """Return the key of the set in use, or None outside of a task, where an adapter does nothing."""
        return ACTIVE_TASK.get() if self.per_task else SHARED


class Encoder(nn.Module, ABC):
    """Image in, pyramid of maps out.

    Attributes:
        architecture: Name of the network.
        body: The network itself; its parameters are the base that weights are loaded into.
        channels: Channels per map, finest first.
        strides: Network pixels per map pixel.
        normalization: `mean` and `std` per input channel for images in [0, 1].
        adapters: Adapter modules that live beside the body (empty for those that live inside its layers).
        adapter_tasks: Tasks with an adapter set of their own.
        per_task: `forward` needs `task=`, since each task has its own adapters.
        report: What was loaded into the body; None where it starts at random.
        frozen_modules: Modules of the body that stay in evaluation mode (`mtl.encoders.freeze`).
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    architecture: str
    body: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    normalization: dict[str, list[float]]

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.adapter_tasks: tuple[str, ...] = ()
        self.per_task = False
        self.report: KeyReport | None = None
        self.frozen_modules: tuple[str, ...] = ()
        self.gradient_checkpointing = False

    @property
    def levels(self) -> tuple[int, ...]:
        """Level (log2 of the stride) of each map; 2 is /4."""
        return tuple(round(math.log2(stride)) for stride in self.strides)

    @abstractmethod
    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps with the adapters in use; arguments and result as in `forward`."""

    def forward(self, images: Tensor, task: str | None = None) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            images: [B, C, H, W] normalised.
            task: Task whose adapters are used; required where `per_task`, otherwise ignored.

        Returns:
            [B, channels[i], H / strides[i], W / strides[i]] per level, finest first.
        """
        if not self.per_task:
            return self.maps(images)
        if task not in self.adapter_tasks:
            raise ValueError(
                f"This encoder has one adapter set per task: expected task= one of {self.adapter_tasks}, found {task}"
            )
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._task_maps, images, task, use_reentrant=False)
        return self._task_maps(images, task)

    def for_tasks(self, images: Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[Tensor, ...]]:
        """Compute the maps of several tasks, each with its own adapters and of its own rows.

        Args:
            images: [B, C, H, W] normalised.
            rows: By task, positions in the batch, ascending.
        """
        return {task: self(take_rows(images, own), task=task) for task, own in rows.items()}

    def _task_maps(self, images: Tensor, task: str) -> tuple[Tensor, ...]:
        # The task is set inside the recomputed function, so that the backward pass recomputes with the same adapters.
        token = ACTIVE_TASK.set(task)
        try:
            return self.maps(images)
        finally:
            ACTIVE_TASK.reset(token)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; frozen modules (each by itself, not its children) stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_modules:
            self.body.get_submodule(name).training = False
        return self

    @abstractmethod
    def example(self) -> Tensor:
        """Return a small input [1, C, H, W] of zeros that the network accepts."""

    def announce_adapters(self, tasks: list[str], per_task: bool) -> None:
        """Note that adapters were attached; called by the adapter that does so."""
        self.per_task = per_task
        self.adapter_tasks = tuple(tasks) if per_task else ()
        self.train(self.training)


def named_adapter_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of all adapters inside `module`, with their full names, each once."""
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        if isinstance(part, Adapter):
            for name, parameter in part.named_parameters(prefix=prefix):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield name, parameter


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all adapters inside `module`, so that an optimizer can group them."""
    return [parameter for _, parameter in named_adapter_parameters(module)]


def parameters_of_task(encoder: nn.Module, task: str) -> list[nn.Parameter]:
    """Return the parameters of the adapters that serve one task."""
    return [parameter for name, parameter in named_adapter_parameters(encoder) if task in name.split(".")]


def output_shapes(encoder: Encoder, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Run an example image and return the output shape of each named module of the body that really takes part.

    Modules that are never called, or whose output is not one tensor, are left out. Neither parameters nor statistics nor
    the random state change.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name in names:

        def note(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        handles.append(encoder.body.get_submodule(name).register_forward_hook(note))
    was_training = encoder.training
    try:
        encoder.eval()
        with torch.no_grad():
            encoder(encoder.example())
    finally:
        encoder.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: shapes[name] for name in names if name in shapes}
