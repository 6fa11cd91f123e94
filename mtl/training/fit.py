"""One training run from a checked configuration to a report."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mtl.config.plan import Plan
from mtl.config.schema import RunConfig, TrainerConfig
from mtl.config.stages import INITIAL, Stage
from mtl.core.errors import CheckpointError, ConfigError, DataError
from mtl.core.task import higher_is_better
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.evaluation.selection import describe_selection, few_examples, monitored_tasks, selection_basis
from mtl.model import MultiTaskModel
from mtl.runs.build import build_balancer, build_evaluator, build_model, dropped_study_metrics
from mtl.runs.checkpoint import read_checkpoint
from mtl.runs.folder import RunFolder, is_main_process
from mtl.runs.history import rows_before
from mtl.runs.loading import PRETRAINING_NOTE
from mtl.runs.precision import Computation
from mtl.runs.stages import hand_over, incomparable, keep_stage, stage_of, start_file
from mtl.runs.unchanged import require_same_split
from mtl.training.callbacks.ema import ExponentialAverage
from mtl.training.callbacks.examples import ExamplePictures
from mtl.training.callbacks.handover import HandOverCheck
from mtl.training.callbacks.limit import StepLimit
from mtl.training.callbacks.progress import progress_callbacks
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.callbacks.same_computation import SameComputation
from mtl.training.callbacks.step_values import StepValues
from mtl.training.checkpoint_io import AtomicCheckpointIO
from mtl.training.loggers import build_loggers
from mtl.training.module import MultiTaskModule
from mtl.training.monitor import watched
from mtl.training.optim import build_optimizer, inactive_parts, split_parts
from mtl.training.single_image import check_single_images
from mtl.training.stops import interrupted

log = logging.getLogger("mtl")
HANDLED_HERE = ("fast_dev_run", "max_steps")


def fit(plan: Plan, run_dir: Path, resume_from: Path | None) -> dict[str, Any]:
    """Train all stages of a run, or those that are left of it; return the objects of the last one."""
    first = stage_of(resume_from, plan.stages) if resume_from else 0
    data = prepare_data(plan, run_dir, resume_from)
    for stage in plan.stages[first:]:
        objects = _fit_stage(plan, stage, run_dir, data, resume_from if stage.index == first else None)
    return objects


def prepare_data(plan: Plan, run_dir: Path, resume_from: Path | None = None) -> MultiTaskDataModule:
    """Index, split and cache the data, and try every stage, so that none fails after hours for what is known now.

    Raises:
        MtlError: Something will not work, or the run that goes on from a checkpoint would use another split.
    """
    model = build_model(plan, load_weights=False)
    data = MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)
    split_file = RunFolder(run_dir).split
    data.setup("fit", split_file=split_file if plan.config.resume and split_file.is_file() else None)
    if resume_from is not None:
        require_same_split(data.split_rows(), read_checkpoint(resume_from)["mtl"], RunFolder(run_dir))
    if is_main_process():
        data.save_split(split_file)
    log.info(data.describe_split())
    log_notes(run_dir, [*plan.notes, *data.gaps])
    for stage in plan.stages if plan.stages[0].name else ():
        try:
            model.train_only(stage.tasks, stage.freeze)
            parts = split_parts(model, build_balancer(stage.config.balancer, stage.tasks))
            build_optimizer(parts, stage.config.optimizer, inactive_parts(plan.config))
            data.for_stage(stage.tasks, stage.sources, stage.config.data.loader, stage.seed).setup("fit")
            if stage.from_file:
                hand_over(model, Path(stage.start))
        except (ConfigError, DataError, CheckpointError) as error:
            raise type(error)(f"Stage `{stage.name}` cannot be carried out. {error}") from error
    check_single_images(model, min(_smallest_batch(stage, data) for stage in plan.stages), _partly_labelled(data))
    return data


def _fit_stage(plan: Plan, stage: Stage, run_dir: Path, data: MultiTaskDataModule, resume_from: Path | None) -> dict[str, Any]:
    """Train one stage and publish its best checkpoint."""
    pl.seed_everything(stage.seed, verbose=False)
    begins_from = None if resume_from or stage.start == INITIAL else start_file(run_dir, stage)
    model = build_model(plan, load_weights=resume_from is None and begins_from is None)
    callbacks: list[Callback] = []
    if stage.name:
        log.info(stage.describe())
    if begins_from is None:
        report_weights(model)
        if resume_from is None:
            show_targets(model, data)
    else:
        about = hand_over(model, begins_from)
        count = len(model.state_dict())
        log.info(f"weights: {begins_from.name}, epoch {about['epoch'] + 1} of its stage, all {count} tensors loaded")
        if reason := incomparable(about, begins_from, plan, model, data.split_rows()):
            log.info(f"hand-over not checked by a validation: {begins_from} was made with {reason}")
        else:
            callbacks.append(HandOverCheck(about["validation"], f"`{stage.start}`"))
    evaluator = build_evaluator(plan, model.specs)
    for line in dropped_study_metrics(plan, model.specs) if stage.index == 0 else ():
        log.info(line)
    module = MultiTaskModule(model, build_balancer(stage.config.balancer, stage.tasks), evaluator, plan, stage)
    if module.balancer.needs_gradients and not module.shared and len(stage.tasks) > 1:
        log.warning(
            f"balancer={stage.config.balancer['name']} has no effect here: no part that trains serves several tasks. The "
            "losses are added up."
        )
    module.split_rows = data.split_rows()
    module.pretraining = seen_before([plan.config.backbone["weights"], *plan.start_files], data)
    if module.pretraining and stage.index == 0:
        log.warning(PRETRAINING_NOTE.format(count=len(module.pretraining), names=", ".join(module.pretraining[:5])))
    monitor = stage.config.monitor
    earlier = rows_before(run_dir, stage.name) if stage.index else []
    recorder = RunRecorder(
        run_dir, watched(stage.config), higher_is_better(monitor), stage.name, earlier, stage.config.select
    )  # fmt: skip
    basis = selection_basis(stage, model.specs, monitored_tasks(stage, evaluator.study), data.records_by_split["val"])
    log.info(describe_selection(basis, data.family.group_by))
    log_notes(run_dir, few_examples(basis))
    callbacks += for_loggers(stage.config, recorder)
    validate_first = any(isinstance(callback, HandOverCheck) for callback in callbacks)
    trainer = build_trainer(stage.config, run_dir, [recorder, *callbacks, *_callbacks(stage.config)], validate_first)
    datamodule = data.for_stage(stage.tasks, stage.sources, stage.config.data.loader, stage.seed)
    started = time.monotonic()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    except SystemExit as stop:  # how the Trainer ends after Ctrl-C or SIGTERM
        for child in multiprocessing.active_children():
            child.kill()  # forked ranks; checkpoints are written beside and renamed, so none can be half there
            child.join()
        raise interrupted(run_dir) from stop
    log.info("trained for %.0f s", time.monotonic() - started)
    if stage.name:
        if trainer.is_global_zero:
            keep_stage(run_dir, stage)
        trainer.strategy.barrier()
    if plan.config.trainer.profiler and trainer.is_global_zero:
        log.info("profile: %s", RunFolder(run_dir).profile)
    return {"module": module, "datamodule": datamodule, "trainer": trainer, "recorder": recorder}


def show_targets(model: MultiTaskModel, data: MultiTaskDataModule) -> None:
    """Let heads look at the training targets that ask for it (to standardise them), whichever stage trains them."""
    for task in model.specs:
        head: Any = model.heads[task]
        if head.looks_at_targets:
            head.observe_targets(data.dataset("train").targets(task))


def _partly_labelled(data: MultiTaskDataModule) -> bool:
    """Return whether some training image lacks a label of some task."""
    labels = {data.specs[task].label for task in data.tasks}
    return any(not record.knows(label) for record in data.records_by_split["train"] for label in labels)


def _smallest_batch(stage: Stage, data: MultiTaskDataModule) -> int:
    """Return how few images a batch of a stage may hold; a short last one is left out unless it is all."""
    loader = stage.config.data.loader
    drawn = data.for_stage(stage.tasks, stage.sources, loader, stage.seed).samples_per_epoch
    return min(loader.batch_size, drawn)


def log_notes(run_dir: Path, notes: Iterable[str]) -> None:
    """Warn of what a reader of the results must know, once per run: a resumed one has it in its log already."""
    file = RunFolder(run_dir).log
    before = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for note in notes:
        if f"note: {note}\n" not in before:
            log.warning("note: %s", note)


def seen_before(files: Iterable[str | None], datamodule: MultiTaskDataModule) -> list[str]:
    """Find test groups whose patients the networks that gave weights were trained or selected on.

    Only a checkpoint of this program says what it has seen, and what the network behind it had; for other files nothing can be
    known.
    """
    family = datamodule.family
    seen: set[str] = set()
    for file in (file for file in files if file is not None):
        with suppress(CheckpointError):
            about = read_checkpoint(file)["mtl"]
            groups = [row["group"] for row in about["split"] if row["split"] in ("train", "val")]
            seen |= {family.person_of(group) for group in [*groups, *about.get("pretraining", [])]}
    tested = {row["group"] for row in datamodule.split_rows() if row["split"] == "test"}
    return sorted(group for group in tested if family.person_of(group) in seen)


def report_weights(model: MultiTaskModel) -> None:
    """Log where the encoder's weights come from, key by key; say so when a frozen encoder has none."""
    encoder: Any = model.encoder
    report = encoder.report
    if report is not None:
        for line in report.describe():
            log.info(line)
        return
    trains = [parameter.requires_grad for parameter in encoder.body.parameters()]
    if not all(trains):
        log.warning(
            f"The backbone is {'partly ' if any(trains) else ''}frozen and its weights are random. Set "
            "backbone.weights=<file>, or backbone.pretrained=true where weights are published."
        )


def check_validation(trainer: TrainerConfig) -> None:
    """Refuse settings under which nothing would select a checkpoint and choose thresholds.

    Raises:
        ConfigError: No epoch of the run would be validated.
    """
    if trainer.check_val_every_n_epoch > trainer.max_epochs:
        raise ConfigError(
            f"`trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}` exceeds trainer.max_epochs="
            f"{trainer.max_epochs}, so no epoch would be validated. Lower the one or raise the other."
        )


def build_trainer(config: RunConfig, run_dir: Path, callbacks: list[Callback], validate_first: bool = False) -> pl.Trainer:
    """Build Lightning's Trainer; a key the user left alone keeps Lightning's default.

    Args:
        config: Of the run, or of one of its stages.
        run_dir: The run directory.
        callbacks: Besides the progress display.
        validate_first: Run all of validation before the first step. The recorder ignores it: `best` comes from finished epochs.

    Raises:
        ConfigError: Values that Lightning refuses on this machine (no GPU, too few devices, unknown precision).
    """
    settings = config.trainer
    progress = progress_callbacks(settings.enable_progress_bar)
    arguments = {key: value for key, value in settings.model_dump().items() if value is not None and key not in HANDLED_HERE}
    bar = any(isinstance(callback, ProgressBar) for callback in progress)
    arguments |= {"enable_progress_bar": bar, "profiler": _profiler(settings.profiler, run_dir)}
    for library in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            **arguments,
            callbacks=[*callbacks, *progress],
            logger=build_loggers(config, run_dir) or False,
            default_root_dir=run_dir,
            enable_checkpointing=True,
            plugins=[AtomicCheckpointIO()],
            num_sanity_val_steps=-1 if validate_first else 0,
            use_distributed_sampler=False,  # our samplers shard without padding
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, TypeError) as error:
        raise ConfigError(f"The `trainer` settings cannot be used here: {' '.join(str(error).split())}") from error


def _profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """Write the profile to a file of the run; printed to Lightning's log it would be lost."""
    kinds: dict[str | None, type[SimpleProfiler] | type[AdvancedProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
    }
    return kinds[name](dirpath=run_dir, filename="profile") if name in kinds else None


def for_loggers(config: RunConfig, recorder: RunRecorder) -> list[Callback]:
    """Return what feeds the loggers beside the figures of epochs; nothing without loggers."""
    if not config.logger.tensorboard and config.logger.wandb is None:
        return []
    pictures = [ExamplePictures(config.logger.examples, recorder)] if config.logger.examples else []
    return [StepValues(recorder), *pictures]


def _callbacks(config: RunConfig) -> list[Callback]:
    found: list[Callback] = [SameComputation(Computation.of(config))]
    stopping, ema = config.callbacks.early_stopping, config.callbacks.ema
    if stopping is not None:
        mode = "max" if higher_is_better(config.monitor) else "min"
        # An epoch in which the metric is not defined counts as one without improvement, it does not end the run.
        found.append(
            EarlyStopping(
                watched(config), mode=mode, check_on_train_epoch_end=False, check_finite=False, **stopping.model_dump()
            )
        )
    if config.trainer.max_steps > 0:
        found.append(StepLimit(config.trainer.max_steps))
    if ema is not None:
        found.append(ExponentialAverage(decay=ema.decay))
    return found
