"""Loggers beside `metrics.csv`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pytorch_lightning.loggers import Logger

from mtl.config.environment import looked_up
from mtl.config.schema import LoggerConfig, RunConfig
from mtl.core.distribution import install_command
from mtl.core.errors import ConfigError
from mtl.runs.folder import RunFolder


def build_loggers(config: RunConfig, run_dir: Path) -> list[Logger]:
    """Build the loggers that the `logger` section asks for.

    Raises:
        ConfigError: The package of a logger is not installed, or an environment variable is not set.
    """
    loggers: list[Logger] = []
    asked = LoggerConfig.model_validate(looked_up(config.logger.model_dump()))
    if asked.tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        try:
            events = RunFolder(run_dir).tensorboard
            loggers.append(TensorBoardLogger(str(events.parent), name=events.name, version=""))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"logger=tensorboard needs the package tensorboard. Run: {install_command('tensorboard')}."
            ) from error
    if (settings := asked.wandb) is not None:
        from pytorch_lightning.loggers import WandbLogger

        os.environ.setdefault("WANDB_SILENT", "true")
        loggers.append(
            WandbLogger(
                name=run_dir.name, save_dir=str(run_dir), project=settings.project, entity=settings.entity,
                offline=settings.offline, tags=settings.tags, config=config.model_dump(),
            )
        )  # fmt: skip
    return loggers


def close_loggers() -> None:
    """End what a logger keeps open for the whole process, so that the next run of a sweep gets its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
