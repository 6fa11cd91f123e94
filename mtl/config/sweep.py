"""Sweeps and what else Hydra shows of a configuration: the flags `-m`, `--cfg`, `--info` and their like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mtl.config.compose import composed, hydra_sentence, loader, prepare_overrides
from mtl.config.plan import Plan
from mtl.core.errors import INTERRUPTED, ConfigError, MtlError

CONFIG = "train"
FLAGS = frozenset({"-m", "--multirun", "-c", "-i", "-p", "-sc"})
LONG_FLAGS = ("--cfg", "--info", "--hydra-help", "--shell-completion", "--package", "--resolve")
ELSEWHERE = ("--config-", "-cp", "-cn", "-cd")  # would replace the files that this program reads


def for_hydra(words: list[str]) -> bool:
    """Return whether words ask for more than one plain run."""
    return any(word in FLAGS or word.startswith((*LONG_FLAGS, *ELSEWHERE)) for word in words)


def through_hydra(words: list[str], carry_out: Callable[[Plan], Any]) -> None:
    """Carry out the runs of a sweep, or show what Hydra knows of a configuration.

    Every run of a sweep is checked before the first one starts, and a run that fails does not keep the others from theirs. One
    that the user stops ends the sweep.

    Args:
        words: As typed, with flags.
        carry_out: What is done with the plan of a run.

    Raises:
        MtlError: The same as single runs would raise, each cause once.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if wrong := [word for word in words if word.startswith(ELSEWHERE)]:
        raise ConfigError(
            f"`{wrong[0]}` is not known here. Put YAML files into a folder `configs` and name the folder that holds it: "
            "plugins=[<folder>]."
        )
    parser = get_args_parser()
    flags = parser.parse_args([word for word in words if "=" not in word or word.startswith("-")])
    overrides = [*(word for word in words if "=" in word and not word.startswith("-")), *flags.overrides]
    ready, problems = prepare_overrides(overrides, sweep=flags.multirun)
    if problems:
        raise ConfigError(problems)
    if going_on := [word for word in overrides if word.lstrip("+").startswith("resume=")]:
        raise ConfigError(
            f"`{going_on[0]}` goes on with one run as it was begun, which can neither be swept nor shown. Leave out -m and the "
            "other flags."
        )
    hydra = Hydra(CONFIG, loader())
    try:
        if flags.multirun:
            _sweep(hydra, ready, carry_out)
        elif flags.cfg:
            hydra.show_cfg(CONFIG, ready, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            hydra.show_info(flags.info, CONFIG, ready)
        elif flags.shell_completion:
            hydra.shell_completion(CONFIG, ready)
        else:
            hydra.hydra_help(CONFIG, parser, flags)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_sentence(error, CONFIG)) from error


class _Stopped(BaseException):
    """Carries the error of a run that was stopped past Hydra, which takes any `Exception` for the result of that run."""

    def __init__(self, error: MtlError) -> None:
        self.error = error
        super().__init__(error)


def _sweep(hydra: Any, ready: list[str], carry_out: Callable[[Plan], Any]) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    _check(hydra, ready)
    failed: list[MtlError] = []

    def job(_: Any) -> MtlError | None:
        given = HydraConfig.get().overrides
        places = [word for word in given.hydra if word.startswith("hydra.searchpath")]
        try:
            made = composed(CONFIG, [*given.task, *places], [])
            values = numbered(made.values, ready, HydraConfig.get().job.num)
            carry_out(Plan.from_composition(replace(made, values=values)))
        except MtlError as error:
            if error.exit_code == INTERRUPTED:
                raise _Stopped(error) from error
            failed.append(error)
            return error  # since a launcher may run this in another process, which has a list of its own
        return None

    GlobalHydra.instance().clear()
    GlobalHydra.instance().initialize(hydra)
    try:
        batches = hydra.multirun(CONFIG, job, [*ready, "hydra.mode=MULTIRUN"])
    except _Stopped as stopped:
        _raise([stopped.error, *failed])
    finally:
        GlobalHydra.instance().clear()
    for batch in batches or []:
        failed += [run.return_value for run in batch if isinstance(run.return_value, MtlError)]
    _raise(failed)


def _check(hydra: Any, ready: list[str]) -> None:
    """Plan every run of a sweep; of another sweeper than Hydra's own only the sweeper knows them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(word.startswith("hydra/sweeper=") for word in ready):
        return
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(ready)
    failed: list[MtlError] = []
    for words in BasicSweeper.split_arguments(parsed, None)[0]:
        try:
            Plan.from_composition(composed(CONFIG, list(words), []))
        except MtlError as error:
            failed.append(error)
    _raise(failed)


def _raise(failed: list[MtlError]) -> None:
    """Raise one error for all: of the kind and with the exit status of the first, and with each sentence once."""
    if failed:
        lines = dict.fromkeys(line for error in failed for line in str(error).splitlines())
        raised = type(failed[0])("\n".join(lines))
        raised.exit_code = failed[0].exit_code
        raise raised


def numbered(config: dict[str, Any], words: Sequence[str], number: int) -> dict[str, Any]:
    """Return the configuration of one run of a sweep, with its number in the name or directory that all runs would share.

    Args:
        config: As composed for this run.
        words: The overrides of the sweep; a name that differs from run to run by itself is left alone.
        number: Of the run, from 0.
    """
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in words}

    def shared(key: str) -> bool:
        return not any(sign in given.get(key, "") for sign in ("${", ",", "range(", "choice(", "interval(", "glob("))

    paths = config.get("paths")
    if isinstance(paths, dict) and paths.get("run_dir") and shared("paths.run_dir"):
        return {**config, "paths": {**paths, "run_dir": f"{paths['run_dir']}_{number}"}}
    if isinstance(config.get("name"), str) and config["name"] and shared("name"):
        return {**config, "name": f"{config['name']}_{number}"}
    return config
