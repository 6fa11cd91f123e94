"""What every encoder offers to necks, heads and adapters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MethodType
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mtl.layers import take_rows

if TYPE_CHECKING:
    from mtl.encoders.keys import KeyReport

SHARED = "shared"


class Passage:
    """The way of a batch through a network whose tasks have adapters of their own.

    Until the first adapter the batch holds each image once; behind it, the rows of one task after the other.

    Args:
        rows: By task, positions in the batch, ascending.
    """

    def __init__(self, rows: Mapping[str, Sequence[int]]) -> None:
        self.rows = rows
        self.apart = False

    @property
    def task(self) -> str:
        """The task of a passage of one task alone."""
        (task,) = self.rows
        return task

    def split(self, maps: Tensor) -> dict[str, Tensor]:
        """Return the rows of each task, of maps behind the first adapter or those that come to it."""
        if not self.apart:
            self.apart = True
            return {task: take_rows(maps, rows) for task, rows in self.rows.items()}
        parts = maps.split([len(rows) for rows in self.rows.values()])
        return dict(zip(self.rows, parts, strict=True))

    def of_tasks(self, maps: Sequence[Tensor], batch: int) -> dict[str, tuple[Tensor, ...]]:
        """Return the maps of each task.

        Args:
            maps: Of the whole passage; those from before the first adapter have the size of the batch.
            batch: That size. It differs from the number of rows of all tasks, unless both are in the same order.
        """
        levels = [
            {task: take_rows(level, rows) for task, rows in self.rows.items()} if len(level) == batch else self.split(level)
            for level in maps
        ]
        return {task: tuple(level[task] for level in levels) for task in self.rows}


def keep_tasks_apart(norm: nn.Module) -> None:
    """Let a norm take its statistics of one task after the other where the rows of several pass in one batch."""
    norm.forward = MethodType(_one_task_after_the_other, norm)  # a bound method, so that a deep copy calls the copied norm


def _one_task_after_the_other(norm: nn.Module, maps: Tensor) -> Tensor:
    passage, whole = PASSAGE.get(), type(norm).forward
    if passage is None or not passage.apart or not norm.training:
        return whole(norm, maps)
    return torch.cat([whole(norm, part) for part in passage.split(maps).values()])


# A context variable, so that threads of a server do not see each other's tasks.
PASSAGE: ContextVar[Passage | None] = ContextVar("PASSAGE", default=None)


class Adapter(nn.Module):
    """Marks modules that hold adapter parameters.

    Args:
        per_task: One set per task instead of one shared set; outside of a `Passage` these do nothing.

    Attributes:
        by_row: Corrects maps row by row, so that rows of several tasks can pass in one batch.
    """

    by_row: ClassVar[bool] = False

    def __init__(self, per_task: bool) -> None:
        super().__init__()
        self.per_task = per_task


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
        return self.for_tasks(images, {task: range(len(images))})[task]

    def for_tasks(self, images: Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[Tensor, ...]]:
        """Compute the maps of several tasks, each with its own adapters and of its own rows.

        Where adapters correct maps row by row, what lies before the first one is computed once, and behind it the rows of all
        tasks pass in one batch; norms that take statistics there take them of each task alone, as in passes one after the
        other. Where adapters change weights, the tasks pass one after the other.

        Args:
            images: [B, C, H, W] normalised.
            rows: By task, positions in the batch, ascending.
        """
        if not self._pass_together():
            return {task: self._pass(take_rows(images, own), {task: range(len(own))})[task] for task, own in rows.items()}
        order = [row for own in rows.values() for row in own]
        if len(set(order)) < len(order):
            order = sorted(set(order))
        # Tasks that share no row come one after the other from the start, so that nothing changes its place on the way.
        images = take_rows(images, order) if order == sorted(order) else torch.cat([images[row : row + 1] for row in order])
        places = {row: place for place, row in enumerate(order)}
        return self._pass(images, {task: [places[row] for row in own] for task, own in rows.items()})

    def _pass_together(self) -> bool:
        """Return whether rows of several tasks can be one batch."""
        mixing = any(
            isinstance(module, _BatchNorm) and module.training and "forward" not in vars(module)
            for module in self.body.modules()
        )
        return not mixing and all(module.by_row for module in self.modules() if isinstance(module, Adapter))

    def _pass(self, images: Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[Tensor, ...]]:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._task_maps, images, rows, use_reentrant=False)
        return self._task_maps(images, rows)

    def _task_maps(self, images: Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[Tensor, ...]]:
        # The passage is begun inside the recomputed function, so that the backward pass recomputes with the same adapters.
        passage = Passage(rows)
        token = PASSAGE.set(passage)
        try:
            return passage.of_tasks(self.maps(images), len(images))
        finally:
            PASSAGE.reset(token)

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
