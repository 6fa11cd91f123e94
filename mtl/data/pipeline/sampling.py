"""Orders in which samples are drawn. All of them are pure functions of (seed, epoch), so a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from mtl.core.errors import ConfigError, DataError, nearest, unknown

COMMON_CAP = 0.8  # other classes weigh at most this share of the priority class


class SampledItem(NamedTuple):
    """What a training sampler hands to the data set.

    The epoch travels with the index, so workers that live for several epochs always know it; `position` counts draws over
    all ranks, so an index drawn twice in an epoch is augmented in two ways.
    """

    epoch: int
    position: int
    item: int


@dataclass(frozen=True)
class Mixing:
    """How several sources share the batches of an epoch.

    Attributes:
        sources: Source of each item of the data set.
        mode: `mixed` draws every batch from all sources; `alternating` draws each step from one source, in turn (on all ranks
            the same one).
        weights: mixed: share of the draws by source; empty takes the number of items.
        temperature: mixed: shares are proportional to weight^(1 / temperature). 1 leaves the weights as they are, a large
            value makes the sources equal (Devlin et al. 2019 for languages; exponent 1 / T).
    """

    sources: Sequence[str]
    mode: Literal["mixed", "alternating"] = "mixed"
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.mode == "alternating" and self.temperature != 1.0:
            raise ConfigError(
                f"`data.loader.temperature={self.temperature:g}` has no effect with mixing=alternating, where sources take "
                "turns. Remove it, or set data.loader.mixing=mixed."
            )
        if not self.weights:
            return
        problems = [unknown("source", n, self.names, "data.loader.source_weights") for n in self.weights if n not in self.names]
        if missing := [name for name in self.names if name not in self.weights]:
            problems.append(
                f"`data.loader.source_weights` names {', '.join(sorted(self.weights))} but not {', '.join(missing)}. Give each "
                "source of the training set a weight."
            )
        if any(value < 0 for value in self.weights.values()) or not sum(self.weights.values()) > 0:
            problems.append(f"`data.loader.source_weights` is {dict(self.weights)}. Expected weights of at least 0, not all 0.")
        if self.mode == "alternating":
            problems.append(
                "`data.loader.source_weights` has no effect with mixing=alternating, where sources take turns. Remove it, or "
                "set data.loader.mixing=mixed."
            )
        if problems:
            raise ConfigError(problems)

    @property
    def names(self) -> list[str]:
        """The sources, sorted."""
        return sorted(set(self.sources))

    def shares(self) -> np.ndarray:
        """[sources] share of the draws of each source, in the order of `names`; they add up to 1."""
        sizes = [sum(source == name for source in self.sources) for name in self.names]
        weights = np.asarray([self.weights.get(name, size) for name, size in zip(self.names, sizes, strict=True)], np.float64)
        scaled = np.where(weights > 0, weights, 0.0) ** (1.0 / self.temperature)
        return scaled / scaled.sum()

    @property
    def is_shuffle(self) -> bool:
        """Return whether one shuffle of all items does the same."""
        return len(self.names) < 2 or (self.mode == "mixed" and not self.weights and self.temperature == 1.0)


class EpochSampler:
    """Training order: a shuffle, or weighted draws with replacement, of all items or of several sources.

    Args:
        count: Number of items of the data set.
        seed: Seed of the run.
        rank, world_size: Every rank takes each `world_size`-th draw; the few that do not divide evenly are topped up from
            the next permutation, so all ranks make the same number of steps.
        weights: [count] relative weights; None shuffles without replacement.
        samples_per_epoch: Draws per epoch over all ranks; None takes `count`.
        mixing: How sources share the draws; None draws from all items alike.
        batch_size: Samples per step and rank; alternating sources change after each step.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        samples_per_epoch: int | None = None,
        mixing: Mixing | None = None,
        batch_size: int = 1,
    ) -> None:
        if count < 1:
            raise DataError("There are no training samples; check data.split and data.root.")
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.weights = None if weights is None else np.asarray(weights, np.float64)
        self.mixing = None if mixing is None or mixing.is_shuffle else mixing
        self.block = batch_size * world_size
        self.total = -(-(samples_per_epoch or count) // world_size) * world_size
        if self.mixing and self.mixing.mode == "alternating":
            # Whole steps only, as many as any other order makes without its short last batch, so that budgets stay equal.
            self.total = max(1, self.total // self.block) * self.block
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = int(epoch)

    def order(self) -> np.ndarray:
        """[total] indices of this epoch over all ranks."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.mixing is None:
            return self._sample(np.arange(self.count), self.total, rng)
        members = [np.flatnonzero(np.asarray(self.mixing.sources) == name) for name in self.mixing.names]
        if self.mixing.mode == "mixed":
            counts = _apportion(self.mixing.shares(), self.total)
            sampled = [self._sample(items, count, rng) for items, count in zip(members, counts, strict=True)]
            return rng.permutation(np.concatenate(sampled))
        steps = self.total // self.block
        # Turns go on from one epoch to the next, or in epochs of an odd number of steps one source would come up more often.
        turn = (np.arange(steps) + self.epoch * steps) % len(members)
        streams = [
            iter(self._sample(items, int(count) * self.block, rng).reshape(-1, self.block))
            for items, count in zip(members, np.bincount(turn, minlength=len(members)), strict=True)
        ]
        return np.concatenate([next(streams[source]) for source in turn])

    def _sample(self, items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Sample `count` of some items: one permutation after the other, or with replacement by weight."""
        if self.weights is not None:
            weights = self.weights[items]
            return rng.choice(items, count, replace=True, p=weights / weights.sum())
        rounds = -(-count // len(items))
        return np.concatenate([items[:0], *(items[rng.permutation(len(items))] for _ in range(rounds))])[:count]

    def __iter__(self) -> Iterator[SampledItem]:
        epoch = self.epoch
        for position, index in enumerate(self.order().tolist()):
            if position % self.world_size == self.rank:
                yield SampledItem(epoch, position, index)

    def __len__(self) -> int:
        return self.total // self.world_size


def _apportion(shares: np.ndarray, total: int) -> list[int]:
    """Split a total into whole numbers by shares; what rounding leaves goes to the largest remainders."""
    exact = shares * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return counts.tolist()


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
