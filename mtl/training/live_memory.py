"""How many bytes of tensors are alive, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that a pass carries out equally often whatever the size of its input: those that use weights. Each begins a segment
# of the timeline. Others, such as a loop over the images of a batch, come in numbers that depend on it.
MILESTONES = ("convolution", "norm", "mm", "embedding")
# It copies what it reads and writes into a layout of its own while it runs.
COPIES = "convolution"


@dataclass
class Timeline:
    """The most that was alive in each segment of a computation, in bytes.

    Attributes:
        peaks: One per segment.
        delivered: Bytes of the gradients that parameters had been given when each segment began.
        backward: The segment with which the backward pass begins.
    """

    peaks: list[int] = field(default_factory=lambda: [0])
    delivered: list[int] = field(default_factory=lambda: [0])
    backward: int = 0


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as they exist.

    Every storage counts once, however many views it has, and what existed before does not count. Of what operations need while
    they run, only the copies of convolutions are counted.

    Args:
        known: What existed before.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.timeline = Timeline()
        self.alive = 0
        self._before = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}
        self._references: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        made = tensors_in(result)
        for tensor in made:
            self._count(tensor)
        name = func.name()
        copies = bytes_of([*tensors_in(args), *made]) if COPIES in name else 0
        self.timeline.peaks[-1] = max(self.timeline.peaks[-1], self.alive + copies)
        if any(milestone in name for milestone in MILESTONES):
            self.begin()
        return result

    def begin(self, delivered: int = 0) -> None:
        """Begin a segment, after a parameter was given a gradient of so many bytes."""
        self.timeline.peaks.append(self.alive)
        self.timeline.delivered.append(self.timeline.delivered[-1] + delivered)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._before:
            return
        self.alive += size - self._sizes.get(key, 0)  # a storage may grow
        self._sizes[key] = size
        if key not in self._references:
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        self._references.pop(key, None)
        self.alive -= self._sizes.pop(key, 0)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors inside nested containers."""
    return [entry for entry in tree_leaves(value) if isinstance(entry, Tensor)]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes the values of tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
