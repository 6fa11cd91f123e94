"""Keys of a run configuration that other code names; a test checks that each exists."""

from __future__ import annotations

from typing import Any

from mtl.core.registry import (
    ADAPTERS,
    BALANCERS,
    DATA_FAMILIES,
    ENCODERS,
    HEADS,
    NECKS,
    SCHEDULERS,
    STUDY_METRICS,
    Registry,
)

# Sections that are one part, and sections that hold several by name.
SECTIONS: tuple[tuple[Registry, str], ...] = (
    (ENCODERS, "backbone"), (ADAPTERS, "peft"), (BALANCERS, "balancer"), (SCHEDULERS, "scheduler"), (DATA_FAMILIES, "data"),
)  # fmt: skip
GROUPS_OF_PARTS: tuple[tuple[Registry, str], ...] = ((NECKS, "necks"), (HEADS, "heads"), (STUDY_METRICS, "study_metrics"))

# What may change when a run goes on: where and how fast it computes, not what.
ALLOWED = (
    "plugins",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.max_epochs",
    "data.loader.num_workers",
    "data.loader.prefetch",
    "data.root",
    "data.largest_loss",
    "data.cache.folder",
    "runtime.fit",
)


# Differences between two configurations that do not make them different runs: names, and where and how fast they compute.
VOLATILE = ("resume", "name", "paths", *(key for key in ALLOWED if key != "trainer.max_epochs"))


EPOCHS = "trainer.max_epochs (of all stages together)"  # stands for what `total_epochs` says


# What all runs of a seed must share, checked before the first one is trained (`check_comparable` looks at what they did).
SHARED = (
    "seed", "data", "callbacks.early_stopping", EPOCHS, "trainer.max_steps",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches", "evaluation.hit_radius",
    "evaluation.resolution", "evaluation.primary",
)  # fmt: skip


# Settings of `data` that arms may differ in: how batches are drawn and how fast they are loaded.
FREE = ("cache", "largest_loss",
        "loader.sampler", "loader.priority_class", "loader.mixing", "loader.source_weights", "loader.temperature",
        "loader.num_workers", "loader.prefetch", "loader.pin_memory",
        "loader.eval_batch_size")  # fmt: skip


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their path."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: leaf for name, entry in value.items() for key, leaf in leaves(entry, f"{path}.{name}" if path else name).items()
    }
