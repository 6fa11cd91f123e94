"""Resampling: whole groups, pairing, coverage; spread over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.metrics.statistics import (
    GroupBootstrap,
    bootstrap_intervals,
    mean_over_runs,
    paired_intervals,
    percentile_interval,
    resampled_scores,
    spread,
)


def test_every_resample_draws_as_many_groups_as_there_are() -> None:
    bootstrap = GroupBootstrap(["b", "a", "b", "c"], 50, 1)
    assert bootstrap.names == ["a", "b", "c"] and (bootstrap.counts.sum(1) == 3).all()
    assert bootstrap.index(["c", "a", "a"]).tolist() == [2, 0, 0]
    np.testing.assert_array_equal(bootstrap.counts, GroupBootstrap(["c", "b", "a"], 50, 1).counts)
    assert (bootstrap.counts != GroupBootstrap(["a", "b", "c"], 50, 2).counts).any()


def test_interval_of_a_mean_matches_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 200)
    bootstrap = GroupBootstrap([f"{index:03d}" for index in range(200)], 2000, 0)
    found = bootstrap_intervals(lambda counts: {"t": {"mean": float(counts @ values / counts.sum())}}, bootstrap)
    assert found is not None and found["t"]["mean"] is not None
    half = 1.96 * values.std() / np.sqrt(200)
    assert found["t"]["mean"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05)


def test_resampling_patients_is_wider_than_resampling_images() -> None:
    """Images of a patient are alike: treating them as independent would pretend to know more."""
    patient = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)

    def width(groups: list[str]) -> float:
        bootstrap = GroupBootstrap(groups, 500, 0)
        index = bootstrap.index(groups)
        found = bootstrap_intervals(lambda c: {"t": {"m": float(c[index] @ patient / c[index].sum())}}, bootstrap)
        assert found is not None and found["t"]["m"] is not None
        return found["t"]["m"][1] - found["t"]["m"][0]

    assert width([f"p{i // 10:02d}" for i in range(200)]) > 2 * width([f"i{i:03d}" for i in range(200)])


def test_paired_difference_is_tighter_than_the_two_intervals() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 1, 50)
    ours, reference = hard + 0.1 + generator.normal(0, 0.01, 50), hard
    bootstrap = GroupBootstrap([f"{index:02d}" for index in range(50)], 500, 0)
    samples = [resampled_scores(lambda c, v=v: {"t": {"m": float(c @ v / 50)}}, bootstrap) for v in (ours, reference)]
    interval = paired_intervals(*samples)["t"]["m"]
    assert interval is not None and interval[0] == pytest.approx(0.1, abs=0.02) and interval[1] - interval[0] < 0.02
    alone = percentile_interval(samples[0]["t"]["m"])
    assert alone is not None and alone[1] - alone[0] > 0.3
    averaged = mean_over_runs(samples)["t"]["m"]
    np.testing.assert_allclose(averaged, (samples[0]["t"]["m"] + samples[1]["t"]["m"]) / 2)


def test_one_group_or_mostly_undefined_gives_no_interval() -> None:
    assert bootstrap_intervals(lambda counts: {"t": {"m": 1.0}}, GroupBootstrap(["a", "a"], 10)) is None
    assert percentile_interval([np.nan, np.nan, 1.0]) is None
    assert percentile_interval([1.0, 1.0, np.nan]) == [1.0, 1.0]


def test_spread_over_seeds() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "n": 3}
    assert np.isnan(spread([1.0])["std"])
    with pytest.raises(ConfigError, match="no finished run"):
        spread([])
