"""How many processes load the data of a run, and how far ahead: decided once before it starts, and named in what comes of it.

Where a GPU computes, the process of a rank only hands over batches, and all other cores of the rank may load. Where a CPU
computes, a step uses all cores itself: with two of them, one process that loads cost a third of the images per second
(resnet10t, 128 px, from the cache), since it competes with the step. What is loaded does not depend on any of this.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtl.config.data_schema import BATCHES_AHEAD, LoaderConfig
from mtl.config.plan import Plan
from mtl.core.cores import usable_cores
from mtl.core.free_memory import free_memory
from mtl.training.fitting import ranks_of

AUTO = "auto"
MOST = 8  # more seldom help, and each holds masks and labels of its own
CORES_PER_PROCESS = 4  # of a CPU that computes
PROCESS_BYTES = 2**29  # what a process holds: masks (`mtl.data.pipeline.dataset`), labels, and images at work
TARGETS = 2  # a batch with its targets, in bytes of its images
SHARE = 2  # at most one part in so many of what is free is taken
SHARED_MEMORY = Path("/dev/shm")  # where batches are handed over
MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """What one rank of a run may use.

    Attributes:
        device: What computes, `cpu` or `cuda`.
        cores: Of the processor.
        memory: Free bytes; None where nobody knows.
        shared: Free bytes where processes hand over batches; None where nobody knows.
    """

    device: str
    cores: int
    memory: int | None = None
    shared: int | None = None

    def processes(self, batch: int, asked: int | None = None) -> tuple[int, int, str]:
        """Return how many processes are to load, how many batches each prepares ahead, and why.

        Args:
            batch: Bytes of a batch.
            asked: So many processes are set; only how far ahead they load is to be decided.
        """
        gpu, ahead = self.device == "cuda", BATCHES_AHEAD
        count = min(MOST, self.cores - 1 if gpu else self.cores // CORES_PER_PROCESS) if asked is None else asked
        why = f"{self.cores} core{'s' if self.cores > 1 else ''} for a rank on a {'GPU' if gpu else 'CPU'}"
        if asked is None and self.memory is not None and (fit := self.memory // SHARE // PROCESS_BYTES) < count:
            count, why = fit, f"{self.memory // MIB} MiB of memory are free for a rank"
        if self.shared is not None and count * ahead > (fit := self.shared // SHARE // batch):
            ahead, why = 1, f"{self.shared // MIB} MiB are free for a rank in {SHARED_MEMORY}"
            count = min(count, fit) if asked is None else asked
        return count, ahead, why


def machine_of(plan: Plan) -> Machine:
    """Return what one rank of a run may use here."""
    device, ranks = ranks_of(plan.config.trainer)
    cores, memory, shared = usable_cores(), free_memory(), None
    with suppress(OSError):
        shared = shutil.disk_usage(SHARED_MEMORY).free
    # Tasks of SLURM are ranks, bound to cores of their own or not.
    bound = int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) if int(os.environ.get("SLURM_NTASKS", 1)) > 1 else 0
    cores = min(cores, bound) if bound else max(1, cores // ranks)
    rest = [None if free is None else free // ranks for free in (memory, shared)]
    return Machine(device, cores, *rest)


def settled_loading(plan: Plan, machine: Machine | None = None) -> tuple[Plan, str]:
    """Return a plan that says how its data are loaded here, and a sentence about it for the log.

    Args:
        plan: Of the run. What it says stands; only `auto` is replaced.
        machine: Where it computes; None looks.
    """
    loader = plan.config.data.loader
    stages = [stage.loader for stage in plan.config.stages.values()]
    if AUTO not in (loader.num_workers, loader.prefetch, *(value for stage in stages for value in stage.values())):
        return plan, f"{_words(loader)} (as configured)"
    asked = loader.num_workers if isinstance(loader.num_workers, int) else None
    workers, ahead, why = (machine or machine_of(plan)).processes(_batch_bytes(plan), asked)
    plan = plan.loading({"num_workers": workers, "prefetch": ahead})
    return plan, f"{_words(plan.config.data.loader)} (auto: {why})"


def _batch_bytes(plan: Plan) -> int:
    """Return the bytes of the largest batch, with what its targets take at most."""
    loaders = [plan.config.data.loader, *(stage.config.data.loader for stage in plan.stages)]
    rows = max(max(loader.batch_size, loader.eval_batch_size or 0) for loader in loaders)
    height, width = plan.config.data.geometry.size
    return rows * plan.family.channels * height * width * 4 * TARGETS


def _words(loader: LoaderConfig) -> str:
    if not loader.processes:
        return "in the process that trains"
    many = f"{loader.processes} processes" if loader.processes > 1 else "1 process"
    return f"{many}, each {loader.batches_ahead} batch{'es' if loader.batches_ahead > 1 else ''} ahead"
