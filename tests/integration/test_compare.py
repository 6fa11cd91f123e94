"""`mtl compare`: trains what is missing, reuses what is there, refuses what cannot be compared."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl.cli.main import guarded
from mtl.experiments import arms as comparison

SETTINGS = (
    "backbone=test_resnet", "trainer=cpu", "data.geometry.size=[64,64]", "debug=fast", "data.loader.batch_size=2",
    "evaluation.cases=0", "tasks=[segmentation,heatmap]",
)  # fmt: skip


IN_OWN_PROCESS = comparison.train_in_own_process  # before a fixture of this module replaces it


class Trainer:
    """Trains in this process, which spares the imports, and remembers with which words."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail = False

    def __call__(self, words: list[str], log: Path) -> int:
        self.calls.append(words)
        if self.fail:
            log.write_text("some output\nerror: The disk is full.\n")
            return 5
        return guarded("train", words)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(comparison, "train_in_own_process", trainer)
    return trainer


@pytest.fixture(scope="module")
def compared(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trainer]]:
    """A finished comparison of one seed."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        trainer = Trainer()
        patch.setattr(comparison, "train_in_own_process", trainer)
        assert compare(folder, smears) == 0
        yield folder, trainer


def compare(folder: Path, smears: Path, *more: str, seeds: str = "1", settings: tuple[str, ...] = SETTINGS) -> int:
    words = ["suite=malaria_mttl", f"seeds={seeds}", f"output_root={folder}", "bootstrap=20", *more]
    return guarded("compare", [*words, "--", *settings, f"data.root={smears}"])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "malaria_mttl" / "comparison.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_arms_are_trained_and_tabled(compared: tuple[Path, Trainer]) -> None:
    folder, trainer = compared
    runs = sorted(path.parent.relative_to(folder / "malaria_mttl").as_posix() for path in folder.rglob("metrics.json"))
    assert runs == ["mtl/seed0", "stl/heatmap/seed0", "stl/segmentation/seed0"] and len(trainer.calls) >= 3
    page = (folder / "malaria_mttl" / "comparison.md").read_text(encoding="utf-8")
    assert page.count("Of all runs:\n\n- No patient is in two splits") == 1
    assert "### segmentation" in page and "### heatmap" in page and "Δm against stl" in page and "baseline" in page
    table = {(row["task"], row["metric"], row["arm"]): row for row in rows(folder)}
    for arm, place in (("mtl", "mtl/seed0"), ("stl", "stl/segmentation/seed0")):
        metrics = json.loads((folder / "malaria_mttl" / place / "metrics.json").read_text())
        mean = float(table["segmentation", "dice_per_image", arm]["mean"])
        assert mean == pytest.approx(metrics["tasks"]["segmentation"]["dice_per_image"], abs=1e-9)
    assert table["segmentation", "dice_per_image", "mtl"]["reference"] == "stl"


def test_command_on_the_page_is_the_one_that_made_it(compared: tuple[Path, Trainer], smears: Path) -> None:
    import shlex

    folder, trainer = compared
    page = folder / "malaria_mttl" / "comparison.md"
    before = page.read_text(encoding="utf-8")
    words = shlex.split(before.split("```")[1])
    assert words[:2] == ["mtl", "compare"]
    trained = len(trainer.calls)
    assert guarded("compare", words[2:]) == 0
    assert len(trainer.calls) == trained and page.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_second_seed_adds_only_its_own_runs(compared: tuple[Path, Trainer], smears: Path, tmp_path: Path) -> None:
    finished, trainer = compared
    folder = shutil.copytree(finished, tmp_path / "copy")
    trained = len(trainer.calls)
    assert compare(folder, smears, seeds="[0,3]") == 0
    assert len(trainer.calls) == trained + 3 and all("seed=3" in words for words in trainer.calls[trained:])
    assert {row["seeds"] for row in rows(folder)} == {"2"}
    assert "±" in (folder / "malaria_mttl" / "comparison.md").read_text(encoding="utf-8")


def test_interrupted_run_is_resumed(compared: tuple[Path, Trainer], smears: Path, tmp_path: Path) -> None:
    finished, trainer = compared
    folder = shutil.copytree(finished, tmp_path / "copy")
    run = folder / "malaria_mttl" / "mtl" / "seed0"
    (run / "metrics.json").unlink()
    trained = len(trainer.calls)
    assert compare(folder, smears) == 0
    assert [words[0] for words in trainer.calls[trained:]] == [f"resume={run}"] and (run / "metrics.json").is_file()


def test_moved_data_reach_a_resumed_run(compared: tuple[Path, Trainer], smears: Path, tmp_path: Path) -> None:
    finished, trainer = compared
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "malaria_mttl" / "stl" / "heatmap" / "seed0" / "metrics.json").unlink()
    moved = shutil.copytree(smears, tmp_path / "moved")
    trained = len(trainer.calls)
    assert compare(folder, moved) == 0
    (words,) = trainer.calls[trained:]
    assert words[1:] == ["data.loader.num_workers=auto", "data.loader.prefetch=auto", f"data.root={moved}"]  # decided anew


def test_changed_settings_are_refused(compared: tuple[Path, Trainer], smears: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, trainer = compared
    trained = len(trainer.calls)
    assert compare(folder, smears, settings=(*SETTINGS, "optimizer.lr=0.5")) == 2
    message = capsys.readouterr().err
    assert "was trained with other settings (optimizer.lr 0.0003 -> 0.5)" in message or "optimizer.lr" in message
    assert len(trainer.calls) == trained
    assert compare(folder, smears, settings=(*SETTINGS, "trainer.devices=1")) == 0  # where it computes is nobody's business
    assert len(trainer.calls) == trained


def test_runs_on_different_splits_are_refused(
    compared: tuple[Path, Trainer], smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    split = folder / "malaria_mttl" / "mtl" / "seed0" / "split.csv"
    lines = split.read_text().splitlines()
    split.write_text("\n".join([lines[0], *[line.replace(",val,", ",test,") for line in lines[1:]]]))
    assert compare(folder, smears) == 2 and "differ in: split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("arms=[mtl,fcos]", "Arm `fcos` has no overrides"),
        ("arms={mtl:[],far:['data.split.seed=5']}", "differ in data.split"),
        ("arms={mtl:[],long:['trainer.max_epochs=9']}", "differ in trainer.max_epochs"),
        ("arms={mtl:[],wrong:['optimiser.lr=1']}", "Did you mean `optimizer`?"),
        ("arms=[mtl,../up]", "cannot be the name of a folder"),
        ("arms=[]", "`arms` is empty"),
        ("arms={mtl:[],other:['seed=4']}", "`seed=4` is for the comparison to decide"),
    ],
)
def test_wrong_arms_are_refused_before_training(
    arms: str, message: str, trainer: Trainer, smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, smears, arms) == 2
    assert message in capsys.readouterr().err and not trainer.calls and not list(tmp_path.rglob("*.json"))


def test_arms_with_overrides(monkeypatch: pytest.MonkeyPatch, smears: Path, tmp_path: Path) -> None:
    """The form of the documentation, as it arrives from the shell."""
    planned: list[Any] = []
    monkeypatch.setattr(comparison, "_bring_up_to_date", lambda run, plan: planned.append((run, plan.to_dict())) or "planned")
    monkeypatch.setattr(comparison, "load_run", lambda *_: None)
    monkeypatch.setattr("mtl.experiments.comparison.write_comparison", lambda *_: None)
    arms = 'arms={mtl:[],fcos:["head@heads.detection=fcos"],stl_fcos:["head@heads.detection=fcos","optimizer.lr=0.01"]}'
    words = ["suite=malaria_mttl", "seeds=2", arms, f"output_root={tmp_path}"]
    assert guarded("compare", [*words, "--", f"data.root={smears}", "backbone=test_resnet"]) == 0
    names = [(run.arm, run.task, run.seed) for run, _ in planned]
    tasks = ("detection", "roi", "segmentation", "heatmap")
    one = [("mtl", None), ("fcos", None), *[("stl_fcos", task) for task in tasks]]
    assert names == [(*pair, seed) for seed in (0, 1) for pair in one]
    for run, config in planned:
        assert config["heads"]["detection"]["name"] == ("faster_rcnn" if run.arm == "mtl" else "fcos")
        assert config["tasks"] == (list(tasks) if run.task is None else [run.task])
        assert config["optimizer"]["lr"] == (0.01 if run.arm == "stl_fcos" else pytest.approx(config["optimizer"]["lr"]))


def test_failed_run_is_named(trainer: Trainer, smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer.fail = True
    assert compare(tmp_path, smears) == 5
    message = capsys.readouterr().err
    assert "mtl/seed0` failed with status 5: The disk is full." in message and "output.txt" in message
    assert len(trainer.calls) == 1


@pytest.mark.slow
def test_in_processes_of_their_own(smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "train_in_own_process", IN_OWN_PROCESS)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    assert compare(tmp_path, smears, seeds="2") == 0
    assert len(list(tmp_path.rglob("metrics.json"))) == 6
    assert all((path.parent / "output.txt").is_file() for path in tmp_path.rglob("metrics.json"))
