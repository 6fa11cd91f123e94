"""Split, cache, data sets and loaders of one data family, for any set of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from mtl.config.data_schema import DataConfig, LoaderConfig
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError, DataError, unknown
from mtl.core.family import DataFamily
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.data.pipeline.cache import RasterCache, prepare
from mtl.data.pipeline.collate import Collate, init_worker
from mtl.data.pipeline.coverage import check_labelled, label_gaps, split_line
from mtl.data.pipeline.dataset import SampleDataset
from mtl.data.pipeline.readable import check_readable
from mtl.data.pipeline.sampling import EpochSampler, Mixing, WindowShardSampler
from mtl.data.pipeline.separation import separation
from mtl.data.pipeline.split_words import split_row
from mtl.data.pipeline.splits import (
    LEFT_OUT,
    SPLITS,
    Split,
    check_apart,
    hash_records,
    make_split,
    save_split,
    split_rows,
    unit_of,
)
from mtl.imaging.content import Box
from mtl.imaging.preprocessing import Preprocessing


class MultiTaskDataModule(pl.LightningDataModule):
    """Feeds one data family to the Trainer.

    The split, the hashes and the cache are made when first asked for: evaluating `all` samples of a folder needs no split.
    With several ranks, `Trainer(use_distributed_sampler=False)`: the samplers here shard by themselves.

    Args:
        family: Reads the data.
        specs: All tasks of the family, by name.
        preprocessing: The object that is also stored with the model.
        config: The section `data`.
        tasks: Names of the tasks in a batch.
        seed: Seed of the run (order and augmentation; the split has its own).
        records: All samples of the family, sorted by id.
    """

    def __init__(
        self,
        family: DataFamily,
        specs: dict[str, TaskSpec],
        preprocessing: Preprocessing,
        config: DataConfig,
        tasks: list[str] | None = None,
        seed: int = 0,
        *,
        records: list[Record],
    ) -> None:
        super().__init__()
        self.family, self.specs, self.preprocessing, self.config, self.seed = family, specs, preprocessing, config, seed
        self.tasks = list(specs) if tasks is None else list(tasks)
        self.train_tasks: list[str] = self.tasks
        self.train_sources: tuple[str, ...] | None = None
        if problems := [unknown("task", task, specs, "tasks") for task in self.tasks if task not in specs]:
            raise ConfigError(problems)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than ranks is fine in evaluation
        self.records = records
        self._split: Split | None = None
        self._cache: RasterCache | None = None
        self._datasets: dict[str, SampleDataset] = {}
        self._contents: dict[str, Box | None] = {}
        self._train_loader: DataLoader | None = None
        self._finished_epochs = 0
        self._checked: set[str] = set()  # samples whose files can be read

    @classmethod
    def from_plan(cls, plan: Plan, specs: dict[str, TaskSpec], preprocessing: Preprocessing) -> MultiTaskDataModule:
        """Return the data module of a run for its network; all of one plan share its index."""
        config = plan.config
        return cls(plan.family, specs, preprocessing, config.data, config.tasks, config.seed, records=plan.records)

    def for_stage(
        self, tasks: Sequence[str], sources: tuple[str, ...] | None, loader: LoaderConfig, seed: int
    ) -> MultiTaskDataModule:
        """Return a data module that trains on a part of this one and validates on all of it.

        Args:
            tasks: A training image has to be labelled for one of these.
            sources: Where training images come from; None is everywhere.
            loader: Its section `data.loader`.
            seed: Of order and augmentation.
        """
        config = self.config.model_copy(update={"loader": loader})
        stage = MultiTaskDataModule(self.family, self.specs, self.preprocessing, config, self.tasks, seed, records=self.records)
        stage.train_tasks, stage.train_sources = list(tasks), sources
        stage._split = self._split
        stage._cache, stage._contents, stage._checked = self._cache, self._contents, self._checked
        return stage

    # -- records and split -------------------------------------------------------------------------------------------

    @property
    def split(self) -> Split:
        """Split name by sample id; made (and asserted) on first use."""
        if self._split is None:
            self._split = make_split(self.hash_records(), self.config.split)
        return self._split

    @property
    def has_split(self) -> bool:
        """Whether a split was made or given yet."""
        return self._split is not None

    def use_split(self, split: Split) -> None:
        """Apply the split of a finished run to these samples, after the same assertions as for a new one.

        Args:
            split: Split name by sample id, for every sample; `left_out` for those that the run did not have.
        """
        if missing := [record.sample_id for record in self.records if record.sample_id not in split]:
            raise DataError(f"The given split lacks {len(missing)} samples (first: {missing[0]}).")
        check_apart(self.records, split, unit_of(self.records, self.config.split.val_group_by))
        self._split, self._datasets = dict(split), {}

    def hash_records(self) -> list[Record]:
        """Return all samples with `content_hash` filled; a file is read only if nobody has hashed it as it is now."""
        if not all(record.content_hash for record in self.records):
            self.records = hash_records(self.records, self.family.memo)
        return self.records

    @property
    def records_by_split(self) -> dict[str, list[Record]]:
        """Samples of train, val and test that are labelled for an active task: what evaluation scores.

        The split itself covers all samples, so that runs with different tasks share it.
        """
        split = self.split
        return {name: [record for record in self.labelled if split[record.sample_id] == name] for name in SPLITS}

    @property
    def training_records(self) -> list[Record]:
        """Samples that training uses: those of train that serve training, in the chosen sources, for the trained tasks."""
        return [record for record in self.records_by_split["train"] if self._trains(record)]

    @property
    def samples_per_epoch(self) -> int:
        """Windows that training draws per epoch."""
        return self.config.loader.samples_per_epoch or len(self._make(self.training_records))

    @property
    def labelled(self) -> list[Record]:
        """Samples that are labelled for at least one active task."""
        return [record for record in self.records if any(record.knows(self.specs[task].label) for task in self.tasks)]

    def _trains(self, record: Record) -> bool:
        chosen = self.train_sources is None or record.source in self.train_sources
        return record.training and chosen and any(record.knows(self.specs[task].label) for task in self.train_tasks)

    def unlabelled_tasks(self, split: str) -> list[str]:
        """Name the active tasks for which no sample of a split is labelled; of train, those that training draws count."""
        records, tasks = self._used(split), self.train_tasks if split == "train" else self.tasks
        return [task for task in tasks if not any(record.knows(self.specs[task].label) for record in records)]

    @property
    def gaps(self) -> list[str]:
        """What the split lacks of the active tasks, a sentence per task and split."""
        return label_gaps({task: self.specs[task] for task in self.tasks}, {name: self._used(name) for name in SPLITS})

    def class_counts(self, split: str) -> dict[str, int]:
        """Sum the class counts of a split (or of `all`); of train, those that training draws."""
        counts: dict[str, int] = {}
        for record in self._used(split):
            for name, count in record.class_counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    @property
    def split_sizes(self) -> list[dict[str, Any]]:
        """One row per split (`split_row`): what a run uses of it; of train, what training draws."""
        return [split_row(name, self._used(name), self.split) for name in SPLITS]

    @property
    def split_table(self) -> list[dict[str, Any]]:
        """The same with windows and objects per class."""
        return [
            row | {"windows": len(self.dataset(row["split"])), "classes": self.class_counts(row["split"])}
            for row in self.split_sizes
        ]

    def split_rows(self) -> list[dict[str, str]]:
        """Return the rows of `split.csv`."""
        split = self.split  # hashes the records
        return split_rows(self.records, split)

    def describe_split(self) -> str:
        """Return one line that says what is in each split and what is known to be kept apart."""
        left_out = sum(name == LEFT_OUT for name in self.split.values())
        return f"{split_line(self.config.split.scheme, self.split_table, left_out)} {self.separation}"

    @property
    def separation(self) -> str:
        """What the split keeps apart, in a sentence or two."""
        return separation(self.records, self.split, self.family.group_by, self.config.split.val_group_by)

    def save_split(self, path: str | Path) -> None:
        """Write `split.csv`."""
        split = self.split
        save_split(path, self.records, split)

    # -- data sets ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None, split_file: str | Path | None = None) -> None:
        """Make what the stage needs, so that problems show before training starts.

        Args:
            stage: `fit`, `validate`, `test`, `predict` or None for all.
            split_file: Take this `split.csv` instead of what the configuration asks for (a resumed run).
        """
        if split_file is not None:
            split = self.config.split.model_copy(update={"scheme": "file", "file": str(split_file)})
            self.config = self.config.model_copy(update={"split": split})
            self._split, self._datasets = None, {}
        if stage in (None, "fit", "validate", "test"):
            _ = self.split
        if stage in (None, "fit"):
            check_labelled(self.unlabelled_tasks("train"), self.unlabelled_tasks("val"), self.tasks, self.train_sources)
        self._prepare_cache()
        if stage in (None, "fit"):
            used = [*self.training_records, *self.records_by_split["val"], *self.records_by_split["test"]]
            self.check_files(used)

    def check_files(self, records: list[Record]) -> None:
        """Decode every file that these samples need, unless it is known that all can be read.

        Raises:
            DataError: Names all that cannot.
        """
        new = [record for record in records if record.sample_id not in self._checked]
        self._prepare_cache()
        check_readable(self.family, new, self.config.part, images=self._cache is None)
        self._checked |= {record.sample_id for record in new}

    def dataset(self, split: str) -> SampleDataset:
        """Return the data set of `train`, `val`, `test` or `all`. `train` holds what training draws, augmented."""
        if split not in self._datasets:
            self._datasets[split] = self._make(self._used(split), augment=split == "train")
        return self._datasets[split]

    def unaugmented(self, split: str) -> SampleDataset:
        """Return the data set for scoring a split, whichever it is: every labelled sample, without augmentation."""
        return self._make(self.records_by_split["train"]) if split == "train" else self.dataset(split)

    def _make(self, records: list[Record], augment: bool = False) -> SampleDataset:
        self._prepare_cache()
        augmentation = self.config.augmentation if augment else None
        transform = None
        if augmentation is not None:
            from mtl.data.pipeline.transforms import Transform  # albumentations takes seconds to import

            geometry, rgb = self.preprocessing.geometry, self.family.channels == 3 and self.preprocessing.foreground is None
            transform = Transform(augmentation.model_dump(), geometry.size, geometry.fill, rgb)
        return SampleDataset(
            self.family,
            records,
            self.specs,
            self.preprocessing,
            transform,
            self.tasks,
            self._cache,
            self.seed,
            random_offset=augmentation is not None and augmentation.random_offset,
            contents=self._contents,
        )

    def _used(self, split: str) -> list[Record]:
        """Samples that a run uses of a split: of train, those that training draws."""
        if split == "all":
            return self.labelled
        if split not in SPLITS:
            raise ConfigError(unknown("split", split, [*SPLITS, "all"]))
        return self.training_records if split == "train" else self.records_by_split[split]

    def _prepare_cache(self) -> None:
        folder = self.config.cache.place
        if folder is not None and self._cache is None:
            rank, _ = self._ranks()
            try:
                self._cache = prepare(self.family, self.records, self.preprocessing, folder, progress=rank == 0)
            except DataError as error:
                if getattr(error.__cause__, "errno", None) is None:  # an image, not the disk
                    check_readable(self.family, self.records, self.config.part)  # names all of them, not only the first
                raise

    # -- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Return the training loader; it draws in the order of the current epoch."""
        config, dataset = self.config.loader, self.dataset("train")
        weights = None
        if config.sampler == "class_aware":
            weights = dataset.class_aware_weights(self.train_tasks, config.priority_class)
        rank, world_size = self._ranks()
        # A source without a label for the active tasks (those of a single-task twin) needs no weight, and may have one.
        idle = {record.source for record in self.records} - set(dataset.sources)
        source_weights = {name: weight for name, weight in config.source_weights.items() if name not in idle}
        mixing = Mixing(dataset.sources, config.mixing, source_weights, config.temperature)
        sampler = EpochSampler(
            len(dataset), self.seed, rank, world_size, weights, config.samples_per_epoch, mixing, config.batch_size
        )
        # A short last batch would count more per sample; it stays only where it is the whole epoch.
        self._train_loader = self._loader(dataset, sampler, config.batch_size, drop_last=len(sampler) >= config.batch_size)
        # The Trainer sets the epoch too, but after workers of a resumed run have begun to draw.
        self.set_epoch(self._epoch())
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """Return the loader over all windows of the validation images."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Return the loader over all windows of the test images."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> DataLoader:
        """Return a loader over every window of a split (or of `all`) once, in order and without augmentation."""
        config, dataset = self.config.loader, self.unaugmented(split)
        sampler = WindowShardSampler(dataset.images, *self._ranks())
        return self._loader(dataset, sampler, config.eval_batch_size or config.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of sampler and data set; call it before the training loader is iterated."""
        if self._train_loader is not None:
            self._train_loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            self._train_loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know before it makes its training loader."""
        return {"finished_epochs": self._epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the number of finished epochs; the Trainer restores its own later than it asks for loaders."""
        self._finished_epochs = int(state_dict["finished_epochs"])

    def _epoch(self) -> int:
        """Return the number of finished epochs; `current_epoch` of the Trainer lags behind in the hooks of an epoch's end."""
        if self.trainer is None:
            return self._finished_epochs
        loop = getattr(self.trainer, "fit_loop", None)
        trained = self.trainer.current_epoch if loop is None else loop.epoch_progress.current.processed
        return max(trained, self._finished_epochs)

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if self.trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            raise ConfigError(
                "trainer.use_distributed_sampler is true with several devices; expected false, since the samplers here share "
                "the data out by themselves and Lightning's would do it again. Set trainer.use_distributed_sampler=false."
            )
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, dataset: SampleDataset, sampler: Any, batch_size: int, drop_last: bool = False) -> DataLoader:
        config = self.config.loader
        workers = config.processes
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=Collate(self.specs, self.tasks),
            num_workers=workers,
            pin_memory=config.pin_memory and torch.cuda.is_available(),
            drop_last=drop_last,
            worker_init_fn=init_worker if workers else None,
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=config.batches_ahead if workers else None,
            persistent_workers=workers > 0,
        )
