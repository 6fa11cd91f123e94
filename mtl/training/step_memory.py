"""The peak memory of training, known from steps of a few small images.

What a network keeps grows with the number of images and with their pixels, segment by segment of a step (`live_memory`). Three
small steps therefore tell the most that a step of any size needs, to the byte where the shapes of tensors follow those of the
input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mtl.config.plan import Plan
from mtl.config.schema import OptimizerConfig, RunConfig
from mtl.core.types import TaskBatch
from mtl.runs.build import build_balancer, build_evaluator, build_model
from mtl.training.live_memory import LiveMemory, Timeline, bytes_of, tensors_in
from mtl.training.made_up import made_up_batch
from mtl.training.module import MultiTaskModule
from mtl.training.optim import OPTIMIZERS

Size = tuple[int, int]
# (rows, side) of the small steps: two batches of one size and two sizes of one batch.
SMALL = ((2, 96), (4, 96), (2, 128))
# What memory allocators keep beyond what tensors need, as a share of all that comes and goes within a step. On a CPU glibc took
# 0.05 to 0.4 of it in steps of 1 to 6 GiB; with 0.2 the estimate was within 13 % of the peak of each. That of a GPU is a guess.
SLACK = {"cpu": 0.2, "cuda": 0.1}


@dataclass(frozen=True)
class Growth:
    """Bytes per segment of a computation: constant + rows * (per_row + pixels * per_pixel)."""

    constant: Tensor
    per_row: Tensor
    per_pixel: Tensor

    @classmethod
    def through(cls, measured: Sequence[tuple[int, int, Sequence[int]]]) -> Growth:
        """Return the growth through measurements (rows, pixels, bytes per segment).

        Where two computations have different segments, their largest values count alone.
        """
        if len({len(peaks) for *_, peaks in measured}) > 1:
            measured = [(rows, pixels, [max(peaks)]) for rows, pixels, peaks in measured]
        lines = torch.tensor([[1.0, rows, rows * pixels] for rows, pixels, _ in measured], dtype=torch.float64)
        values = torch.tensor([list(peaks) for *_, peaks in measured], dtype=torch.float64)
        one_size = len({pixels for _, pixels, _ in measured}) == 1
        found = torch.linalg.lstsq(lines[:, :2] if one_size else lines, values).solution
        return cls(found[0], found[1], torch.zeros_like(found[0]) if one_size else found[2])

    def at(self, rows: int, pixels: int) -> int:
        """Return the most bytes of all segments."""
        return max(0, round(float((self.constant + rows * (self.per_row + pixels * self.per_pixel)).max())))


@dataclass(frozen=True)
class StepMemory:
    """What training needs, in bytes.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of all parameters that train.
        optimizer: Its state.
        average: The average of the weights that `callbacks.ema` keeps.
        exchange: Buffers through which ranks exchange gradients.
        forward: What a forward pass makes until the backward pass begins.
        backward: What there is during the backward pass, gradients that were delivered included.
        within: The same without these: what comes on top of gradients that are there already.
        validation: What predicting a batch of validation makes.
        batch: Images and targets of a batch.
        slack: Share of what comes and goes that the allocator takes on top.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    forward: Growth
    backward: Growth
    within: Growth
    validation: Growth
    batch: Growth
    slack: float

    def parts(self, config: RunConfig) -> dict[str, int]:
        """Return what takes how much at the peak of a run with these settings, in bytes by name."""
        loader = config.data.loader
        height, width = config.data.geometry.size
        pixels, rows, scored = height * width, loader.batch_size, loader.eval_batch_size or loader.batch_size
        # Gradients stay until the next step begins its backward pass; of accumulated ones, until the step is made.
        accumulating = config.trainer.accumulate_grad_batches > 1
        during = self.within.at(rows, pixels) if accumulating else self.backward.at(rows, pixels) - self.gradients
        activations = max(self.forward.at(rows, pixels), during, self.validation.at(scored, pixels), 0)
        waiting = self.batch.at(max(rows, scored), pixels) * (2 + loader.processes * loader.batches_ahead)
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer,
            "average of the weights": self.average,
            "exchange between ranks": self.exchange,
            "activations": activations,
            "batches": waiting,
            "allocator": round(self.slack * activations),
        }


def step_memories(
    plan: Plan, device: str, ranks: int, labelled: Collection[frozenset[str]] = ()
) -> list[tuple[int, StepMemory]]:
    """Measure small steps of a network built for the purpose, per stage (its position) and set of labels.

    Random states stay as they are.

    Args:
        plan: Of the run.
        device: `cpu` or `cuda`.
        ranks: Number of processes that exchange gradients.
        labelled: Which labels come together; the largest such sets suffice. None of them: every image has all labels.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(plan, load_weights=False)
        found = []
        for stage in plan.stages:
            balancer = build_balancer(stage.config.balancer, stage.tasks)
            module = MultiTaskModule(model, balancer, build_evaluator(plan, model.specs), plan, stage)
            module._forward = (model,)  # compiling it would take longer than all of this
            module.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
            sets = {known & set(stage.tasks) for known in labelled} - {frozenset()} or {frozenset(stage.tasks)}
            for known in sorted(sets, key=sorted):
                if not any(known < other for other in sets):
                    found.append((stage.index, _measured(module, known, device, ranks)))
        return found


def largest(memories: Sequence[tuple[int, StepMemory]], plan: Plan) -> dict[str, int]:
    """Return the parts of the stage and the labels that need most."""
    every = [memory.parts(plan.stages[stage].config) for stage, memory in memories]
    return max(every, key=lambda parts: sum(parts.values()))


def _measured(module: MultiTaskModule, labelled: frozenset[str], device: str, ranks: int) -> StepMemory:
    model, config = module.model, module.config
    small, channels = _small_steps(module), len(model.preprocessing.mean)
    steps, predictions, batches = [], [], []
    for rows, size in small:
        batch = made_up_batch(model.specs, labelled, channels, rows, size)
        pixels = size[0] * size[1]
        batches.append((rows, pixels, [bytes_of(tensors_in([batch.images, batch.targets]))]))
        steps.append((rows, pixels, training_timeline(module, batch)))
        predictions.append((rows, pixels, _prediction_timeline(module, batch).peaks))

    def growth(values: Callable[[Timeline], Sequence[int]]) -> Growth:
        return Growth.through([(rows, pixels, values(timeline)) for rows, pixels, timeline in steps])

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights, gradients = bytes_of([*module.parameters(), *module.buffers()]), bytes_of(trained)
    return StepMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer_state(config.optimizer, trained),
        average=weights if config.callbacks.ema else 0,
        exchange=gradients if ranks > 1 else 0,
        forward=growth(lambda timeline: timeline.peaks[: timeline.backward]),
        backward=growth(lambda timeline: timeline.peaks[timeline.backward :]),
        within=growth(lambda timeline: [peak - given for peak, given in zip(timeline.peaks, timeline.delivered, strict=True)]),
        validation=Growth.through(predictions),
        batch=Growth.through(batches),
        slack=SLACK[device],
    )


def _small_steps(module: MultiTaskModule) -> list[tuple[int, Size]]:
    """Return (rows, size) of the steps to measure; all of the true size where that is small, or the network takes no other."""
    size = module.model.preprocessing.geometry.size
    largest_side = max(side for _, side in SMALL)
    if getattr(module.model.encoder, "image_size", None) or size[0] * size[1] <= largest_side**2:
        return [(2, size), (3, size)]
    return [(rows, (side, side)) for rows, side in SMALL]


def training_timeline(module: MultiTaskModule, batch: TaskBatch) -> Timeline:
    """Carry out the forward and backward pass of a step and return what was alive."""
    live = LiveMemory([*module.parameters(), *module.buffers(), *tensors_in([batch.images, batch.targets])])
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda parameter: live.begin(bytes_of([parameter])))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    module.train()
    try:
        with live:
            with _precision(module.config):
                loss = module.training_step(batch, 0)
            live.begin()
            live.timeline.backward = len(live.timeline.peaks) - 1
            loss.backward()
            del loss
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad()
        module._sums, module.step_losses = {}, {}
    return live.timeline


@torch.no_grad()
def _prediction_timeline(module: MultiTaskModule, batch: TaskBatch) -> Timeline:
    """Predict a batch as validation does and return what was alive."""
    module.eval()
    with LiveMemory([*module.parameters(), *module.buffers(), batch.images]) as live, _precision(module.config):
        outputs = module(batch.images)
        predictions = module.model.decode(outputs)
        del outputs, predictions
    return live.timeline


def _precision(config: RunConfig) -> contextlib.AbstractContextManager[Any]:
    """Compute as in the run; 16 bits are those of bfloat16, which a CPU knows too."""
    mixed = "mixed" in str(config.trainer.precision)
    return torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()


def optimizer_state(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> int:
    """Return the bytes of the state that an optimizer keeps of parameters, from one step on a parameter of its own."""
    probe = nn.Parameter(torch.zeros(64))
    probe.grad = torch.ones(64)
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, **config.options}
    optimizer = OPTIMIZERS[config.name]([probe], **settings)
    optimizer.step()
    copies = sum(value.numel() == probe.numel() for value in optimizer.state[probe].values() if isinstance(value, Tensor))
    return copies * bytes_of(parameters)
