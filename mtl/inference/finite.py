"""Numbers that are no numbers are refused before they become a detection that is missing or a mask that is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mtl.core.errors import CheckpointError
from mtl.core.types import Arrays
from mtl.heads.base import Output
from mtl.layers import floating


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


def check_finite(
    outputs: Mapping[str, Output],
    decoded: Sequence[Mapping[str, Arrays]],
    images: Sequence[str],
    rows: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Refuse what is not finite; a score of NaN reaches no threshold, so that decoding alone would hide it.

    Args:
        outputs: By task, the raw outputs of a batch.
        decoded: Per row of the batch, by task, what they were decoded to.
        images: Per row, what to call its image.
        rows: By task, the rows of the batch that its output stands for; None is all.

    Raises:
        NotFiniteError: With the first task and image.
    """
    for image, tasks in zip(images, decoded, strict=True):
        for task, arrays in tasks.items():
            if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
                raise NotFiniteError(task, image)
    found = [(task, tensor.detach()) for task, output in outputs.items() for tensor in floating(output)]
    found = [(task, tensor) for task, tensor in found if tensor.numel() and tensor.ndim]
    spoiled = [~torch.isfinite(tensor).all() for _, tensor in found]
    if not spoiled or not bool(torch.stack(spoiled).any()):  # one look at the device
        return
    task, tensor = next(entry for entry, bad in zip(found, spoiled, strict=True) if bool(bad))
    own = range(len(images)) if rows is None else rows[task]
    by_row = len(tensor) == len(own)
    row = int(torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1))[0]) if by_row and tensor.ndim > 1 else 0
    raise NotFiniteError(task, images[own[row]])
