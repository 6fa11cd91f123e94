"""What loggers are handed beside the figures of epochs."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtl.config.plan import Plan
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.runs.folder import RunFolder
from mtl.training.callbacks.examples import diverse
from mtl.training.loggers import log_results, scores_of, settings

METRICS = {
    "score": 0.5,
    "tasks": {"cells": {"n": 3, "map50": 0.25, "f1": None, "ci95": {"map50": [0.1, 0.4], "f1": None}, "per_class": {}}},
    "study": {"parasitemia": {"mae_image": 2.0, "ci95": {"mae_image": None}, "compared": {"image": 3}}},
}


def test_test_metrics_are_the_scalars_that_are_defined() -> None:
    assert scores_of(METRICS) == {"test/cells/map50": 0.25, "test/parasitemia/mae_image": 2.0, "test/score": 0.5}


def test_settings_are_named_like_the_keys_that_set_them() -> None:
    found = settings(Plan.from_words(["task=malaria_mttl", "optimizer.lr=0.002", "tasks=[segmentation]"]).config)
    assert found["optimizer.lr"] == 0.002 and found["backbone.name"] == "timm" and found["tasks"] == "['segmentation']"
    assert found["resume"] == "None" and all(isinstance(value, bool | int | float | str) for value in found.values())


def test_a_logger_that_fails_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("the server is away")

    taken: list[Any] = []
    broken: Any = SimpleNamespace(log_metrics=refuse)
    working: Any = SimpleNamespace(
        log_metrics=lambda values, step: taken.append((values["test/score"], step)), finalize=taken.append
    )
    config: Any = SimpleNamespace(monitor="val/score")
    with caplog.at_level(logging.WARNING, "mtl"):
        log_results([broken, working], config, METRICS, Path("run/report.html"), 12)
    assert taken == [(0.5, 12), "success"]
    assert caplog.messages == ["SimpleNamespace did not take the results (the server is away); they are in run."]


def test_the_id_of_a_run_is_that_of_its_last_folder(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).wandb_id is None
    for name in ("offline-run-20260101_000000-abc123", "debug.log", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert RunFolder(tmp_path).wandb_id == "abc123"


def test_examples_show_every_label_and_class_and_are_always_the_same() -> None:
    specs = {
        "grade": TaskSpec("grade", "classification", ("a", "b"), label="class:grade"),
        "lesion": TaskSpec("lesion", "segmentation", ("speck",), label="mask:speck"),
    }
    graded = [Record(f"g{n:02d}", "p", "s", "x", labels=("class:grade",), class_counts={"a": 1}) for n in range(20)]
    rare = Record("g99", "p", "s", "x", labels=("class:grade",), class_counts={"b": 1})
    masked = Record("m00", "p", "s", "x", labels=("mask:speck",), class_counts={"speck": 3})
    records = [*graded, rare, masked]
    chosen = [record.sample_id for record in diverse(records, specs, 3)]
    assert set(chosen) == {"g00", "g99", "m00"}
    assert [record.sample_id for record in diverse(records[::-1], specs, 3)] == chosen
    assert len(diverse(records, specs, 40)) == 22 and diverse([], specs, 3) == []
