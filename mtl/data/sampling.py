"""Orders in which samples are drawn. All of them are pure functions of (seed, epoch), so a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl.core.errors import DataError, nearest

COMMON_CAP = 0.8  # other classes weigh at most this share of the priority class


class Draw(NamedTuple):
    """What a training sampler hands to the data set.

    The epoch travels with the index, so workers that live for several epochs always know it; `position` counts draws over
    all ranks, so an index drawn twice in an epoch is augmented in two ways.
    """

    epoch: int
    position: int
    item: int


class EpochSampler:
    """Training order: a shuffle, or weighted draws with replacement.

    Args:
        count: Number of items of the data set.
        seed: Seed of the run.
        rank, world_size: Every rank takes each `world_size`-th draw; the few that do not divide evenly are topped up from
            the next permutation, so all ranks make the same number of steps.
        weights: [count] relative weights; None shuffles without replacement.
        samples_per_epoch: Draws per epoch over all ranks; None takes `count`.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        samples_per_epoch: int | None = None,
    ) -> None:
        if count < 1:
            raise DataError("There are no training samples; check data.split and data.root.")
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.weights = None if weights is None else np.asarray(weights, np.float64)
        self.total = -(-(samples_per_epoch or count) // world_size) * world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = int(epoch)

    def order(self) -> np.ndarray:
        """[total] indices of this epoch over all ranks."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is not None:
            return rng.choice(self.count, self.total, replace=True, p=self.weights / self.weights.sum())
        rounds = -(-self.total // self.count)
        return np.concatenate([rng.permutation(self.count) for _ in range(rounds)])[: self.total]

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        for position, index in enumerate(self.order().tolist()):
            if position % self.world_size == self.rank:
                yield Draw(epoch, position, index)

    def __len__(self) -> int:
        return self.total // self.world_size


class WindowShardSampler:
    """Evaluation order: every window exactly once, all windows of an image on one rank, no padding.

    A rank for which no image is left gets the first window once more, since the Trainer would skip evaluation there and the
    other ranks would wait for it; `filler` says so, and evaluators count a sample once.

    Args:
        images: [count] image number of each item of the data set, in order.
        rank, world_size: Images are dealt out in turn.
    """

    def __init__(self, images: Sequence[int], rank: int = 0, world_size: int = 1) -> None:
        self.indices = [index for index, image in enumerate(images) if image % world_size == rank]
        self.filler = not self.indices and len(images) > 0
        if self.filler:
            self.indices = [0]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def class_weights(counts: Mapping[str, int], priority: str | None = None) -> dict[str, float]:
    """Weigh classes by rarity: total / count.

    With a priority class the others weigh at most 0.8 of it and at least 1; without one, rarity alone decides.

    Args:
        counts: Objects (or images) per class.
        priority: Class that is to weigh most.
    """
    total = sum(counts.values())
    weights = {name: total / count for name, count in counts.items() if count > 0}
    if priority is None:
        return weights
    if priority not in weights:
        raise DataError(
            f"The training split holds no `{priority}` (only {', '.join(sorted(weights)) or 'nothing'}), so "
            f"data.loader.priority_class cannot favour it. Use another split or class.{nearest(priority, weights)}"
        )
    cap = COMMON_CAP * weights[priority]
    weights = {name: weight if name == priority else max(1.0, min(cap, weight)) for name, weight in weights.items()}
    others = [weight for name, weight in weights.items() if name != priority]
    weights[priority] = max([weights[priority], *[weight / COMMON_CAP for weight in others]])
    return weights


def item_weights(presence: Sequence[Mapping[str, int]], priority: str | None = None) -> np.ndarray:
    """[items] weights: the largest class weight among the classes present; 1 where there is none.

    Args:
        presence: Per item, counts per class.
        priority: See `class_weights`.
    """
    totals: dict[str, int] = {}
    for counts in presence:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    weights = class_weights(totals, priority)
    return np.asarray([max((weights[name] for name, count in counts.items() if count > 0), default=1.0) for counts in presence])
