"""Balancers that weigh the task losses and add them up: one scalar, one ordinary backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl.balancing.base import Balancer, Step
from mtl.core.registry import BALANCERS


@BALANCERS.register("static")
class StaticWeights(Balancer):
    """Weighted sum with fixed weights.

    Args:
        tasks: Names of the active tasks.
        weights: Weight by task; a task that is not named weighs 1. Entries for inactive tasks have no effect, so that
            one setting serves a run with all tasks and a run with one.
    """

    def __init__(self, tasks: list[str], *, weights: dict = {}) -> None:  # noqa: B006 (read only; the registry reads literals)
        super().__init__(tasks)
        self.weight = {task: float(weights.get(task, 1.0)) for task in self.tasks}

    def forward(self, step: Step) -> Tensor:
        """Add up the weighted losses; an absent task stays in the graph with weight 0."""
        terms = [step.losses[task] * (self.weight[task] if step.present[task] else 0.0) for task in self.tasks]
        return torch.stack(terms).sum()

    def weights(self) -> dict[str, float]:
        """Return the fixed weights."""
        return dict(self.weight)


@BALANCERS.register("uncertainty")
class UncertaintyWeights(Balancer):
    """Learned weights from homoscedastic uncertainty: sum over tasks of exp(-s) L / 2 + s / 2.

    Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018. s = log variance, one scalar
    parameter per task. In a step in which nobody has a label of a task, neither its loss nor its s counts: the s/2 term
    alone would drive s down and the weight up.

    `clamp` and `loss_cap` cut gradients as `torch.clamp` does. Outside +-clamp, s receives no gradient and
    acts as a constant. A loss above `loss_cap` counts as the cap: its network parameters receive no gradient from it in
    that step, while s still sees the capped value.

    Args:
        tasks: Names of the active tasks.
        init: First s by task.
        default_init: First s of tasks that `init` does not name.
        clamp: Bound on |s|.
        loss_cap: Upper bound of each loss, or None for no bound (published: 10).
    """

    needs_positive_losses: bool = True

    def __init__(
        self,
        tasks: list[str],
        *,
        init: dict = {},  # noqa: B006 (read only; the registry reads literals)
        default_init: float = -1.0,
        clamp: float = 15.0,
        loss_cap: float | None = None,
    ) -> None:
        super().__init__(tasks)
        self.clamp = float(clamp)
        self.loss_cap = loss_cap
        self.log_variance = nn.ParameterDict(
            {task: nn.Parameter(torch.tensor(float(init.get(task, default_init)))) for task in self.tasks}
        )

    def forward(self, step: Step) -> Tensor:
        """Add up exp(-s) L / 2 + s / 2 over present tasks; an absent one stays in the graph with weight 0."""
        terms = []
        for task in self.tasks:
            loss, s = step.losses[task].float(), self.log_variance[task].float().clamp(-self.clamp, self.clamp)
            if self.loss_cap is not None:
                loss = loss.clamp(max=self.loss_cap)
            terms.append(0.5 * torch.exp(-s) * loss + 0.5 * s if step.present[task] else 0.0 * loss + 0.0 * s)
        return torch.stack(terms).sum()

    def weights(self) -> dict[str, float]:
        """Return exp(-s) / 2 per task."""
        return {
            task: 0.5 * float(torch.exp(-self.log_variance[task].detach().float().clamp(-self.clamp, self.clamp)))
            for task in self.tasks
        }
