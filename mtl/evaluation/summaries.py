"""Finished runs of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtl.metrics.evaluator import Evaluator


@dataclass
class RunSummary:
    """One finished run of a comparison.

    Attributes:
        arm: Name of the arm. An arm may have several runs per seed with different tasks (single-task runs).
        seed: Of the run.
        evaluator: Filled with the test records of the run (`load_records`); its tasks are those of the run.
        thresholds: Those in force in the run's `metrics.json`.
        split_hash: Hash of `split.csv`.
        budget: Training samples that the run was allowed to see.
        seen: Those it did see, which early stopping can make fewer; None where unknown.
        thresholds_source: Where thresholds were chosen (`val`).
        image_size: Network input as text (`tiles 384x384 scale 0.25`).
        resolution: At which size masks are compared (`native`, `working`).
        augmentation: The augmentation settings as text.
        baseline: From `baseline_summary`.
        notes: What a reader of its figures must know, of the data among others.
    """

    arm: str
    seed: int
    evaluator: Evaluator
    thresholds: dict[str, dict[str, float]]
    split_hash: str
    budget: int
    thresholds_source: str = "val"
    seen: int | None = None
    image_size: str = ""
    resolution: str = ""
    augmentation: str = ""
    baseline: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Arm, seed and tasks, to name the run in messages."""
        return f"{self.arm} seed {self.seed} ({'+'.join(self.evaluator.specs)})"
