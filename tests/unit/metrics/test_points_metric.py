"""Points against a naive reference that loops over thresholds and images, and the properties that the numbers rest on."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np
import pytest

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.kinds.base import rules_named
from mtl.metrics.base import SCORE_GRID
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.matching import RECALLS, match_points
from mtl.metrics.points import CURVE_RATES, FALSE_POSITIVES_PER_MM2, PointsMetric, lattice

SPEC = TaskSpec("cells", "points", ("lymphocyte",))
RADIUS = 4.0
Image = tuple[dict[str, Any], dict[str, Any], tuple[float, float]]


def image(
    points: Any, scores: Any, cells: Any, region: np.ndarray | None = None, scale: tuple[float, float] = (2.0, 2.0),
    labels: Any = None, cell_labels: Any = None,
) -> Image:  # fmt: skip
    """One image; positions in working pixels."""
    found, annotated = np.asarray(points, np.float32).reshape(-1, 2), np.asarray(cells, np.float32).reshape(-1, 2)
    prediction = {
        "points": found, "scores": np.asarray(scores, np.float32),
        "labels": np.zeros(len(found), np.int64) if labels is None else np.asarray(labels, np.int64),
    }  # fmt: skip
    truth = {
        "points": annotated, "region": np.ones((200, 200), bool) if region is None else region,
        "labels": np.zeros(len(annotated), np.int64) if cell_labels is None else np.asarray(cell_labels, np.int64),
    }  # fmt: skip
    return prediction, truth, scale


def metric_of(images: list[Image], spec: TaskSpec = SPEC, radius: float = RADIUS) -> PointsMetric:
    metric = PointsMetric(spec, radius)
    for index, (prediction, truth, scale) in enumerate(images):
        identity = {"sample_id": f"{index:03d}", "group": f"g{index}", "source": "s"}
        metric.add([identity | metric.reduce(prediction, truth, scale)])
    return metric


def random_images(generator: np.random.Generator, ties: bool, count: int = 5) -> list[Image]:
    """Noisy copies of cells, duplicates and false alarms; an image without cells, one without predictions, two spacings."""
    images = []
    for index in range(count):
        scale = [(2.0, 2.0), (1.3, 1.1)][index % 2]
        height, width = int(generator.integers(100, 240)), int(generator.integers(100, 240))
        cells = generator.uniform(0, 1, (0 if index == 3 else int(generator.integers(5, 40)), 2)) * (width, height)
        copies = np.repeat(cells, generator.integers(0, 3, len(cells)), axis=0)
        copies = copies + generator.normal(0, 4, copies.shape)
        points = np.concatenate([copies, generator.uniform(0, 1, (15, 2)) * (width, height)])
        points = np.clip(points, 0, (width, height))[: 0 if index == 4 else None]
        scores = generator.uniform(0.05, 1, len(points))
        region = np.ones((height, width), bool)
        if index == 1:
            region[:, : width // 3] = False
        images.append(image(points, np.round(scores, 1) if ties else scores, cells, region, scale))
    return images


# -- the naive reference -----------------------------------------------------------------------------------------------


def count(one: Image, threshold: float) -> tuple[int, int, int]:
    """Hits, false positives and annotated cells of one image: match again among what reaches the threshold."""
    prediction, truth, scale = one
    kept = [i for i in np.argsort(-prediction["scores"], kind="stable") if prediction["scores"][i] >= np.float32(threshold)]
    free = list(range(len(truth["points"])))
    hits = false = 0
    for i in kept:
        near: list[tuple[float, int]] = []
        for j in free:
            x, y = (prediction["points"][i].astype(float) - truth["points"][j].astype(float)) / scale
            if np.hypot(x, y) <= RADIUS:
                near.append((float(np.hypot(x, y)), j))
        if near:
            free.remove(min(near)[1])
            hits += 1
            continue
        height, width = truth["region"].shape
        column, row = (int(np.floor(v)) for v in prediction["points"][i])
        false += bool(truth["region"][min(row, height - 1), min(column, width - 1)])
    return hits, false, len(truth["points"])


def area(one: Image) -> float:
    return float(one[1]["region"].sum()) / (one[2][0] * one[2][1]) / 1e6


def reference(images: list[Image]) -> dict[str, Any]:
    thresholds = sorted({float(score) for one in images for score in one[0]["scores"]}, reverse=True)
    mm2 = sum(area(one) for one in images)
    curve = []
    for threshold in thresholds:
        hits, false, cells = np.sum([count(one, threshold) for one in images], axis=0)
        curve.append((false / mm2, hits / cells, hits / max(hits + false, 1)))
    found: dict[str, Any] = {
        f"sensitivity_at_{rate}": max([s for r, s, _ in curve if r <= rate * (1 + 1e-9)], default=0.0)
        for rate in FALSE_POSITIVES_PER_MM2
    }
    found["froc"] = np.mean(list(found.values()))
    found["ap"] = np.mean([max([p for _, s, p in curve if s >= recall], default=0.0) for recall in RECALLS])
    return found


def at_threshold(images: list[Image], threshold: float) -> dict[str, float]:
    counts = [count(one, threshold) for one in images]
    hits, false, cells = np.sum(counts, axis=0)
    return {
        "precision": hits / (hits + false) if hits + false else 0.0, "recall": hits / cells,
        "f1": 2 * hits / (hits + false + cells), "count_mae": float(np.mean([abs(h + f - n) for h, f, n in counts])),
    }  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_naive_reference(seed: int, ties: bool) -> None:
    images = random_images(np.random.default_rng(seed), ties)
    metric, expected = metric_of(images), reference(images)
    for threshold in (0.3, 0.5, 0.8):
        values = metric.compute({"score": threshold})
        assert values == pytest.approx(expected | at_threshold(images, threshold), abs=1e-12)
    assert list(values) == list(rules_named("points").metric_class.names)
    assert 0 < values["froc"] < values["sensitivity_at_300"] < 1


def test_weights_equal_repeated_images() -> None:
    """A bootstrap that draws an image twice counts its cells, false positives and area twice."""
    images = random_images(np.random.default_rng(5), ties=True)
    weighted = metric_of(images).compute({"score": 0.4}, np.array([2, 0, 3, 1, 1]))
    repeated = [images[0]] * 2 + [images[2]] * 3 + images[3:]
    assert weighted == pytest.approx(metric_of(repeated).compute({"score": 0.4}), abs=1e-12)
    assert weighted == pytest.approx(reference(repeated) | at_threshold(repeated, 0.4), abs=1e-12)


def test_a_threshold_takes_all_equal_scores() -> None:
    """A hundred points with one score are one operating point, in whatever order they come."""
    cells = np.stack([np.arange(10) * 19.0 + 5, np.full(10, 50.0)], axis=1)
    wrong = np.stack([np.arange(10) * 19.0 + 5, np.full(10, 150.0)], axis=1)
    for points in (np.concatenate([cells, wrong]), np.concatenate([wrong, cells])):
        values = metric_of([image(points, np.ones(20), cells)]).compute({"score": 0.5})  # 0.01 mm2: 1000 false per mm2
        assert values["froc"] == 0.0 and values["recall"] == 1.0 and values["ap"] == 0.5
    apart = metric_of([image(np.concatenate([cells, wrong]), [1.0] * 10 + [0.9] * 10, cells)]).compute({"score": 0.5})
    assert apart["froc"] == 1.0 and apart["ap"] == 1.0


def test_operating_point_may_be_reached_exactly() -> None:
    """One false positive in 0.1 mm2 is 10 per mm2, which is allowed at 10; the steps are not interpolated."""
    region = np.ones((400, 1000), bool)
    cells = [[100.0, 100.0], [300.0, 300.0]]
    found = metric_of([image([[900, 100], cells[0], [900, 300], cells[1]], [0.9, 0.8, 0.7, 0.6], cells, region)])
    values = found.compute({"score": 0.5})
    assert found.records[0]["area"] == pytest.approx(0.1)
    assert [values[f"sensitivity_at_{rate}"] for rate in (10, 20, 300)] == [0.5, 1.0, 1.0]
    smaller = metric_of([image([[900, 100], cells[0]], [0.9, 0.8], cells, region[:399])]).compute({"score": 0.5})
    assert smaller["sensitivity_at_10"] == 0.0 and smaller["sensitivity_at_20"] == 0.5


def test_without_false_positives_even_the_first_point_is_reached() -> None:
    cells = [[20.0, 20.0], [100.0, 100.0]]
    values = metric_of([image(cells[:1], [0.2], cells)]).compute({"score": 0.5})
    assert values["froc"] == 0.5 and values["recall"] == 0.0  # the curve knows no stored threshold


# -- matching ----------------------------------------------------------------------------------------------------------


def test_touching_cells_need_two_points() -> None:
    """Cells 3 um apart: one point between them finds one of them, two points find both."""
    cells = [[50.0, 50.0], [56.0, 50.0]]
    one = metric_of([image([[53.0, 50.0]], [0.9], cells)]).compute({"score": 0.5})
    assert (one["recall"], one["precision"]) == (0.5, 1.0)
    both = metric_of([image([[50.0, 51.0], [57.0, 50.0]], [0.9, 0.8], cells)]).compute({"score": 0.5})
    assert (both["recall"], both["precision"]) == (1.0, 1.0)
    # The better point takes the nearest cell, which leaves the other one to the second.
    shared = metric_of([image([[52.0, 50.0], [54.0, 50.0]], [0.9, 0.8], cells)]).compute({"score": 0.5})
    assert shared["recall"] == 1.0


def test_duplicates_are_false_positives() -> None:
    values = metric_of([image([[50, 50], [51, 50], [50, 51]], [0.9, 0.8, 0.7], [[50.0, 50.0]])]).compute({"score": 0.5})
    assert values["precision"] == pytest.approx(1 / 3) and values["recall"] == 1.0 and values["count_mae"] == 2.0


@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.0, 1.0), (4.0, 1.0)])
def test_radius_is_in_microns(scale: tuple[float, float]) -> None:
    cell = np.array([100.0, 100.0])
    for axis in (0, 1):
        for distance, hit in ((4.0, 1.0), (4.01, 0.0)):
            point = cell.copy()
            point[axis] += distance * scale[axis]
            assert metric_of([image([point], [0.9], [cell], scale=scale)]).compute({"score": 0.5})["recall"] == hit
    record = metric_of([image([], [], [cell], scale=scale)]).records[0]
    assert record["area"] == pytest.approx(200 * 200 / (scale[0] * scale[1]) * 1e-6)


def test_greedy_matching_is_one_to_one(generator: np.random.Generator) -> None:
    """Never more hits than a largest possible matching, at least half as many, and none shares a cell."""
    from scipy.optimize import linear_sum_assignment

    for _ in range(20):
        cells = generator.uniform(0, 40, (25, 2))
        points = generator.uniform(0, 40, (60, 2))
        close = np.linalg.norm(points[:, None] - cells[None], axis=2) <= RADIUS
        rows, columns = linear_sum_assignment(close, maximize=True)
        largest, hits = int(close[rows, columns].sum()), int(match_points(points, cells, RADIUS).sum())
        assert largest / 2 <= hits <= min(largest, len(cells)) and hits > 0
        for kept in (5, 30):
            np.testing.assert_array_equal(
                match_points(points, cells, RADIUS)[:kept], match_points(points[:kept], cells, RADIUS)
            )


def test_cells_that_do_not_touch_are_counted_as_the_challenge_does(generator: np.random.Generator) -> None:
    """Its order is cell by cell, each taking the nearest unused point; that differs only where a point reaches two cells."""
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 9.0
    for _ in range(10):
        cells = grid[generator.permutation(36)[:20]]
        points = generator.uniform(-4, 50, (50, 2))
        used: set[int] = set()
        hits = 0
        for cell in cells:
            distance = np.linalg.norm(points - cell, axis=1)
            free = [i for i in np.argsort(distance) if distance[i] <= RADIUS and i not in used]
            used |= set(free[:1])
            hits += bool(free)
        assert match_points(points, cells, RADIUS).sum() == hits


# -- regions, classes, nothing -----------------------------------------------------------------------------------------


def test_outside_the_region_only_hits_count() -> None:
    region = np.ones((100, 100), bool)
    region[:, 50:] = False
    cells = [[20.0, 20.0], [80.0, 20.0]]  # one cell was annotated outside
    points = [[20, 20], [80, 20], [80, 80], [82, 20], [20, 80], [100, 100]]
    metric = metric_of([image(points, [0.9] * 6, cells, region)])
    values = metric.compute({"score": 0.5})
    assert values["recall"] == 1.0 and values["precision"] == pytest.approx(2 / 3)  # the false one lies at (20, 80)
    assert values["count_mae"] == 1.0 and len(metric.records[0]["scores"]) == 3
    assert metric.records[0]["area"] == pytest.approx(100 * 50 / 4 * 1e-6)


def test_no_annotated_cell_has_no_sensitivity() -> None:
    silent = metric_of([image([], [], [])]).compute({"score": 0.5})
    assert all(np.isnan(value) for name, value in silent.items() if name != "count_mae") and silent["count_mae"] == 0
    loud = metric_of([image([[5, 5]], [0.9], [])]).compute({"score": 0.5})
    assert np.isnan(loud["froc"]) and np.isnan(loud["ap"]) and loud["precision"] == loud["f1"] == 0.0
    missed = metric_of([image([], [], [[5, 5]])]).compute({"score": 0.5})
    assert missed["froc"] == missed["f1"] == missed["ap"] == 0.0 and missed["count_mae"] == 1.0
    empty = metric_of([])
    assert all(np.isnan(value) for value in empty.compute({"score": 0.5}).values())
    assert empty.choose_thresholds() == {"score": 0.5} and empty.details({"score": 0.5})["per_class"] == {}


def test_images_without_cells_cost_precision() -> None:
    """A true negative adds area and false positives."""
    labelled = image([[50, 50]], [0.9], [[50.0, 50.0]])
    negative = image([[20, 20], [90, 90]], [0.95, 0.2], [])
    alone, both = (metric_of(images).compute({"score": 0.5}) for images in ([labelled], [labelled, negative]))
    assert alone["froc"] == 1.0 and both["sensitivity_at_50"] == 1.0 and both["sensitivity_at_20"] == 0.0
    assert (alone["precision"], both["precision"]) == (1.0, 0.5)


def test_classes_are_matched_apart_and_averaged() -> None:
    spec = TaskSpec("cells", "points", ("lymphocyte", "monocyte", "never"))
    cells, kinds = [[20.0, 20.0], [100.0, 100.0]], [0, 1]
    metric = metric_of([image([cells[0], cells[1]], [0.9, 0.8], cells, labels=[0, 0], cell_labels=kinds)], spec)
    values, rows = metric.compute({"score": 0.5}), metric.details({"score": 0.5})["per_class"]
    assert (rows["lymphocyte"]["froc"], rows["monocyte"]["froc"]) == (1.0, 0.0) and np.isnan(rows["never"]["froc"])
    assert values["froc"] == 0.5 and values["ap"] == 0.5 and values["precision"] == 0.5 and values["count_mae"] == 0.0
    curves = metric.details({"score": 0.5})["curves"]
    assert list(curves["froc"]["sensitivity"]) == ["lymphocyte", "monocyte"] and "pooled" in curves["f1"]


# -- thresholds, curves, the evaluator ---------------------------------------------------------------------------------


def test_chosen_threshold_has_the_best_f1() -> None:
    images = random_images(np.random.default_rng(2), ties=False)
    metric = metric_of(images)
    chosen = metric.choose_thresholds()["score"]
    scores = [at_threshold(images, threshold)["f1"] for threshold in SCORE_GRID]
    assert at_threshold(images, chosen)["f1"] == pytest.approx(max(scores))
    assert metric.details({"score": chosen})["curves"]["f1"]["lymphocyte"] == pytest.approx(scores)


def test_curve_agrees_with_the_operating_points() -> None:
    metric = metric_of(random_images(np.random.default_rng(4), ties=True))
    values, details = metric.compute({"score": 0.5}), metric.details({"score": 0.5})
    curve = details["curves"]["froc"]
    assert curve["rate"] == list(CURVE_RATES) and np.all(np.diff(curve["sensitivity"]["lymphocyte"]) >= 0)
    for rate in FALSE_POSITIVES_PER_MM2:
        assert curve["sensitivity"]["lymphocyte"][curve["rate"].index(rate)] == values[f"sensitivity_at_{rate}"]
    row = details["per_class"]["lymphocyte"]
    assert row["per_mm2"] == pytest.approx(row["n"] / sum(record["area"] for record in metric.records))
    assert row["froc"] == values["froc"] and row["f1"] == pytest.approx(values["f1"])


def result(name: str, tasks: dict[str, Any], scale: float = 0.5, group: str = "", source: str = "s") -> ImageResult:
    """An image of 0.25 um per pixel, seen at `scale`: 4 * scale working pixels per micron."""
    window = Window(0, 1, (scale, scale), (0, 0), (0, 0), (200, 200), (200, 200), (200, 200), (400, 400), pixel_scale=4.0)
    return ImageResult(name, group or name, source, window, {"cells": tasks})


def test_evaluator_matches_within_its_radius() -> None:
    cell, off = [[100.0, 100.0]], [[100.0, 105.0]]  # 2.5 um
    for radius, hit in ((4.0, 1.0), (2.0, 0.0)):
        evaluator = Evaluator({"cells": SPEC}, hit_radius=radius)
        prediction, truth, _ = image(off, [0.9], cell)
        evaluator.update(result("a", prediction), result("a", truth))
        assert evaluator.compute({"cells": {"score": 0.5}})["cells"]["recall"] == hit
        assert evaluator.empty().metrics["cells"].hit_radius == radius  # type: ignore[attr-defined]


def test_summary_of_a_study() -> None:
    """Sources apart, intervals over slides, and a word on an area that is too small for ten false positives per mm2."""
    evaluator, generator = Evaluator({"cells": SPEC}, group_by="slide"), np.random.default_rng(0)
    for index in range(12):
        cells = generator.uniform(0, 200, (0 if index == 5 else 10, 2))
        points = np.concatenate([cells + generator.normal(0, 3, cells.shape), generator.uniform(0, 200, (4, 2))])
        prediction, truth, _ = image(points, generator.uniform(0, 1, len(points)), cells)
        name, group, source = f"i{index:02d}", f"slide{index // 2}", ("rumc", "tcga")[index % 2]
        evaluator.update(result(name, prediction, group=group, source=source), result(name, truth, group=group, source=source))
    thresholds = evaluator.thresholds()
    summary = evaluator.summary(thresholds, bootstrap=30)
    entry = summary["tasks"]["cells"]
    low, high = entry["ci95"]["froc"]
    assert low <= entry["froc"] <= high and entry["n"] == 12 and set(entry["per_source"]) == {"rumc", "tcga"}
    # 12 images of 0.01 mm2 are enough, those of one source alone are not.
    assert not any("false positive" in note for note in summary["notes"])
    half = Evaluator({"cells": SPEC})
    half.extend({"samples": evaluator.records()["samples"][:6], "tasks": evaluator.records()["tasks"]})
    (note,) = [note for note in half.summary(thresholds, bootstrap=0)["notes"] if "false positive" in note]
    assert "0.06 mm2, where a single false positive is 17 per mm2" in note
    scores = evaluator.image_scores(thresholds)
    assert scores["i00"] == pytest.approx(metric_f1(evaluator, "i00", thresholds)) and len(scores) == 12


def metric_f1(evaluator: Evaluator, name: str, thresholds: dict[str, dict[str, float]]) -> float:
    alone = PointsMetric(SPEC)
    alone.add([record for record in evaluator.metrics["cells"].records if record["sample_id"] == name])
    return alone.compute(thresholds["cells"])["f1"]


# -- what baselines are made of ----------------------------------------------------------------------------------------


def test_lattice_covers_evenly_at_every_length() -> None:
    for length in (16, 100, 1000):
        points = lattice(1000)[:length]
        assert points.min() >= 0 and points.max() < 1
        counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[[0, 1], [0, 1]])[0]
        assert counts.min() >= 0.6 * length / 16 - 1 and counts.max() <= 1.4 * length / 16 + 1
    np.testing.assert_array_equal(lattice(10), lattice(1000)[:10])
    assert not np.isclose(lattice(10, seed=1), lattice(10)).any()


def test_chance_is_what_matching_a_lattice_gives() -> None:
    region = np.ones((120, 200), bool)
    region[60:] = False
    generator = np.random.default_rng(1)
    cells = generator.uniform(0, 1, (30, 2)) * (200, 120)
    metric = metric_of([image([], [], cells, region)])
    record = metric.records[0]
    cells_in_um = np.asarray(cells, np.float32).astype(float) / 2.0
    scattered = lattice(len(record["chance"]), zlib.crc32(cells_in_um.astype(np.float32).tobytes())) * (200, 120)
    assert record["frame"] == pytest.approx(200 * 120 / 4 * 1e-6) and len(scattered) == int(record["frame"] * 5000) + 1
    for kept in (5, len(scattered)):
        scores = np.linspace(1, 0.5, len(scattered))[:kept]
        direct = metric_of([image(scattered[:kept], scores, cells, region)])
        chance = record["chance"][:kept, 0]
        assert direct.records[0]["hits"].sum() == (chance == 1).sum() > 0
        assert len(direct.records[0]["hits"]) == (chance >= 0).sum()
    assert (record["chance"] == -1).any()


def test_a_large_region_needs_little_time_and_memory(generator: np.random.Generator) -> None:
    import tracemalloc

    cells, points = generator.uniform(0, 2000, (3000, 2)), generator.uniform(0, 2000, (20000, 2))
    one = image(points, generator.uniform(0, 1, 20000), cells, np.ones((2000, 2000), bool))
    tracemalloc.start()
    began = time.perf_counter()
    metric = metric_of([one])
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All distances at once would be 480 MB.
    assert seconds < 5 and peak < 100e6, f"{seconds:.1f} s, {peak / 1e6:.0f} MB"
    assert metric.records[0]["hits"].sum() > 1000
