"""Warnings of libraries that a user can do nothing about."""

from __future__ import annotations

import warnings

from pytorch_lightning.utilities.warnings import PossibleUserWarning

NOISE = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's copy of a torch helper
    r"You requested to overfit but enabled",  # debug=overfit takes the first batches in order
    r"Total length of `\w+` across ranks is zero",
    r"(GPU|MPS) available but not used",  # trainer=cpu was asked for
    r"This process .* is multi-threaded, use of fork\(\) may lead to deadlocks",  # loaders run one thread
)


def ignore_noise() -> None:
    """Ignore what `NOISE` lists, and Lightning's category for advice (number of workers, logging interval, ...).

    Changes the filters of the surrounding `warnings.catch_warnings`.
    """
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
