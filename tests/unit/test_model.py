"""The assembled network, and who may import whom."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mtl
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.core.parts import part_of
from mtl.model import MultiTaskModel
from mtl.runs.build import model_config

PACKAGE = Path(mtl.__file__).parent
TASKS = ("detection", "roi", "segmentation", "heatmap")
WORDS = ("task=malaria_mttl", "backbone=test_resnet", "head@heads.detection=fcos", "data.geometry.size=[64,64]")


@cache
def _sections(words: tuple[str, ...]) -> str:
    return json.dumps(model_config(Plan.from_words([*WORDS, *words])))


def build(*words: str, seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    return MultiTaskModel.from_config(json.loads(_sections(words)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors(entry)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


# -- round trip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [(), ("peft=bottleneck",), ("peft=lora", "backbone.freeze=all")], ids=["plain", "bottleneck", "lora"]
)
def test_config_and_state_rebuild_the_model(words: tuple[str, ...]) -> None:
    model = build(*words).eval()
    again = MultiTaskModel.from_config(json.loads(json.dumps(model.to_config())), load_weights=False)
    torch.manual_seed(1)
    with torch.no_grad():  # every tensor differs from any initialisation
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    again.load_state_dict(model.state_dict(), strict=True)
    again.eval()
    with torch.no_grad():
        expected, found = list(tensors(model(images()))), list(tensors(again(images())))
    assert len(expected) == len(found) > 8
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert again.preprocessing == model.preprocessing and again.specs == model.specs
    assert again.to_config() == model.to_config()


def test_the_stored_normalisation_wins_over_the_encoders() -> None:
    """A checkpoint keeps the numbers it was trained with, also if a later timm states others."""
    config = build().to_config()
    config["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    assert MultiTaskModel.from_config(config).preprocessing.mean == (0.1, 0.2, 0.3)


def test_channels_of_mean_and_encoder_must_agree() -> None:
    config = json.loads(_sections(()))
    config["backbone"]["in_chans"] = 1
    config["preprocessing"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.raises(ConfigError, match="takes 1 channels"):
        MultiTaskModel.from_config(config)


def test_a_neck_is_shared_or_copied_for_each_of_its_heads() -> None:
    shared, copied = build("tasks=[detection,roi]"), build("tasks=[detection,roi]", "necks.fpn.shared=false")
    count = {model: sum(p.numel() for p in model.necks.parameters()) for model in (shared, copied)}
    assert count[copied] == 2 * count[shared] > 0
    outputs = copied.eval()(images())
    sum(value.float().square().sum() for value in tensors(outputs["detection"])).backward()
    touched = {task: any(p.grad is not None for p in copied.necks["fpn"][task].parameters()) for task in ("detection", "roi")}
    assert touched == {"detection": True, "roi": False}


def test_a_neck_can_read_another_neck_and_heads_may_share_only_the_first() -> None:
    words = ("tasks=[detection,roi]", "+neck@necks.second=fpn", "necks.second.features=fpn", "heads.detection.features=second")
    shared = build(*words, "heads.roi.features=second")
    assert shared.chains == {"detection": ["fpn", "second"], "roi": ["fpn", "second"]}
    assert count_calls(shared) == {"encoder": 1, "body": 1, "fpn": 1, "second": 1}
    copied = build(*words, "heads.roi.features=second", "necks.second.shared=false", "necks.second.width=32").eval()
    copied.zero_grad()
    sum(value.float().square().sum() for value in tensors(copied(images())["detection"])).backward()
    touched = {name for name, parameter in copied.necks.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in touched} == {"fpn", "second"}
    assert not any(name.startswith("second.roi") for name in touched)
    # A stage without `roi` lets its copy of the second neck rest, not what both heads read.
    copied.train_only(["detection"])
    trains = {name.rsplit(".", 2)[0] for name, parameter in copied.necks.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("fpn") for name in trains) and any(name.startswith("second.detection") for name in trains)
    assert not any(name.startswith("second.roi") for name in trains)
    one = build(*words)  # roi reads the first neck
    one.train_only(["roi"])
    assert not any(parameter.requires_grad for parameter in one.necks["second"].parameters())
    assert all(parameter.requires_grad for parameter in one.necks["fpn"].parameters())


# -- what runs how often -----------------------------------------------------------------------------------------------


def count_calls(model: MultiTaskModel) -> dict[str, int]:
    calls = {"encoder": 0, "body": 0, **dict.fromkeys(model.necks, 0)}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    model.encoder.register_forward_hook(count("encoder"))
    model.encoder.body.register_forward_hook(count("body"))
    for name, neck in model.necks.items():
        neck.register_forward_hook(count(name))
    model(images())
    return calls


def test_shared_features_are_computed_once() -> None:
    assert count_calls(build()) == {"encoder": 1, "body": 1, "fpn": 1}
    assert count_calls(build("peft=lora")) == {"encoder": 1, "body": 1, "fpn": 1}


def test_adapters_per_task_pass_in_one_batch_and_changed_weights_one_after_the_other() -> None:
    model = build("peft=bottleneck")
    assert len(model.heads) == 4
    assert count_calls(model) == {"encoder": 0, "body": 1, "fpn": 2}  # detection and roi read the neck, each its own maps
    assert count_calls(build("peft=lora", "peft.per_task=true")) == {"encoder": 0, "body": 4, "fpn": 2}


def test_each_task_sees_its_own_adapters() -> None:
    model = build("peft=bottleneck").eval()
    with torch.no_grad():
        before = {task: list(tensors(output)) for task, output in model(images()).items()}
        for name, parameter in model.encoder.named_parameters():
            if ".sets.heatmap.up" in name:
                parameter.fill_(0.1)
        after = {task: list(tensors(output)) for task, output in model(images()).items()}
    same = {task: all(torch.equal(a, b) for a, b in zip(before[task], after[task], strict=True)) for task in before}
    assert same == {"detection": True, "roi": True, "segmentation": True, "heatmap": False}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("necks.decoder.low_level=3", r"`necks\.decoder\.low_level=3`.*2 \(/4\)"),
        ("necks.decoder.features=encoder", "`necks.decoder.features`: expected a neck that gives two maps"),
        ("necks.aspp.rates=[0]", r"`necks.aspp.rates` is `\[0\]`. Expected a number from 1"),
    ],
)
def test_mistakes_in_a_neck_are_told_with_its_name(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan = Plan.from_words(["task=tiger_mtl", "backbone=test_resnet", word])
        MultiTaskModel.from_config(model_config(plan))


def test_a_neck_that_nobody_reads_is_not_built() -> None:
    assert list(build().necks) == ["fpn"]
    assert list(build("tasks=[segmentation,heatmap]").necks) == []
    assert list(build("+neck@necks.second=fpn").necks) == ["fpn"]
    both = build("+neck@necks.second=fpn", "necks.second.width=32", "heads.roi.features=second")
    assert list(both.necks) == ["fpn", "second"]
    assert count_calls(both) == {"encoder": 1, "body": 1, "fpn": 1, "second": 1}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_single_task_twin_is_the_same_model_less_the_other_heads(task: str) -> None:
    twin, full = build(f"tasks=[{task}]"), build()
    assert list(twin.heads) == list(twin.specs) == [task]
    shapes = {name: value.shape for name, value in full.state_dict().items()}
    others = tuple(f"heads.{name}." for name in full.heads if name != task)
    expected = {name for name in shapes if not name.startswith(others) and (twin.necks or not name.startswith("necks."))}
    assert set(twin.state_dict()) == expected
    assert all(value.shape == shapes[name] for name, value in twin.state_dict().items())


# -- what is shared ----------------------------------------------------------------------------------------------------


def shared_parts(model: MultiTaskModel, *tasks: str) -> tuple[set[str], set[str]]:
    """Return the parts that hold shared parameters, and those that hold others."""
    parts = {id(p): "adapters" if ".sets." in name else part_of(name) for name, p in model.named_parameters()}
    shared, own = model.shared_and_own(tasks)
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(trained) == sorted(id(parameter) for parameter in [*shared, *own])
    return {parts[id(parameter)] for parameter in shared}, {parts[id(parameter)] for parameter in own}


def test_shared_is_what_serves_several_of_the_tasks() -> None:
    heads = {f"head.{task}" for task in TASKS}
    assert shared_parts(build(), *TASKS) == ({"backbone", "neck.fpn"}, heads)
    assert shared_parts(build(), "detection", "heatmap") == ({"backbone"}, {"neck.fpn", *heads})  # one reads the neck
    assert shared_parts(build("necks.fpn.shared=false"), *TASKS) == ({"backbone"}, {"neck.fpn", *heads})
    assert shared_parts(build("backbone.freeze=all"), *TASKS) == ({"neck.fpn"}, heads)
    assert shared_parts(build(), "detection") == (set(), {"backbone", "neck.fpn", *heads})
    model = build()
    model.train_only(("detection", "roi"), ("backbone",))
    assert shared_parts(model, "detection", "roi") == ({"neck.fpn"}, {"head.detection", "head.roi"})


@pytest.mark.parametrize("per_task", [True, False])
def test_adapters_are_shared_unless_each_task_has_its_own(per_task: bool) -> None:
    model = build("peft=bottleneck", f"peft.per_task={per_task}".lower(), "backbone.freeze=all", "tasks=[segmentation,heatmap]")
    shared, own = shared_parts(model, "segmentation", "heatmap")
    assert ("adapters" in shared, "adapters" in own) == (not per_task, per_task)


# -- predictions -------------------------------------------------------------------------------------------------------


def test_heads_that_need_boxes_take_the_detected_ones_or_those_given() -> None:
    model = build("heads.detection.score_threshold=0.0", "heads.detection.detections_per_image=7").eval()
    with torch.no_grad():
        outputs = model(images())
        found = model.decode(outputs)
        given = model.decode(outputs, {"roi": [torch.tensor([[0.0, 0, 32, 32]]), torch.zeros(0, 4)]})
    assert [len(row["probabilities"]) for row in found["roi"]] == [len(row["boxes"]) for row in found["detection"]] == [7, 7]
    assert [len(row["probabilities"]) for row in given["roi"]] == [1, 0]
    torch.testing.assert_close(given["detection"][0]["boxes"], found["detection"][0]["boxes"])


def test_without_boxes_and_detector_such_a_head_predicts_nothing() -> None:
    model = build("tasks=[roi,heatmap]").eval()
    with torch.no_grad():
        assert list(model.predict(images())) == ["heatmap"]


# -- imports -----------------------------------------------------------------------------------------------------------


def test_the_model_needs_neither_lightning_nor_hydra() -> None:
    code = (
        "import sys, json\nfrom mtl.model import MultiTaskModel\nimport torch\n"
        "model = MultiTaskModel.from_config(json.loads(sys.stdin.read()), load_weights=False).eval()\n"
        "model.predict(torch.zeros(1, 3, 64, 64))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'pytorch_lightning', 'lightning', 'lightning_fabric', 'hydra', 'omegaconf', 'albumentations'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=_sections(("peft=bottleneck",)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
