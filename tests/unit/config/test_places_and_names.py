"""Paths may begin with `~`, names stay in their folder, what the environment holds is not kept, runs of a sweep keep apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtl.config.load import load_config
from mtl.config.plan import Plan
from mtl.config.sweep import numbered
from mtl.config.variables import looked_up
from mtl.config.verbs import CompareConfig, DataToolConfig, EvaluateConfig, PredictConfig, SynthConfig
from mtl.core.errors import ConfigError
from mtl.core.names import folder_name_problem
from mtl.experiments.arms import compare
from mtl.runs.folder import checkpoint_path

SUITE = ("task=malaria_mttl", "backbone=test_resnet")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_a_home_folder_is_found_in_every_path_of_a_run(home: str) -> None:
    keys = (
        "data.root", "data.cache.folder", "data.split.file", "paths.output_root", "paths.run_dir", "backbone.weights"
    )  # fmt: skip
    Path(home, "a.ckpt").touch()
    plan = Plan.from_words(
        [*SUITE, "data.split.scheme=file", *(f"{key}='~/{key}'" for key in keys), "+stages.a={epochs: 1, start: '~/a.ckpt'}"]
    )
    config = plan.to_dict()
    for key in keys:
        value: Any = config
        for step in key.split("."):
            value = value[step]
        assert value == f"{home}/{key}"
    assert plan.start_files == [f"{home}/a.ckpt"] and plan.family.root == f"{home}/data.root"  # type: ignore[attr-defined]
    folders = Plan.from_words(["task=brain_joint", "backbone=test_resnet", "data.folders={brats:'~/b'}"]).config.data.part
    assert folders["folders"]["brats"] == f"{home}/b"


def test_a_home_folder_is_found_in_the_paths_of_other_verbs(home: str) -> None:
    for name, model, needed, keys in (
        ("evaluate", EvaluateConfig, (), ("checkpoint", "output", "data.root")),
        ("predict", PredictConfig, (), ("checkpoint", "source", "output", "slide.tissue_masks")),
        ("compare", CompareConfig, ("suite=x",), ("output_root",)),
        ("data_synth", SynthConfig, (), ("output",)),
        ("data_tool", DataToolConfig, ("data=malaria",), ("output",)),
    ):
        config: Any = load_config(name, [*needed, *(f"{key}='~/x'" for key in keys)], model)
        for key in keys:
            first, _, second = key.partition(".")
            assert (config[first][second] if second else config[first]) == f"{home}/x", key
    assert checkpoint_path("~/run") == Path(home, "run")


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", "..", ".", "", " ", "a\nb", "~x", " a", "n" * 201, "é" * 101])
def test_a_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    problem = folder_name_problem(name, "name")
    assert problem and problem.startswith(f"`name` is {name!r}, which ") and "\n" not in problem
    composed = Plan.from_words(list(SUITE)).to_dict()
    for key in ("name", "suite"):
        with pytest.raises(ConfigError, match=f"^`{key}` is .*(Expected the name of one folder|is empty|holds a line break)"):
            Plan.from_config(json.loads(json.dumps(composed)) | {key: name})
        if name.strip() and name.isprintable():
            Plan.from_config(json.loads(json.dumps(composed)) | {key: name, "resume": "somewhere"})  # it has its folder
    with pytest.raises(ConfigError, match=r"^`name` is .*Expected the name of one folder"):
        compare("malaria_mttl", 1, None, [], name, str(tmp_path / "out"), None, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["demo", "Müller #2 [b], lr=1e-3", "007", "a.b", "é" * 100])
def test_other_names_are_free(name: str) -> None:
    assert folder_name_problem(name, "name") is None


def test_what_a_logger_takes_from_the_environment_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TEAM", "hush")
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("OFF", "true")
    words = (
        "logger=wandb", "logger.wandb.entity=${oc.env:SECRET_TEAM}", "logger.wandb.tags=['a ${oc.env:SECRET_TEAM}', b]",
        "logger.wandb.offline=${oc.env:OFF}", "data.root=${oc.env:PLACE}", "logger.wandb.project=${oc.env:NOT_THERE,mine}",
    )  # fmt: skip
    config = Plan.from_words([*SUITE, *words]).to_dict()
    assert "hush" not in json.dumps(config) and config["data"]["root"] == str(tmp_path)
    expected = {"project": "mine", "entity": "hush", "offline": True, "tags": ["a hush", "b"]}
    assert looked_up(config["logger"]["wandb"]) == expected
    monkeypatch.delenv("SECRET_TEAM")
    with pytest.raises(ConfigError, match="`SECRET_TEAM` is not set"):
        looked_up(config["logger"])
    with pytest.raises(ConfigError, match="mixes an environment variable with other references"):
        Plan.from_words([*SUITE, "logger=wandb", "logger.wandb.project=${oc.env:PLACE}-${suite}"])


def test_runs_of_a_sweep_that_would_share_a_folder_are_numbered() -> None:
    config = {"name": "x", "paths": {"run_dir": None}}
    assert numbered(config, ["name=x", "optimizer.lr=1,2"], 1)["name"] == "x_1"
    assert numbered(config, ["+name=x,y"], 1) == config and numbered(config, ["name=x${seed}"], 1) == config
    assert numbered({"name": None}, ["optimizer.lr=1,2"], 1) == {"name": None}
    placed = {"name": "x", "paths": {"run_dir": "/a/b"}}
    assert numbered(placed, ["paths.run_dir=/a/b"], 0) == {"name": "x", "paths": {"run_dir": "/a/b_0"}}
