"""From a checked configuration to objects."""

from __future__ import annotations

from typing import Any

from mtl.balancing.base import Scalarizer
from mtl.config.load import active_specs
from mtl.core.registry import BALANCERS, STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.metrics.evaluator import Evaluator
from mtl.model import MultiTaskModel


def model_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a run configuration that determine the network."""
    specs = active_specs(config)
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


def build_balancer(config: dict[str, Any]) -> Scalarizer:
    """Build the balancer of a run configuration."""
    balancer = BALANCERS.build(config["balancer"], list(config["tasks"]), where="balancer")
    assert isinstance(balancer, Scalarizer)
    return balancer


def build_evaluator(config: dict[str, Any], specs: dict[str, TaskSpec]) -> Evaluator:
    """Build the evaluator of a run configuration; study metrics of tasks that are switched off are left out."""
    study = {
        name: STUDY_METRICS.build(settings, specs, where=f"study_metrics.{name}")
        for name, settings in config["study_metrics"].items()
        if settings.get("task") in specs
    }
    evaluation = config["evaluation"]
    return Evaluator(specs, study, hit_radius=evaluation["hit_radius"], score_weights=evaluation["score_weights"])
