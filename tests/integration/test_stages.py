"""A curriculum: strict hand-over, parts that rest, resuming in the right stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from tiny_runs import DENSE, before_step, checkpoint, differing, history, resume_run, stop_at, tiny_run

from mtl.config.plan import Plan
from mtl.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from mtl.training.module import MultiTaskModule

CURRICULUM = (
    *DENSE,
    "+stages.masks={tasks:[segmentation],epochs:2,monitor:val/segmentation/dice_per_image,optimizer:{lr:0.01}}",
    "+stages.points={tasks:[heatmap],freeze:[backbone],epochs:2,monitor:val/heatmap/pearson}",
    "+stages.joint={epochs:2,optimizer:{lr:0.003,parts:{backbone:{lr:0.001}}},weights:{heatmap:2.0}}",
)


@pytest.fixture(scope="module")
def curriculum(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("stages") / "run"
    tiny_run(smears, run_dir, *CURRICULUM, score=True)
    return run_dir


def stage(run_dir: Path, name: str) -> dict[str, Any]:
    return checkpoint(run_dir, f"stage_{name}")


def test_what_rests_does_not_move_by_a_bit(curriculum: Path) -> None:
    masks, points, joint = (stage(curriculum, name)["state_dict"] for name in ("masks", "points", "joint"))
    moved = {name.split(".")[1] + "." + name.split(".")[2] for name in differing(masks, points)}
    assert moved == {"heads.heatmap"}  # neither the encoder with its norm statistics nor the decoder
    assert any("running_mean" in name for name in masks if name.startswith("model.encoder."))
    assert {name.split(".")[1] for name in differing(points, joint)} >= {"encoder", "heads"}


def test_stages_share_one_time_axis(curriculum: Path) -> None:
    rows = history(curriculum)
    assert [row["stage"] for row in rows] == ["masks"] * 2 + ["points"] * 2 + ["joint"] * 2
    assert [int(float(row["epoch"])) for row in rows] == list(range(6))
    steps = [int(float(row["step"])) for row in rows]
    assert steps == [4 * epoch for epoch in range(1, 7)]
    assert [int(float(row["samples"])) for row in rows] == [8 * epoch for epoch in range(1, 7)]
    rates = [(row["lr/backbone"], row["lr/head.segmentation"], row["lr/head.heatmap"]) for row in rows]
    assert [tuple(bool(value) for value in row) for row in rates[::2]] == [
        (True, True, False), (False, False, True), (True, True, True),
    ]  # fmt: skip


def test_loggers_count_on_over_the_stages(smears: Path, tmp_path: Path) -> None:
    """As the history does; a resumed trainer too."""
    logged: list[tuple[int, float, set[str]]] = []

    class Listener(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append((int(step or 0), metrics["epoch"], {name for name in metrics if "score" in name or "loss" in name}))

    def in_points(module: MultiTaskModule, batch: Any, index: int) -> None:
        if (module.stage.name, module.current_epoch) == ("points", 1):
            raise KeyboardInterrupt

    with patch("mtl.training.fit.build_loggers", lambda config, run_dir: [Listener()]):
        with before_step(in_points), pytest.raises(TrainingError):
            tiny_run(smears, tmp_path / "run", *CURRICULUM[:2], "+stages.points={tasks:[heatmap],epochs:2}")
        resume_run(tmp_path / "run")
    seen = [(step, epoch) for step, epoch, names in logged if "val/score" in names]
    assert seen == [(4, 0), (8, 1), (12, 2), (16, 3)]
    assert [(step, epoch) for step, epoch, names in logged if "train/loss" in names] == seen


def test_the_log_and_the_results_tell_the_stages(curriculum: Path) -> None:
    import json

    text = (curriculum / "log.txt").read_text()
    for name, origin in (("points", "masks"), ("joint", "points")):
        assert f"{name}: tasks" in text and f"equal those of `{origin}` (largest difference 0)" in text
    metrics = json.loads((curriculum / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["masks", "points", "joint"]
    assert metrics["stages"]["masks"]["tasks"] == ["segmentation"]
    assert metrics["stages"]["joint"]["tasks"] == ["segmentation", "heatmap"]
    dice = [values["metrics"]["segmentation"]["dice_per_image"] for values in metrics["stages"].values()]
    assert dice[0] == dice[1] and dice[2] == metrics["tasks"]["segmentation"]["dice_per_image"]
    assert metrics["budget"] == 8 * 6 and metrics["training"]["epochs"] == 6


def test_a_renamed_decoder_stops_the_hand_over(curriculum: Path, smears: Path, tmp_path: Path) -> None:
    content = stage(curriculum, "masks")
    content["state_dict"] = {
        name.replace("heads.segmentation.decoder", "heads.segmentation.seg_decoder"): value
        for name, value in content["state_dict"].items()
    }
    torch.save(content, tmp_path / "renamed.ckpt")
    start = f"+stages.points={{tasks:[heatmap],epochs:1,start:{tmp_path / 'renamed.ckpt'},monitor:val/heatmap/pearson}}"
    with pytest.raises(CheckpointError, match=r"renamed.ckpt` cannot be handed over.* it lacks .*segmentation.decoder"):
        tiny_run(smears, tmp_path / "run", *DENSE, start)


def test_weights_that_do_not_give_the_stored_figures_stop_the_hand_over(curriculum: Path, smears: Path, tmp_path: Path) -> None:
    content = stage(curriculum, "masks")
    logits = next(name for name in content["state_dict"] if name.endswith("heads.segmentation.logits.weight"))
    content["state_dict"][logits] = -content["state_dict"][logits]  # every key loads, yet the decoder is another one
    torch.save(content, tmp_path / "other.ckpt")
    start = f"+stages.points={{tasks:[heatmap],epochs:1,start:{tmp_path / 'other.ckpt'},monitor:val/heatmap/pearson}}"
    with pytest.raises(TrainingError, match=r"first validation of this stage gives val/segmentation/"):
        tiny_run(smears, tmp_path / "run", *DENSE, start)


@pytest.mark.parametrize(("name", "epoch"), [("masks", 1), ("points", 0), ("points", 1), ("joint", 1)])
def test_a_killed_run_goes_on_in_its_stage(name: str, epoch: int, curriculum: Path, smears: Path, tmp_path: Path) -> None:
    stop = stop_at(epoch, 2)

    def action(module: MultiTaskModule, batch: Any, index: int) -> None:
        if module.stage.name == name:
            stop(module, batch, index)

    with before_step(action), pytest.raises(TrainingError, match="Go on with"):
        tiny_run(smears, tmp_path / "run", *CURRICULUM)
    resume_run(tmp_path / "run")
    assert history(tmp_path / "run") == history(curriculum)
    for file in ("last", "best", "stage_masks", "stage_points", "stage_joint"):
        first, second = checkpoint(curriculum, file), checkpoint(tmp_path / "run", file)
        assert differing(first["state_dict"], second["state_dict"]) == []
        assert (first["mtl"]["stage"], first["mtl"]["thresholds"]) == (second["mtl"]["stage"], second["mtl"]["thresholds"])


def test_a_start_from_another_run_is_checked_where_it_can_be(curriculum: Path, smears: Path, tmp_path: Path) -> None:
    """Other images or another raster give other figures; test patients of this run that the other one saw are named."""
    file = curriculum / "checkpoints" / "stage_masks.ckpt"
    words = (*DENSE, f"+stages.points={{tasks:[heatmap],epochs:1,start:{file},monitor:val/heatmap/pearson}}")
    metrics, _ = tiny_run(smears, tmp_path / "same", *words, score=True)
    assert "hand-over checked" in (tmp_path / "same" / "log.txt").read_text()
    assert metrics["stages"]["points"]["tasks"] == ["segmentation", "heatmap"]
    tiny_run(smears, tmp_path / "raster", *words, "data.geometry.size=[96,96]")
    assert "made with other preprocessing" in (tmp_path / "raster" / "log.txt").read_text()
    _, objects = tiny_run(smears, tmp_path / "split", *words, "data.split.seed=99")
    text = (tmp_path / "split" / "log.txt").read_text()
    assert "made with another split" in text and "or the start of a stage was trained" in text
    assert objects["module"].pretraining


def test_a_start_that_does_not_fit_is_found_before_the_first_stage_trains(
    curriculum: Path, smears: Path, tmp_path: Path
) -> None:
    file = curriculum / "checkpoints" / "stage_joint.ckpt"
    words = ("+stages.a={epochs:1}", f"+stages.b={{epochs:1,start:{file}}}", "tasks=[segmentation]")
    with before_step(lambda *_: pytest.fail("a step was taken")), pytest.raises(CheckpointError, match=r"Stage `b`.*besides"):
        tiny_run(smears, tmp_path / "run", *words)


def test_a_stage_from_the_beginning_has_no_task_of_an_earlier_one(smears: Path, tmp_path: Path) -> None:
    stages = ("+stages.a={tasks:[segmentation],epochs:1}", "+stages.b={tasks:[heatmap],epochs:1,start:initial}")
    metrics, _ = tiny_run(smears, tmp_path / "run", *DENSE, *stages, score=True)
    assert [values["tasks"] for values in metrics["stages"].values()] == [["segmentation"], ["heatmap"]]


@pytest.mark.parametrize("settings", [("callbacks=ema",), ("scheduler=plateau", "callbacks=early_stopping")])
def test_averages_and_plateaus_begin_anew_in_each_stage(settings: tuple[str, ...], smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *CURRICULUM, *settings)
    assert len(history(tmp_path / "run")) == 6
    assert (tmp_path / "run" / "log.txt").read_text().count("largest difference 0)") == 2


def test_two_ranks_hand_over_too(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *CURRICULUM, "trainer=ddp_cpu", "trainer.max_epochs=1", "data.loader.batch_size=1")
    assert [row["stage"] for row in history(tmp_path / "run")] == ["masks", "points", "joint"]  # max_epochs limits each
    assert "hand-over checked" in (tmp_path / "run" / "log.txt").read_text()


def test_a_single_task_twin_keeps_its_stages(smears: Path, tmp_path: Path) -> None:
    words = [word for word in CURRICULUM if not word.startswith("tasks=")]
    plan = Plan.from_words(["task=malaria_mttl", *words, "tasks=[heatmap]"])
    assert [(one.name, one.tasks, one.start) for one in plan.stages] == [
        ("points", ("heatmap",), "initial"), ("joint", ("heatmap",), "points"),
    ]  # fmt: skip
    assert plan.total_epochs == 4
    assert plan.stages[0].freeze == ()  # the encoder that was to rest has not been trained


@pytest.mark.parametrize("task", ["whole_tumor", "presence"])
def test_the_shipped_curriculum_has_its_twins(task: str) -> None:
    assert [stage.name for stage in Plan.from_words(["task=brain_joint", f"tasks=[{task}]"]).stages] == {
        "whole_tumor": ["segmentation", "joint"], "presence": ["classification", "joint"],
    }[task]  # fmt: skip


def test_mistakes_are_named_before_anything_is_read() -> None:
    with pytest.raises(ConfigError) as found:
        Plan.from_words(
            [
                "task=malaria_mttl",
                *DENSE,
                "+stages.a={tasks:[segmentaton],epochs:1,freeze:[backbon],start:b}",
                "+stages.b={tasks:[heatmap],epochs:1,freeze:[backbone,head],weights:{heatmap:1},optimizer:{lrr:1}}",
                "+stages.initial={epochs:0,monitor:val/heatmap/dice}",
            ]
        )
    text = str(found.value)
    assert "stages.initial.epochs" in text
    with pytest.raises(ConfigError) as found:
        Plan.from_words(
            [
                "task=malaria_mttl",
                *DENSE,
                "+stages.a={tasks:[segmentaton],epochs:1,freeze:[backbon],start:b}",
                "+stages.b={tasks:[heatmap],epochs:1,freeze:[backbone,head],weights:{heatmap:1},optimizer:{lrr:1}}",
                "+stages.initial={epochs:1,monitor:val/heatmap/dice}",
                "+stages.c={tasks:[heatmap],epochs:1,monitor:val/segmentation/dice_per_image,weights:{segmentation:1}}",
                "stages.d.epochs=2",
                "evaluation.score_weights={heatmap:0}",
            ]
        )
    text = str(found.value)
    for part in (
        "gives heatmap, all that `stages.c.tasks` lists, a weight of 0",
        "val/segmentation/dice_per_image, which selects its checkpoint, cannot change there", "`stages.c.weights.segmentation`",
        "Unknown stage `d`",
        "`stages.a.tasks`", "segmentaton", "`stages.a.freeze`", "backbon", "stages.a.start", "`stages.b.freeze` leaves nothing",
        "lrr", "stages.initial", "val/heatmap/dice",
    ):  # fmt: skip
        assert part in text, part


def test_a_stage_without_images_is_found_before_the_first_one_trains(smears: Path, tmp_path: Path) -> None:
    stages = ("+stages.a={epochs:1}", "+stages.b={epochs:1,sources:[elsewhere]}")
    with before_step(lambda *_: pytest.fail("a step was taken")), pytest.raises((DataError, ConfigError), match="elsewhere"):
        tiny_run(smears, tmp_path / "run", *DENSE, *stages)
