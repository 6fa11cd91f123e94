"""The page: self-contained, complete, the same for the same content, and silent about nothing."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Record, Window
from mtl.evaluation.baselines import baseline_summary, count_training
from mtl.kinds.base import TrainingStatistics
from mtl.metrics.evaluator import Evaluator
from mtl.report import figures, training
from mtl.report.page import Example, ReportContent, image_uri, write_report
from mtl.report.tables import number
from mtl.runs.history import history_columns, read_history
from mtl.runs.results import load_records, save_records

SPECS = {
    "detection": TaskSpec("detection", "detection", ("Infected", "Healthy", "WBC")),
    "roi": TaskSpec("roi", "roi_classification", ("Infected", "Healthy", "WBC")),
    "segmentation": TaskSpec("segmentation", "segmentation", ("cell",)),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
    "value": TaskSpec("value", "regression", ()),
}
SIZE = 160


def scene(index: int) -> tuple[ImageResult, ImageResult, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(index)
    count = int(generator.integers(20, 50))
    labels = generator.choice([0, 1, 2], count, p=[0.15, 0.83, 0.02])
    points = generator.uniform(12, SIZE - 12, (count, 2)).astype(np.float32)
    boxes = np.concatenate([points - 9, points + 9], axis=1)
    noise = generator.normal(0, 1.5, boxes.shape).astype(np.float32)
    guess = np.where(generator.random(count) < 0.85, labels, generator.choice([0, 1], count))
    keep = generator.random(count) < 0.92
    scores = np.clip(generator.normal(0.75, 0.2, count), 0.05, 1).astype(np.float32)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((SIZE, SIZE), bool)
    for x, y in points:
        mask |= (columns - x) ** 2 + (rows - y) ** 2 < 81
    infected = labels == 0
    heatmap = np.zeros((1, SIZE // 8, SIZE // 8), np.float32)
    for x, y in points[infected]:
        heatmap[0, int(y // 8), int(x // 8)] = 0.8
    predicted: dict[str, Any] = {
        "detection": {"boxes": (boxes + noise)[keep], "labels": guess[keep], "scores": scores[keep]},
        "roi": {"probabilities": np.eye(3)[guess], "ids": np.arange(count)},
        "segmentation": {"probabilities": np.clip(mask * 0.7 + generator.normal(0.1, 0.15, (1, *mask.shape)), 0, 1)},
        "heatmap": {"heatmap": heatmap, "points": points[infected] + 1, "labels": np.zeros(infected.sum(), np.int64),
                    "scores": scores[infected], "stride": 8.0, "sigma": 1.0},
        "value": {"value": np.array(count + generator.normal(0, 4))},
    }  # fmt: skip
    truth: dict[str, Any] = {
        "detection": {"boxes": boxes, "labels": labels},
        "roi": {"labels": labels, "ids": np.arange(count)},
        "segmentation": {"mask": mask[None].astype(np.uint8)},
        "heatmap": {"points": points[infected], "labels": np.zeros(infected.sum(), np.int64)},
        "value": {"value": np.array(float(count))},
    }
    window = Window(0, 1, (0.1, 0.1), (0, 0), (0, 0), (SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE), (SIZE * 10, SIZE * 10))
    name, group, source = f"IMG_{index:03d}", f"patient {index // 3:02d}", ("points", "polygons")[index % 2]
    picture = np.where(mask[..., None], [205, 150, 170], [240, 232, 236]).astype(np.uint8)
    overlay = picture.copy()
    for x0, y0, x1, y1 in (boxes + noise)[keep].clip(0, SIZE - 1).astype(int):
        overlay[y0 : y1 + 1, [x0, x1]] = overlay[[y0, y1], x0 : x1 + 1] = (0, 114, 178)
    results = (ImageResult(name, group, source, window, tasks) for tasks in (predicted, truth))
    return (*results, overlay, picture)  # type: ignore[return-value]


def write_history(path: Path, epochs: int = 24) -> None:
    """Columns of a run whose validation ran every second epoch."""
    generator = np.random.default_rng(0)
    rows = []
    for epoch in range(epochs):
        rise = 1 - np.exp(-epoch / 8)
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": epoch * 40,
            "train/loss": 2.5 * np.exp(-epoch / 9) + 0.3,
            "seconds": 12.5,
        }
        row |= {f"train/{task}/loss": (k + 1) * np.exp(-epoch / (6 + k)) + 0.05 for k, task in enumerate(SPECS)}
        row |= {"lr/backbone": 1e-4 * (1 - epoch / epochs) + 1e-6, "lr/heads": 1e-3 * (1 - epoch / epochs) + 1e-5}
        row |= {f"weight/{task}": 1 + 0.3 * k * rise for k, task in enumerate(SPECS)}
        if epoch % 2:
            row |= {"val/loss": row["train/loss"] * 1.15, "val/score": 0.8 * rise}
            for task, names in {
                "detection": ("map50", "map", "f1_macro", "count_mae"),
                "segmentation": ("dice_per_image",),
            }.items():
                row |= {f"val/{task}/{name}": float(np.clip(0.8 * rise + generator.normal(0, 0.02), 0, 1)) for name in names}
        rows.append(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def content() -> ReportContent:
    evaluator = Evaluator(SPECS, {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)})
    pictures = {}
    for index in range(12):
        prediction, truth, overlay, picture = scene(index)
        evaluator.update(prediction, truth)
        pictures[truth.sample_id] = (overlay, picture)
    thresholds = evaluator.thresholds()
    statistics = TrainingStatistics(
        {"roi": [1, 9, 0], "detection": [40, 400, 3]}, {"detection": 12}, {"parasitemia": 8.0, "value": 30}
    )
    metrics = {"suite": "malaria_mttl <&>", "split": "test", "checkpoint": "checkpoints/best.ckpt", "seed": 0}
    metrics |= evaluator.summary(thresholds, bootstrap=50) | {"baseline": baseline_summary(evaluator, statistics)}
    ranked = sorted(evaluator.image_scores(thresholds).items(), key=lambda pair: pair[1])
    examples = [Example(name, score, *pictures[name], group="Worst examples") for name, score in ranked[:2]]
    examples += [Example(name, score, *pictures[name], group="Best examples") for name, score in ranked[-2:]]
    return ReportContent(
        metrics, evaluator.curves(thresholds), commit="c1a63eb", duration=4321.0, best_epoch=15, examples=examples,
        kept_apart="The patient is known for 2 of 3 images.",
        split_sizes={"train": (140, 28), "val": (30, 6), "test": (12, 4)}, split_note="not used: train 3",
        notes=["Boxes are derived from points."],
        config={"suite": "malaria_mttl", "seed": 0}, environment={"torch": "2.15.0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(content: ReportContent, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    write_history(folder / "metrics.csv")
    text = write_report(folder, content).read_text(encoding="utf-8")
    drawn = {entry.name for entry in (folder / "figures").iterdir()}
    assert {"training.svg", "detection_precision_recall.svg", "roi_confusion.svg", "parasitemia_patient.svg"} <= drawn
    assert "segmentation_precision_recall.svg" in drawn and "experts.svg" not in drawn
    return text


class Collector(HTMLParser):
    """Collects addresses and text, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Collector:
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    return collector


def test_page_needs_nothing_else(page: str) -> None:
    found = parsed(page)
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    assert sum(address.startswith("data:image/svg") for address in found.addresses) >= 9
    assert "<script" not in page and "@import" not in page and "url(" not in page


def test_page_says_everything(page: str, content: ReportContent) -> None:
    text = " ".join(" ".join(parsed(page).text).split())
    for words in (
        "malaria_mttl <&>", "12 images of 4 patients", "The patient is known for 2 of 3 images",
        "train 140 images of 28 patients", "test 12 images of 4 patients; not used: train 3",
        "1 h 12 min", "c1a63eb", "Boxes are derived from points.", "nothing detected", "Worst examples", "Best examples",
        "Per source", "polygons", "4 groups (patient)", "MAE per patient", "Threshold from validation: score",
        "AUPR, pixels pooled", "class AP (IoU .50:.95) AP50", "Masks compared at the size at which the network works",
    ):  # fmt: skip
        assert words in text, words
    value = content.metrics["tasks"]["detection"]["map50"]
    low, high = content.metrics["tasks"]["detection"]["ci95"]["map50"]
    assert f"mAP50 ↑ {value:.3f} {low:.3f} – {high:.3f} 0.000" in text
    assert "nan" not in re.findall(r"[a-z]+", text.lower()) and "None" not in text


def test_same_content_gives_the_same_page(content: ReportContent, page: str, tmp_path: Path) -> None:
    write_history(tmp_path / "metrics.csv")
    assert write_report(tmp_path, content).read_text(encoding="utf-8") == page


def test_run_without_history_cases_or_baseline(tmp_path: Path) -> None:
    evaluator = Evaluator(SPECS)
    metrics = {"suite": "s", "split": "all", "checkpoint": "c", "seed": 0} | evaluator.summary(
        evaluator.default_thresholds(), 0
    )
    found = parsed(write_report(tmp_path, ReportContent(metrics, evaluator.curves(evaluator.default_thresholds()))).read_text())
    assert "Training" not in found.text and "Cases" not in found.text


def test_history_columns_become_panels(tmp_path: Path) -> None:
    write_history(tmp_path / "metrics.csv")
    history, stages = history_columns(read_history(tmp_path))
    assert np.isnan(history["val/score"][0]) and np.isfinite(history["val/score"][1])
    figure = training.training_curves(history, best_epoch=3)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "loss",
        "training loss per task",
        "score",
        "detection",
        "segmentation",
        "learning rate",
        "balancer weight",
    ]
    lines = {line.get_label() for line in figure.axes[3].get_lines()}
    assert {"map50", "f1_macro"} <= lines and "count_mae" not in lines
    assert stages == [] and training.training_curves({}) is None
    assert history_columns(read_history(tmp_path / "missing")) == ({}, [])


def expert_history(epochs: int = 6) -> dict[str, np.ndarray]:
    """Two tasks with three experts, the second one watched in validation only, and a task without experts."""
    share = np.linspace(1 / 3, 0.8, epochs)
    history = {"epoch": np.arange(epochs, dtype=float), "train/loss": np.ones(epochs), "val/score": np.ones(epochs)}
    for stage, task in (("train", "grade"), ("val", "grade"), ("val", "lesions_ma")):
        history |= {f"{stage}/{task}/expert_1": share, f"{stage}/{task}/expert_2": (1 - share) / 2}
        history |= {f"{stage}/{task}/expert_3": (1 - share) / 2, f"{stage}/{task}/experts_used": np.full(epochs, 2.5)}
        history |= {f"{stage}/{task}/loss": np.ones(epochs)}
    history["val/grade/f1_macro"] = history["val/grade/quadratic_kappa"] = share
    history["train/plain/loss"] = np.ones(epochs)
    return history


def test_use_of_experts_has_a_figure_of_its_own() -> None:
    history = expert_history()
    figure = training.expert_use(history, best_epoch=2)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["grade", "lesions_ma", "experts used per image"]
    areas = figure.axes[0].collections
    assert len(areas) == 3 and [text.get_text() for text in figure.legends[0].get_texts()] == [
        "expert 1",
        "expert 2",
        "expert 3",
    ]
    # Areas are stacked to one; the first expert ends at its own share.
    assert [area.get_paths()[0].vertices[:, 1].max() for area in areas] == pytest.approx([0.8, 0.9, 1.0])
    assert {line.get_label() for line in figure.axes[2].get_lines()} >= {"grade", "lesions_ma"}
    assert training.expert_use({name: values for name, values in history.items() if "expert" not in name}) is None
    assert training.expert_use({}) is None
    once = training.expert_use({name: values[:1] for name, values in history.items()})
    assert once is not None and np.ptp(once.axes[0].collections[0].get_paths()[0].vertices[:, 0]) == pytest.approx(0.8)


def test_experts_are_no_metrics_of_the_training_figure() -> None:
    figure = training.training_curves(expert_history())
    assert figure is not None
    lines = {axes.get_title(): [line.get_label() for line in axes.get_lines()] for axes in figure.axes if axes.get_visible()}
    assert lines["training loss per task"] == ["grade", "plain"] and "lesions_ma" not in lines
    assert lines["grade"] == ["f1_macro", "quadratic_kappa"]


def test_pixel_curves_are_steps_under_their_area() -> None:
    curves = {"specks": {"recall": [0.0, 0.5, 1.0], "precision": [None, 0.8, 0.1], "threshold": [1.0, 0.5, 0.0]}}
    figure = figures.precision_recall(curves, {"specks": 0.45}, "AUPR")
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert line.get_drawstyle() == "steps-pre" and line.get_label() == "specks (AUPR 0.450)"
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    assert (np.diff(x) * y[1:]).sum() == pytest.approx(0.45) and "pixels" in figure.axes[0].get_title()
    objects = figures.precision_recall({"cell": {"recall": [0.0, 1.0], "precision": [1.0, 0.5]}}, {"cell": 0.7})
    assert objects is not None and objects.axes[0].get_lines()[0].get_label() == "cell (AP50 0.700)"


def test_masks_of_several_tasks_from_several_sources(tmp_path: Path) -> None:
    """Tasks with labels of different images, their mean, one picture per example, experts and grades."""
    specs = {name: TaskSpec(name, "segmentation", (f"{name}_class",)) for name in ("small", "large")}
    specs["grade"] = TaskSpec("grade", "classification", ("a", "b"), ordinal=True)
    study = {"both": STUDY_METRICS.build({"name": "task_mean", "tasks": ["small", "large"]}, specs)}
    evaluator, generator = Evaluator(specs, study, native=True), np.random.default_rng(0)
    window = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (8, 8), (32, 32), (8, 8), (16, 16))
    for index in range(12):
        masks = {task: generator.random((1, 16, 16)) < 0.3 for task in ("small", "large")}
        guess: dict[str, Any] = {task: {"probabilities": mask[:, ::2, ::2] * 0.9} for task, mask in masks.items()}
        truth: dict[str, Any] = {task: {"mask": mask.astype(np.uint8)} for task, mask in masks.items()}
        guess["grade"], graded = {"probabilities": generator.dirichlet([1, 1])}, {"grade": {"label": index % 2}}
        tasks = graded if index < 8 else truth
        name, source = f"i{index:02d}", "graded" if index < 8 else "masks"
        evaluator.update(*(ImageResult(name, name, source, window, part) for part in (guess, tasks)))
    thresholds = evaluator.default_thresholds()
    metrics = {"suite": "s", "split": "test", "checkpoint": "c", "seed": 0} | evaluator.summary(thresholds, bootstrap=20)
    metrics["baseline"] = baseline_summary(evaluator, TrainingStatistics({"grade": [3, 1]}))
    picture = np.zeros((30, 40, 3), np.uint8)
    examples = [
        Example("i00", 0.2, picture, group="Worst examples: graded"),
        Example("i08", 0.9, picture, picture, "Best examples: masks"),
    ]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        columns = expert_history()
        writer = csv.writer(file)
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    page = write_report(tmp_path, ReportContent(metrics, evaluator.curves(thresholds), examples=examples)).read_text()
    text = " ".join(" ".join(parsed(page).text).split())
    for words in (
        "8 labelled images", "4 labelled images", "Per task", "mean of the tasks' baselines", "quadratic weighted kappa",
        "Masks compared at the size of the original images", "Worst examples: graded", "Intervals of small, large rest on 4",
    ):  # fmt: skip
        assert words in text, words
    assert "Per source" not in text  # every task has one source here
    assert page.count('<figure class="example wide">') == 1 and page.count("Annotation of and prediction for i00") == 1
    assert page.count("Use of experts over training") == 1 and (tmp_path / "figures" / "experts.svg").is_file()
    assert "nan" not in re.findall(r"[a-z]+", text.lower()) and "None" not in text


def test_cells_tissue_and_the_score_of_slides(tmp_path: Path, cell_study: Any) -> None:
    evaluator = cell_study()
    thresholds = evaluator.thresholds()
    metrics = {"suite": "s", "split": "test", "checkpoint": "c", "seed": 0} | evaluator.summary(thresholds, bootstrap=20)
    training_images = [
        Record("t", "t", "rumc", "t", size=(128, 128), pixel_scale=2.0, class_counts={"lymphocyte": 12}, labels=("objects",))
    ]
    statistics = count_training(evaluator.specs, training_images, means={"til_score": 25.0})
    metrics["baseline"] = baseline_summary(evaluator, statistics)
    page = write_report(tmp_path, ReportContent(metrics, evaluator.curves(thresholds))).read_text()
    text = " ".join(" ".join(parsed(page).text).split())
    for words in (
        "FROC, mean of six sensitivities ↑", "sensitivity at 300 FP/mm² ↑", "a lattice of 2,930 points per mm2, as in training",
        "annotated per mm²", "Compared: 6 slides.", "training mean 25", "MAE per slide ↓", "slides without stroma ↓",
        "where a single false positive is", "no example of other in this split, so no mean contains it", "Per source",
    ):  # fmt: skip
        assert words in text, words
    drawn = {entry.stem for entry in (tmp_path / "figures").iterdir()}
    assert drawn == {"cells_froc", "cells_f1", "cells_precision_recall", "til_score_slide", "tissue_confusion"}
    assert "nan" not in re.findall(r"[a-z]+", text.lower()) and "None" not in text
    assert "AP ↑" in text and "IoU .50:.95" not in text  # one distance, no overlap
    constant = metrics["baseline"]["til_score"]["metrics"]
    true = evaluator.curves(thresholds)["til_score"]["agreement"]["slide"]["true"]
    assert constant["mae_slide"] == pytest.approx(np.mean(np.abs(np.array(true) - 25)))


def test_records_of_cells_survive_the_file(tmp_path: Path, cell_study: Any) -> None:
    evaluator = cell_study(2)
    save_records(tmp_path / "records.json", evaluator)
    again = evaluator.empty()
    again.extend(load_records(tmp_path / "records.json"))
    thresholds = evaluator.thresholds()
    assert str(again.compute(thresholds)) == str(evaluator.compute(thresholds)) and again.thresholds() == thresholds
    assert baseline_summary(again, TrainingStatistics(densities={"cells": [900.0]})).keys() == {"tissue", "cells"}


def test_operating_points_lie_on_the_curve() -> None:
    curve = {"rate": [5.0, 10.0, 20.0, 100.0], "sensitivity": {"cell": [0.1, 0.2, 0.2, 0.7]}, "hit_radius": 4, "area_mm2": 0.5}
    figure = figures.free_response(curve, {10: 0.2, 20: 0.2, 100: None}, {10: [0.1, 0.4], 20: None}, {"cell": 0.3})
    assert figure is not None
    (axis,) = figure.axes
    line, marked = axis.get_lines()[0], axis.get_lines()[-1]
    assert axis.get_xscale() == "log" and line.get_drawstyle() == "steps-post" and line.get_label() == "cell (FROC 0.300)"
    assert list(marked.get_xdata()) == [10, 20] and marked.get_label() == "operating points, 95 % interval"
    assert "4 µm" in axis.get_title() and [label.get_text() for label in axis.get_xticklabels()] == ["10", "20", "100"]
    assert figures.free_response(curve | {"sensitivity": {}}, {}, {}, {}) is None


def test_chosen_threshold_is_marked() -> None:
    curve = {"threshold": [0.0, 0.5, 1.0], "macro": [0.0, 1.0, 0.0]}
    figure = figures.threshold_curve(curve, {"score": 0.3}, "F1")
    assert figure is not None
    assert any(line.get_xdata()[0] == 0.3 for line in figure.axes[0].get_lines())  # type: ignore[index]
    assert figures.threshold_curve({"threshold": [0.5], "cell": [None]}, {}, "F1") is None


def test_numbers_and_pictures() -> None:
    assert [number(value) for value in (0.12345, None, float("nan"), 12345, 1e-5, 0.0)] == [
        "0.123",
        "–",
        "–",
        "12,345",
        "1.0e-05",
        "0.000",
    ]
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    cv2 = pytest.importorskip("cv2")
    encoded = np.frombuffer(base64.b64decode(image_uri(red).split(",")[1]), np.uint8)
    blue, _, reddest = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0]
    assert reddest > 240 and blue < 15


# -- volumes, sources, subgroups, stages -------------------------------------------------------------------------------


def curriculum(path: Path) -> None:
    """Three stages; the second one trains no masks."""
    rows = []
    for index, (stage, epochs) in enumerate((("warmup", 4), ("classify", 1), ("joint", 5))):
        for _ in range(epochs):
            epoch = len(rows)
            row: dict[str, Any] = {"epoch": epoch, "stage": stage, "seconds": 1.0, "val/score": epoch / 10}
            row |= {"val/tumor/dice_per_image": epoch / 10, "val/tumor/dice_per_case": epoch / 12}
            row["train/tumor/loss"] = "" if index == 1 else 1.0
            rows.append(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_stages_share_one_axis(tmp_path: Path) -> None:
    curriculum(tmp_path / "metrics.csv")
    history, stages = history_columns(read_history(tmp_path))
    assert "stage" not in history and history["epoch"].tolist() == list(range(10))
    assert [(stage.name, stage.first, stage.last) for stage in stages] == [
        ("warmup", 0, 3), ("classify", 4, 4), ("joint", 5, 9)
    ]  # fmt: skip
    figure = training.training_curves(history, 7, stages, {"tumor": "dice_per_case"})
    assert figure is not None
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    for axes in panels.values():
        assert [text.get_text() for text in axes.texts] == ["warmup", "classify", "joint"]
        assert {3.5, 4.5, 7.0} <= {float(np.ravel(line.get_xdata())[0]) for line in axes.get_lines()}
    assert panels["tumor"].get_lines()[0].get_label() == "dice_per_case"
    # The line of a task that a stage leaves out is broken there; a stage of one epoch still shows.
    (loss,) = (line for line in panels["training loss per task"].get_lines() if line.get_label() == "tumor")
    x, y = np.asarray(loss.get_xdata(), float), np.asarray(loss.get_ydata(), float)
    assert np.isnan(y[(x > 3) & (x < 5)]).all() and ((x > 3) & (x < 5)).any()
    assert panels["score"].get_lines()[0].get_marker() == "o"


def test_report_of_volumes_sources_subgroups_and_stages(
    tmp_path: Path, case_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = case_study()
    thresholds = study.default_thresholds()
    summary = study.summary(thresholds, 30)
    statistics = TrainingStatistics({"presence": [6, 4]}, by_source={"presence": {"scans": [1, 4], "web": [5, 0]}})
    summary["baseline"] = baseline_summary(study, statistics)
    last = {task: {name: entry[name] for name in entry["ci95"]} for task, entry in summary["tasks"].items()}
    first = {task: dict.fromkeys(values, 0.5) for task, values in last.items()}
    summary["stages"] = {
        "warmup": {"epochs": 4, "tasks": ["tumor"], "metrics": first, "ci95": {}},
        "joint": {"epochs": 6, "tasks": ["tumor", "presence"], "metrics": last},
    }
    curriculum(tmp_path / "metrics.csv")
    metrics = {"suite": "s", "split": "test", "checkpoint": "c", "seed": 0, **summary}
    drawn: list[Any] = []
    monkeypatch.setattr(training, "training_curves", lambda *arguments: drawn.append(arguments[1]))
    content = ReportContent(metrics, study.curves(thresholds), best_epoch=2, best_stage="joint")
    write_report(tmp_path, content)
    # Epoch 2 of the last stage is epoch 7 of the run.
    assert drawn == [7]
    monkeypatch.undo()
    page = write_report(tmp_path, content).read_text()
    text = " ".join(" ".join(parsed(page).text).split())
    presence, dice = summary["tasks"]["presence"], last["tumor"]["dice_per_image"]
    guess = summary["baseline"]["presence"]["from_source"]
    for words in (
        "HD95 in mm", "HD95, mean over cases ↓", "volume error per case (mm³) ↓", "By sex", "By grade", "high* 25 5",
        "* Fewer than 10 groups", "Largest gap of F1", "scans: source alone",
        f"source n sensitivity specificity balanced accuracy AUROC accuracy F1, macro over classes scans 30 "
        f"{presence['per_source']['scans']['sensitivity']:.3f}",
        f"all: source alone {guess['metrics']['sensitivity']:.3f}",
        f"all no_tumor {presence['confusion'][0][0]} {presence['confusion'][0][1]}",
        "Per case", "annotated (mm³)", "case00", "After each stage", "warmup (4 epochs)", "joint (6 epochs)",
        f"0.500 {dice:.3f} ({dice - 0.5:+.3f})", f"presence F1, macro over classes ↑ – {presence['f1_macro']:.3f} presence",
        "Shading and dashed lines separate the stages",
    ):  # fmt: skip
        assert words in text, words
    assert f"F1, macro over classes ↑ {presence['f1_macro']:.3f}" in text and "nan" not in re.findall(r"[a-z]+", text.lower())
    assert "None" not in text
