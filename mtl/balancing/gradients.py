"""Balancers that look at the gradient of each task: several backward passes, one update of what the tasks share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from mtl.balancing.base import Balancer, Step
from mtl.core.registry import BALANCERS

Gradients = tuple[Tensor | None, ...]


class GradientBalancer(Balancer):
    """Combines the tasks' gradients of the shared parameters; what belongs to one task follows that task's gradient alone.

    The scalar has the value of the summed losses. Its backward pass takes the gradients of one task after the other, averages
    those of the shared parameters over the ranks and hands every parameter the gradient it is to have. As this happens
    inside the backward pass, loss scaling, accumulation, clipping and DDP meet it like any other. The forward pass is the
    ordinary one; the price is a backward pass per task and a copy of the shared gradients for each.

    A task without a label in this step is left out of the combination. Where fewer than two are left, or nothing is shared,
    there is nothing to combine and the update is that of the summed losses.
    """

    needs_gradients: bool = True

    @abstractmethod
    def aggregate(self, gradients: Tensor, tasks: list[str]) -> Tensor:
        """Combine the gradients of the shared parameters.

        Args:
            gradients: [T, P], a row per task; the same on all ranks, and scaled as the caller of `backward` scales the loss.
            tasks: The T tasks that are present, at least two.

        Returns:
            [P], the gradient that the shared parameters are to have.
        """

    def forward(self, step: Step) -> Tensor:
        """Return the sum of the losses, whose backward pass gives the combined gradients."""
        total = torch.stack([step.losses[task] * float(step.present[task]) for task in self.tasks]).sum()
        present = [task for task in self.tasks if step.present[task]]
        if len(present) < 2 or not step.shared:
            return total
        roots = [step.losses[task] for task in present]
        if absent := [step.losses[task] for task in self.tasks if not step.present[task]]:
            roots[0] = roots[0] + 0.0 * torch.stack(absent).sum()  # their heads get gradients of zero, not none
        update = partial(self._update, step, present, roots)
        result: Tensor = _Update.apply(total.detach(), update, *step.shared, *step.own)
        return result

    def _update(self, step: Step, tasks: list[str], roots: list[Tensor], scale: Tensor) -> Gradients:
        """Compute the gradient of every shared parameter and of every other one, in this order; None where no loss reaches."""
        shared, parameters = len(step.shared), (*step.shared, *step.own)
        sizes = [parameter.numel() for parameter in step.shared]
        dtype = torch.promote_types(step.shared[0].dtype, torch.float32)
        rows = torch.zeros(len(roots), sum(sizes), dtype=dtype, device=step.shared[0].device)
        reached = [False] * shared
        own: list[Tensor | None] = [None] * len(step.own)
        for row, root in zip(rows, roots, strict=True):
            keep = root is not roots[-1]
            found = torch.autograd.grad(root, parameters, scale.to(root.dtype), retain_graph=keep, allow_unused=True)
            for index, (part, gradient) in enumerate(zip(row.split(sizes), found[:shared], strict=True)):
                if gradient is not None:
                    part.copy_(gradient.flatten())
                    reached[index] = True
            own = [_sum(one, other) for one, other in zip(own, found[shared:], strict=True)]
        combined = self.aggregate(step.average(rows), tasks).split(sizes)
        return (
            *(
                part.view_as(parameter).to(parameter.dtype) if there else None
                for part, parameter, there in zip(combined, step.shared, reached, strict=True)
            ),
            *own,
        )


class _Update(torch.autograd.Function):
    """A number whose backward pass gives parameters the gradients that a function computes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, update: Callable[[Tensor], Gradients], *parameters: nn.Parameter) -> Tensor:
        """Return the number; remember the function, which takes the gradient of this number."""
        ctx.update = update
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters."""
        return (None, None, *ctx.update(scale))


@BALANCERS.register("mgda")
class MultipleGradientDescent(GradientBalancer):
    """The shortest convex combination of the tasks' gradients: no task that takes part gets worse to first order.

    Desideri: Multiple-Gradient Descent Algorithm, Comptes Rendus Mathematique 350, 2012. Sener, Koltun: Multi-Task Learning as
    Multi-Objective Optimization, NeurIPS 2018, algorithm 2: the gradients of the shared parameters themselves, not the upper
    bound at the encoder's output, which says little where tasks read different maps of a pyramid. As there, heads and all else
    that serves one task are updated with weight 1. The weights of the shared gradients sum to 1 and favour short gradients;
    one of exactly zero asks for nothing and is left out.

    Args:
        tasks: Names of the active tasks.
    """

    recent: Tensor

    def __init__(self, tasks: list[str]) -> None:
        super().__init__(tasks)
        self.register_buffer("recent", torch.full((len(self.tasks),), 1.0 / len(self.tasks)))

    def aggregate(self, gradients: Tensor, tasks: list[str]) -> Tensor:
        """Return the convex combination of the rows with the smallest norm."""
        scaled = gradients / torch.linalg.vector_norm(gradients, math.inf)  # their products could overflow
        products = (scaled @ scaled.T).double().cpu().numpy()
        if not np.isfinite(products).all():
            return gradients.sum(dim=0)  # not finite either: loss scaling skips the step as ever (or all are zero)
        weights = gradients.new_tensor(shortest(products))
        for task, weight in zip(tasks, weights, strict=True):
            self.recent[self.tasks.index(task)].lerp_(weight.to(self.recent.dtype), 0.1)
        return weights @ gradients

    def weights(self) -> dict[str, float]:
        """Return a running mean over the steps in which the task was combined with others, each new one counting a tenth."""
        return dict(zip(self.tasks, self.recent.tolist(), strict=True))


def shortest(products: np.ndarray) -> np.ndarray:
    """Return the weights of the shortest convex combination of vectors.

    With r the vectors, min |sum y r|^2 + (sum y - 1)^2 over y >= 0 has its solution in the direction of these weights, whatever
    their sum, and is a problem of non-negative least squares.

    Args:
        products: [T, T] inner products of the vectors. A vector of zero gets weight 0.
    """
    lengths = np.sqrt(products.diagonal())
    moving = np.flatnonzero(lengths)
    weights = np.zeros(len(lengths))
    if len(moving):
        # Taken apart, so that vectors of very different length do not cost digits. The floor makes the solution unique.
        lengths = lengths[moving]
        cosines = products[np.ix_(moving, moving)] / np.outer(lengths, lengths)
        values, directions = np.linalg.eigh(cosines)
        roots = np.sqrt(values.clip(1e-10))[:, None] * directions.T * (lengths / lengths.min())
        system = np.vstack([roots, np.ones(len(moving))])
        solution, _ = nnls(system, np.eye(len(system))[-1], maxiter=100 * len(moving))
        weights[moving] = solution / solution.sum()
    return weights


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
