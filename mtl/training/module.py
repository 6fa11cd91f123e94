"""The LightningModule: forward, head losses, balancer, metrics. Nothing else lives here."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mtl.balancing.base import Balancer, Step
from mtl.config.plan import Plan
from mtl.config.stages import Stage
from mtl.core.errors import TrainingError
from mtl.core.types import TaskBatch
from mtl.heads.base import Output
from mtl.inference.finite import NotFiniteError
from mtl.inference.scoring import KeepImages, WholeImageScorer
from mtl.layers import take_rows
from mtl.metrics.evaluator import Evaluator
from mtl.model import MultiTaskModel, Rows
from mtl.runs.precision import Computation
from mtl.runs.stored import FORMAT, converted
from mtl.training.distributed import gather_objects, global_counts, mean_over_ranks, sum_over_ranks
from mtl.training.divergence import check_weights, diverged
from mtl.training.loss_terms import LossTerms, latest_losses
from mtl.training.monitor import SMOOTHED, moving_mean, watched
from mtl.training.optim import build_optimizer, inactive_parts, split_parts
from mtl.training.schedules import build_scheduler


class MultiTaskModule(pl.LightningModule):
    """Trains a `MultiTaskModel`.

    Args:
        model: The network.
        balancer: Turns the tasks' losses into one update.
        evaluator: Scores whole validation images.
        plan: Of the run.
        stage: What of it to carry out; None is all, for a run without a curriculum.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        balancer: Balancer,
        evaluator: Evaluator,
        plan: Plan,
        stage: Stage | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.balancer = balancer
        self.evaluator = evaluator
        self.run_config = plan.to_dict()
        self.stage = plan.stages[0] if stage is None else stage
        self.config = self.stage.config
        model.train_only(self.stage.tasks, self.stage.freeze)
        self.shared, self.own = model.shared_and_own(self.stage.tasks)
        self.thresholds: dict[str, dict[str, float]] = {}
        self.validation: dict[str, float] = {}
        self.split_rows: list[dict[str, str]] = []
        self.pretraining: list[str] = []
        self.monitored: list[float] = []  # one value per validation of this stage
        self._sums: dict[str, Tensor] = {}
        self._batch_index = 0
        self.terms = LossTerms()
        self.step_losses: dict[str, Tensor] = {}
        self.keep_images: KeepImages | None = None
        self.examples: Collection[str] = ()  # validation images of which all tasks are predicted, labelled or not
        self._validated = False
        self._scorer: WholeImageScorer | None = None
        self._plateau: dict[str, Any] | None = None
        self._plateau_state: dict[str, Any] | None = None
        # In a tuple, so that the compiled model is not registered as a second copy of the network.
        self._forward = (torch.compile(model) if self.config.runtime.compile else model,)
        self.computation = Computation.of(self.config)
        self.computation.arrange(model)

    def forward(self, images: Tensor, tasks: tuple[str, ...] | None = None, rows: Rows | None = None) -> dict[str, Output]:
        """Compute the raw outputs of the heads, of all or of some tasks and rows (`MultiTaskModel.forward`)."""
        outputs: dict[str, Output] = self._forward[0](self.computation.arranged(images), tasks, rows)
        return outputs

    @property
    def _heads(self) -> list[Any]:
        """Heads that train in this stage."""
        return [self.model.heads[task] for task in self.stage.tasks]

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TaskBatch, batch_index: int) -> None:
        """Make the epoch a pure function of (seed, epoch, rank), so that a resumed run equals an uninterrupted one.

        Done at the first batch because Lightning skips `on_train_epoch_start` in the first epoch after a resume.
        """
        if batch_index == 0:
            self._validated = False
            torch.manual_seed(hash((self.stage.seed, self.current_epoch, self.global_rank)) % 2**31)
            self._sums = {}
            self.terms.reset("train")
            for head in self._heads:
                head.set_progress(self.current_epoch / self.config.trainer.max_epochs)

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Compute the balanced loss of one batch."""
        self._batch_index = batch_index
        outputs = self(batch.images, self.stage.tasks, batch.rows)
        losses, counts = self.task_losses(outputs, batch)
        present = {task: bool(count > 0) for task, count in counts.items()}
        average = partial(mean_over_ranks, module=self)
        loss: Tensor = self.balancer(Step(losses, present, self.shared, self.own, average))
        if not bool(torch.isfinite(loss.detach())):
            raise self._not_finite(losses, batch)
        self._add("train", losses, counts, loss)
        self.terms.add("train", batch.present)
        self.step_losses = latest_losses(losses, counts, loss)
        self._watch("train", outputs, batch)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Pass backwards what the Trainer divided by `accumulate_grad_batches`: each step is a mean over its batches."""
        trainer = self.trainer
        batches, every = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        super().backward(loss * _undivided(self._batch_index, batches, every), *args, **kwargs)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses and the balancer's weights; step a schedule that follows a metric."""
        check_weights(self)
        self._log_sums("train")
        self.log_dict({f"weight/{task}": weight for task, weight in self.balancer.weights().items()})
        if self._plateau is not None and self._validated:
            self._plateau["scheduler"].step(self.trainer.callback_metrics[self._plateau["monitor"]])

    def task_losses(self, outputs: dict[str, Output], batch: TaskBatch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Sum each head's loss terms, scaled so that averaging gradients over ranks gives the mean over all labelled samples.

        Returns:
            Loss per task, and how many labelled samples all ranks together have for it.
        """
        local = {task: batch.present[task].sum() for task in self.stage.tasks}
        total = global_counts(local, self)
        losses, rows = {}, batch.rows
        for task in self.stage.tasks:
            if rows[task]:
                loss = self._loss(task, outputs, batch, rows)
            else:
                loss = self.model.unread(task, self.stage.tasks, rows, outputs)
            losses[task] = (
                loss if self.trainer.world_size == 1 else loss * _share(local[task], total[task], self.trainer.world_size)
            )
        return losses, total

    def _loss(self, task: str, outputs: dict[str, Output], batch: TaskBatch, rows: Rows) -> Tensor:
        """Sum the loss terms of one head over this rank's labelled samples."""
        head: Any = self.model.heads[task]
        return self.terms.sum_of(task, head.loss(outputs[task], take_rows(batch.targets[task], rows[task])))

    def _not_finite(self, losses: dict[str, Tensor], batch: TaskBatch) -> TrainingError:
        broken = [task for task, loss in losses.items() if not bool(torch.isfinite(loss.detach()))] or ["balancer"]
        samples = ", ".join(meta.sample_id for meta in batch.meta[:4])
        return diverged(self, f"The loss of {', '.join(broken)} (samples {samples})")

    # -- validation ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start with empty records."""
        check_weights(self)
        self.evaluator.reset()
        trainer: Any = self.trainer
        self._scorer = WholeImageScorer(self.model, self.evaluator, trainer.datamodule.dataset("val").truth, self.keep_images)
        self.terms.reset("val")
        for key in [key for key in self._sums if key.startswith("val/")]:
            del self._sums[key]

    def validation_step(self, batch: TaskBatch, batch_index: int) -> None:
        """Decode one batch of windows; finished images are scored, for tasks that rest as well."""
        rows = batch.rows
        shown = self._shown(batch, rows)
        outputs = self(batch.images, rows=shown)
        assert self._scorer is not None
        try:
            self._scorer.update(outputs, batch, shown)
        except NotFiniteError as error:
            raise diverged(self, f"What the network says for {error.task} of validation image {error.image}") from error
        if shown != rows:
            outputs = self(batch.images, rows=rows)
        losses = {task: self._loss(task, outputs, batch, rows) for task in outputs}
        counts = {task: float(len(rows[task])) for task in losses}
        loader: Any = self.trainer.val_dataloaders
        if not getattr(loader.sampler, "filler", False):
            self._add("val", losses, counts, None)
            self.terms.add("val", batch.present)
            self._watch("val", outputs, batch)

    def _shown(self, batch: TaskBatch, rows: Rows) -> Rows:
        """Return the rows to predict in validation: those with a label to be scored by, all of a batch with an example."""
        every = tuple(range(len(batch)))
        if any(meta.sample_id in self.examples for meta in batch.meta):
            return dict.fromkeys(rows, every)
        shown = dict(rows)
        for metric in self.evaluator.study.values():
            for task, decider in metric.deciders.items():
                shown |= dict.fromkeys((task, decider), tuple(sorted({*shown[task], *shown[decider]})))
        return shown

    def on_validation_epoch_end(self) -> None:
        """Exchange records once, choose thresholds on validation, log the metrics."""
        for records in gather_objects(self.evaluator.records(), self):
            self.evaluator.extend(records)
        self._validated = True
        self.thresholds = self.evaluator.thresholds()
        values = self.evaluator.compute(self.thresholds)
        self.validation = {f"val/{task}/{name}": value for task, metrics in values.items() for name, value in metrics.items()}
        trained = {task: values[task] for task in self.stage.tasks}
        self.validation["val/score"] = self.evaluator.score(trained, self.thresholds)
        if broken := [name for name, value in self.validation.items() if math.isinf(value)]:  # NaN is one that is not defined
            raise diverged(self, f"The metric {broken[0]}")
        self.log_dict(self.validation)
        self._smooth(self._log_sums("val") | self.validation)

    def _smooth(self, values: dict[str, float]) -> None:
        """Remember the monitored metric of a finished epoch; log its mean over the last validations where that is monitored."""
        if self.trainer.sanity_checking:
            return
        self.monitored.append(values[self.config.monitor])
        if self.config.monitor_smoothing > 1:
            self.log_dict({SMOOTHED: moving_mean(self.monitored, self.config.monitor_smoothing)})

    # -- optimisation --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Build the optimizer (one group per part) and its schedule."""
        parts = split_parts(self.model, self.balancer)
        optimizer = build_optimizer(parts, self.config.optimizer, inactive_parts(self.config))
        total, limit = int(self.trainer.estimated_stepping_batches), self.config.trainer.max_steps
        total = min(total, limit) if limit > 0 else total
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        every = self.config.trainer.check_val_every_n_epoch
        scheduler = build_scheduler(optimizer, self.config.scheduler, total, per_epoch, self.config.monitor, every)
        if "monitor" not in scheduler:
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        if scheduler["monitor"] == self.config.monitor:
            scheduler["monitor"] = watched(self.config)
        # The Trainer would step it after the epoch's checkpoint was written, so a resumed run would miss one step.
        self._plateau = scheduler
        if self._plateau_state is not None:
            scheduler["scheduler"].load_state_dict(self._plateau_state)
        return optimizer

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the checkpoint without any YAML."""
        checkpoint["mtl"] = {
            "format": FORMAT,
            "config": self.run_config,
            "stage": self.stage.name,
            "model": self.model.to_config(),
            "thresholds": self.thresholds,
            "thresholds_source": "val",
            "split": self.split_rows,
            "pretraining": self.pretraining,
            "epoch": self.current_epoch,
            "validation": self.validation if self._validated else {},
            "monitored": self.monitored,
            "plateau": None if self._plateau is None else self._plateau["scheduler"].state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the thresholds chosen so far and what the Trainer does not keep."""
        about = converted(checkpoint["mtl"])
        self.thresholds, self.validation = about["thresholds"], about["validation"]
        self._plateau_state = about["plateau"]
        self.monitored = list(about["monitored"])

    # -- running sums --------------------------------------------------------------------------------------------------

    def _add(self, split: str, losses: dict[str, Tensor], counts: dict[str, float], total: Tensor | None) -> None:
        """Accumulate losses on the device; nothing is copied to the host here."""
        for task, loss in losses.items():
            self._add_mean(f"{split}/{task}/loss", loss, float(counts[task]))
        if total is not None:
            self._add_mean(f"{split}/loss", total, 1.0)

    def _watch(self, split: str, outputs: dict[str, Output], batch: TaskBatch) -> None:
        """Accumulate what heads let others watch (the use of experts), over this rank's labelled samples."""
        for head in (head for head in self._heads if head.monitored):
            task = head.spec.name
            count = float(batch.present[task].sum())
            for name, value in head.monitor(outputs[task]).items() if count else ():
                self._add_mean(f"{split}/{task}/{name}", value, count)

    def _add_mean(self, key: str, value: Tensor, weight: float | Tensor) -> None:
        share = torch.as_tensor(weight, dtype=torch.float64, device=value.device)
        entry = torch.stack([value.detach().double() * share, share])
        self._sums[key] = self._sums[key] + entry if key in self._sums else entry

    def _log_sums(self, split: str) -> dict[str, float]:
        # The same keys on every rank, whatever a rank has seen: the sums are exchanged by position.
        mine = [f"{split}/{task}/loss" for task in self.stage.tasks]
        keys = [*mine, "train/loss"] if split == "train" else [f"val/{task}/loss" for task in self.model.heads]
        watched = [f"{split}/{head.spec.name}/{name}" for head in self._heads for name in head.monitored]
        keys += watched
        nothing = torch.zeros(2, dtype=torch.float64, device=self.device)
        sums = sum_over_ranks(torch.stack([self._sums.get(key, nothing) for key in keys]), self)
        # NaN stands for what nobody had a label of; a mean that was taken and is not finite is another thing.
        means = {
            key: float(total / weight) if weight > 0 else math.nan for key, (total, weight) in zip(keys, sums, strict=True)
        }
        known = [key for key, (_, weight) in zip(keys, sums, strict=True) if weight > 0]
        if broken := [key for key in known if key.endswith("/loss") and not math.isfinite(means[key])]:
            raise diverged(self, f"The mean {broken[0]}")
        if split == "val":
            means["val/loss"] = self._balanced({task: means[f"val/{task}/loss"] for task in self.stage.tasks})
        self.log_dict(means | self.terms.means(split, self))
        return means

    def _balanced(self, losses: dict[str, float]) -> float:
        """Return what the balancer makes of mean losses, as of those of a training step; NaN is a task without a label.

        Both stand in one figure, and a checkpoint is to be chosen by what is trained for.
        """
        present = {task: not math.isnan(loss) for task, loss in losses.items()}
        if not any(present.values()):
            return math.nan
        values = {task: torch.tensor(loss if present[task] else 0.0, device=self.device) for task, loss in losses.items()}
        with torch.no_grad():
            return float(self.balancer(Step(values, present)))


def _undivided(batch_index: int, batches: int, every: int) -> float:
    """Return what a loss that was divided by `every` lacks where fewer batches than that are left for the epoch's last step."""
    first = batch_index - batch_index % every
    return every / min(every, batches - first)


def _share(local: Tensor, total: float, world_size: int) -> Tensor:
    """Weight of this rank's mean in the mean over all labelled samples, undoing DDP's division by the number of ranks."""
    return local.float() * world_size / max(float(total), 1.0)
