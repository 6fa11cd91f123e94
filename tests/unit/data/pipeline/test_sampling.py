from __future__ import annotations

import numpy as np
import pytest

from mtl.core.errors import ConfigError, DataError
from mtl.data.pipeline.sampling import EpochSampler, Mixing, WindowShardSampler, class_weights, item_weights


def indices(sampler: EpochSampler) -> list[int]:
    return [draw.item for draw in sampler]


def test_order_is_a_pure_function_of_seed_and_epoch():
    a, b = EpochSampler(50, 7), EpochSampler(50, 7)
    list(a)
    a.set_epoch(3)
    b.set_epoch(3)
    assert list(a) == list(b) and {draw.epoch for draw in a} == {3}
    b.set_epoch(4)
    assert indices(a) != indices(b) and sorted(indices(b)) == list(range(50))
    assert indices(EpochSampler(50, 8)) != indices(EpochSampler(50, 7))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_one_order_evenly(world_size):
    ranks = [EpochSampler(50, 7, rank, world_size) for rank in range(world_size)]
    draws = sorted((draw for sampler in ranks for draw in sampler), key=lambda draw: draw.position)
    assert len({len(list(sampler)) for sampler in ranks}) == 1 and all(len(s) == len(list(s)) for s in ranks)
    assert [draw.item for draw in draws][:50] == indices(EpochSampler(50, 7))
    assert [draw.position for draw in draws] == list(range(len(draws)))


@pytest.mark.parametrize(("budget", "most"), [(20, 1), (50, 1), (120, 3)])
def test_budget_draws_evenly(budget, most):
    counts = np.bincount(indices(EpochSampler(50, 0, samples_per_epoch=budget)), minlength=50)
    assert counts.sum() == budget and counts.max() == most and counts.max() - counts.min() <= 1


def test_weights_decide_how_often():
    sampler = EpochSampler(4, 0, weights=np.asarray([1, 1, 1, 7.0]), samples_per_epoch=4000)
    share = np.bincount(indices(sampler), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.1, 0.1, 0.1, 0.7], atol=0.03)


SOURCES = ["a"] * 30 + ["b"] * 10


def mixed(**settings) -> EpochSampler:
    keys = {key: settings.pop(key) for key in ("mode", "weights", "temperature") if key in settings}
    return EpochSampler(40, 5, mixing=Mixing(SOURCES, **keys), **settings)


def shares(sampler: EpochSampler) -> tuple[int, int]:
    drawn = indices(sampler)
    return sum(i < 30 for i in drawn), sum(i >= 30 for i in drawn)


def test_sources_share_an_epoch_as_asked():
    assert indices(mixed()) == indices(EpochSampler(40, 5))  # nothing asked for: one shuffle of all
    assert shares(mixed(weights={"a": 1, "b": 3})) == (10, 30)
    assert shares(mixed(weights={"a": 1, "b": 0})) == (40, 0)
    assert shares(mixed(temperature=1e9)) == (20, 20)
    assert shares(mixed(temperature=2.0)) == (25, 15)  # sqrt 30 : sqrt 10
    drawn = indices(mixed(weights={"a": 1, "b": 3}))
    counts = np.bincount(drawn, minlength=40)[30:]
    assert set(counts) == {3}  # evenly within a source
    assert 0 < sum(i < 30 for i in drawn[:20]) < 10  # shuffled over the epoch


@pytest.mark.parametrize("world_size", [1, 2])
def test_alternating_sources_take_turns_step_by_step(world_size):
    samplers = [
        mixed(mode="alternating", batch_size=4, rank=rank, world_size=world_size, samples_per_epoch=48)
        for rank in range(world_size)
    ]
    ranks = [indices(sampler) for sampler in samplers]
    for rank in ranks:
        assert len(rank) == 48 // world_size == len(samplers[0])
        steps = [{SOURCES[i] for i in rank[start : start + 4]} for start in range(0, len(rank), 4)]
        assert steps == [{"a"}, {"b"}] * (len(steps) // 2)
    counts = np.bincount([i for rank in ranks for i in rank], minlength=40)
    assert counts[:30].max() == 1 and set(counts[30:]) <= {2, 3}
    again = mixed(mode="alternating", batch_size=4, world_size=world_size, samples_per_epoch=48)
    assert indices(again) == ranks[0]
    again.set_epoch(1)
    assert indices(again) != ranks[0]


@pytest.mark.parametrize(("world_size", "wanted"), [(1, 42), (1, 3), (2, 42), (2, 47), (2, 5)])
def test_alternating_epochs_are_as_long_as_others_without_a_short_batch(world_size, wanted):
    alternating = mixed(mode="alternating", batch_size=4, world_size=world_size, samples_per_epoch=wanted)
    plain = EpochSampler(40, 5, world_size=world_size, samples_per_epoch=wanted, batch_size=4)
    assert len(alternating) == len(indices(alternating)) == max(4, len(plain) // 4 * 4)


def test_turns_of_sources_go_on_from_epoch_to_epoch():
    """Else an epoch of one step would never show the second source."""
    sampler = mixed(mode="alternating", batch_size=4, samples_per_epoch=12)
    turns = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        drawn = indices(sampler)
        turns += [{SOURCES[i] for i in drawn[start : start + 4]} for start in range(0, 12, 4)]
    assert turns == [{"a"}, {"b"}] * 6


def test_rare_classes_are_drawn_within_their_source():
    weights = np.asarray([1.0] * 29 + [0.0] + [0.0] * 9 + [1.0])
    mixing = Mixing(SOURCES, weights={"a": 1, "b": 1})
    drawn = indices(EpochSampler(40, 5, weights=weights, samples_per_epoch=100, mixing=mixing))
    assert 29 not in drawn and drawn.count(39) == 50


def test_weights_of_sources_must_make_sense():
    with pytest.raises(ConfigError, match="Did you mean `a`"):
        Mixing(["alpha", "a"], weights={"a": 1, "alpha": 1, "aa": 1})
    with pytest.raises(ConfigError, match="but not b"):
        Mixing(SOURCES, weights={"a": 1})
    with pytest.raises(ConfigError, match="no effect with mixing=alternating"):
        Mixing(SOURCES, "alternating", {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="temperature=2` has no effect with mixing=alternating"):
        Mixing(SOURCES, "alternating", temperature=2.0)


def test_no_samples():
    with pytest.raises(DataError, match="no training samples"):
        EpochSampler(0, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_each_window_once_and_images_stay_whole(world_size):
    images = [0, 0, 0, 1, 2, 2, 3, 4, 4]
    samplers = [WindowShardSampler(images, rank, world_size) for rank in range(world_size)]
    assert all(list(sampler) == [0] for sampler in samplers if sampler.filler)  # a rank that is left without an image
    ranks = [list(sampler) for sampler in samplers if not sampler.filler]
    assert sorted(index for rank in ranks for index in rank) == list(range(9))
    owners = [{images[index] for index in rank} for rank in ranks]
    assert sum(len(owner) for owner in owners) == 5
    assert all(rank == sorted(rank) for rank in ranks)


def test_class_weights_by_rarity():
    assert class_weights({"infected": 10, "healthy": 90}) == {"infected": 10.0, "healthy": pytest.approx(100 / 90)}
    weights = class_weights({"infected": 10, "healthy": 990, "wbc": 2}, "infected")
    assert weights["infected"] == 1002 / 10
    assert weights["wbc"] == pytest.approx(0.8 * 100.2) and weights["healthy"] >= 1
    common = class_weights({"a": 90, "b": 10}, "a")
    assert common["b"] >= 1 and common["a"] > common["b"]


def test_item_weight_is_the_largest_among_the_classes_present():
    presence = [{"infected": 1, "healthy": 9}, {"healthy": 10}, {"infected": 0, "healthy": 10}, {}]
    weights = item_weights(presence, "infected")
    assert weights[0] == 30.0 and weights[1] == weights[2] == pytest.approx(30 / 29) and weights[3] == 1.0
    with pytest.raises(DataError, match=r"holds no `parasite` \(only healthy, infected\)"):
        item_weights(presence, "parasite")
    with pytest.raises(DataError, match="holds no `infected`"):
        item_weights([{"infected": 0, "healthy": 3}], "infected")
