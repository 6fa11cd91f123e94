from __future__ import annotations

import numpy as np
import pytest

from mtl.core.errors import DataError
from mtl.data.sampling import EpochSampler, WindowShardSampler, class_weights, item_weights


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
