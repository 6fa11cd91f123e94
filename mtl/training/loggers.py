"""Loggers beside `metrics.csv`: how each of them is built, and how it takes what is no scalar of an epoch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from mtl.config.schema import LoggerConfig, RunConfig
from mtl.config.variables import looked_up
from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError
from mtl.runs.folder import RunFolder

log = logging.getLogger("mtl")


def build_loggers(config: RunConfig, run_dir: Path) -> list[Logger]:
    """Build the loggers that the `logger` section asks for.

    Raises:
        ConfigError: The package of a logger is not installed, or an environment variable is not set.
    """
    loggers: list[Logger] = []
    asked, run = LoggerConfig.model_validate(looked_up(config.logger.model_dump())), RunFolder(run_dir)
    if asked.tensorboard:
        try:
            loggers.append(TensorBoardLogger(str(run.tensorboard.parent), name=run.tensorboard.name, version=""))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"logger=tensorboard needs the package tensorboard. Run: {install_command('tensorboard')}."
            ) from error
    if (settings := asked.wandb) is not None:
        os.environ.setdefault("WANDB_SILENT", "true")
        loggers.append(
            WandbLogger(
                name=run_dir.name, save_dir=str(run_dir), project=settings.project, entity=settings.entity, id=run.wandb_id,
                offline=settings.offline, tags=settings.tags, config=config.model_dump(),
            )
        )  # fmt: skip
    return loggers


def log_pictures(loggers: Sequence[Logger], pictures: Mapping[str, np.ndarray], step: int) -> None:
    """Hand pictures to the loggers that take some.

    Args:
        loggers: Of the run.
        pictures: [H, W, 3] uint8 by sample id.
        step: Of the run.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(f"examples/{name}", picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger) and pictures:
            logger.log_image("examples", list(pictures.values()), step, caption=list(pictures))


def log_results(loggers: Sequence[Logger], config: RunConfig, metrics: Mapping[str, Any], report: Path, step: int) -> None:
    """Hand over what a finished run scored: test metrics, its report, and the score beside the settings.

    The results are in files already, so that a logger that fails costs the run nothing but a warning.

    Args:
        loggers: Of the run.
        config: Its settings.
        metrics: Content of `metrics.json`.
        report: The page.
        step: At which training ended.
    """
    scores = scores_of(metrics)
    for logger in loggers:
        try:
            if isinstance(logger, TensorBoardLogger):
                # The table of hyper-parameters logs the score itself.
                final = scores.get("test/score", float("nan"))
                logger.log_metrics({name: value for name, value in scores.items() if name != "test/score"}, step)
                logger.log_hyperparams(settings(config), {"test/score": final}, step)
                logger.experiment.add_text("report", f"`{report}`", step)
            else:
                logger.log_metrics(scores, step)
            if isinstance(logger, WandbLogger):
                _add_report(logger, report)
            logger.finalize("success")
        except Exception as error:  # what a library raises that talks to a server is not known
            log.warning(f"{type(logger).__name__} did not take the results ({error}); they are in {report.parent}.")


def scores_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of `metrics.json` by name as loggers have them: `test/<task>/<metric>` and `test/score`."""
    entries = {**metrics["tasks"], **metrics.get("study", {})}
    found = {f"test/{task}/{name}": entry[name] for task, entry in entries.items() for name in entry["ci95"]}
    return {name: value for name, value in (found | {"test/score": metrics["score"]}).items() if value is not None}


def settings(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Return every setting by the key that sets it (`optimizer.lr`), in types that a table of hyper-parameters takes."""
    found: dict[str, bool | int | float | str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, entry in value.items():
                walk(entry, f"{path}.{key}" if path else str(key))
        else:
            found[path] = value if isinstance(value, bool | int | float | str) else str(value)

    walk(config.model_dump(mode="json"), "")
    return found


def _add_report(logger: WandbLogger, report: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"report-{logger.experiment.id}", type="report")
    for path in (report, RunFolder(report.parent).metrics):
        artifact.add_file(str(path))
    logger.experiment.log_artifact(artifact)


def loggers_at_the_end(loggers: Sequence[Logger], config: RunConfig, run_dir: Path) -> Sequence[Logger]:
    """Return loggers that may be used after training: after forked ranks those of this process never began."""
    wandb = sys.modules.get("wandb")
    begun = config.logger.wandb is None or (wandb is not None and wandb.run is not None)
    return loggers if begun else build_loggers(config, run_dir)


def close_loggers() -> None:
    """End what a logger keeps open for the whole process, so that the next run of a sweep gets its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
