"""Measurements of a training step: the Trainer beside a bare loop or a peer, the parts of a step, precisions and formats."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from benchmark_bare import Recipe, bare_step, forward, in_channels_last, placed, task_loss
from benchmark_peer import Peer
from benchmark_plans import build_module, changed, clock, device_of, first_batch, trainer_for
from benchmark_rows import Row, spread
from torch import Tensor, nn

from mtl.config.plan import Plan
from mtl.core.types import TaskBatch
from mtl.training.module import MultiTaskModule

WARM_UP = 2
TARGET = 1.01
FEWEST = 2  # rounds, whatever they take


# -- the Trainer and others in turns ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """When a comparison has enough rounds: after so many, or when the time is up."""

    rounds: int
    seconds: float = float("inf")

    def reached(self, rounds: int, started: float) -> bool:
        """Return whether to stop, after so many rounds since a time."""
        return rounds >= self.rounds or (rounds >= FEWEST and time.perf_counter() - started > self.seconds)


class Finished(Exception):
    """Ends `Trainer.fit` once enough steps were timed."""


class Relay:
    """A loader that always yields the same batch and, between two steps of the Trainer, gives others their turn.

    What passes between handing out a batch and being asked for the next is one full step of the Trainer: transfer, hooks,
    forward, backward, clipping, optimizer, schedule, log.

    Args:
        batch: The batch.
        device: Where the Trainer runs.
        limit: Rounds to time.
        block: Batches per turn of the Trainer; a whole number of its optimizer steps.
        settle: Batches before each of its turns that are not timed.
        ready: Called after the warm-up, before the others run for the first time; returns them by name. Each makes one
            turn, for as many batches, and returns its wall time where that is not the time which it takes.
    """

    def __init__(
        self,
        batch: TaskBatch,
        device: torch.device,
        limit: Limit,
        block: int = 1,
        settle: int = 0,
        ready: Callable[[], Mapping[str, Callable[[], float | None]]] = dict,
    ) -> None:
        self.batch, self.device, self.limit, self.block, self.settle, self.ready = batch, device, limit, block, settle, ready
        self.precision = ""  # of the Trainer
        self.wall: dict[str, list[float]] = defaultdict(list)  # seconds per batch
        self.processor: dict[str, list[float]] = defaultdict(list)

    def __len__(self) -> int:
        return 10**6  # the end of the epoch, with its checkpoint, is never reached

    def __iter__(self) -> Iterator[TaskBatch]:
        for _ in range(WARM_UP * self.block):
            yield self.batch
        others = self.ready()
        rounds, started = 0, time.perf_counter()
        while not self.limit.reached(rounds, started):
            order = ["ours", *others]
            for side in order if rounds % 2 else reversed(order):  # each goes first in turn
                for _ in range(self.settle if side == "ours" else 0):
                    yield self.batch
                start, processor, own = clock(self.device), time.process_time(), None
                if side == "ours":
                    for _ in range(self.block):
                        yield self.batch
                else:
                    own = others[side]()
                wall, processor = clock(self.device) - start, time.process_time() - processor
                self.wall[side].append((wall if own is None else own) / self.block)
                self.processor[side].append(processor / self.block)
            rounds += 1
        raise Finished


def run_trainer(plan: Plan, module: MultiTaskModule, folder: Path, make: Callable[[pl.Trainer], Relay]) -> Relay:
    """Let a Trainer train from the relay that is made for it, until that has enough."""
    trainer = trainer_for(plan, folder, [], check_val_every_n_epoch=2, max_epochs=2)
    relay = make(trainer)
    relay.precision = str(trainer.precision)
    with contextlib.suppress(Finished):
        trainer.fit(module, train_dataloaders=relay)
    return relay


def beside_bare_loop(plan: Plan, folder: Path, limit: Limit, after_warm_up: Callable[[], Any] = lambda: None) -> Relay:
    """Compare the Trainer with a bare loop over the same network and the same batch, in turns."""
    module = build_module(plan)
    batch = first_batch(plan, module.model)

    def make(trainer: pl.Trainer) -> Relay:
        recipe = Recipe.of(trainer)
        steps = 10 if recipe.device.type == "cuda" else 1  # several let a GPU run ahead of Python, as in a real epoch

        def ready() -> dict[str, Callable[[], None]]:
            after_warm_up()
            step = bare_step(build_module(plan), recipe)

            def turn() -> None:
                for _ in range(steps):
                    step(batch)

            turn()
            return {"bare": turn}

        return Relay(batch, recipe.device, limit, steps * recipe.accumulate, ready=ready)

    return run_trainer(plan, module, folder, make)


def ratios(relay: Relay, other: str, processor: bool = False) -> list[float]:
    """Return how many times as long as another side the Trainer took, round by round."""
    found = relay.processor if processor else relay.wall
    return [ours / theirs for ours, theirs in zip(found["ours"], found[other], strict=True)]


def step_rows(plan: Plan, folder: Path, repetitions: int) -> list[Row]:
    """Compare a training step of the Trainer with a bare PyTorch loop over a copy of the same model and the same batch."""
    relay = beside_bare_loop(plan, folder / "step", Limit(repetitions))
    section, images = "training step", len(relay.batch)
    found = [
        Row(section, name, 1000 * statistics.median(relay.wall[side]) / images, "ms / image", spread(relay.wall[side]) + " s")
        for name, side in (("bare PyTorch loop", "bare"), ("Trainer and module", "ours"))
    ]
    wall = ratios(relay, "bare")
    found.append(Row(section, "ratio", statistics.median(wall), "", f"target {TARGET} or less; {spread(wall)}"))
    if relay.device.type == "cpu":
        processor = ratios(relay, "bare", processor=True)
        note = f"less disturbed by other processes; {spread(processor)}"
        found.append(Row(section, "ratio of processor time", statistics.median(processor), "", note))
    return found


def peer_rows(plan: Plan, folder: Path, repetitions: int, peer: Peer) -> list[Row]:
    """Compare a training step of the Trainer with what another program says of its own, in turns."""
    module = build_module(plan)
    batch = first_batch(plan, module.model)

    def make(trainer: pl.Trainer) -> Relay:
        block = 3 * trainer.accumulate_grad_batches
        per_image = (len(batch) * block) / peer.images_or(len(batch))
        turn: dict[str, Callable[[], float | None]] = {"peer": lambda: peer.seconds() * per_image}
        settle = trainer.accumulate_grad_batches  # the peer has had the caches of the processor
        return Relay(batch, trainer.strategy.root_device, Limit(repetitions), block, settle, ready=lambda: turn)

    relay = run_trainer(plan, module, folder / "peer", make)
    section, found = "beside a peer", ratios(relay, "peer")
    rows = [
        Row(section, what, 1000 * statistics.median(relay.wall[side]) / len(batch), "ms / image", note)
        for what, side, note in (
            ("Trainer and module", "ours", f"{len(batch)} images per step"),
            ("the peer", "peer", f"{peer.images_or(len(batch))} images per step, by the last number of its command"),
        )
    ]
    return [*rows, Row(section, "ours / peer", statistics.median(found), "", f"per image, in turns; {spread(found)}")]


# -- parts of a step -------------------------------------------------------------------------------------------------------


class Parts:
    """Times encoder, necks and heads in one pass; the maps between them are cut, so that each has a backward pass of its own.

    Args:
        module: What is trained.
        device: Where.
    """

    def __init__(self, module: MultiTaskModule, device: torch.device) -> None:
        self.module, self.device = module, device
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = 0.0
        self._cuts: list[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        model = module.model
        necks = [
            part for neck in model.necks.values() for part in (neck.values() if isinstance(neck, nn.ModuleDict) else [neck])
        ]
        encoder: Any = model.encoder
        if encoder.per_task:
            encoder.for_tasks = self._timed_passes(encoder.for_tasks)
        parts: dict[str, list[nn.Module]] = {"necks": necks} if encoder.per_task else {"encoder": [encoder], "necks": necks}
        parts |= {task: [model.heads[task]] for task in module.stage.tasks}
        for name, members in parts.items():
            for part in members:
                part.register_forward_pre_hook(self._start)
                part.register_forward_hook(self._stop(name, cut=name in ("encoder", "necks")))

    def _start(self, part: nn.Module, arguments: Any) -> None:
        self._started = clock(self.device)

    def _stop(self, name: str, cut: bool) -> Callable[..., Any]:
        def stop(part: nn.Module, arguments: Any, output: Any) -> Any:
            self.seconds[f"{name} forward"] += clock(self.device) - self._started
            return self._cut(name, output) if cut else output

        return stop

    def _timed_passes(self, for_tasks: Callable[..., dict[str, tuple[Tensor, ...]]]) -> Callable[..., Any]:
        """Time an encoder whose adapters see the rows of all tasks in one call, which is not that of a module."""

        def timed(*arguments: Any) -> dict[str, tuple[Tensor, ...]]:
            started = clock(self.device)
            found = for_tasks(*arguments)
            self.seconds["encoder forward"] += clock(self.device) - started
            return {task: self._cut("encoder", maps) for task, maps in found.items()}

        return timed

    def _cut(self, name: str, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not any(level.requires_grad for level in levels):
            return levels
        leaves = tuple(level.detach().requires_grad_() for level in levels)
        self._cuts.append((name, levels, leaves))
        return leaves

    def run(self, batch: TaskBatch, recipe: Recipe) -> None:
        """Make one pass forward and backward."""
        model, tasks = self.module.model, self.module.stage.tasks
        self.module.zero_grad()
        with recipe.autocast:
            outputs = forward(model, batch, tasks)
        for task in tasks:
            started = clock(self.device)
            with recipe.autocast:
                loss = task_loss(model, task, outputs, batch)
            if loss.requires_grad:
                loss.backward()
            self.seconds[f"{task} loss and backward"] += clock(self.device) - started
        for name in dict.fromkeys(name for name, *_ in reversed(self._cuts)):
            # All at once: the passes of several tasks share what lies before their adapters.
            started = clock(self.device)
            cuts = [(levels, leaves) for part, levels, leaves in self._cuts if part == name]
            pairs = [
                (level, leaf.grad) for levels, leaves in cuts for level, leaf in zip(levels, leaves, strict=True)
                if leaf.grad is not None and level.requires_grad
            ]  # fmt: skip
            if pairs:
                torch.autograd.backward([level for level, _ in pairs], [gradient for _, gradient in pairs])
            self.seconds[f"{name} backward"] += clock(self.device) - started
        self._cuts.clear()

    def take(self) -> dict[str, float]:
        """Return the seconds since this was last asked."""
        found, self.seconds = dict(self.seconds), defaultdict(float)
        return found


def part_rows(plan: Plan, folder: Path, repetitions: int) -> list[Row]:
    """Time encoder, necks and each head (forward, loss and backward) in one training step."""
    recipe, module = Recipe.of(trainer_for(plan, folder / "parts", [])), build_module(plan)
    module.to(recipe.device).train()
    batch = placed(first_batch(plan, module.model), recipe.device, in_channels_last(module.model))
    parts, seconds = Parts(module, recipe.device), defaultdict(list)
    for repetition in range(1 + repetitions):
        parts.run(batch, recipe)
        for part, value in parts.take().items():
            if repetition:
                seconds[part].append(value)
    medians = {part: statistics.median(values) for part, values in seconds.items()}
    whole = sum(medians.values())

    def row(name: str, keys: list[str]) -> Row:
        value = sum(medians.get(key, 0.0) for key in keys)
        return Row("parts of a step", name, 100 * value / whole, "%", f"{1000 * value / len(batch):.0f} ms / image")

    names = [f"{part} {way}" for part in ("encoder", "necks") for way in ("forward", "backward")]
    shared = [row(name, [name]) for name in names if name in medians]
    heads = [
        row(f"head {task} ({plan.config.heads[task]['name']})", [f"{task} forward", f"{task} loss and backward"])
        for task in module.stage.tasks
    ]
    return [*shared, *heads]


# -- precision and format --------------------------------------------------------------------------------------------------


def variant_rows(plan: Plan, folder: Path, repetitions: int) -> list[Row]:
    """Compare precisions and memory formats by optimizer steps of one model each, in turns."""
    device = device_of(plan.config)
    names = ["fp32", "bf16-mixed", "channels_last", "bf16-mixed + channels_last"]
    names += ["compile", "bf16-mixed + channels_last + compile"] if device.type == "cuda" else []
    batch = first_batch(plan, build_module(plan).model)
    passes = {name: _variant(plan, name, folder / "variants") for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(WARM_UP + repetitions):
        for name, step in passes.items():
            started = clock(device)
            step(batch)
            if repetition >= WARM_UP:
                seconds[name].append(clock(device) - started)
    first = statistics.median(seconds[names[0]])
    return [
        Row(
            "precision and format", name, first / statistics.median(values), "x fp32",
            f"{1000 * statistics.median(values) / len(batch):.0f} ms / image",
        )
        for name, values in seconds.items()
    ]  # fmt: skip


def _variant(plan: Plan, name: str, folder: Path) -> Callable[[TaskBatch], None]:
    settings = {
        "trainer": {"precision": "bf16-mixed" if "bf16" in name else "32-true", "accumulate_grad_batches": 1},
        "runtime": {"channels_last": "channels_last" in name, "compile": "compile" in name},
    }
    plan = changed(plan, settings)
    return bare_step(build_module(plan), Recipe.of(trainer_for(plan, folder, [])))
