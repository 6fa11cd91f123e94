"""`mtl train` and `train.py`."""

from __future__ import annotations

import os

from mtl.cli.help import verb_help, wants_help
from mtl.config.plan import Plan
from mtl.config.sweep import for_hydra, through_hydra
from mtl.config.words import value_of
from mtl.core.processes import end_with_parent

SUMMARY = "train a task suite: mtl train task=malaria_mttl backbone=resnet50"


def run(words: list[str]) -> int:
    """Train: one run, one that goes on, or a sweep."""
    end_with_parent()
    if wants_help(words):
        print(verb_help("train", "train", words))
        return 0
    if for_hydra(words):
        through_hydra(words, _train)
        return 0
    going_on = [word for word in words if word.lstrip("+").startswith("resume=")]
    if going_on and (run_dir := value_of(going_on[-1])):
        from mtl.runs.resume import resumed_plan

        _train(resumed_plan(str(run_dir), [word for word in words if word not in going_on]))
    else:
        _train(Plan.from_words(words))
    return 0


def _train(plan: Plan) -> None:
    plan.family.locate()  # a missing folder is answered before torch is imported
    _quiet_libraries()
    from mtl.experiments.train import train

    train(plan)


def _quiet_libraries() -> None:
    """Keep libraries from phoning home or warning about it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
