"""The plan of a run: its checked configuration with what follows from it, made once and passed on. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mtl.config.compose import Composition, composition
from mtl.config.load import build_family, check_run_config, stored_config, without_collection
from mtl.config.schema import RunConfig
from mtl.config.stages import Stage, stages_of
from mtl.core.causes import by_cause
from mtl.core.errors import ConfigError, DataError
from mtl.core.family import DataFamily, LostLabels
from mtl.core.task import TaskSpec
from mtl.core.types import Record


@dataclass(frozen=True)
class Plan:
    """What a run is going to do. Nothing of it changes; another configuration is another plan.

    Attributes:
        config: The checked configuration.
        family: Reads the data.
        specs: The active tasks in the order of `tasks`, with the metrics that judge them and the scale they are seen at.
        stages: At least one.
        left_out: What its suite sets for choices that are not in force, one line for each section.
    """

    config: RunConfig
    family: DataFamily
    specs: dict[str, TaskSpec]
    stages: tuple[Stage, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    @without_collection()
    def from_words(cls, words: list[str], config_name: str = "train") -> Plan:
        """Plan the run that words on the command line describe.

        Raises:
            ConfigError: With one line for everything that is wrong.
        """
        return cls.from_composition(composition(config_name, words))

    @classmethod
    def from_composition(cls, made: Composition) -> Plan:
        """Plan the run of what was composed.

        Raises:
            ConfigError: With one line for everything that is wrong.
        """
        if not made.values:
            raise ConfigError(made.problems)
        return replace(cls.from_config(made.values, made.problems), left_out=tuple(made.left_out))

    @classmethod
    def from_config(cls, composed: dict[str, Any], problems: Iterable[str] = ()) -> Plan:
        """Plan the run of a plain configuration, checked as a whole; `problems` are reported with what else is wrong.

        Raises:
            ConfigError: With one line for everything that is wrong.
        """
        return cls._of(*check_run_config(composed, problems))

    @classmethod
    def from_stored(cls, values: dict[str, Any], where: str) -> Plan:
        """Return the plan of a run that was checked when it was trained (`config.json`); `where` names the file.

        Raises:
            ConfigError: Another release wrote it, or it was edited.
        """
        return cls.of_trained(stored_config(values, where))

    @classmethod
    def of_trained(
        cls,
        config: RunConfig,
        root: str | None = None,
        eval_batch_size: int | None = None,
        largest_loss: float | None = None,
    ) -> Plan:
        """Return the plan of a finished run.

        Args:
            config: From its checkpoint.
            root: Folder of other data; None takes its own.
            eval_batch_size: Windows per step of an evaluation; None takes its own.
            largest_loss: Share of the labels that may be unusable; None takes its own.
        """
        data = config.data
        if eval_batch_size is not None:
            data = data.model_copy(update={"loader": data.loader.model_copy(update={"eval_batch_size": eval_batch_size})})
        if root is not None:
            data = data.model_copy(update={"root": root})
        if largest_loss is not None:
            data = data.model_copy(update={"largest_loss": largest_loss})
        return cls._of(config.model_copy(update={"data": data}), build_family(data))

    @classmethod
    def _of(cls, config: RunConfig, family: DataFamily) -> Plan:
        return cls(config, family, _active_specs(config, family), stages_of(config))

    @cached_property
    def records(self) -> list[Record]:
        """All samples of the data, indexed when first asked for.

        Raises:
            DataError: The data are missing or unusable, or too many of their labels are.
        """
        records = self.family.records()
        if not records:
            raise DataError("The data folder holds no usable sample. Check data.root, and run `mtl data check`.")
        if problems := too_many_lost(self.family.lost_labels(), self.config.data.largest_loss):
            raise DataError("\n".join(problems))
        return records

    @cached_property
    def notes(self) -> list[str]:
        """What is worth knowing about the data, a sentence each; what can be said of several files is said once.

        Files are named below the data folder, since results may travel without it.

        Raises:
            DataError: As `records`.
        """
        _ = self.records
        root = f"{self.family.locate()}{os.sep}"
        notes = by_cause([*self.family.notes(), *map(str, lost_some(self.family.lost_labels()))], numbers=False)
        return [note.replace(root, "") for note in notes]

    @property
    def start_files(self) -> list[str]:
        """The checkpoint files that stages start from, besides those of the run itself."""
        return [stage.start for stage in self.stages if stage.from_file]

    @property
    def total_epochs(self) -> int:
        """The most epochs that the run may take, all stages together."""
        return sum(stage.epochs for stage in self.stages)

    def computing(self, precision: str | int, channels_last: bool) -> Plan:
        """Return this plan with how the network computes written into its configuration and stages."""
        trainer = self.config.trainer.model_copy(update={"precision": precision})
        runtime = self.config.runtime.model_copy(update={"channels_last": channels_last})
        return self._with(self.config.model_copy(update={"trainer": trainer, "runtime": runtime}))

    def loading(self, settings: dict[str, int]) -> Plan:
        """Return this plan with keys of `data.loader` that are `auto` replaced, in its stages too."""

        def settled(loader: dict[str, Any]) -> dict[str, Any]:
            return {key: settings.get(key, value) if value == "auto" else value for key, value in loader.items()}

        data = self.config.data
        loader = data.loader.model_copy(update=settled(data.loader.model_dump()))
        stages = {
            name: stage.model_copy(update={"loader": settled(stage.loader)}) for name, stage in self.config.stages.items()
        }
        return self._with(self.config.model_copy(update={"data": data.model_copy(update={"loader": loader}), "stages": stages}))

    def _with(self, config: RunConfig) -> Plan:
        """Return this plan with another configuration of the same data, whose index is not made again."""
        changed = replace(self, config=config, stages=stages_of(config))
        changed.__dict__.update({name: self.__dict__[name] for name in ("records", "notes") if name in self.__dict__})
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Return the plain configuration, as stored in config.json and in checkpoints."""
        return self.config.model_dump()


def lost_some(labels: Iterable[LostLabels]) -> list[LostLabels]:
    """Return the sorts of labels of which any cannot be used."""
    return [entry for entry in labels if entry.lost]


def too_many_lost(labels: Iterable[LostLabels], largest_loss: float) -> list[str]:
    """Return a sentence for every sort of labels of which a larger share than `data.largest_loss` cannot be used."""
    return [
        f"{entry} This is {entry.share:.1%}; expected at most {largest_loss:.1%}. Correct the files, or raise "
        "data.largest_loss."
        for entry in labels
        if entry.share > largest_loss
    ]


def _active_specs(config: RunConfig, family: DataFamily) -> dict[str, TaskSpec]:
    specs = family.specs()
    return {
        task: replace(
            specs[task],
            primary=config.evaluation.primary.get(task, specs[task].primary),
            resolution=config.data.geometry.scale if specs[task].rules.fixed_scale else specs[task].resolution,
        )
        for task in config.tasks
    }
