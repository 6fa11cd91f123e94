"""Every key of a run does something: trainer, callbacks, logger, evaluation, runtime, paths and the verbs on a trained run."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from flip_tools import Flip, dead_keys, flips_for, put, tree
from PIL import Image

from mtl.config import schema, verbs
from mtl.config.plan import Plan
from mtl.core.decision import box_probabilities
from mtl.core.errors import ConfigError
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.experiments.train import train
from mtl.runs.folder import new_run_dir
from mtl.training import fit as training

WORDS = [
    "task=malaria_mttl", "tasks=[detection,heatmap]", "backbone=test_resnet", "head@heads.detection=fcos", "trainer=cpu",
    "debug=fast", "data.geometry={mode: tiles, size: [64, 64], scale: 0.03, overlap: 32}", "data.augmentation=null",
    "evaluation.cases=2", "trainer.precision=32-true", "runtime.channels_last=false",
    "heads.detection.score_threshold=0.0", "heads.heatmap.score_threshold=0.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(smears: Path) -> dict[str, Any]:
    return Plan.from_words([*WORDS, f"data.root={smears}"]).to_dict()


def plain_state(value: Any, depth: int = 5, seen: set[int] | None = None) -> Any:
    """Attributes of an object of somebody else's library, as plain values, down to a depth; classes by name."""
    seen = set() if seen is None else seen
    if value is None or isinstance(value, bool | int | float | str | Path):
        return value
    if isinstance(value, timedelta | torch.device | torch.dtype):
        return str(value)
    if depth == 0 or id(value) in seen:
        return type(value).__name__
    seen = seen | {id(value)}
    if isinstance(value, dict):
        return {str(key): plain_state(entry, depth - 1, seen) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_state(entry, depth - 1, seen) for entry in value]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if isinstance(cell.cell_contents, int | float | str)]
    attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
    return [type(value).__name__, plain_state(attributes, depth - 1, seen)]


# -- trainer, callbacks, loggers ---------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[None]:
    """The Trainer sets switches of the process."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


def test_trainer(base: dict[str, Any], tmp_path: Path, restored: None) -> None:
    def observe(config: dict[str, Any]) -> Any:
        torch.backends.cudnn.benchmark = False
        run = Plan.from_stored({**base, "trainer": config}, "config.json").config
        trainer = training.build_trainer(run, tmp_path, training._callbacks(run))
        switches = [torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark]
        return [plain_state(vars(trainer)), [plain_state(getattr(trainer, key, None), 2) for key in config], switches]

    table = {
        "accelerator": Flip("gpu", refuses=not torch.cuda.is_available()),
        "strategy": Flip("ddp"),
        "devices": Flip(2),
        "precision": Flip("bf16-mixed"),
        "min_epochs": Flip(2),
        "max_steps": Flip(7),
        "min_steps": Flip(3),
        "max_time": Flip("00:01:00:00"),
        "limit_train_batches": Flip(3),
        "limit_val_batches": Flip(3),
        "overfit_batches": Flip(2),
        "enable_progress_bar": Flip(False),
        "gradient_clip_val": Flip(0.5),
        "gradient_clip_algorithm": Flip("value"),
        "deterministic": Flip("warn"),
        "benchmark": Flip(True),
        "profiler": Flip("simple"),
    }
    config = {**base["trainer"], "limit_train_batches": None, "sync_batchnorm": False}
    refused = {"fast_dev_run", "val_check_interval"}
    keys = [key for key in config if key not in refused]
    annotations = get_type_hints(schema.TrainerConfig)
    assert dead_keys(observe, config, flips_for(keys, config, table, annotations)) == []
    for key, value in (("fast_dev_run", True), ("val_check_interval", 0.5)):
        with pytest.raises(Exception, match=key):
            Plan.from_config(put(base, {f"trainer.{key}": value}))


def test_callbacks(base: dict[str, Any]) -> None:
    def observe(config: dict[str, Any]) -> Any:
        seen: list[Any] = []
        for callback in training._callbacks(Plan.from_stored({**base, "callbacks": config}, "config.json").config):
            state = plain_state(vars(callback))
            average = getattr(callback, "_kwargs", {}).get("avg_fn")
            after = average(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(10**6)) if average else None
            seen.append([type(callback).__name__, None if average else state, after])
        return seen

    on = {"early_stopping": schema.EarlyStoppingConfig().model_dump(), "ema": schema.EmaConfig().model_dump()}
    off = schema.CallbacksConfig().model_dump()
    assert dead_keys(observe, off, {key: Flip(value) for key, value in on.items()}) == []
    flips = {"early_stopping.patience": Flip(3), "early_stopping.min_delta": Flip(0.1), "ema.decay": Flip(0.9)}
    assert set(flips) == {f"{name}.{key}" for name, values in on.items() for key in values} and set(on) == set(off)
    assert dead_keys(observe, on, flips) == []


def test_loggers(base: dict[str, Any], tmp_path: Path) -> None:
    from mtl.training.loggers import build_loggers

    def observe(config: dict[str, Any]) -> Any:
        seen = []
        run = Plan.from_stored({**base, "logger": config}, "config.json")
        for logger in build_loggers(run.config, tmp_path):
            asked = {key: value for key, value in getattr(logger, "_wandb_init", {}).items() if key != "config"}
            seen.append([type(logger).__name__, plain_state(asked), getattr(logger, "_offline", None)])
        callbacks = training.for_loggers(run.config, SimpleNamespace())
        return seen, [getattr(callback, "count", type(callback).__name__) for callback in callbacks]

    off, on = schema.LoggerConfig().model_dump(), schema.WandbConfig().model_dump()
    assert dead_keys(observe, off, {"tensorboard": Flip(True), "wandb": Flip(on)}) == []
    assert dead_keys(observe, {**off, "tensorboard": True}, {"examples": Flip(0)}) == []
    flips = {
        "wandb.project": Flip("other"),
        "wandb.entity": Flip("us"),
        "wandb.offline": Flip(False),
        "wandb.tags": Flip(["a"]),
    }
    assert set(flips) == {f"wandb.{key}" for key in on}
    assert dead_keys(observe, {**off, "wandb": on}, flips) == []


# -- evaluation --------------------------------------------------------------------------------------------------------


def results(specs: dict[str, TaskSpec]) -> list[tuple[ImageResult, ImageResult]]:
    """Three images with detections and peaks, some of them right."""
    pairs = []
    rng = np.random.default_rng(0)
    for number in range(3):
        window = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (64, 64), (64, 64), (64, 64), (128, 128))
        corners = rng.uniform(0, 50, (9, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + 10], axis=1)
        points, shift = corners + 5, rng.normal(0, 10, (9, 2)).astype(np.float32)
        labels = rng.integers(0, 3, 9)
        noisy = {"boxes": boxes + rng.normal(0, 1, boxes.shape).astype(np.float32), "labels": labels[::-1].copy()}
        scores = rng.uniform(0.1, 1, 9).astype(np.float32)
        cells = np.zeros(9, np.int64)
        heat = {"stride": np.float32(4), "sigma": np.float32(2), "heatmap": np.zeros((1, 16, 16), np.float32)}
        exact = {"boxes": boxes, "labels": labels}
        guess: dict[str, Any] = {"detection": noisy | {"scores": scores}, "second": exact | {"scores": scores}}
        guess["heatmap"] = heat | {"points": points + shift, "scores": scores, "labels": cells}
        said = rng.dirichlet([1, 1, 1], 9).astype(np.float32)
        guess["detection"] |= {box_probabilities("roi"): said}
        guess["roi"] = {"probabilities": said, "ids": np.arange(9)}
        truth: dict[str, Any] = {"detection": exact, "second": exact, "roi": {"labels": labels, "ids": np.arange(9)}}
        truth["heatmap"] = {"points": points, "labels": cells}
        name = (f"s{number}", f"p{number}", "malaria", window)
        pairs.append(tuple(ImageResult(*name, {task: tasks[task] for task in specs}) for tasks in (guess, truth)))
    return pairs


def test_evaluation_and_study_metrics(base: dict[str, Any]) -> None:
    from mtl.runs.build import build_evaluator

    classes = ("Infected", "Healthy", "WBC")
    specs = {
        "detection": TaskSpec("detection", "detection", classes),
        "second": TaskSpec("second", "detection", classes),
        "roi": TaskSpec("roi", "roi_classification", classes),
        "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    }

    def observe(config: dict[str, Any]) -> Any:
        evaluator = build_evaluator(Plan.from_stored({**base, **config}, "config.json"), specs)
        for prediction, truth in results(specs):
            evaluator.update(prediction, truth)
        values = evaluator.compute(evaluator.default_thresholds())
        return [values, evaluator.score(values, evaluator.default_thresholds())]

    keys = {"task": "detection", "infected": "Infected", "healthy": "Healthy", "classes_from": None}
    study = {"parasitemia": {"name": "parasitemia", **keys}}
    flips = {
        "evaluation.hit_radius": Flip(10.0),
        "evaluation.score_weights": Flip({"detection": 5.0}),
        "evaluation.class_weighting": Flip("known"),
        "study_metrics": Flip({}),
        "study_metrics.parasitemia.task": Flip("second"),
        "study_metrics.parasitemia.infected": Flip("WBC"),
        "study_metrics.parasitemia.healthy": Flip("WBC"),
        "study_metrics.parasitemia.classes_from": Flip("roi"),
    }
    assert set(base["study_metrics"]["parasitemia"]) == {"name", *study["parasitemia"]}
    assert dead_keys(observe, {"evaluation": base["evaluation"], "study_metrics": study}, flips) == []


def test_til_score(base: dict[str, Any]) -> None:
    from mtl.core.registry import STUDY_METRICS
    from mtl.runs.build import build_evaluator

    tissue = TaskSpec("tissue", "segmentation", ("tumor", "stroma"), multilabel=False)
    specs = {"cells": TaskSpec("cells", "points", ("lymphocyte",)), "tissue": tissue, "second": replace(tissue, name="second")}
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (64, 64), (64, 64), (64, 64), (64, 64), pixel_scale=2.0)
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(3):
        points, mask = rng.uniform(0, 64, (9, 2)).astype(np.float32), rng.integers(0, 2, (64, 64)).astype(np.uint8)
        found = {"points": points[:5], "scores": np.full(5, 0.9, np.float32), "labels": np.zeros(5, np.int64)}
        maps = [rng.dirichlet([1, 1], (64, 64)).transpose(2, 0, 1).astype(np.float32) for _ in range(2)]
        guess = {"cells": found, "tissue": {"probabilities": maps[0]}, "second": {"probabilities": maps[1]}}
        known = {"points": points, "labels": np.zeros(9, np.int64), "region": np.ones((64, 64), bool)}
        truth = {"cells": known, "tissue": {"mask": mask}, "second": {"mask": mask}}
        pairs.append([ImageResult(f"s{number}", f"p{number}", "tcga", window, tasks) for tasks in (guess, truth)])

    def observe(config: dict[str, Any]) -> Any:
        evaluator = build_evaluator(Plan.from_stored({**base, "study_metrics": {"til_score": config}}, "config.json"), specs)
        for prediction, truth in pairs:
            evaluator.update(prediction, truth)
        return evaluator.compute(evaluator.default_thresholds())["til_score"]

    flips = {"tasks": Flip(["cells", "second"]), "stroma": Flip("tumor"), "cell_diameter": Flip(16.0)}
    parameters = STUDY_METRICS.entry("til_score").parameters
    assert set(parameters) == set(flips)
    config = {"name": "til_score", **{name: parameter.default for name, parameter in parameters.items()}}
    assert dead_keys(observe, config, flips) == []


# -- the run itself ----------------------------------------------------------------------------------------------------


def test_where_a_run_is_written(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_RUN_DIR", "")

    def observe(config: dict[str, Any]) -> Any:
        return new_run_dir(Plan.from_stored(config, "config.json").config)

    config = {**base, "name": "one"}
    flips = {
        "suite": Flip("other"),
        "name": Flip("two"),
        "paths.output_root": Flip("elsewhere"),
        "paths.run_dir": Flip("here"),
    }
    assert dead_keys(observe, config, flips) == []
    assert {key for key in flips if key.startswith("paths.")} == {f"paths.{key}" for key in schema.PathsConfig.model_fields}


class Done(Exception):
    """Ends a run where the test has seen enough."""


def test_resume(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "old" / "config.json").write_text(json.dumps(base))

    def fit(plan: Plan, run_dir: Path, resume_from: Path | None) -> None:
        raise Done(run_dir.name, resume_from is not None)

    monkeypatch.setattr("mtl.experiments.train.fit", fit)
    monkeypatch.setattr("mtl.experiments.train.read_checkpoint", lambda path: {"mtl": {}})  # it only has to be there
    monkeypatch.setattr("mtl.experiments.train.require_same_config", lambda plan, about, run: None)

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        with pytest.raises(Done) as caught:
            train(Plan.from_stored(config, "config.json"))
        return caught.value.args

    assert (
        dead_keys(observe, put(base, {"paths.run_dir": str(tmp_path / "new")}), {"resume": Flip(str(tmp_path / "old"))}) == []
    )


def test_fit(base: dict[str, Any], tmp_path: Path) -> None:
    """Keys that are seen only in a run that trains (one batch)."""

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        objects = training.fit(Plan.from_config(config), tmp_path / "run", None)
        module, recorder = objects["module"], objects["recorder"]
        formats = [p.is_contiguous(memory_format=torch.channels_last) for p in module.model.parameters() if p.ndim == 4]
        return [
            list(module.model.heads),
            sorted(objects["module"].validation),
            module.state_dict(),
            recorder.best_value,
            recorder.best_epoch,
            sorted(recorder.rows[-1]),
            formats,
            sorted(path.name for path in (tmp_path / "run").rglob("*")),
        ]

    flips = {
        "seed": Flip(1),
        "tasks": Flip(["heatmap"]),
        "monitor": Flip("val/loss"),
        "monitor_smoothing": Flip(2),
        "select": Flip("last", {"trainer.max_epochs": 2, "optimizer.lr": 0.5}),
        "optimizer.lr": Flip(1e-4),
        "runtime.channels_last": Flip(True),
    }
    config = put(base, {"trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1})
    assert dead_keys(observe, config, flips) == []


def test_compile(base: dict[str, Any]) -> None:
    from mtl.runs.build import build_balancer, build_evaluator, build_model
    from mtl.training.module import MultiTaskModule

    def observe(config: dict[str, Any]) -> Any:
        plan = Plan.from_config(config)
        model, balancer = build_model(plan), build_balancer(plan.config.balancer, plan.config.tasks)
        module = MultiTaskModule(model, balancer, build_evaluator(plan, model.specs), plan)
        return type(module._forward[0]).__name__

    assert dead_keys(observe, base, {"runtime.compile": Flip(True)}) == []
    assert set(schema.RuntimeConfig.model_fields) == {"compile", "channels_last", "fit", "asked"}  # `asked` is a result


def test_fit_into_memory(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.training import fitting

    rows = base["data"]["loader"]["batch_size"]
    monkeypatch.setattr(fitting, "measured", lambda *_: [None])
    monkeypatch.setattr(fitting, "largest", lambda _, plan: {"activations": 100 * plan.config.data.loader.batch_size})

    def observe(config: dict[str, Any]) -> Any:
        plan = fitting.fitted(Plan.from_config(config), tmp_path, fitting.Room("cpu", 1, 90 * rows))
        return plan.config.data.loader.batch_size

    assert dead_keys(observe, base, {"runtime.fit": Flip("auto")}) == []


# -- verbs on a trained run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(Plan.from_config(put(base, {"paths.run_dir": str(folder)})))
    return folder


class Counter:
    """Counts forward passes, the rows of each, and how these lie in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mtl.model import MultiTaskModel

        self.rows: list[tuple[int, bool]] = []
        forward = MultiTaskModel.forward

        def counted(model: Any, images: torch.Tensor, tasks: Any = None) -> Any:
            self.rows.append((len(images), images.is_contiguous()))
            return forward(model, images, tasks)

        monkeypatch.setattr(MultiTaskModel, "forward", counted)


def test_evaluation_of_a_run(trained: Path) -> None:
    from mtl.experiments.score import score
    from mtl.runs.loading import load_model

    def observe(config: dict[str, Any]) -> Any:
        loaded = load_model(trained)
        plan = Plan.from_stored({**loaded.config.model_dump(), "evaluation": config}, "config.json")
        evaluation = score(loaded, "val", plan=plan)
        return [evaluation.summary, sorted(evaluation.results)]

    config = json.loads((trained / "config.json").read_text())["evaluation"]
    flips = {"bootstrap": Flip(5), "cases": Flip(0), "resolution": Flip("native")}
    # test_evaluation_and_study_metrics; test_the_metric_that_judges_a_task; tests/integration/test_brain.py
    elsewhere = {"hit_radius", "score_weights", "class_weighting", "primary", "hd95"}
    assert set(flips) | elsewhere == set(schema.EvaluationConfig.model_fields)
    assert dead_keys(observe, config, flips) == []


def test_evaluate(trained: Path, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.experiments.score import evaluate

    counter = Counter(monkeypatch)
    shutil.copyfile(trained / "checkpoints" / "best.ckpt", tmp_path / "other.ckpt")
    half = tmp_path / "half"
    shutil.copytree(smears / "Polygon Set", half / "Polygon Set")

    def observe(config: dict[str, Any]) -> Any:
        for folder in ("out", "elsewhere"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        counter.rows.clear()
        metrics = evaluate(**config)
        return [metrics, sorted(set(tree(tmp_path)) | {"records"}), list(counter.rows)]

    config = verbs.EvaluateConfig(checkpoint=str(trained), split="val", output=str(tmp_path / "out"), report=False).model_dump()
    flips = {
        "checkpoint": Flip(str(tmp_path / "other.ckpt")),
        "split": Flip("test"),
        "output": Flip(str(tmp_path / "elsewhere")),
        "data": Flip({"root": str(half)}, {"split": None}),  # an explicit split is refused there
        "batch_size": Flip(1),
        "device": Flip("xpu:7", refuses=True),
        "precision": Flip("bf16-mixed"),
        "channels_last": Flip(True),
        "bootstrap": Flip(5),
        "report": Flip(True),
        "plugins": Flip(["nowhere.py"], refuses=True),
    }
    assert set(flips) == set(verbs.EvaluateConfig.model_fields)
    assert dead_keys(observe, config, flips) == []


def test_predict(trained: Path, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.inference.predict import predict

    counter = Counter(monkeypatch)
    images = sorted(smears.rglob("*.jpg"))[:2]
    other = tmp_path / "other.ckpt"
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"] = {
        name: value + 0.05 if value.is_floating_point() else value for name, value in content["state_dict"].items()
    }
    torch.save(content, other)

    def observe(config: dict[str, Any]) -> Any:
        for folder in ("out", "elsewhere"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        counter.rows.clear()
        predict(**config)
        files = {name: body for folder in ("out", "elsewhere") for name, body in tree(tmp_path / folder).items()}
        return [sorted(path.name for path in tmp_path.iterdir()), files, list(counter.rows)]

    config = verbs.PredictConfig(checkpoint=str(trained), source=str(images[0]), output=str(tmp_path / "out")).model_dump()
    flips = {
        "checkpoint": Flip(str(other)),
        "source": Flip(str(images[1])),
        "output": Flip(str(tmp_path / "elsewhere")),
        "batch_size": Flip(1),
        "device": Flip("xpu:7", refuses=True),
        "precision": Flip("bf16-mixed"),
        "channels_last": Flip(True),
        "overlays": Flip(False),
        "masks": Flip(False),
        "tasks": Flip(["heatmap"]),
        "classes": Flip(["Infected"]),
        "thresholds": Flip({"heatmap": 0.999}),
        "pixel_scale": Flip(0.05),
        "plugins": Flip(["nowhere.py"], refuses=True),
    }
    # `slide` in test_slides; `when` in tests/unit/inference/test_predict_files.py, since this run states no class of an image.
    assert set(flips) | {"slide", "when"} == set(verbs.PredictConfig.model_fields)
    assert dead_keys(observe, config, flips) == []


def test_slides(slide: Path, slide_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    from mtl.inference.predict import predict

    monkeypatch.setattr("mtl.inference.slides.tumor_bulk.CLOSING_UM", 20.0)  # the slide is 100 microns wide
    masks, small = tmp_path / "masks", tmp_path / "small.tif"
    masks.mkdir()
    Image.fromarray(np.tri(16, 20, dtype=np.uint8)).save(masks / "small_tissue.tif")
    corner = tifffile.imread(slide)[:160, 100:300]
    tifffile.imwrite(small, corner, tile=(64, 64), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        predict(str(slide_checkpoint), str(small), str(tmp_path / "out"), overlays=False, device="cpu", slide=config)
        files = tree(tmp_path / "out" / "small")
        summary = json.loads((tmp_path / "out" / "small" / "til-score.json").read_text())
        said = {key: value for key, value in summary.items() if key not in ("settings", "fingerprint", "tumor_bulk")}
        return [said, {name: body for name, body in files.items() if name != "til-score.json"}]

    flips = {
        "spacing": Flip(1.0),
        "tissue_masks": Flip(str(masks)),
        "min_saturation": Flip(None),
        "tumor_bulk": Flip(True),
        "cells": Flip("none"),
        "tissue": Flip("none"),
        "stroma": Flip("tumor"),
        "tumor": Flip("other", given={"tumor_bulk": True}),
    }
    assert set(flips) == set(verbs.SlideConfig.model_fields)
    assert dead_keys(observe, verbs.SlideConfig().model_dump(), flips) == []


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.experiments import arms as comparison

    made: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "_bring_up_to_date", lambda run, plan: made.append(run) or "trained")
    monkeypatch.setattr(comparison, "load_run", lambda arm, seed, folder: [arm, seed, folder])
    monkeypatch.setattr("mtl.experiments.comparison.write_comparison", lambda *arguments: made.append(arguments[:-1]))

    # Composing is what takes time here; where a run is written changes nothing else.
    composed = cache(Plan.from_words)
    plans = types.SimpleNamespace(from_words=lambda words: composed(tuple(w for w in words if not w.startswith("paths."))))
    monkeypatch.setattr(comparison, "Plan", plans)

    def observe(config: dict[str, Any]) -> Any:
        made.clear()
        comparison.compare(**config)
        return list(made)

    config = verbs.CompareConfig(suite="malaria_cells", seeds=1).model_dump()
    flips = {
        "suite": Flip("malaria_mttl"),
        "seeds": Flip(2),
        "arms": Flip("stl"),
        "overrides": Flip(["backbone=resnet18"]),
        "name": Flip("mine"),
        "output_root": Flip("there"),
        "reference": Flip("mtl"),
        "bootstrap": Flip(10),
        "plugins": Flip(["nowhere.py"], refuses=True),
    }
    assert set(flips) == set(verbs.CompareConfig.model_fields)
    assert dead_keys(observe, config, flips) == []


# -- nothing is forgotten ----------------------------------------------------------------------------------------------


def test_the_metric_that_judges_a_task(base: dict[str, Any]) -> None:
    plans = [Plan.from_config(base), Plan.from_config(put(base, {"evaluation.primary": {"heatmap": "pearson"}}))]
    assert [plan.specs["heatmap"].primary_metric for plan in plans] == ["peak_f1", "pearson"]
    with pytest.raises(ConfigError, match=r"`mse` in `evaluation.primary.heatmap`"):
        Plan.from_config(put(base, {"evaluation.primary": {"heatmap": "mse"}}))  # lower is better: it cannot enter a mean


def test_plugins(base: dict[str, Any]) -> None:
    """What they bring is tried in tests/integration/test_plugins.py."""
    with pytest.raises(ConfigError, match=r"needs the plug-in `nowhere\.heads`, which is neither installed nor named"):
        Plan.from_config(put(base, {"plugins": ["nowhere.heads"]}))


def test_stages(base: dict[str, Any]) -> None:
    def observe(config: dict[str, Any]) -> Any:
        stages = {"first": schema.StageConfig(epochs=5).model_dump(), "second": config}
        plan = Plan.from_config(put(base, {"stages": stages, "trainer.max_epochs": 30}))
        return [
            [stage.tasks, stage.sources, stage.freeze, stage.start, stage.config.model_dump(exclude={"stages"})]
            for stage in plan.stages
        ]

    flips = {
        "tasks": Flip(["heatmap"]), "sources": Flip(["malaria"]), "start": Flip("initial"), "freeze": Flip(["backbone"]),
        "optimizer": Flip({"lr": 0.5}), "scheduler": Flip({"name": "constant"}), "weights": Flip({"heatmap": 2.0}),
        "loader": Flip({"batch_size": 3}), "monitor": Flip("val/heatmap/pearson"),
    }  # fmt: skip
    assert dead_keys(observe, schema.StageConfig(epochs=5).model_dump(), flips) == []


def test_every_key_of_train_yaml_has_its_flip() -> None:
    """The keys of `train.yaml`, and where they are flipped."""
    here = {
        "suite",
        "name",
        "seed",
        "plugins",
        "tasks",
        "monitor",
        "monitor_smoothing",
        "select",
        "resume",
        "evaluation",
        "study_metrics",
        "runtime",
        "stages",
    }
    sections = {"trainer", "callbacks", "logger", "paths"}
    parts = {"backbone", "peft", "balancer", "scheduler", "optimizer", "necks", "heads"}  # test_flip_parts.py
    assert here | sections | parts | {"data"} == set(schema.RunConfig.model_fields)
