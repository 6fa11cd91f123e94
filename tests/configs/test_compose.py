"""Every YAML composes to a checked run, and names exactly the keys that exist, with the defaults that the code has."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mtl.config import data_schema, schema, verbs
from mtl.config.compose import choices, configs_folder
from mtl.config.load import DATA_KEYS, NECK_KEYS
from mtl.config.parts import HEAD_KEYS, NESTED
from mtl.config.plan import Plan
from mtl.core.registry import (
    ADAPTERS,
    BALANCERS,
    DATA_FAMILIES,
    ENCODERS,
    HEADS,
    LOSSES,
    NECKS,
    SCHEDULERS,
    Registry,
)

MALARIA = "task=malaria_mttl"
# Where parts are tried.
SUITE = {
    "malaria": MALARIA, "malaria_cells": "task=malaria_cells", "idrid": "task=idrid_mtl", "tiger": "task=tiger_mtl",
}  # fmt: skip
TASK_OF_KIND = {
    "detection": "detection", "roi_classification": "roi", "segmentation": "segmentation", "heatmap": "heatmap",
    "classification": "cell", "any": "cell", "points": "cells", "multilabel_classification": "findings",
    "regression": "parasitemia_percent",
}  # fmt: skip
PARTS: dict[str, Registry] = {
    "backbone": ENCODERS, "peft": ADAPTERS, "neck": NECKS, "head": HEADS, "loss": LOSSES, "balancer": BALANCERS,
    "scheduler": SCHEDULERS, "data": DATA_FAMILIES,
}  # fmt: skip
# What a section of the run configuration is checked against, for YAML files that are not registered parts.
MODELS: dict[str, type[BaseModel]] = {
    "trainer": schema.TrainerConfig, "callbacks": schema.CallbacksConfig, "logger": schema.LoggerConfig,
    "optimizer": schema.OptimizerConfig, "paths": schema.PathsConfig,
}  # fmt: skip
ENTRY_MODELS: dict[str, type[BaseModel]] = {
    "train": schema.RunConfig, "evaluate": verbs.EvaluateConfig, "predict": verbs.PredictConfig,
    "compare": verbs.CompareConfig, "data_synth": verbs.SynthConfig, "data_tool": verbs.DataToolConfig,
}  # fmt: skip
# A file of `stages` names each stage itself; its tasks belong to a suite.
STAGES = ("stages",)
CURRICULA = {"brain": "brain_joint"}
# A null that is filled in from another section.
FILLED_IN = {("backbone", "in_chans")}
# Files that set other sections instead of describing one of their own.
GLOBAL = ("task", "experiment", "debug", "hydra")


def read(relative: str) -> dict[str, Any]:
    return yaml.safe_load((configs_folder() / relative).read_text(encoding="utf-8"))


def own(relative: str) -> dict[str, Any]:
    """The keys that a file sets itself."""
    return {key: value for key, value in read(relative).items() if key != "defaults"}


def files(group: str) -> list[str]:
    return [f"{group}/{name}.yaml" for name in choices(group)]


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return Plan.from_words(list(words)).to_dict()


def composed(*words: str) -> dict[str, Any]:
    return _composed(words)


def suite_of(task: str) -> str:
    return SUITE[{"cell": "malaria_cells", "cells": "tiger", "findings": "idrid"}.get(task, "malaria")]


def necks_for(source: str) -> list[str]:
    """Return the words that add the necks which the malaria suites lack."""
    return {"aspp": ["+neck@necks.aspp=aspp"], "decoder": ["+neck@necks.aspp=aspp", "+neck@necks.decoder=decoder"]}.get(
        source, []
    )


def place_head(name: str) -> tuple[str, str]:
    """Return the suite and the task in which a head has its place."""
    task = TASK_OF_KIND[HEADS.entry(name).constants["kind"]]
    return suite_of(task), task


def place_loss(name: str) -> tuple[str, str]:
    """Return the suite and a task whose head takes the loss."""
    kinds = LOSSES.entry(name).constants["kinds"]
    task = next(TASK_OF_KIND[kind] for kind in kinds if kind in TASK_OF_KIND)
    if name == "ordinal":
        return SUITE["idrid"], "grade"  # needs classes that are grades
    return suite_of(task), task


def words_for(group: str, name: str) -> list[str]:
    """The command line that uses one YAML."""
    if group == "head":
        suite, task = place_head(name)
        necks = [] if suite == SUITE["tiger"] else necks_for(own(f"head/{name}.yaml")["features"])
        return [suite, f"head@heads.{task}={name}", *necks]
    if group == "loss":
        suite, task = place_loss(name)
        return [suite, f"loss@heads.{task}.loss={name}"]
    if group == "neck":
        return [MALARIA, f"neck@necks.fpn={name}", *necks_for(own(f"neck/{name}.yaml")["features"])]
    if group == "task":
        return [f"task={name}"]
    if group == "data":
        suites = (f"task={task}" for task in choices("task"))
        return [next(suite for suite in suites if composed(suite)["data"]["name"] == name)]
    if group == "experiment":
        return [f"experiment={name}"]
    if group == "stages" and name != "none":
        return [f"task={CURRICULA[name]}", f"stages={name}"]
    if (group, name) == ("backbone", "timm"):
        return [MALARIA, "backbone=timm", "backbone.architecture=test_resnet"]
    return [MALARIA, f"{group}={name}"]


EVERYTHING = [
    (group.name, name)
    for group in sorted(configs_folder().iterdir())
    if group.is_dir()
    for name in choices(group.name)
    if f"{group.name}/{name}" != "data/default"  # the part that all families share
]


@pytest.mark.parametrize(("group", "name"), EVERYTHING, ids=lambda value: value)
def test_every_yaml_composes(group: str, name: str) -> None:
    config = composed(*words_for(group, name))
    assert set(config) == set(schema.RunConfig.model_fields)


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Flatten to {(key, key, ...): value}; empty dicts and lists are values."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        here = (*path, str(key))
        found |= leaves(value, here) if isinstance(value, dict) and value else {here: value}
    return found


def at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


def same(value: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(same, value, expected))
    return value == expected


@pytest.mark.parametrize(("group", "name"), [entry for entry in EVERYTHING if entry[0] != "hydra"], ids=lambda value: value)
def test_what_a_yaml_says_is_what_the_run_gets(group: str, name: str) -> None:
    """No value of a file is overruled on its way into the configuration that selects the file."""
    section = {
        "head": lambda: ("heads", place_head(name)[1]),
        "loss": lambda: ("heads", place_loss(name)[1], "loss"),
        "neck": lambda: ("necks", "fpn"),
    }.get(group, lambda: () if group in GLOBAL else (group,))()
    config = composed(*words_for(group, name))
    for path, value in leaves(own(f"{group}/{name}.yaml")).items():
        reference = isinstance(value, str) and (value == "???" or value.startswith("${"))
        reference = reference or ((*section, *path) in FILLED_IN and value is None)
        assert reference or same(at(config, (*section, *path)), value), ".".join(path)


@pytest.mark.parametrize("group", sorted(PARTS))
def test_every_registered_part_has_its_yaml(group: str) -> None:
    assert set(PARTS[group].names()) == {read(file)["name"] for file in files(group) if "name" in read(file)}


@pytest.mark.parametrize("file", [file for group in PARTS for file in files(group) if "default" not in file])
def test_a_part_yaml_lists_every_key_with_its_default(file: str) -> None:
    registry = PARTS[file.partition("/")[0]]
    values = own(file)
    entry = registry.entry(values.pop("name"))
    consumed = {HEADS: set(HEAD_KEYS), NECKS: set(NECK_KEYS), DATA_FAMILIES: set(DATA_KEYS)}.get(registry, set())
    nested = {key for key in NESTED if key in entry.parameters}
    chosen = {key for line in read(file).get("defaults", []) if isinstance(line, dict) for key in line}
    assert {key.partition("@")[2] for key in chosen} == nested  # `/loss@loss: cross_entropy`
    assert set(values) - consumed - nested == set(entry.parameters) - nested
    for key, value in values.items():
        if key in entry.parameters and not entry.parameters[key].required and key not in nested:
            assert value == entry.parameters[key].default, key


def test_optimizer_yaml_lists_every_key() -> None:
    """Its defaults suit the optimizer, so they are not those of the schema."""
    for file in files("optimizer"):
        assert set(own(file)) == set(schema.OptimizerConfig.model_fields), file


@pytest.mark.parametrize("file", [file for group in MODELS for file in files(group)])
def test_section_yaml_names_known_keys_only(file: str) -> None:
    model = MODELS[file.partition("/")[0]]
    for path in leaves(own(file)):
        assert path[0] in model.model_fields


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("callbacks/default.yaml", schema.CallbacksConfig),
        ("logger/csv.yaml", schema.LoggerConfig),
        ("paths/default.yaml", schema.PathsConfig),
    ],
)
def test_section_defaults_are_those_of_the_schema(file: str, model: type[BaseModel]) -> None:
    assert own(file) == model().model_dump()


@pytest.mark.parametrize(
    ("file", "key", "model"),
    [
        ("callbacks/early_stopping.yaml", "early_stopping", schema.EarlyStoppingConfig),
        ("callbacks/ema.yaml", "ema", schema.EmaConfig),
        ("logger/wandb.yaml", "wandb", schema.WandbConfig),
    ],
)
def test_optional_sections_list_every_key_with_its_default(file: str, key: str, model: type[BaseModel]) -> None:
    assert own(file)[key] == model().model_dump()


def test_data_default_lists_every_shared_key() -> None:
    def check(values: dict[str, Any], model: type[BaseModel], where: str) -> None:
        assert set(values) == set(model.model_fields), where
        for key, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(values[key], field.annotation, f"{where}.{key}")
            elif key == "augmentation":
                check(values[key], data_schema.AugmentationConfig, f"{where}.{key}")

    check(read("data/default.yaml"), data_schema.DataGenericConfig, "data")


@pytest.mark.parametrize("name", sorted(ENTRY_MODELS))
def test_entry_yaml_lists_every_key(name: str) -> None:
    values, model = own(f"{name}.yaml"), ENTRY_MODELS[name]
    keys = set(values)
    if name == "train":  # a section that is a group of files is in `defaults`
        keys |= {next(iter(line)) for line in read("train.yaml")["defaults"] if isinstance(line, dict)}
        keys -= set(GLOBAL)
    elif name == "data_tool":
        keys |= {"data"}
    assert keys == set(model.model_fields)
    for key, value in values.items():
        field = model.model_fields[key]
        if field.is_required():
            assert value == "???", key
        elif value != "???":
            default = field.default.model_dump() if isinstance(field.default, BaseModel) else field.default
            assert value == default, key


@pytest.mark.parametrize("name", ["evaluate", "predict", "compare"])
def test_entry_functions_take_exactly_these_keys(name: str) -> None:
    from mtl.experiments.arms import compare
    from mtl.experiments.score import evaluate
    from mtl.inference.predict import predict

    function = {"evaluate": evaluate, "predict": predict, "compare": compare}[name]
    assert list(inspect.signature(function).parameters) == list(ENTRY_MODELS[name].model_fields)


def test_trainer_keys_are_lightnings() -> None:
    import pytorch_lightning as pl

    theirs = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    ours = set(schema.TrainerConfig.model_fields)
    assert ours <= theirs
    documented = re.search(r"Left out on purpose.*?:(.*?)\.\n", schema.TrainerConfig.__doc__ or "", re.DOTALL)
    assert documented is not None
    assert set(re.findall(r"\w+", documented[1])) == theirs - ours


def test_experiments_say_only_what_differs() -> None:
    """`name` keys in experiments would bypass the group files and lose their defaults."""
    for file in files("experiment"):
        assert not [path for path in leaves(own(file)) if path[-1] == "name" and len(path) > 1], file


def test_every_file_is_reachable() -> None:
    """A YAML outside the known groups would be composed by nobody."""
    top = {path.stem for path in configs_folder().glob("*.yaml")}
    assert top == set(ENTRY_MODELS)
    assert {path.name for path in configs_folder().iterdir() if path.is_dir()} == {*PARTS, *MODELS, *STAGES, *GLOBAL}
    assert all(path.suffix == ".yaml" for path in Path(configs_folder()).rglob("*") if path.is_file())
