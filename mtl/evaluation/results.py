"""What scoring one split gave, in objects and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mtl.config.plan import Plan
from mtl.core.types import ImageResult, Record
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.evaluation.baselines import count_training
from mtl.evaluation.chosen import ChosenSplit
from mtl.evaluation.examples import ExampleKeeper
from mtl.kinds.base import TrainingStatistics
from mtl.metrics.evaluator import Evaluator
from mtl.runs.loading import LoadedModel
from mtl.runs.results import main_metrics


@dataclass
class Evaluation:
    """What scoring one split gave.

    Attributes:
        summary: Body of `metrics.json`.
        evaluator: Holds one record per image.
        loaded: The model and what its checkpoint says.
        plan: Of the run, with the data that were scored.
        datamodule: Gives the images for figures.
        chosen: The images that were scored.
        notes: What a reader of the figures must know.
        examples: The images kept for the report.
    """

    summary: dict[str, Any]
    evaluator: Evaluator
    loaded: LoadedModel
    plan: Plan
    datamodule: MultiTaskDataModule
    chosen: ChosenSplit
    notes: list[str]
    examples: ExampleKeeper

    @property
    def split(self) -> str:
        """The split that was scored."""
        return self.chosen.name

    @property
    def results(self) -> dict[str, tuple[ImageResult, ImageResult]]:
        """By sample id, (prediction, truth) of the images kept for the report."""
        return self.examples.results


def training_statistics(datamodule: MultiTaskDataModule, evaluator: Evaluator, chosen: ChosenSplit) -> TrainingStatistics:
    """Count classes in the training images and take the training values of study metrics, for the baselines.

    Where not all training images are there, the images that are stand in; the baseline is then a little too good.
    """
    trained = datamodule.training_records if chosen.trained else []
    records = trained or datamodule.records

    def truths(chosen: Iterable[Record]) -> Iterator[ImageResult]:
        names = [record.sample_id for record in chosen]
        images = datamodule.unaugmented("train" if trained else "all") if names else None
        return (images.truth(name) for name in names) if images else iter(())

    return count_training(evaluator.specs, records, study=evaluator.study, truths=truths)


def budget(plan: Plan, datamodule: MultiTaskDataModule, chosen: ChosenSplit) -> int | None:
    """Return how many training samples the run was allowed to see, or None where its training images are not there."""
    if not chosen.trained:
        return None
    total = 0
    for stage in plan.stages:
        loader = stage.config.data.loader
        total += datamodule.for_stage(stage.tasks, stage.sources, loader, stage.seed).samples_per_epoch * stage.epochs
    return total


def result_lines(metrics: dict[str, Any]) -> str:
    """Return the main figures as lines of text: per task the primary metrics, their interval and the baseline."""
    lines = [f"{metrics['split']} split, {metrics['n_samples']} images, score {_number(metrics['score'])}"]
    for task, values in metrics["tasks"].items():
        lines.append(f"  {task}: {_figures(main_metrics(values['ci95']), values, metrics['baseline'].get(task))}")
    for name, values in metrics["study"].items():
        lines.append(f"  {name}: {_figures(list(values['ci95']), values, metrics['baseline'].get(name))}")
    return "\n".join(lines)


def _figures(names: list[str], values: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """List metrics with their interval and, where there is one, the baseline and what the source alone gives."""
    parts = []
    for name in names:
        interval = (values.get("ci95") or {}).get(name)
        spread = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
        beside = f" (baseline {_number(baseline['metrics'].get(name))}" if baseline else ""
        if baseline:
            source = baseline.get("from_source")
            beside += f", from source {_number(source['metrics'].get(name))})" if source else ")"
        parts.append(f"{name} {_number(values[name])}{spread}{beside}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    return "n/a" if value is None or value != value else f"{value:.3f}"
