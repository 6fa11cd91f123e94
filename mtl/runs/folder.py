"""Where a run lives, what its files are called, and its log. Imports neither torch nor Lightning."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtl.config.schema import RunConfig
from mtl.core.errors import CheckpointError, ConfigError

log = logging.getLogger("mtl")
RUN_DIR_VARIABLE = "MTL_RUN_DIR"
# For messages about a run whose folder is not at hand.
BEST, LAST = "best.ckpt", "last.ckpt"


@dataclass(frozen=True)
class ResultFolder:
    """The files of one evaluation: of a run on its test split, or of a checkpoint on something else.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """Return where the scores are: tasks, intervals, thresholds, notes."""
        return self.path / "metrics.json"

    @property
    def records(self) -> Path:
        """Return where the records are, one per image and task, from which every score is computed."""
        return self.path / "predictions" / "records.json"

    @property
    def cases(self) -> Path:
        """Return where the table of the volumes is."""
        return self.path / "predictions" / "cases.csv"

    def table(self, task: str) -> Path:
        """Return where the annotation and the prediction of every image for a task are."""
        path = self.path / "predictions" / f"{task}.csv"
        return path if path != self.cases else path.with_name(f"task_{task}.csv")

    def object_table(self, task: str) -> Path:
        """Return where those of every annotated object are, of a task that classifies objects."""
        return self.path / "predictions" / "objects" / f"{task}.csv"

    @property
    def figures(self) -> Path:
        """Return the folder of the figures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """Return where the page for readers is."""
        return self.path / "report.html"


@dataclass(frozen=True)
class RunFolder(ResultFolder):
    """The files of a run; nothing else knows their names.

    Attributes:
        path: The run directory.
    """

    @classmethod
    def of(cls, checkpoint: Path) -> RunFolder:
        """Return the run that a checkpoint file belongs to; of a file elsewhere, the folder that holds it."""
        holder = checkpoint.parent
        return cls(holder.parent if holder == cls(holder.parent).checkpoints else holder)

    @property
    def config(self) -> Path:
        """Return where the resolved configuration is; the folder holds a run where this file exists."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Return where the versions, the commit and the device are."""
        return self.path / "environment.json"

    @property
    def lock(self) -> Path:
        """Return where it stands which process writes the run, as long as it does."""
        return self.path / "lock.json"

    @property
    def log(self) -> Path:
        """Return where the log is."""
        return self.path / "log.txt"

    @property
    def output(self) -> Path:
        """Return where what a run of a comparison printed is."""
        return self.path / "output.txt"

    @property
    def split(self) -> Path:
        """Return where the split is, one row per sample."""
        return self.path / "split.csv"

    @property
    def history(self) -> Path:
        """Return where the history is, one row per finished epoch."""
        return self.path / "metrics.csv"

    @property
    def profile(self) -> Path:
        """Return where `trainer.profiler` writes; the Trainer puts `fit-` before the name that it is given."""
        return self.path / "fit-profile.txt"

    @property
    def tensorboard(self) -> Path:
        """Return the folder of the events of TensorBoard."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> str | None:
        """Return the id under which Weights & Biases knows the run, which its folder ends with; None before it began."""
        begun = sorted((self.path / "wandb").glob("*run-*-*"))
        return begun[-1].name.rpartition("-")[2] if begun else None

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Return the checkpoint with the best monitored value."""
        return self.checkpoints / BEST

    @property
    def last(self) -> Path:
        """Return the checkpoint of the last finished epoch."""
        return self.checkpoints / LAST

    def stage(self, name: str) -> Path:
        """Return the best checkpoint of a finished stage."""
        return self.checkpoints / f"stage_{name}.ckpt"

    def evaluation(self, name: str) -> ResultFolder:
        """Return the folder of a later evaluation."""
        return ResultFolder(self.path / "evaluation" / name)


# How messages name the file that a checkpoint usually is.
EXAMPLE = RunFolder(Path("<run dir>")).best


def checkpoint_path(checkpoint: str | Path) -> Path:
    """Accept a run directory in place of its best checkpoint."""
    path = Path(checkpoint).expanduser()
    best = RunFolder(path).best
    return best if path.is_dir() and best.is_file() else path


def require_checkpoint(checkpoint: str | Path) -> None:
    """Answer a wrong path before torch is imported.

    Raises:
        CheckpointError: Nothing is there, or a folder that is no run with a best checkpoint.
    """
    path = checkpoint_path(checkpoint)
    if not path.exists():
        raise CheckpointError(f"Checkpoint `{path}` does not exist. Give a run directory or a file such as {EXAMPLE}.")
    if path.is_dir():
        raise CheckpointError(is_a_folder(path))


def is_a_folder(folder: Path) -> str:
    """Return what to say of a folder where a checkpoint file is needed."""
    run = RunFolder(folder)
    inside = run.best if run.best.is_file() else run.last
    hint = f"Did you mean `{inside}`?" if inside.is_file() else "It is not a run with a finished epoch either."
    return f"`{folder}` is a folder, expected a checkpoint file. {hint}"


def is_main_process() -> bool:
    """Return whether this process is global rank 0, before and after the ranks were started."""
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
        if is_main_process() and RunFolder(run_dir).config.exists():
            raise ConfigError(
                f"`{run_dir}` holds a run already. Go on with it by resume={run_dir}, choose another name=, or remove the "
                "folder."
            )
        _make(run_dir)
    else:
        run_dir = _timestamped(parent)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)  # for the processes that `strategy=ddp` starts
    return run_dir


@contextmanager
def without_empty_folder(config: RunConfig, run_dir: Path) -> Iterator[None]:
    """Remove the directory of a run that ended before anything was left in it, unless the user made or named it."""
    try:
        yield
    except BaseException:
        if is_main_process() and not config.resume and not config.paths.run_dir:
            with suppress(OSError):  # not empty, or gone
                run_dir.rmdir()
        raise


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


def note_in_log(text: str, level: int = logging.ERROR) -> None:
    """Write a line to `log.txt` alone: what ends a run, which the command line prints."""
    for handler in log.handlers:
        if isinstance(handler, QuietFileHandler):
            handler.handle(log.makeRecord(log.name, level, "", 0, text, (), None))


def forget_start(run_dir: Path, keep_log: bool) -> None:
    """Remove what a run wrote before it had anything to go on with, so that its name is free again."""
    run = RunFolder(run_dir)
    for path in (run.config, run.environment, run.split, *(() if keep_log else (run.log,))):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        run.checkpoints.rmdir()


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
    file = QuietFileHandler(RunFolder(run_dir).log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(console)
    log.addHandler(file)
    log.info("run: %s", run_dir)
