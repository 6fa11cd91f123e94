"""Moved to `mtl.metrics.statistics`."""

from mtl.metrics.statistics import *  # noqa: F403
