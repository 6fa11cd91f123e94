"""One training run from its plan to a report."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mtl.config.plan import Plan
from mtl.core.errors import MtlError, TrainingError
from mtl.core.files import remove_stale, write_json
from mtl.runs.checkpoint import read_checkpoint
from mtl.runs.environment import environment
from mtl.runs.folder import RunFolder, forget_start, is_main_process, new_run_dir, note_in_log, start_log, without_empty_folder
from mtl.runs.lock import held, require_held
from mtl.runs.precision import settled
from mtl.runs.unchanged import require_same_config
from mtl.training.fit import check_validation, fit, log
from mtl.training.fitting import fitted
from mtl.training.loading import settled_loading
from mtl.training.loggers import close_loggers, log_results, loggers_at_the_end
from mtl.training.quiet import ignore_noise
from mtl.training.stops import stop_of


def train(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, evaluate on the test split and write the report.

    Args:
        plan: Of the run; `resume` in its configuration names the directory of an interrupted one.

    Returns:
        The content of `metrics.json`, and the objects of the run (`module`, `datamodule`, `trainer`, `run_dir`).

    Raises:
        MtlError: With a sentence for the user.
    """
    config = plan.config
    check_validation(config.trainer)
    run_dir = Path(config.resume) if config.resume else new_run_dir(config)
    with without_empty_folder(config, run_dir), held(run_dir), warnings.catch_warnings():
        ignore_noise()
        try:
            return _train(plan, run_dir)
        except (Exception, KeyboardInterrupt) as error:
            stop = stop_of(error, run_dir)
            _close(plan, run_dir, stop)
            if stop is error:
                raise
            raise stop from error
        finally:
            close_loggers()


def _close(plan: Plan, run_dir: Path, stop: BaseException) -> None:
    """Write to the log what ended a run; of one that has nothing to go on with, free the name."""
    if not is_main_process():
        return
    known = isinstance(stop, MtlError)
    note_in_log(str(stop) if known else "".join(traceback.format_exception(stop)))
    begun = plan.config.resume or isinstance(stop, TrainingError) or RunFolder(run_dir).last.exists()
    if not begun:
        forget_start(run_dir, keep_log=not known)


def _train(plan: Plan, run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    start_log(run_dir)
    for line in plan.left_out:
        log.info("%s", line)
    plan, computation = settled(plan)
    log.info("precision: %s", computation)
    plan, loading = settled_loading(plan)
    log.info("data loading: %s", loading)
    run = RunFolder(run_dir)
    resume_from = run.last if plan.config.resume else None
    if resume_from is not None and not resume_from.is_file():
        resume_from = None  # stopped before the first epoch was finished: the run begins anew in its directory
    if resume_from is not None:
        require_same_config(plan, read_checkpoint(resume_from)["mtl"], run)
    plan = fitted(plan, run_dir)
    if is_main_process():
        remove_stale(run.path / "*", below=True)
        write_json(run.config, plan.to_dict() | {"resume": None})
        if not plan.config.resume:
            write_json(run.environment, environment() | {"precision": computation, "loading": loading})
    objects = fit(plan, run_dir, resume_from)
    require_held(run_dir)
    metrics: dict[str, Any] = {}
    trainer: pl.Trainer = objects["trainer"]
    if trainer.is_global_zero:
        from mtl.experiments.score import evaluate_run

        # The module is back on the CPU now; the device it was trained on is free again. Other ranks need not wait.
        metrics = evaluate_run(plan, run_dir, device=str(trainer.strategy.root_device))
        require_held(run_dir)
        log.info("report: %s", run.report)
        if metrics and trainer.loggers:
            loggers = loggers_at_the_end(trainer.loggers, plan.config, run_dir)
            log_results(loggers, plan.config, metrics, run.report, metrics["training"]["steps"])
    return metrics, {**objects, "run_dir": run_dir}
