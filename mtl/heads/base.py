"""What every head does: features of labelled rows in, raw tensors out, a loss, a decode to predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mtl.core.task import TaskSpec

Output = dict[str, Any]
Prediction = dict[str, Tensor]


class Head(nn.Module, ABC):
    """Turns features into one task's output.

    Sub-classes are registered with `@HEADS.register("name")`; arguments after `*` are the keys a YAML may set.

    Args:
        spec: The task this head serves; `spec.kind` equals `kind`.
        channels: Channels of the feature maps that `forward` will receive, finest first.
        strides: Their strides in network pixels.

    Attributes:
        kind: Kind of task, a literal of the class. `any` stands for the kind of the heads inside; the instance knows which.
        needs_boxes: `decode` looks at boxes that another head found.
        mixable: Averaging the outputs of several such heads makes sense: all tensors that hold predictions are floating point,
            have the batch as first dimension and do not depend on choices (proposals) that differ between heads.
        looks_at_targets: The head wants `observe_targets`; collecting the targets costs a look at every training label.
    """

    kind: str
    looks_at_targets: bool = False
    needs_boxes: ClassVar[bool] = False
    mixable: ClassVar[bool] = True

    def __init__(self, spec: TaskSpec, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Compute raw tensors.

        Args:
            features: NCHW maps, finest first, as announced in `channels` and `strides`.
            image_size: (height, width) of the network input.
        """

    @abstractmethod
    def loss(self, output: Output, target: Any) -> dict[str, Tensor]:
        """Compute the loss terms, each a scalar in float32, averaged over the rows.

        Every row is labelled: the others never reach a head, and a head without a labelled row does not run. A row may still
        have nothing to learn from (no box), and all parameters must take part then too (`attached_zero`), because
        DistributedDataParallel hangs otherwise.

        Args:
            output: Result of `forward`, of at least one row.
            target: Of the same rows, as in `TaskBatch.targets`.
        """

    @abstractmethod
    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Turn raw tensors into one prediction per row, in network pixels (`docs/architecture.md`)."""

    def set_progress(self, progress: float) -> None:
        """Take note of the share of training that is done; told at the start of each epoch."""

    def observe_targets(self, targets: Sequence[Any]) -> None:
        """Look at the targets of all labelled training samples.

        Told once, before the first step of a run that does not start from a checkpoint; what is learned must be in buffers, so
        that a checkpoint holds it.

        Args:
            targets: One per image, as `TaskKind.target` makes them.
        """

    @property
    def monitored(self) -> tuple[str, ...]:
        """Names of what `monitor` returns."""
        return ()

    def monitor(self, output: Output) -> dict[str, Tensor]:
        """Compute scalars worth watching, averaged over the rows.

        Args:
            output: Result of `forward`, of labelled rows.
        """
        return {}
