"""`mtl train` and `train.py`."""

from __future__ import annotations

import os
import sys
from typing import Any

from mtl.cli.help import verb_help, wants_help
from mtl.cli.main import HYDRA_FLAGS
from mtl.config.compose import configs_folder, prepare_overrides, resolved, take_plugins, unknown_stages
from mtl.config.plan import Plan
from mtl.config.sweeps import numbered
from mtl.core.errors import ConfigError
from mtl.core.processes import end_with_parent

SUMMARY = "train a task suite: mtl train task=malaria_mttl backbone=resnet50"


def run(words: list[str]) -> int:
    """Train. Sweeps, launchers and `--cfg` go through `hydra.main`, everything else is composed here."""
    end_with_parent()
    if wants_help(words):
        print(verb_help("train", "train", words))
        return 0
    if any(word in HYDRA_FLAGS or word.startswith(("--config-", "--cfg=")) for word in words):
        return _through_hydra(words)
    resume = next((word.partition("=")[2] for word in words if word.startswith("resume=")), None)
    if resume:
        from mtl.runs.resume import resumed_plan

        return _train(resumed_plan(resume, [word for word in words if not word.startswith("resume=")]))
    return _train(Plan.from_words(words))


def _train(plan: Plan) -> int:
    plan.family.locate()  # a missing folder is answered before torch is imported
    _quiet_libraries()
    from mtl.experiments.train import train

    train(plan)
    return 0


def _through_hydra(words: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    ready, problems = prepare_overrides(overrides)
    problems += unknown_stages("train", [word for word in overrides if "," not in word or "[" in word])
    if problems:
        raise ConfigError(problems)
    sys.argv = [sys.argv[0], *[word for word in words if "=" not in word or word.startswith("-")], *ready]

    def job(config: Any) -> None:
        take_plugins(overrides)  # a launcher may run this in another process
        composed, run = resolved(config), HydraConfig.get()
        sweeps = run.mode == RunMode.MULTIRUN
        _train(Plan.from_config(numbered(composed, overrides, run.job.num) if sweeps else composed))

    hydra.main(version_base="1.3", config_path=str(configs_folder()), config_name="train")(job)()
    return 0


def _quiet_libraries() -> None:
    """Keep libraries from phoning home or warning about it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
