"""Where a run lives, and its log."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from mtl.config.schema import RunConfig
from mtl.core.errors import ConfigError

log = logging.getLogger("mtl")
RUN_DIR_VARIABLE = "MTL_RUN_DIR"


def is_main_process() -> bool:
    """Say whether this process is global rank 0, before and after the ranks were started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))) == 0


def new_run_dir(config: RunConfig) -> Path:
    """Create the run directory: `paths.run_dir`, or `<output_root>/<suite>/<name or timestamp>`.

    Raises:
        ConfigError: It exists already and holds a run.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited and not is_main_process():
        return Path(inherited)
    if not is_main_process() and not (config.paths.run_dir or config.name):
        raise ConfigError("Several processes were started from outside (torchrun, srun): give them one place with name=<name>.")
    parent = Path(config.paths.output_root) / config.suite
    if config.paths.run_dir or config.name:
        run_dir = Path(config.paths.run_dir) if config.paths.run_dir else parent / str(config.name)
        if is_main_process() and (run_dir / "config.json").exists():
            raise ConfigError(
                f"`{run_dir}` holds a run already. Go on with it by resume={run_dir}, choose another name=, or remove the "
                "folder."
            )
        _make(run_dir)
    else:
        run_dir = _timestamped(parent)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)  # for the processes that `strategy=ddp` starts
    return run_dir


def _make(run_dir: Path, exist_ok: bool = True) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise ConfigError(f"`{run_dir}` is a file, expected a folder for the run. Choose another name=.") from None
        raise
    except OSError as error:
        raise ConfigError(
            f"The run directory `{run_dir}` cannot be made ({error.strerror}). Choose another paths.output_root."
        ) from error


def _timestamped(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{count}" for count in range(2, 1000))):
        run_dir = parent / f"{stamp}{suffix}"
        if not run_dir.exists():
            try:
                _make(run_dir, exist_ok=False)
            except FileExistsError:
                continue
            return run_dir
    raise ConfigError(f"No free run directory below `{parent}`. Give a name with name=<name>.")


class QuietFileHandler(logging.FileHandler):
    """A log file that never interrupts a run: on a full disk its lines are lost, the console still has them."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""


def start_log(run_dir: Path) -> None:
    """Send the log of this process to standard output and to `log.txt` of the run."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    if not is_main_process():
        log.addHandler(logging.NullHandler())
        return
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    file = QuietFileHandler(run_dir / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(console)
    log.addHandler(file)
    log.info("run: %s", run_dir)
