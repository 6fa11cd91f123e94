"""Every choice of a group composes with every suite and experiment: what these set for another choice goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from mtl.config import parts, schema
from mtl.config.compose import choices, composition, configs_folder
from mtl.config.load import NECK_KEYS, check_data, kind_of, without_collection
from mtl.config.plan import Plan
from mtl.config.suites import GROUPS
from mtl.core import plugins
from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS, BALANCERS, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS, Registry

SUITES = [f"{group}={name}" for group in GROUPS for name in choices(group)]
PARTS: dict[str, Registry] = {"backbone": ENCODERS, "peft": ADAPTERS, "balancer": BALANCERS, "scheduler": SCHEDULERS}
INNER: dict[str, Registry] = {"head": HEADS, "neck": NECKS, "loss": LOSSES}
CONSUMED = {HEADS: parts.HEAD_KEYS, NECKS: NECK_KEYS}
MODELS = {
    "optimizer": schema.OptimizerConfig, "trainer": schema.TrainerConfig, "callbacks": schema.CallbacksConfig,
    "logger": schema.LoggerConfig, "paths": schema.PathsConfig,
}  # fmt: skip


def plain(group: str, name: str) -> dict[str, Any]:
    """What a file says itself, with those that it extends."""
    values = yaml.safe_load((configs_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    base: dict[str, Any] = {}
    for line in values.pop("defaults", []):
        if isinstance(line, str) and line != "_self_":
            base |= plain(group, line)
    return base | values


def distinct(group: str) -> list[str]:
    """The files of a group, of those with the same part and keys only the first."""
    known = {(plain(group, name).get("name", name), frozenset(plain(group, name))): name for name in reversed(choices(group))}
    return sorted(set(known.values()) - {"timm"})


def fitting(config: dict[str, Any]) -> dict[str, list[str]]:
    """What can stand in each place of a suite: heads of the same kind, losses that suit it, all necks."""
    places = {}
    for task, head in config["heads"].items():
        kind = kind_of(head)
        places[f"head@heads.{task}"] = [
            name for name in choices("head") if HEADS.entry(plain("head", name)["name"]).constants["kind"] in (kind, "any")
        ]
        if "loss" in head:
            places[f"loss@heads.{task}.loss"] = [
                name for name in choices("loss") if kind in LOSSES.entry(plain("loss", name)["name"]).constants["kinds"]
            ]
    return places | {f"neck@necks.{name}": choices("neck") for name in config["necks"]}


def rounds(places: dict[str, list[str]], first: int, number: int) -> Iterator[list[str]]:
    """Words of compositions, one choice of every place in each: they are independent, so that a round tries many at once."""
    for index in range(first, first + min(number, max(map(len, places.values()), default=0))):
        yield [f"{place}={names[index % len(names)]}" for place, names in places.items()]


def section(values: Any, place: str) -> Any:
    for step in (place.partition("@")[2] or place).split("."):
        values = values.get(step) if isinstance(values, dict) else None
    return values


def check(values: dict[str, Any], word: str) -> None:
    """Assert that a section is that of its choice, with keys that the choice knows."""
    place, _, name = word.partition("=")
    group, found = place.partition("@")[0], section(values, place)
    if group in MODELS:
        problems = parts.validate(MODELS[group], found, place)[1]
    elif group in PARTS or group in INNER:
        registry = (PARTS | INNER)[group]
        assert found["name"] == plain(group, name)["name"], word
        problems = parts.check_part(registry, found, place, CONSUMED.get(registry, frozenset()))[1]
    else:
        problems = [f"{key} is not whole" for key, stage in found.items() if "epochs" not in stage]
    assert problems == [], word


def try_rounds(suite: str, first: int, number: int) -> None:
    with without_collection():
        config = composition("train", [suite]).values
        places = {group: distinct(group) for group in [*PARTS, *MODELS, "stages"]}
        inner = fitting(config)
        heads = {place: names for place, names in inner.items() if not place.startswith("loss@")}
        losses = {place: names for place, names in inner.items() if place.startswith("loss@") and names}
        for tried in (places | heads, losses):  # a head decides whether there is a loss
            for words in rounds(tried, first, number):
                made = composition("train", [suite, *words])
                assert made.problems == [], words
                for word in words:
                    check(made.values, word)


@pytest.mark.parametrize("suite", SUITES)
def test_choices_compose_with_every_suite(suite: str) -> None:
    """Of every group one choice, another one for each suite, so that every choice is tried with some."""
    try_rounds(suite, SUITES.index(suite), 1)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_choice_composes_with_every_suite(suite: str) -> None:
    """The full product, about half a second for each round."""
    try_rounds(suite, 0, 20)


def left_out(*words: str) -> tuple[str, ...]:
    return Plan.from_words(list(words)).left_out


def test_what_a_suite_sets_goes_with_its_choice_and_is_said() -> None:
    (line,) = left_out("task=skin_mtl", "scheduler=constant")
    assert line == (
        "`scheduler.patience` of task=skin_mtl left out: set for scheduler=plateau, but scheduler=constant was chosen"
    )
    assert left_out("task=skin_mtl", "scheduler=plateau") == ()
    plan = Plan.from_words(["task=skin_mtl", "optimizer=sgd", "callbacks=ema", "data.loader.batch_size=3"])
    assert (plan.config.optimizer.lr, plan.config.optimizer.options["momentum"]) == (0.01, 0.9)
    assert plan.config.callbacks.early_stopping is None and plan.config.callbacks.ema is not None
    assert plan.config.trainer.max_epochs == 60  # belongs to no choice


def test_what_belongs_to_a_choice_that_stays_stays() -> None:
    config = Plan.from_words(["task=idrid_mtl", "backbone=resnet18", "trainer=cpu"]).config
    assert config.backbone["output_stride"] == 16  # of every timm network
    config = Plan.from_words(["experiment=published/skin_b0", "head@heads.lesion=unet"]).config
    assert config.heads["lesion"]["loss"]["dice_weight"] == 0.0  # the loss is the same
    config = Plan.from_words(["experiment=demo", "trainer=gpu", "optimizer=sgd", "debug=overfit"]).config
    assert config.trainer.precision == "auto" and config.trainer.max_epochs == 100
    assert config.optimizer.weight_decay == 0.0 and config.optimizer.lr == 0.01  # debug changes whatever is there
    assert config.data.augmentation is None


def test_what_a_head_sets_for_its_loss_goes_with_the_loss() -> None:
    words = ["task=malaria_mttl", "head@heads.segmentation=unet_published"]
    assert Plan.from_words(words).config.heads["segmentation"]["loss"]["pooled"] is True
    plan = Plan.from_words([*words, "loss@heads.segmentation.loss=dice_focal"])
    assert plan.config.heads["segmentation"]["loss"]["name"] == "dice_focal" and "pooled" in plan.left_out[0]


def test_words_win_over_what_is_left_out() -> None:
    config = Plan.from_words(["task=skin_mtl", "optimizer=sgd", "optimizer.lr=0.5"]).config
    assert config.optimizer.lr == 0.5


def test_an_override_whose_place_is_gone_is_left_out_and_a_misspelt_one_is_not(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_named", [])
    words = ["head@heads.tissue=mixture", "head@heads.tissue.expert=pixelwise"]
    config = Plan.from_words(["experiment=published/tiger_mtl", *words]).config
    assert config.heads["tissue"]["expert"]["loss"]["name"] == "dice_cross_entropy"
    folder = tmp_path / "mine" / "configs" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [published/idrid_grading, _self_, {{override /{}}}]\ntrainer: {{max_epochs: 2}}\n"
    (folder / "own.yaml").write_text(text.format("scheduler: constant"))
    (folder / "wrong.yaml").write_text(text.format("loss@heads.grad.loss: focal"))
    plugin = f"plugins=[{tmp_path / 'mine'}]"
    plan = Plan.from_words([plugin, "experiment=own"])  # extends an experiment that has chosen scheduler=step
    assert plan.config.scheduler == {"name": "constant"} and plan.config.heads["grade"]["hidden"] == [512]
    assert plan.config.trainer.max_epochs == 2
    assert [line.partition(" left out")[0] for line in plan.left_out] == [
        "`scheduler.step_size`, `scheduler.gamma` of experiment=published/idrid_grading"
    ]
    with pytest.raises(ConfigError, match=r"Could not override 'loss@heads\.grad\.loss'"):
        Plan.from_words([plugin, "experiment=wrong"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=malaria_cells", "head@heads.cell=centres"], "a points head, but the data label `cell` for classification"),
        (["task=skin_mtl", "head@heads.lesion=pixelwise"], "Unknown feature source `decoder` in `heads.lesion.features`"),
        (["task=skin_mtl", "stages=brain"], "Unknown task `whole_tumor` in `stages.segmentation.tasks`"),
        (["task=brain_joint", "peft=bottleneck"], "`peft.per_task=true` cannot be combined with stages"),
        (["task=skin_mtl", "data=tiger"], "The data family `tiger` has no labels for `diagnosis`"),
        (["experiment=published/idrid_grading", "task=skin_mtl"], "Unknown task `grade` in `tasks`"),
    ],
)
def test_what_cannot_go_together_is_said_of_the_choice(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan.from_words(words)
    assert any(message in problem for problem in caught.value.problems)
    assert not any("Unknown key" in problem for problem in caught.value.problems)


def test_every_data_family_composes_with_every_suite() -> None:
    suites = ["task=skin_mtl", "experiment=published/malaria_det3_roi", "experiment=published/skin_b0"]
    families = [name for name in choices("data") if name != "default"]
    for number, name in enumerate(families):
        values = composition("train", [suites[number % len(suites)], f"data={name}"]).values
        assert check_data(values["data"])[1] == [], name
