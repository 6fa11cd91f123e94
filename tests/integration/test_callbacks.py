"""Switches of a run: each one trains, does what it says and leaves a usable run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import DENSE, before_step, checkpoint, differing, history, tiny_run

from mtl.runs.folder import RunFolder
from mtl.runs.loading import load_model
from mtl.training.module import MultiTaskModule

SHORT = (*DENSE, "trainer.max_epochs=1")


def remember_weights(into: list[dict[str, torch.Tensor]]) -> Callable[[MultiTaskModule, object, int], None]:
    """Make an action for `before_step` that keeps a copy of the weights before every step."""

    def action(module: MultiTaskModule, batch: object, index: int) -> None:
        into.append({name: value.detach().clone() for name, value in module.state_dict().items()})

    return action


def test_ema_checkpoints_hold_the_average_of_the_weights(smears: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    frozen = ("backbone.freeze=all", "backbone.unfreeze=[layer4]")
    with before_step(remember_weights(seen)):
        tiny_run(smears, tmp_path / "run", *DENSE, *frozen, "callbacks=ema", "trainer.max_epochs=2", "optimizer.lr=0.01")
    content = checkpoint(tmp_path / "run")
    # The weights after step k are those before step k + 1; the first update copies them.
    after = [*seen[1:], content["current_model_state"]]
    mean = {name: value.double() for name, value in after[0].items()}
    for count, weights in enumerate(after[1:], start=1):
        decay = min(0.999, (1 + count) / (10 + count))
        mean = {name: decay * mean[name] + (1 - decay) * value.double() for name, value in weights.items()}
    floating = [name for name, value in content["state_dict"].items() if value.is_floating_point()]
    average = content["state_dict"]
    assert differing({name: mean[name] for name in floating}, {name: average[name].double() for name in floating}, 1e-5) == []
    moved = differing(average, content["current_model_state"])
    assert any("layer4" in name for name in moved) and not any("encoder.body.layer3" in name for name in moved)
    still = [name for name in floating if name.startswith("model.encoder") and "layer4" not in name]
    assert still and all(torch.equal(average[name], seen[0][name]) for name in still)  # frozen stays bit for bit
    loaded = load_model(tmp_path / "run", "cpu").model.state_dict()
    best = checkpoint(tmp_path / "run", "best")["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in loaded.items())


def test_validation_scores_the_average(smears: Path, tmp_path: Path) -> None:
    """What validation saw is what the checkpoint holds."""
    seen: dict[str, torch.Tensor] = {}
    original = MultiTaskModule.validation_step

    def look(self: MultiTaskModule, batch: object, index: int) -> None:
        seen.update({name: value.clone() for name, value in self.state_dict().items()})
        original(self, batch, index)

    with patch.object(MultiTaskModule, "validation_step", look):
        tiny_run(smears, tmp_path / "run", *SHORT, "callbacks=ema", "optimizer.lr=0.01")
    content = checkpoint(tmp_path / "run")
    assert differing(seen, content["state_dict"]) == []
    assert differing(seen, content["current_model_state"]) != []


@pytest.mark.parametrize("monitor", ["val/score", "val/loss"])
def test_early_stopping_counts_validations_without_improvement(monitor: str, smears: Path, tmp_path: Path) -> None:
    figures = {"val/score": [0.2, 0.3, 0.3, float("nan"), 0.9], "val/loss": [3.0, 2.0, 2.0, float("nan"), 0.1]}[monitor]
    original = MultiTaskModule.log_dict

    def log(self: MultiTaskModule, values: dict[str, float], **options: object) -> None:
        if monitor in values:
            values = values | {monitor: figures[self.current_epoch]}
        original(self, values, **options)

    with patch.object(MultiTaskModule, "log_dict", log):
        tiny_run(
            smears, tmp_path / "run", *DENSE, f"monitor={monitor}", "callbacks=early_stopping", "trainer.max_epochs=5",
            "callbacks.early_stopping.patience=2", "trainer.limit_train_batches=1",
        )  # fmt: skip
    assert len(history(tmp_path / "run")) == 4  # improved in epoch 2, then two validations without
    assert checkpoint(tmp_path / "run", "best")["mtl"]["epoch"] == 1
    assert "stopped after epoch 4, before trainer.max_epochs=5 was reached" in (tmp_path / "run" / "log.txt").read_text()


def test_schedules_end_each_part_at_its_own_floor_and_never_rise(smears: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def rates(module: MultiTaskModule, batch: object, index: int) -> None:
        seen.append({group["name"]: group["lr"] for group in module.optimizers().param_groups})

    parts = "optimizer.parts={backbone:{lr:1.0e-6},head.segmentation:{lr:1.0e-4,floor:5.0e-5}}"
    with before_step(rates):
        tiny_run(
            smears, tmp_path / "run", *DENSE, parts, "optimizer.floor=1e-5", "scheduler.warmup_epochs=1", "trainer.max_epochs=3"
        )
    own = {"backbone": 1e-6, "head.segmentation": 1e-4, "head.heatmap": 1e-3}
    floors = {"backbone": 1e-6, "head.segmentation": 5e-5, "head.heatmap": 1e-5}
    for part, start in own.items():
        values = [row[part] for row in seen]
        assert values[0] == pytest.approx(0.01 * start) and max(values) == pytest.approx(start)
        after = values[4:]  # one epoch of four steps warms up
        assert after == sorted(after, reverse=True) and min(after) >= floors[part] * (1 - 1e-9)
        assert float(history(tmp_path / "run")[-1][f"lr/{part}"]) == pytest.approx(floors[part])


def test_max_steps_ends_in_an_epoch_that_is_validated_and_recorded(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, "trainer.max_steps=6", "trainer.max_epochs=9")
    rows = history(tmp_path / "run")
    assert [(row["step"], row["samples"]) for row in rows] == [("4", "8"), ("6", "12")]
    assert all(row["val/score"] for row in rows)
    assert float(rows[-1]["lr/backbone"]) == pytest.approx(1e-6)  # the schedule ends with the steps, not with the epochs


def test_epochs_without_validation_repeat_no_old_figures(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3")
    assert [bool(row["val/score"]) for row in history(tmp_path / "run")] == [False, True, False]
    assert checkpoint(tmp_path / "run", "best")["mtl"]["epoch"] == 1


SWITCHES = {
    "bf16": ("trainer.precision=bf16-mixed",),
    "accumulate, clip by value": (
        "trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.1", "trainer.gradient_clip_algorithm=value",
    ),
    "gradient checkpointing": ("backbone.gradient_checkpointing=true",),
    "channels last, bar": ("runtime.channels_last=true", "trainer.enable_progress_bar=true"),
    "deterministic, advanced profile": ("trainer.deterministic=warn", "trainer.profiler=advanced"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_run(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    tiny_run(smears, run_dir, *SHORT)
    return run_dir


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_change_how_but_not_what(name: str, smears: Path, tmp_path: Path, plain_run: Path) -> None:
    tiny_run(smears, tmp_path / "run", *SHORT, *SWITCHES[name])
    row, plain = history(tmp_path / "run")[0], history(plain_run)[0]
    load_model(tmp_path / "run", "cpu")
    same = name not in ("accumulate, clip by value",)
    assert float(row["train/loss"]) == pytest.approx(float(plain["train/loss"]), rel=2e-2 if same else 0.2)
    assert int(row["step"]) == (4 if same else 2)
    if "checkpointing" in name:
        # Batch norm updates its statistics twice, as its documentation says; weights must be the same.
        changed = differing(checkpoint(tmp_path / "run")["state_dict"], checkpoint(plain_run)["state_dict"], 1e-4)
        assert [name for name in changed if name.rpartition(".")[2] in ("weight", "bias")] == []
    if "profile" in name:
        assert "run_training_epoch" in (tmp_path / "run" / "fit-profile.txt").read_text()


def test_debug_overfit_learns_its_batches(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, "debug=overfit", "trainer.max_epochs=8", "trainer.check_val_every_n_epoch=4")
    rows = history(tmp_path / "run")
    assert [row["step"] for row in rows[:2]] == ["2", "4"] and len(rows) == 8
    assert float(rows[-1]["train/loss"]) < 0.9 * float(rows[0]["train/loss"])


def test_debug_profile_says_where_time_went(smears: Path, tmp_path: Path) -> None:
    tiny_run(smears, tmp_path / "run", *DENSE, "debug=profile")
    assert "optimizer_step" in (tmp_path / "run" / "fit-profile.txt").read_text()
    assert "profile: " in (tmp_path / "run" / "log.txt").read_text()


def test_tensorboard_gets_the_figures(smears: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    seen: list[dict[str, float]] = []

    def rates(module: MultiTaskModule, batch: object, index: int) -> None:
        seen.append({group["name"]: group["lr"] for group in module.optimizers().param_groups})

    words = ("tasks=[detection,segmentation]", "head@heads.detection=fcos", "logger=tensorboard", "logger.examples=1")
    with before_step(rates):
        metrics, objects = tiny_run(
            smears, tmp_path / "run", *words, "trainer.max_epochs=2", "trainer.log_every_n_steps=3", score=True
        )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0}).Reload()

    def values(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    rows = history(tmp_path / "run")
    for name in ("train/loss", "val/score", "val/detection/map50", "train/detection/loss_box", "val/detection/loss_box"):
        assert [step for step, _ in values(name)] == [4, 8]
        assert [value for _, value in values(name)] == pytest.approx([float(row[name]) for row in rows])
    terms = [f"train/detection/loss_{term}" for term in ("classification", "box", "centredness")]
    for row in rows:  # the terms add up to the loss of the task; a task with one term has none beside it
        assert sum(float(row[term]) for term in terms) == pytest.approx(float(row["train/detection/loss"]))
    assert not any("segmentation/loss_" in name for name in rows[0])
    # Every third step, and the rates at the ends of epochs.
    assert [step for step, _ in values("train/loss_step")] == [3, 6] == [s for s, _ in values("train/detection/loss_step")]
    assert [step for step, _ in values("lr/backbone")] == [3, 4, 6, 8]
    assert values("lr/backbone")[0][1] == pytest.approx(seen[3]["backbone"])  # what step 3 leaves for the next one
    assert values("test/score") == [(8, pytest.approx(metrics["score"]))]
    assert values("test/detection/count_mae") == [(8, pytest.approx(metrics["tasks"]["detection"]["count_mae"]))]
    (picture,) = events.Tags()["images"]
    assert picture.removeprefix("examples/") in {
        row["sample_id"] for row in objects["module"].split_rows if row["split"] == "val"
    }
    assert [event.step for event in events.Images(picture)] == [4, 8]
    shown = cv2.imdecode(np.frombuffer(events.Images(picture)[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    green = (shown[..., 1] > 120) & (shown[..., 2] < 60) & (shown[..., 0] < 100)
    assert green.any()  # the outlines of cells
    assert "report.html" in str(events.Tensors("report/text_summary")[0])
    settings = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert settings.session_start_info.hparams["optimizer.lr"].number_value == 0.001
    table = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert [info.name.tag for info in table.experiment.metric_infos] == ["test/score"]


def test_wandb_works_offline_and_ends_with_the_run(smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("first", "second"):
        tiny_run(
            smears,
            tmp_path / name,
            *SHORT,
            "logger=wandb",
            "trainer.log_every_n_steps=2",
            "logger.wandb.tags=[tiny]",
            score=name == "first",
        )
        assert wandb.run is None
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))) == 1
    (file,) = (tmp_path / "first" / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    for name in (b"test/score", b"train/loss_step", b"lr/head.heatmap", b"report.html", b"val/heatmap/mse"):
        assert name in content, name
    assert len(list(file.parent.glob("files/media/images/examples_*.png"))) == 2
    assert RunFolder(tmp_path / "first").wandb_id == file.stem.removeprefix("run-")  # a resumed run goes on under it
    assert "did not take" not in (tmp_path / "first" / "log.txt").read_text()
