"""How a run ends before its time, in one sentence: what stopped it, what it keeps, how it goes on."""

from __future__ import annotations

import re
import signal
import sys
import threading
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from mtl.core import errors
from mtl.core.disk import is_refusal, sentence
from mtl.core.errors import INTERRUPTED, ConfigError, MtlError, TrainingError
from mtl.core.files import remove_stale
from mtl.runs.folder import LAST, RunFolder, is_main_process
from mtl.runs.history import read_history

# What a rank reports of a connection to one that is gone.
LOST_RANK = re.compile(
    r"connection (closed|reset) by peer|connection refused|socket timeout|remote process has|broken pipe", re.I
)

# What torch says where a process that loads batches is gone.
LOST_LOADER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal|exited unexpectedly)[^.\n]*")


def stop_of(error: BaseException, run_dir: Path) -> BaseException:
    """Return the error with a sentence for the user that stands for what ended a run; else the error itself."""
    if isinstance(error, KeyboardInterrupt):
        return interrupted(run_dir)
    if isinstance(error, MisconfigurationException):  # found when training starts: `limit_train_batches` of no batch
        return ConfigError(f"The `trainer` settings cannot be used here: {' '.join(str(error).split())}")
    if isinstance(error, ProcessExitedException):
        how = error.signal_name or f"status {error.exit_code}"
        return _lost_rank(f"rank {error.error_index} (process {error.error_pid}) ended with {how}", run_dir)
    if isinstance(error, ProcessRaisedException):
        return _raised_in_rank(error, run_dir)
    if isinstance(error, RuntimeError) and (lost := LOST_LOADER.search(f"{error.__cause__}\n{error}")):
        return _lost_loader(lost[0], run_dir)
    if isinstance(error, RuntimeError) and LOST_RANK.search(str(error)):
        return _lost_rank("another rank ended without a word", run_dir)
    if isinstance(error, OSError) and is_refusal(error):
        error.add_note(what_is_kept(run_dir))
        return TrainingError(f"The run stopped: {sentence(error)}")
    return error


def interrupted(run_dir: Path) -> TrainingError:
    """Return the error that ends a run stopped with Ctrl-C; the last finished epoch is what it keeps."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the Trainer leaves it ignored
    if not is_main_process():
        sys.exit(0)  # rank 0 says it; with another status its watcher would kill rank 0 before it can
    remove_stale(RunFolder(run_dir).checkpoints / "*")
    error = TrainingError(f"Interrupted. {what_is_kept(run_dir)}")
    error.exit_code = INTERRUPTED
    return error


def what_is_kept(run_dir: Path) -> str:
    """Return what an unfinished run has and how it goes on."""
    rows = read_history(run_dir)
    finished = f"{LAST} holds epoch {int(float(rows[-1]['epoch'])) + 1}" if rows else "No epoch was finished yet"
    return f"{finished}. Go on with: python train.py resume={run_dir}"


def _lost_rank(what: str, run_dir: Path) -> TrainingError:
    return TrainingError(
        f"A process of the run is gone: {what}. The system does that to the largest one when memory runs out; see its log. "
        f"{what_is_kept(run_dir)}"
    )


def _lost_loader(what: str, run_dir: Path) -> TrainingError:
    return TrainingError(
        f"A process that loads data is gone: {what.strip()}. The system does that when memory, or shared memory in /dev/shm, "
        f"runs out; see its log. {what_is_kept(run_dir)} data.loader.num_workers=<fewer>"
    )


def _raised_in_rank(error: ProcessRaisedException, run_dir: Path) -> BaseException:
    """Find the sentence for the user in what a forked rank raised; it arrives as the text of a traceback."""
    text = str(error)
    found = re.search(r"^mtl\.core\.errors\.(\w+): (.*)", text, re.DOTALL | re.MULTILINE)
    raised = getattr(errors, found[1], None) if found else None
    if found and isinstance(raised, type) and issubclass(raised, MtlError):
        return raised(found[2].strip())
    last = text.strip().rpartition("\n")[2]
    if lost := LOST_LOADER.search(last):
        return _lost_loader(lost[0], run_dir)
    if LOST_RANK.search(last):
        return _lost_rank(f"rank {error.error_index} lost the connection to another", run_dir)
    return error
