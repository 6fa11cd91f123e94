"""Whether a run fits into memory, asked before its first step, and what is done where it does not."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtl.config.plan import Plan
from mtl.config.schema import TrainerConfig
from mtl.config.stages import stages_of
from mtl.core.errors import ConfigError, MtlError
from mtl.core.free_memory import free_memory
from mtl.runs.folder import RunFolder, is_main_process
from mtl.runs.stored import read_config
from mtl.training.step_memory import StepMemory, largest, step_memories

log = logging.getLogger("mtl")
GIB = 2**30
# A step that needs so many times what is free is refused: Linux would end the process without a word.
REFUSED = 1.5
# No network known here keeps so many bytes per pixel of its input; where even that fits into half of the memory, nothing is
# measured, and the other half is there for the weights.
MOST_PER_PIXEL = 64 * 2**10
OTHER_WAYS = "trainer.precision=bf16-mixed and backbone.gradient_checkpointing=true need less, too"


@dataclass(frozen=True)
class Room:
    """Where a run computes, and how much memory is free for one of its ranks.

    Attributes:
        device: `cpu` or `cuda`.
        ranks: Number of ranks on this machine.
        free: Bytes; None where nobody knows.
    """

    device: str
    ranks: int
    free: int | None

    @property
    def name(self) -> str:
        """What messages call it."""
        place = "the GPU" if self.device == "cuda" else "this machine"
        return f"{place} for each of {self.ranks} ranks" if self.ranks > 1 else place


def ranks_of(trainer: TrainerConfig) -> tuple[str, int]:
    """Return on which kind of device a run computes, `cpu` or `cuda`, and with how many ranks on a machine."""
    cuda = trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    devices = trainer.devices
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        devices = [int(entry) for entry in devices.split(",") if entry]
    if devices in ("auto", "-1", -1):
        ranks = torch.cuda.device_count() if cuda else 1
    else:
        ranks = len(devices) if isinstance(devices, list) else int(devices)
    return "cuda" if cuda else "cpu", ranks


def room_of(trainer: TrainerConfig) -> Room:
    """Return where a run with these settings computes."""
    device, ranks = ranks_of(trainer)
    if device == "cuda":
        return Room("cuda", ranks, torch.cuda.mem_get_info()[0])
    free = free_memory()
    return Room("cpu", ranks, None if free is None else free // ranks)


def fitted(plan: Plan, run_dir: Path, room: Room | None = None) -> Plan:
    """Return the plan of a run that fits into memory, as `runtime.fit` says; warn or refuse where the given one does not.

    Args:
        plan: Of the run. One that goes on keeps its batches, since these were decided when it began.
        run_dir: Its folder, from which other ranks learn what the first one decided.
        room: Where it computes; None looks.

    Raises:
        ConfigError: Not even single images fit, or so much is missing that the system would end the process.
    """
    config = plan.config
    decides = config.runtime.fit == "auto" and not config.resume
    if decides and int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1 and is_main_process():
        raise ConfigError(
            "`runtime.fit=auto` has to decide once for all processes, but these were started from outside (torchrun, srun). "
            "Set data.loader.batch_size and trainer.accumulate_grad_batches, and runtime.fit=warn."
        )
    if not is_main_process():
        return Plan.from_config(read_config(RunFolder(run_dir))) if decides else plan
    if config.runtime.fit is None:
        return plan
    room = room_of(config.trainer) if room is None else room
    if room.free is None or surely_fits(plan, room.free):
        return plan
    memories = measured(plan, room, labels_together(plan))
    if not memories:
        return plan
    return _decided(plan, memories, room, decides)


def measured(plan: Plan, room: Room, labelled: set[frozenset[str]]) -> list[tuple[int, StepMemory]]:
    """Return what `step_memories` does; nothing, with a line in the log, where a network cannot be tried with small images."""
    try:
        return step_memories(plan, room.device, room.ranks, labelled)
    except MtlError:
        raise
    except Exception as error:
        log.info("memory: not estimated, since a step with made-up images fails (%s: %s)", type(error).__name__, error)
        return []


def labels_together(plan: Plan) -> set[frozenset[str]]:
    """Return which tasks the training images are labelled for, each set of tasks once."""
    labels = {task: spec.label for task, spec in plan.specs.items()}
    return {
        frozenset(task for task, label in labels.items() if record.knows(label)) for record in plan.records if record.training
    }


def surely_fits(plan: Plan, free: int) -> bool:
    """Return whether the batches are so small that nothing needs to be measured."""
    height, width = plan.config.data.geometry.size
    loaders = [plan.config.data.loader, *(stage.config.data.loader for stage in plan.stages)]
    rows = max(max(loader.batch_size, loader.eval_batch_size or 0) for loader in loaders)
    return rows * height * width * MOST_PER_PIXEL < free / 2


def _decided(plan: Plan, memories: list[tuple[int, StepMemory]], room: Room, decides: bool) -> Plan:
    assert room.free is not None
    parts = largest(memories, plan)
    need = sum(parts.values())
    if need <= room.free:
        return plan
    smaller = next((plan for plan in smaller_batches(plan) if sum(largest(memories, plan).values()) <= room.free), None)
    missing = f"A training step needs about {sizes(parts)}, but {room.free / GIB:.1f} GiB are free on {room.name}."
    if decides:
        if smaller is None:
            raise ConfigError(
                f"{missing} Not even batches of one image fit. Choose a smaller data.geometry.size; {OTHER_WAYS}."
            )
        log.warning("memory: %s Batches are made smaller: %s.", missing, _words(plan, smaller))
        return smaller
    remedy = (
        f"Not even batches of one image fit: choose a smaller data.geometry.size; {OTHER_WAYS}."
        if smaller is None
        else f"Set {_words(plan, smaller)} (runtime.fit=auto does so); {OTHER_WAYS}."
    )
    if need > REFUSED * room.free:
        raise ConfigError(f"{missing} The system would end the process. {remedy} To try all the same, set runtime.fit=null.")
    log.warning("memory: %s The system may end the process. %s", missing, remedy)
    return plan


def smaller_batches(plan: Plan) -> list[Plan]:
    """Return the plans with smaller batches of which a step accumulates as many as make up its number of images."""
    loaders = [plan.config.data.loader, *(stage.config.data.loader for stage in plan.stages)]
    sizes = {loader.batch_size for loader in loaders}
    return [_divided(plan, by) for by in range(2, max(sizes) + 1) if all(size % by == 0 for size in sizes)]


def _divided(plan: Plan, by: int) -> Plan:
    """Return the plan with batches of which `by` are as large as one was."""
    config, loader, trainer = plan.config, plan.config.data.loader, plan.config.trainer
    # Limits in batches grow with the number of batches; those in shares of an epoch mean the same as before.
    limits = {
        key: value * by
        for key in (
            "limit_train_batches",
            "overfit_batches",
            *(["limit_val_batches"] if loader.eval_batch_size is None else []),
        )
        if isinstance(value := getattr(trainer, key), int)
    }
    scored = None if loader.eval_batch_size is None else max(1, loader.eval_batch_size // by)
    loader = loader.model_copy(update={"batch_size": loader.batch_size // by, "eval_batch_size": scored})
    stages = {
        name: stage.model_copy(update={"loader": _divided_loader(stage.loader, by)}) for name, stage in config.stages.items()
    }
    accumulate = trainer.accumulate_grad_batches
    asked: Any = {"batch_size": config.data.loader.batch_size, "accumulate_grad_batches": accumulate}
    config = config.model_validate(
        config.model_dump()
        | {
            "data": config.data.model_copy(update={"loader": loader}).model_dump(),
            "trainer": trainer.model_copy(update={"accumulate_grad_batches": accumulate * by, **limits}).model_dump(),
            "runtime": config.runtime.model_dump() | {"asked": asked},
            "stages": {name: stage.model_dump() for name, stage in stages.items()},
        }
    )
    return replace(plan, config=config, stages=stages_of(config))


def _divided_loader(loader: dict[str, Any], by: int) -> dict[str, Any]:
    return loader | {key: max(1, loader[key] // by) for key in ("batch_size", "eval_batch_size") if loader.get(key)}


def _words(before: Plan, after: Plan) -> str:
    """Return the settings that make batches smaller."""
    pairs = [
        f"data.loader.batch_size={after.config.data.loader.batch_size}",
        f"trainer.accumulate_grad_batches={after.config.trainer.accumulate_grad_batches}",
    ]
    number = before.config.data.loader.batch_size * before.config.trainer.accumulate_grad_batches
    return f"{' and '.join(pairs)}, {number} images per step as before"


def sizes(parts: dict[str, int]) -> str:
    """Return the sum of parts and the larger ones of them, in words."""
    shown = [f"{name} {value / GIB:.1f}" for name, value in parts.items() if value >= 0.05 * GIB]
    return f"{sum(parts.values()) / GIB:.1f} GiB ({', '.join(shown)})"
