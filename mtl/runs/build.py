"""From the plan of a run to objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl.balancing.base import Balancer
from mtl.config.plan import Plan
from mtl.config.strict import Part
from mtl.core.family import DataFamily
from mtl.core.registry import BALANCERS, STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.drawing.palette import coloured, colours_of
from mtl.metrics.base import StudyMetric
from mtl.metrics.evaluator import Evaluator
from mtl.model import MultiTaskModel


def model_config(plan: Plan) -> dict[str, Any]:
    """Return the sections of a run that determine the network, as a checkpoint stores them."""
    config = plan.config
    colours = colours_of(plan.family.specs().values())  # of all tasks, so that a twin has those of its suite
    specs = {task: coloured(spec, colours) for task, spec in plan.specs.items()}
    return {
        "tasks": config.tasks,
        "specs": [spec.to_dict() for spec in specs.values()],
        "backbone": config.backbone,
        "peft": config.peft,
        "necks": config.necks,
        "heads": {task: config.heads[task] for task in config.tasks},
        "preprocessing": {"geometry": config.data.geometry.model_dump(), **config.data.preprocessing.model_dump()},
    }


def build_model(plan: Plan, load_weights: bool = True) -> MultiTaskModel:
    """Build the network of a run."""
    return MultiTaskModel.from_config(model_config(plan), load_weights)


def build_balancer(settings: Part, tasks: Sequence[str]) -> Balancer:
    """Build a balancer for all tasks of a run, or for those of a stage."""
    balancer = BALANCERS.build(settings, list(tasks), where="balancer")
    assert isinstance(balancer, Balancer)
    return balancer


def build_evaluator(plan: Plan, specs: dict[str, TaskSpec]) -> Evaluator:
    """Build the evaluator of a run for tasks as the network or stored records know them."""
    study = build_study(plan.config.study_metrics, plan.family, specs)
    evaluation = plan.config.evaluation
    return Evaluator(
        specs, study, hit_radius=evaluation.hit_radius, score_weights=evaluation.score_weights,
        group_by=plan.family.group_by, class_weighting=evaluation.class_weighting, native=evaluation.resolution == "native",
    )  # fmt: skip


def build_study(sections: Mapping[str, Part], family: DataFamily, specs: dict[str, TaskSpec]) -> dict[str, StudyMetric]:
    """Build the study metrics of a run by name, for its evaluation and for predictions of its network.

    Those of tasks that are switched off, and those whose classes the data settings leave out, are left out.

    Args:
        sections: `study_metrics` of the configuration.
        family: Of its data.
        specs: The tasks as the network or stored records know them.
    """
    return {
        name: STUDY_METRICS.build(settings, specs, family.group_by, where=f"study_metrics.{name}")
        for name, settings in sections.items()
        if specs.keys() >= set(_needs(settings)) and not _missing_classes(settings, family, specs)
    }


def dropped_study_metrics(plan: Plan, specs: dict[str, TaskSpec]) -> list[str]:
    """Return one line per study metric that is left out although one of its tasks is active."""
    lines = []
    for name, settings in plan.config.study_metrics.items():
        absent = [task for task in _needs(settings) if task not in specs]
        if absent and len(absent) < len(_needs(settings)):
            lines.append(f"{name} is not computed: it needs {' and '.join(absent)} too, not in `tasks`")
        missing = _missing_classes(settings, plan.family, specs) if specs.keys() >= set(_needs(settings)) else []
        if missing:
            tasks = _needs(settings)
            have = f"task {tasks[0]} has" if len(tasks) == 1 else f"tasks {' and '.join(tasks)} have"
            lines.append(f"{name} is not computed: {have} no class {' and '.join(missing)} here")
    return lines


def _needs(settings: Part) -> list[str]:
    """Tasks that a study metric is made from: its keys `task`, `tasks` and `classes_from`."""
    return [task for task in [settings.get("task"), *settings.get("tasks", []), settings.get("classes_from")] if task]


def _missing_classes(settings: Part, family: DataFamily, specs: dict[str, TaskSpec]) -> list[str]:
    """Classes the metric names that the data know but its tasks do not have; a misspelt name is left to the metric."""
    known = family.known_classes()
    present = [name for task in _needs(settings) for name in specs[task].classes]
    return [value for value in settings.values() if isinstance(value, str) and value in known and value not in present]
