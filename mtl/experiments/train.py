"""One training run from its plan to a report."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.multiprocessing import ProcessRaisedException

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError, DataError, TrainingError
from mtl.core.files import write_json
from mtl.runs.environment import environment
from mtl.runs.folder import RunFolder, is_main_process, new_run_dir, start_log
from mtl.runs.history import read_history
from mtl.training.fit import check_validation, error_of_rank, fit, interrupted, log, what_is_kept
from mtl.training.loggers import close_loggers, log_results, loggers_at_the_end
from mtl.training.quiet import ignore_noise


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
    with warnings.catch_warnings():
        ignore_noise()
        try:
            return _train(plan, run_dir)
        except KeyboardInterrupt as stop:
            raise interrupted(run_dir) from stop
        except ProcessRaisedException as error:
            raise error_of_rank(error) from error
        except (ConfigError, DataError):
            if not config.resume and is_main_process() and not read_history(run_dir):
                RunFolder(run_dir).config.unlink(missing_ok=True)  # nothing to go on with: the name is free again
            raise
        except OSError as error:
            raise TrainingError(f"The run stopped: {error}. {what_is_kept(run_dir)}") from error
        finally:
            close_loggers()


def _train(plan: Plan, run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    start_log(run_dir)
    run = RunFolder(run_dir)
    resume_from = run.last if plan.config.resume else None
    if resume_from is not None and not resume_from.is_file():
        resume_from = None  # stopped before the first epoch was finished: the run begins anew in its directory
    if is_main_process():
        write_json(run.config, plan.to_dict() | {"resume": None})
        if not plan.config.resume:
            write_json(run.environment, environment())
    objects = fit(plan, run_dir, resume_from)
    metrics: dict[str, Any] = {}
    trainer: pl.Trainer = objects["trainer"]
    if trainer.is_global_zero:
        from mtl.experiments.score import evaluate_run

        # The module is back on the CPU now; the device it was trained on is free again. Other ranks need not wait.
        metrics = evaluate_run(plan, run_dir, device=str(trainer.strategy.root_device))
        log.info("report: %s", run.report)
        if metrics and trainer.loggers:
            loggers = loggers_at_the_end(trainer.loggers, plan.config, run_dir)
            log_results(loggers, plan.config, metrics, run.report, metrics["training"]["steps"])
    return metrics, {**objects, "run_dir": run_dir}
