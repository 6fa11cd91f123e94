"""The plan of a run: its checked configuration with what follows from it, made once and passed on. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mtl.config.compose import Composition, composition
from mtl.config.load import build_family, check_run_config, stored_config, without_collection
from mtl.config.schema import RunConfig
from mtl.config.stages import Stage, stages_of
from mtl.core.errors import ConfigError, DataError
from mtl.core.family import DataFamily
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
    def of_trained(cls, config: RunConfig, root: str | None = None, eval_batch_size: int | None = None) -> Plan:
        """Return the plan of a finished run.

        Args:
            config: From its checkpoint.
            root: Folder of other data; None takes its own.
            eval_batch_size: Windows per step of an evaluation; None takes its own.
        """
        data = config.data
        if eval_batch_size is not None:
            data = data.model_copy(update={"loader": data.loader.model_copy(update={"eval_batch_size": eval_batch_size})})
        if root is not None:
            data = data.model_copy(update={"root": root})
        return cls._of(config.model_copy(update={"data": data}), build_family(data))

    @classmethod
    def _of(cls, config: RunConfig, family: DataFamily) -> Plan:
        return cls(config, family, _active_specs(config, family), stages_of(config))

    @cached_property
    def records(self) -> list[Record]:
        """All samples of the data, indexed when first asked for.

        Raises:
            DataError: The data are missing or unusable.
        """
        records = self.family.records()
        if not records:
            raise DataError("The data folder holds no usable sample. Check data.root, and run `mtl data check`.")
        return records

    @property
    def start_files(self) -> list[str]:
        """The checkpoint files that stages start from, besides those of the run itself."""
        return [stage.start for stage in self.stages if stage.from_file]

    @property
    def total_epochs(self) -> int:
        """The most epochs that the run may take, all stages together."""
        return sum(stage.epochs for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain configuration, as stored in config.json and in checkpoints."""
        return self.config.model_dump()


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
