"""The metric that selects a checkpoint, ends a run early and cuts the learning rate: as it is, or smoothed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtl.config.schema import RunConfig

SMOOTHED = "val/monitor"  # column of the moving mean


def watched(config: RunConfig) -> str:
    """Return the name under which the monitored metric of a run, or of one of its stages, is logged."""
    return config.monitor if config.monitor_smoothing == 1 else SMOOTHED


def moving_mean(values: Sequence[float], count: int) -> float:
    """Return the mean of the last `count` values, of fewer while there are fewer; undefined ones among them are left out.

    NaN where the last value is not defined: an epoch of which nothing is known is not chosen for those before it.
    """
    recent = [value for value in values[-count:] if not math.isnan(value)]
    return math.nan if not values or math.isnan(values[-1]) else math.fsum(recent) / len(recent)
