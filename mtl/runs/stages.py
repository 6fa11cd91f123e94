"""What the stages of a run leave for each other: one checkpoint per finished stage, handed over completely or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl.config.plan import Plan
from mtl.config.stages import Stage, stages_of
from mtl.core.errors import CheckpointError, TrainingError
from mtl.core.files import link_or_copy
from mtl.model import MultiTaskModel
from mtl.runs.checkpoint import config_of, read_checkpoint
from mtl.runs.folder import RunFolder
from mtl.runs.loading import load_state


def start_file(run_dir: Path, stage: Stage) -> Path:
    """Return the checkpoint that a stage starts from: that of an earlier stage, or the file that the configuration names."""
    return Path(stage.start) if stage.from_file else RunFolder(run_dir).stage(stage.start)


def stage_of(checkpoint: Path, stages: Sequence[Stage]) -> int:
    """Return the position of the stage in which a checkpoint was written.

    Raises:
        CheckpointError: The run has no such stage.
    """
    name = read_checkpoint(checkpoint)["mtl"].get("stage", "")
    names = [stage.name for stage in stages]
    if name not in names:
        raise CheckpointError(
            f"`{checkpoint}` was written in stage `{name}`, but the run has {', '.join(f'`{own}`' for own in names)}. Restore "
            f"its {RunFolder.of(checkpoint).config.name}, or start a new run."
        )
    return names.index(name)


def hand_over(model: MultiTaskModel, path: Path) -> dict[str, Any]:
    """Load all weights of a checkpoint into the network of a stage.

    Returns:
        The entry `mtl` of the checkpoint.

    Raises:
        CheckpointError: A key is missing, not expected or of another shape; nothing is loaded then.
    """
    content = read_checkpoint(path)
    problem = f"`{path}` cannot be handed over to this stage"
    hint = "Every key has to load. Start from another checkpoint (stages.<name>.start), or train the stages before again."
    load_state(model, content["state_dict"], problem, hint)
    about: dict[str, Any] = content["mtl"]
    return about


def trained_in(checkpoint: str) -> list[str]:
    """Return the tasks that the run of a checkpoint had trained when it was written."""
    about = read_checkpoint(checkpoint)["mtl"]
    config = config_of(about, checkpoint)
    stages = stages_of(config)
    names = [stage.name for stage in stages]
    reached = stages[: names.index(about["stage"]) + 1] if about["stage"] in names else stages
    return [task for task in config.tasks if any(task in stage.tasks for stage in reached)]


def incomparable(
    about: dict[str, Any], path: Path, plan: Plan, model: MultiTaskModel, split: list[dict[str, str]]
) -> str | None:
    """Return why the figures stored in a checkpoint cannot come out again in this run; None where they have to.

    Args:
        about: Its entry `mtl`.
        path: The checkpoint, for messages.
        plan: Of this run.
        model: The network of this run.
        split: Rows of its `split.csv`.
    """
    theirs, ours = config_of(about, path), plan.config
    conditions = [
        ("another split", about["split"] == split),
        ("other preprocessing", about["model"]["preprocessing"] == model.to_config()["preprocessing"]),
        ("another evaluation.resolution", theirs.evaluation.resolution == ours.evaluation.resolution),
        ("another evaluation.hit_radius", theirs.evaluation.hit_radius == ours.evaluation.hit_radius),
        ("another trainer.precision", theirs.trainer.precision == ours.trainer.precision),
        ("another trainer.limit_val_batches", theirs.trainer.limit_val_batches == ours.trainer.limit_val_batches),
        ("no validation of its own epoch", bool(about["validation"])),
    ]
    return next((reason for reason, same in conditions if not same), None)


def keep_stage(run_dir: Path, stage: Stage) -> None:
    """Publish the best checkpoint of a finished stage under its own name, by a link or a copy.

    Raises:
        TrainingError: No epoch of this stage had a defined value of its monitored metric.
    """
    folder = RunFolder(run_dir)
    best = folder.best
    if not best.is_file() or read_checkpoint(best)["mtl"]["stage"] != stage.name:
        raise TrainingError(
            f"No epoch of stage `{stage.name}` has a defined value of {stage.config.monitor}, so nothing can be handed on. "
            f"Expected a number from at least one validation: set stages.{stage.name}.monitor, or more validation images."
        )
    link_or_copy(best, folder.stage(stage.name))
