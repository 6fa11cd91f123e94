"""What a balancer does: per-task losses in, one scalar out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Scalarizer(nn.Module, ABC):
    """Combines per-task losses into one scalar; its state (buffers, parameters) resumes with the checkpoint.

    Args:
        tasks: Names of the active tasks.
    """

    def __init__(self, tasks: list[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    @abstractmethod
    def forward(self, losses: dict[str, Tensor], present: dict[str, bool]) -> Tensor:
        """Combine.

        Args:
            losses: Scalar per task; zero (but attached to the graph) where nobody had a label.
            present: Per task, did any sample on any rank have a label in this step?
        """

    def weights(self) -> dict[str, float]:
        """Return the weight each task's loss has now, for the log."""
        return dict.fromkeys(self.tasks, 1.0)
