"""Checkpoints of earlier releases: what they do not say about classes comes from the data family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtl.config.plan import Plan
from mtl.core.task import TaskSpec
from mtl.inference.loading import load_predictor
from mtl.runs.build import build_model, model_config
from mtl.runs.checkpoint import FORMAT
from mtl.runs.loading import DRAWN, load_model

SMALL = ["task=brain_joint", "backbone.base_filters=4", "backbone.depth=2", "data.geometry.size=[64,64]"]


def checkpoint(path: Path, words: list[str], old: bool) -> dict[str, TaskSpec]:
    """Write an untrained network; returns its tasks as they should be read."""
    plan = Plan.from_words(words)
    described = model_config(plan)
    specs = {values["name"]: TaskSpec.from_dict(values) for values in described["specs"]}
    if old:
        described["specs"] = [{k: v for k, v in values.items() if k not in DRAWN} for values in described["specs"]]
    state = {f"model.{key}": value for key, value in build_model(plan).state_dict().items()}
    about = {"format": FORMAT, "config": plan.to_dict(), "model": described, "thresholds": {}, "split": [], "epoch": 0,
             "thresholds_source": "", "pretraining": []}  # fmt: skip
    torch.save({"state_dict": state, "mtl": about}, path)
    return specs


@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
def test_specs_know_colours_and_labels(old: bool, tmp_path: Path) -> None:
    wanted = checkpoint(tmp_path / "a.ckpt", [*SMALL, "data.modalities=[flair,t2]", "data.unknown_modality=t2"], old)
    assert load_model(tmp_path / "a.ckpt", "cpu").model.specs == wanted
    assert all(len(spec.colours) == len(spec.classes) and None not in spec.colours for spec in wanted.values())
    predictor = load_predictor(tmp_path / "a.ckpt", "cpu")
    assert predictor.modalities == ("flair", "t2") and predictor.picture_modality == "t2" and not predictor.microns


def test_a_task_that_its_family_no_longer_offers_is_read_too(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt", SMALL, old=True)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["mtl"]["config"]["data"]["sets"] = ["kaggle"]
    torch.save(content, tmp_path / "a.ckpt")
    specs = load_model(tmp_path / "a.ckpt", "cpu").model.specs
    assert specs["presence"].colours and any(not spec.colours for spec in specs.values())


def test_a_spec_comes_back_from_plain_values() -> None:
    spec = TaskSpec(
        "a",
        "segmentation",
        ("x", "y"),
        members=(("o",), ()),
        colours=((1, 2, 3), None),
        unremarkable=("y",),
        labels=((2, 1), (1,)),
    )
    assert TaskSpec.from_dict(spec.to_dict()) == spec
    assert spec.to_dict()["colours"] == [[1, 2, 3], None]
