"""What a balancer does: the task losses of a step in, one scalar out whose backward pass brings about the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


def alone(values: Tensor) -> Tensor:
    """Return the values as they are: the mean over ranks where there is one."""
    return values


@dataclass(frozen=True)
class Step:
    """What a balancer knows about one training step.

    Attributes:
        losses: Scalar per task; zero (but attached to the graph) where nobody had a label.
        present: Per task, did any sample on any rank have a label in this step?
        shared: Trainable parameters of the network that serve more than one task; empty where none does.
        own: All its other trainable parameters; each serves one task.
        average: Averages a tensor over all ranks, which have to call it equally often.
    """

    losses: dict[str, Tensor]
    present: dict[str, bool]
    shared: Sequence[nn.Parameter] = ()
    own: Sequence[nn.Parameter] = ()
    average: Callable[[Tensor], Tensor] = alone


class Balancer(nn.Module, ABC):
    """Turns the task losses of a step into one update; its state (buffers, parameters) resumes with the checkpoint.

    Attributes:
        needs_gradients: It looks at the gradient of each task, so that where no parameter is shared it does nothing, and the
            backward pass through the network is carried out several times.
        needs_positive_losses: A loss below 0 would be weighted ever more, without an end.

    Args:
        tasks: Names of the active tasks.
    """

    needs_gradients: bool = False
    needs_positive_losses: bool = False

    def __init__(self, tasks: list[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """Return the scalar whose backward pass gives every parameter its gradient.

        In evaluation mode it gets mean losses of validation, without parameters or gradients: what it then returns is
        `val/loss`, and no state may change.

        Whoever calls `backward` may scale it (loss scaling, accumulation); the gradients scale with it. Under DDP, gradients
        are averaged over the ranks afterwards, as for any other loss.
        """

    def weights(self) -> dict[str, float]:
        """Return the weight each task has now, for the log."""
        return dict.fromkeys(self.tasks, 1.0)
