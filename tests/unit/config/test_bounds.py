"""Every number of a configuration has bounds: what is absurd is refused, by its key, before any data are read."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mtl.config import schema, verbs
from mtl.config.bounds import RANGES, part_problems
from mtl.config.parts import check_part, validate
from mtl.config.plan import Plan
from mtl.config.stages import stages_of
from mtl.core.errors import ConfigError
from mtl.core.registry import (
    ADAPTERS,
    BALANCERS,
    DATA_FAMILIES,
    ENCODERS,
    HEADS,
    LOSSES,
    NECKS,
    SCHEDULERS,
    STUDY_METRICS,
)

ABSURD = (-1e9, -(10**9), float("nan"), float("inf"), -float("inf"), 10**18, 1e18, 10**400, True)
REGISTRIES = (ENCODERS, ADAPTERS, NECKS, HEADS, LOSSES, BALANCERS, SCHEDULERS, STUDY_METRICS, DATA_FAMILIES)
SAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    schema.StageConfig: {"epochs": 1}, verbs.EvaluateConfig: {"checkpoint": "x"}, verbs.SynthConfig: {"output": "x"},
    verbs.PredictConfig: {"checkpoint": "x", "source": "x"}, verbs.CompareConfig: {"suite": "x"},
    verbs.DataToolConfig: {"data": {}},
}  # fmt: skip


def models(root: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all models inside it."""
    found = {root}
    for field in root.model_fields.values():
        waiting = [field.annotation]
        while waiting:
            entry = waiting.pop()
            waiting += get_args(entry)
            if isinstance(entry, type) and issubclass(entry, BaseModel) and entry not in found:
                found |= models(entry)
    return found


MODELS = sorted({inner for root in (schema.RunConfig, *SAMPLES) for inner in models(root)}, key=lambda model: model.__name__)


def annotations(model: type[BaseModel]) -> dict[str, Any]:
    return {key: field.annotation for key, field in model.model_fields.items()}


def kinds(annotation: Any) -> set[Any]:
    """The plain types and literal values that a type is made of."""
    return {annotation}.union(*map(kinds, get_args(annotation))) if get_args(annotation) else {annotation}


def numeric(annotation: Any) -> bool:
    return bool({int, float} & {kind for kind in kinds(annotation) if isinstance(kind, type)})


def places(annotation: Any, value: Any) -> list[Any]:
    """A number where it may stand: alone, in a list, a pair, a mapping."""
    text = str(annotation)
    wrapped = [value]
    wrapped += [[value], [value, value], [value] * 3] if "list[" in text or "tuple[" in text else []
    return wrapped + ([{"x": value}] if "dict[str" in text else [])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_absurd_numbers_are_refused_by_name(model: type[BaseModel]) -> None:
    for key, annotation in annotations(model).items():
        if not numeric(annotation):
            continue
        for value in ABSURD:
            for given in places(annotation, value):
                if value is True and bool in kinds(annotation):
                    continue
                problems = validate(model, {**SAMPLES.get(model, {}), key: given}, "here")[1]
                assert any(f"`here.{key}" in problem for problem in problems), (key, given)


def test_every_number_of_a_part_has_a_range() -> None:
    for registry in REGISTRIES:
        for name in registry.names():
            for key, parameter in registry.entry(name).parameters.items():
                if numeric(parameter.annotation):
                    assert key in RANGES, f"{name}.{key}: say in RANGES what it may be"


def test_absurd_numbers_of_parts_are_refused_by_name() -> None:
    for registry in REGISTRIES:
        for name in registry.names():
            for key, parameter in registry.entry(name).parameters.items():
                for value in ABSURD if numeric(parameter.annotation) else ():
                    problems = check_part(registry, {"name": name, key: value}, "here")[1]
                    assert any(f"`here.{key}" in problem for problem in problems), (name, key, value)


def test_defaults_of_parts_lie_inside() -> None:
    for registry in REGISTRIES:
        for name in registry.names():
            entry = registry.entry(name)
            values = {key: parameter.default for key, parameter in entry.parameters.items() if not parameter.required}
            assert part_problems(values, name, ours=True) == []


BASE = ["task=malaria_mttl"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=-1", "`seed` is `-1`. Input should be greater than or equal to 0."),
        ("seed=4294967296", "`seed` is `4294967296`. Input should be less than or equal to 4294967295."),
        ("data.split.seed=-1", "`data.split.seed` is `-1`"),
        ("data.loader.num_workers=10000", "`data.loader.num_workers` is `10000`. Input should be less than or equal to 512."),
        ("data.geometry.size=[0,64]", "`data.geometry.size.0` is `0`"),
        ("data.geometry.size=[64,100000]", "`data.geometry.size.1` is `100000`"),
        ("data.geometry.fill=256", "`data.geometry.fill"),
        ("data.geometry.fill=[0,0,-1]", "`data.geometry.fill"),
        ("data.preprocessing.clahe={tiles: 0}", "`data.preprocessing.clahe.tiles` is `0`"),
        ("data.preprocessing.clahe={clip_limit: -1}", "`data.preprocessing.clahe.clip_limit` is `-1`"),
        ("data.preprocessing.std=[0,1,1]", "`data.preprocessing.std.0` is `0`"),
        ("data.preprocessing.mean=[]", "`data.preprocessing.mean` is `[]`"),
        ("data.augmentation.color_jitter.hue=0.6", "`data.augmentation.color_jitter.hue` is `0.6`"),
        ("data.augmentation.color_jitter.brightness=1.5", "`data.augmentation.color_jitter.brightness` is `1.5`"),
        ("data.augmentation.affine.scale=[1.1,0.9]", "Expected the smaller number first."),
        ("data.augmentation.blur.kernel=[4,4]", "Expected odd numbers."),
        ("trainer.limit_train_batches=0", "`trainer.limit_train_batches"),
        ("data.loader.num_workers=many", "Input should be 'auto' or a whole number"),
        ("runtime.channels_last=perhaps", "Input should be 'auto' or true or false"),
        ("trainer.precision=bf16-true", "Input should be 'auto', '32-true', '32', 32, '16-mixed' or 'bf16-mixed'"),
        ("trainer.max_epochs=true", "`trainer.max_epochs` is `True`. Expected no true or false here."),
        ("trainer.devices=0", "`trainer.devices"),
        ("optimizer.lr=nan", "`optimizer.lr` is `nan`. Input should be a finite number."),
        ("optimizer.options={momentum: inf}", "Expected finite numbers, found inf."),
        ("evaluation.score_weights={roi: -1}", "`evaluation.score_weights.roi` is `-1`"),
        ("heads.detection.nms=1.5", "`heads.detection.nms` is `1.5`. Expected a number from 0 to 1."),
        ("heads.roi.hidden=[256,0]", "`heads.roi.hidden` is `[256, 0]`. Expected numbers from 1 to 65536."),
        ("heads.roi.dropout=[true,0.1]", "`heads.roi.dropout` is `[True, 0.1]`. Input should be a number."),
        ("balancer.weights={roi: nan}", "`balancer.weights` is `{'roi': nan}`. Expected a finite number."),
        ("data.root=", "`data.root` is `''`. It is empty. Give a value, or null."),
        ("name='a\nb'", "It holds a line break or another character that cannot be seen."),
        ("tasks=[]", "`tasks` is `[]`"),
        ("paths.output_root=''", "`paths.output_root` is `''`. It is empty."),
    ],
)
def test_what_has_no_meaning_is_said_before_the_run(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan.from_words([*BASE, word])
    assert any(message in problem for problem in caught.value.problems), caught.value.problems
    assert all("\n" not in problem and len(problem) < 400 for problem in caught.value.problems)


def test_all_of_them_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Plan.from_words([*BASE, "seed=-1", "heads.detection.nms=2", "data.box_size=-3", "optimizer.lr=inf"])
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([0, 1, 0], "each seed once"), ([], "at least 1 item"), (0, "greater than or equal to 1"), ([-1], "0")],
)
def test_seeds_of_a_comparison(seeds: Any, message: str) -> None:
    (problem, *_) = validate(verbs.CompareConfig, {"suite": "x", "seeds": seeds}, "")[1]
    assert "`seeds" in problem
    assert any(message in line for line in validate(verbs.CompareConfig, {"suite": "x", "seeds": seeds}, "")[1])


def test_the_seed_of_a_stage_is_one_that_numpy_takes() -> None:
    config = Plan.from_words(["task=brain_joint", "seed=4294967295"]).config
    assert [stage.seed for stage in stages_of(config)] == [4294967295, 7918, 15837]


def test_what_a_run_has_stored_is_still_read() -> None:
    config = Plan.from_words(BASE).to_dict()
    assert validate(schema.RunConfig, copy.deepcopy(config), "")[1] == []
