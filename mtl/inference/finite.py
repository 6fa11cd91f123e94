"""Numbers that are no numbers are refused before they become a detection that is missing or a mask that is empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl.core.errors import CheckpointError
from mtl.core.types import Arrays
from mtl.heads.base import Output


class NotFiniteError(CheckpointError):
    """A network says something that is not finite.

    Args:
        task: About what.
        image: Of which image.
    """

    def __init__(self, task: str, image: str) -> None:
        self.task, self.image = task, image
        super().__init__(
            f"{image}: what the network says for {task} is not finite (NaN or infinite), so nothing is said of it. Expected "
            "finite numbers: the weights of the checkpoint are damaged, or overflowed in training. Use another checkpoint."
        )


def check_finite(outputs: Mapping[str, Output], decoded: Sequence[Mapping[str, Arrays]], images: Sequence[str]) -> None:
    """Refuse what is not finite; a score of NaN reaches no threshold, so that decoding alone would hide it.

    Args:
        outputs: By task, the raw outputs of a batch.
        decoded: Per row of the batch, by task, what they were decoded to.
        images: Per row, what to call its image.

    Raises:
        NotFiniteError: With the first task and image.
    """
    for image, tasks in zip(images, decoded, strict=True):
        for task, arrays in tasks.items():
            if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
                raise NotFiniteError(task, image)
    found = [(task, tensor.detach()) for task, output in outputs.items() for tensor in _tensors(output)]
    spoiled = [~torch.isfinite(tensor).all() for _, tensor in found]
    if not spoiled or not bool(torch.stack(spoiled).any()):  # one look at the device
        return
    task, tensor = next(entry for entry, bad in zip(found, spoiled, strict=True) if bool(bad))
    by_row = len(tensor) == len(images)
    row = int(torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1))[0]) if by_row and tensor.ndim > 1 else 0
    raise NotFiniteError(task, images[row])


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of nested containers, those that hold something."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel() and value.ndim:
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
