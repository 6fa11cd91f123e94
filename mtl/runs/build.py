"""From a checked configuration to objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtl.balancing.base import Balancer
from mtl.config.load import active_specs, build_family
from mtl.core.registry import BALANCERS, STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.drawing.palette import coloured, colours_of
from mtl.metrics.evaluator import Evaluator
from mtl.model import MultiTaskModel


def model_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a run configuration that determine the network."""
    colours = colours_of(build_family(config["data"]).specs().values())  # of all tasks, so that a twin has those of its suite
    specs = {task: coloured(spec, colours) for task, spec in active_specs(config).items()}
    return {
        "tasks": config["tasks"],
        "specs": [spec.to_dict() for spec in specs.values()],
        "backbone": config["backbone"],
        "peft": config["peft"],
        "necks": config["necks"],
        "heads": {task: config["heads"][task] for task in config["tasks"]},
        "preprocessing": {"geometry": config["data"]["geometry"], **config["data"]["preprocessing"]},
    }


def build_model(config: dict[str, Any], load_weights: bool = True) -> MultiTaskModel:
    """Build the network of a run configuration."""
    return MultiTaskModel.from_config(model_config(config), load_weights)


def build_balancer(config: dict[str, Any], tasks: Sequence[str] | None = None) -> Balancer:
    """Build the balancer of a run configuration, for all of its tasks or for those of a stage."""
    balancer = BALANCERS.build(config["balancer"], list(config["tasks"] if tasks is None else tasks), where="balancer")
    assert isinstance(balancer, Balancer)
    return balancer


def build_evaluator(config: dict[str, Any], specs: dict[str, TaskSpec]) -> Evaluator:
    """Build the evaluator of a run configuration.

    Study metrics of tasks that are switched off, and those whose classes the data settings leave out, are not computed.
    """
    study = {
        name: STUDY_METRICS.build(settings, specs, where=f"study_metrics.{name}")
        for name, settings in config["study_metrics"].items()
        if specs.keys() >= set(_needs(settings)) and not _missing_classes(settings, config, specs)
    }
    evaluation = config["evaluation"]
    return Evaluator(
        specs, study, hit_radius=evaluation["hit_radius"], score_weights=evaluation["score_weights"],
        unit=build_family(config["data"]).group_by, native=evaluation["resolution"] == "native",
    )  # fmt: skip


def dropped_study_metrics(config: dict[str, Any], specs: dict[str, TaskSpec]) -> list[str]:
    """Return one line per study metric that is left out because its classes are not there with these data settings."""
    lines = []
    for name, settings in config["study_metrics"].items():
        missing = _missing_classes(settings, config, specs) if specs.keys() >= set(_needs(settings)) else []
        if missing:
            tasks = _needs(settings)
            have = f"task {tasks[0]} has" if len(tasks) == 1 else f"tasks {' and '.join(tasks)} have"
            lines.append(f"{name} is not computed: {have} no class {' and '.join(missing)} here")
    return lines


def _needs(settings: dict[str, Any]) -> list[str]:
    """Tasks that a study metric is made from: its keys `task` and `tasks`."""
    return [task for task in [settings.get("task"), *settings.get("tasks", [])] if task is not None]


def _missing_classes(settings: dict[str, Any], config: dict[str, Any], specs: dict[str, TaskSpec]) -> list[str]:
    """Classes the metric names that the data know but its tasks do not have; a misspelt name is left to the metric."""
    known = build_family(config["data"]).known_classes()
    present = [name for task in _needs(settings) for name in specs[task].classes]
    return [value for value in settings.values() if isinstance(value, str) and value in known and value not in present]
