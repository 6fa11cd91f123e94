"""Curricula: what each stage of a run changes, and whether that fits. Torch-free.

A run is a list of stages; one without a curriculum is a single stage that changes nothing. All stages train the same network,
so that weights can be handed over completely; the heads of tasks that a stage leaves out rest, frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl.config.bounds import SEEDS
from mtl.config.data_schema import LoaderConfig
from mtl.config.parts import check_part, validate
from mtl.config.schema import OptimizerConfig, RunConfig, StageConfig
from mtl.core.errors import unknown
from mtl.core.parts import covers
from mtl.core.registry import SCHEDULERS

INITIAL = "initial"
PREVIOUS = "previous"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: Empty for a run without a curriculum.
        index: Its position.
        count: Number of stages of the run.
        tasks: What it trains.
        sources: Where its training images come from; None is everywhere.
        freeze: Parts that rest besides the heads of other tasks, named as in `optimizer.parts`.
        start: `initial`, the name of an earlier stage, or a checkpoint file.
        config: The run configuration with everything this stage changes.
    """

    name: str
    index: int
    count: int
    tasks: tuple[str, ...]
    sources: tuple[str, ...] | None
    freeze: tuple[str, ...]
    start: str
    config: RunConfig

    @property
    def seed(self) -> int:
        """Seed of its order and augmentation; stages would repeat each other's epochs otherwise."""
        return (self.config.seed + 7919 * self.index) % (SEEDS + 1)

    @property
    def epochs(self) -> int:
        """The most epochs it may take."""
        return self.config.trainer.max_epochs

    @property
    def from_file(self) -> bool:
        """Whether its weights come from a checkpoint file that the configuration names, not from this run."""
        return self.start not in (INITIAL, *self.config.stages)

    def describe(self) -> str:
        """Return one line that says what it does."""
        parts = [f"tasks {', '.join(self.tasks)}", f"images of {', '.join(self.sources) if self.sources else 'all sources'}"]
        parts += [f"frozen {', '.join(self.freeze)}"] if self.freeze else []
        parts += ["weights as built" if self.start == INITIAL else f"weights of {self.start}"]
        return f"stage {self.index + 1} of {self.count}, {self.name}: {'; '.join(parts)}; {self.epochs} epochs"


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages of a run, at least one.

    A stage whose tasks are all switched off (`tasks=[...]` of a single-task twin) is left out, and its successor starts where
    it would have started.
    """
    chosen = {
        name: tuple(task for task in config.tasks if values.tasks is None or task in values.tasks)
        for name, values in config.stages.items()
    }
    kept = [name for name, tasks in chosen.items() if tasks]
    if not kept:
        return (Stage("", 0, 1, tuple(config.tasks), None, (), INITIAL, config),)
    stages = []
    for index, name in enumerate(kept):
        values = config.stages[name]
        start = _start(values.start, kept[:index], list(config.stages))
        # With the stages before it a twin lost what was to rest: nothing has trained it yet.
        freeze = () if start == INITIAL != values.start else tuple(values.freeze)
        sources = tuple(values.sources) if values.sources else None
        stages.append(Stage(name, index, len(kept), chosen[name], sources, freeze, start, _changed(config, values)))
    return tuple(stages)


def part_names(necks: Iterable[str], heads: Iterable[str]) -> list[str]:
    """List the names that settings of parts may use."""
    names = ["backbone", "adapters", "neck", "head", "balancer"]
    return [*names, *(f"neck.{name}" for name in necks), *(f"head.{name}" for name in heads)]


def check_stages(run: dict[str, Any], sources: Iterable[str], logged: Iterable[str]) -> list[str]:
    """Check what stages name and change.

    Args:
        run: The plain sections of a run, all sound but `stages`; what stages leave open in a part is filled in.
        sources: Names of the data's sources; empty where only the data tell.
        logged: Names of the metrics that validation logs.
    """
    problems: list[str] = []
    names, known = list(run["stages"]), list(run["heads"])
    if names and run["peft"] and run["peft"].get("per_task"):
        problems.append("`peft.per_task=true` cannot be combined with stages, in which adapters of other tasks would rest.")
    for index, (name, values) in enumerate(run["stages"].items()):
        where = f"stages.{name}"
        if not name.replace("_", "").isalnum() or name in (INITIAL, PREVIOUS):
            problems.append(f"`{where}`: expected a name of letters, digits and `_` other than {INITIAL} and {PREVIOUS}.")
        problems += [unknown("task", task, known, f"{where}.tasks") for task in values["tasks"] or [] if task not in known]
        if sources:
            problems += [unknown("source", n, sources, f"{where}.sources") for n in values["sources"] or [] if n not in sources]
        parts = [part for part in part_names(run["necks"], run["heads"]) if part != "balancer"]
        problems += [unknown("part", part, parts, f"{where}.freeze") for part in values["freeze"] if part not in parts]
        problems += _check_start(values["start"], names[:index], where)
        problems += _check_settings(run, values, where)
        tasks = [task for task in run["tasks"] if values["tasks"] is None or task in values["tasks"]]
        resting = [*(f"head.{task}" for task in tasks), "backbone"]
        if tasks and all(any(covers(part, own) for part in values["freeze"]) for own in resting):
            problems.append(f"`{where}.freeze` leaves nothing to train. Take a head or the backbone out of it.")
        problems += _check_effect(run, values, tasks, logged, where)
    return problems


def check_score_weights(weights: dict[str, float], tasks: list[str], which: str) -> list[str]:
    """Check that some task counts in `val/score`; `which` says what lists the tasks."""
    if not tasks or any(weights.get(task, 1.0) > 0 for task in tasks):
        return []
    return [
        f"`evaluation.score_weights` gives {', '.join(tasks)}, all that {which} lists, a weight of 0, so that val/score would "
        "be undefined. Expected a weight above 0 for one of them; tasks that are not named weigh 1."
    ]


def _check_effect(
    run: dict[str, Any], values: dict[str, Any], tasks: list[str], logged: Iterable[str], where: str
) -> list[str]:
    """Find settings that would do nothing, or nothing sensible, in this stage."""
    monitor = values["monitor"] or run["monitor"]
    problems = []
    if tasks and monitor not in logged:
        problems.append(unknown("metric", monitor, sorted(logged), f"{where}.monitor"))
    elif tasks and monitor.count("/") == 2 and monitor.split("/")[1] not in tasks:
        problems.append(
            f"`{where}` trains {', '.join(tasks)}, but {monitor}, which selects its checkpoint, cannot change there. Set "
            f"{where}.monitor."
        )
    if values["tasks"] is not None:
        problems += check_score_weights(run["evaluation"]["score_weights"], tasks, f"`{where}.tasks`")
    named = values["tasks"] or list(run["heads"])
    problems += [
        f"`{where}.weights.{task}` has no effect: the stage does not train {task}. Remove it, or add it to {where}.tasks."
        for task in values["weights"]
        if task in run["heads"] and task not in named
    ]
    if "neck" in values["freeze"] and not run["necks"]:
        problems.append(f"`{where}.freeze` names `neck`, but the network has none. Remove it.")
    if "adapters" in values["freeze"] and not run["peft"]:
        problems.append(f"`{where}.freeze` names `adapters`, but the network has none. Remove it, or choose peft.")
    return problems


def _check_start(start: str, earlier: list[str], where: str) -> list[str]:
    if start in (INITIAL, PREVIOUS, *earlier):
        return []
    if "/" in start or start.endswith(".ckpt"):
        return [] if Path(start).is_file() else [f"`{where}.start={start}`: there is no such checkpoint file."]
    return [unknown("start", start, [INITIAL, PREVIOUS, *earlier], f"{where}.start")]


def _check_settings(run: dict[str, Any], values: dict[str, Any], where: str) -> list[str]:
    """Check the settings of a stage as those of the run are checked, after filling in what it leaves open."""
    merged = _merged_optimizer(run["optimizer"], values["optimizer"])
    optimizer, problems = validate(OptimizerConfig, merged, f"{where}.optimizer")
    loader, found = validate(LoaderConfig, {**run["data"]["loader"], **values["loader"]}, f"{where}.loader")
    if not problems:
        parts = part_names(run["necks"], run["heads"])
        problems = [
            unknown("part", name, parts, f"{where}.optimizer.parts") for name in optimizer["parts"] if name not in parts
        ]
    if not problems + found:
        for key, checked in (("optimizer", optimizer), ("loader", loader)):
            values[key] = {name: checked[name] for name in values[key]}
    problems += found
    if values["scheduler"] is not None:
        values["scheduler"], found = check_part(SCHEDULERS, values["scheduler"], f"{where}.scheduler")
        problems += found
    known = list(run["heads"])
    problems += [unknown("task", task, known, f"{where}.weights") for task in values["weights"] if task not in known]
    if values["weights"] and "weights" not in run["balancer"]:
        problems.append(
            f"`{where}.weights` needs a balancer with fixed weights, found balancer={run['balancer']['name']}. Set "
            "balancer=static, or leave the weights out."
        )
    return problems


def _start(start: str, earlier: list[str], order: list[str]) -> str:
    """Name where a stage really starts, given the earlier ones that were kept."""
    if start == INITIAL or (start not in (PREVIOUS, *order)):
        return start
    if start != PREVIOUS:
        # A stage that was left out hands on what it would have started from.
        earlier = [name for name in earlier if order.index(name) <= order.index(start)]
    return earlier[-1] if earlier else INITIAL


def _merged_optimizer(run: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `optimizer` with those that a stage changes; settings of a part are replaced as a whole."""
    merged = {**run, **stage}
    if isinstance(stage.get("parts"), dict):
        merged["parts"] = {**run["parts"], **stage["parts"]}
    return merged


def _changed(config: RunConfig, stage: StageConfig) -> RunConfig:
    """Return the run configuration with everything that a stage changes."""
    balancer = config.balancer
    if stage.weights:
        balancer = {**balancer, "weights": {**(balancer.get("weights") or {}), **stage.weights}}
    optimizer = _merged_optimizer(config.optimizer.model_dump(), stage.optimizer)
    loader = LoaderConfig.model_validate({**config.data.loader.model_dump(), **stage.loader})
    # `trainer.max_epochs` limits every stage, so that a trial run shortens all of them.
    limit = min(stage.epochs, config.trainer.max_epochs)
    return config.model_copy(
        update={
            "optimizer": OptimizerConfig.model_validate(optimizer),
            "scheduler": stage.scheduler or config.scheduler,
            "balancer": balancer,
            "monitor": stage.monitor or config.monitor,
            "data": config.data.model_copy(update={"loader": loader}),
            "trainer": config.trainer.model_copy(update={"max_epochs": limit}),
        }
    )
