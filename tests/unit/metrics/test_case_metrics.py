"""Slices of volumes: overlap, volume and distance of whole cases, by hand and against the stacked masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.segmentation import SegmentationMetric
from mtl.metrics.statistics import GroupBootstrap
from mtl.metrics.surface import hd95

SPEC = TaskSpec("tumor", "segmentation", ("a", "b"), volumetric=True)
HALF = {"a": 0.5, "b": 0.5}
Slices = dict[str, tuple[np.ndarray, np.ndarray]]


def cases(generator: np.random.Generator, names: str = "xyz", shape: tuple[int, ...] = (12, 4, 7, 9)) -> Slices:
    """By case, probabilities and masks [slices, K, H, W]; class `b` of the first case is neither there nor found."""
    found = {}
    for name in names:
        size = (shape[0], 2, *shape[2:])
        mask = (generator.random(size) < 0.15).astype(np.uint8)
        guess = np.where(generator.random(size) < 0.9, mask, 1 - mask) * 0.6
        if name == names[0]:
            mask[:, 1] = guess[:, 1] = 0
        found[name] = (guess.astype(np.float32), mask)
    return found


def filled(found: Slices, spacing: Any = (3.0, 1.0, 0.5), surfaces: bool = False) -> SegmentationMetric:
    metric = SegmentationMetric(SPEC)
    if surfaces:
        metric.measure_surfaces(HALF)
    for case, (guess, masks) in found.items():
        # Numbers in names are not padded: slice 10 comes after slice 9.
        for index, (probabilities, mask) in enumerate(zip(guess, masks, strict=True)):
            truth = {"mask": mask} | ({} if spacing is None else {"steps": np.diag(spacing)})
            record = metric.reduce({"probabilities": probabilities}, truth, (1, 1))
            metric.add([{"sample_id": f"{case}_{index}", "group": case, "source": "s"} | record])
    metric.finish()
    return metric


def hard(found: Slices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per case and class the volumes [slices, H, W] as bool."""
    return [(guess[:, k] >= 0.5, mask[:, k] > 0) for guess, mask in found.values() for k in range(2)]


def test_cases_equal_stacked_masks(generator: np.random.Generator) -> None:
    found = cases(generator)
    values = filled(found).compute(HALF)
    dice = [2 * (p & t).sum() / (p.sum() + t.sum()) if p.any() or t.any() else 1.0 for p, t in hard(found)]
    iou = [(p & t).sum() / (p | t).sum() if p.any() or t.any() else 1.0 for p, t in hard(found)]
    error = [1.5 * abs(int(p.sum()) - int(t.sum())) for p, t in hard(found)]
    assert values["dice_per_case"] == pytest.approx(np.mean(dice))
    assert values["iou_per_case"] == pytest.approx(np.mean(iou))
    assert values["mae_volume_mm3"] == pytest.approx(np.mean(error)) and values["mae_volume_mm3"] > 0
    assert dice[1] == 1.0 and values["dice_per_case"] != pytest.approx(values["dice_per_image"])
    assert tuple(values) == SPEC.metrics


def test_slices_with_annotation_only() -> None:
    spec = replace(SPEC, volumetric=False)
    metric = SegmentationMetric(spec)
    mask = np.zeros((3, 2, 1, 4), np.uint8)
    mask[0, 0, 0, :2] = mask[1, 0, 0, :1] = 1
    guess = np.zeros((3, 2, 1, 4), np.float32)
    guess[0, 0, 0, :2] = guess[1, 0, 0, :3] = guess[2, 0, 0, 0] = 0.9
    for index in range(3):
        record = metric.reduce({"probabilities": guess[index]}, {"mask": mask[index]}, (1, 1))
        metric.add([{"sample_id": str(index), "group": "g", "source": "s"} | record])
    values = metric.compute(HALF)
    # Class b is annotated nowhere and in no such mean; silence about it counts as 1 in the mean over all images.
    assert values["dice_nonempty"] == pytest.approx((1 + 0.5) / 2) and values["iou_nonempty"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["dice_per_image"] == pytest.approx(((1 + 0.5 + 0) / 3 + 1) / 2)
    row = metric.details(HALF)["per_class"]
    assert row["a"]["iou_nonempty"] == values["iou_nonempty"] and np.isnan(row["b"]["dice_nonempty"])
    silent = metric.compute(HALF, np.array([0, 0, 1]))
    assert np.isnan(silent["dice_nonempty"]) and "dice_per_case" not in values


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 0.5), None])
def test_distances_equal_stacked_masks(generator: np.random.Generator, spacing: Any) -> None:
    found = cases(generator)
    metric = filled(found, spacing, surfaces=True)
    values, steps = metric.compute(HALF), (1.0, 1.0, 1.0) if spacing is None else spacing
    whole = np.array([hd95(p, t, steps) for p, t in hard(found)]).reshape(3, 2)
    flat = np.array([[[hd95(p, t, steps[1:]) for p, t in zip(*pair, strict=True)]] for pair in hard(found)]).reshape(3, 2, -1)
    assert np.isnan(whole[0, 1]) and np.isnan(flat[0, 1]).all()
    assert values["hd95_per_case"] == pytest.approx(np.nanmean(np.nanmean(whole, axis=0)))
    assert values["hd95_per_image"] == pytest.approx(np.nanmean(np.nanmean(flat, axis=(0, 2))))
    assert metric.distances_in_mm is (spacing is not None)
    table = metric.case_table(HALF)
    assert table["z"]["b"]["hd95"] == pytest.approx(whole[2, 1]) and table["x"]["a"]["slices"] == 12
    guess, mask = hard(found)[5]
    assert table["z"]["b"]["volume_predicted_mm3"] == pytest.approx(guess.sum() * 1.5 if spacing else np.nan, nan_ok=True)
    assert table["z"]["b"]["volume_annotated_mm3"] == pytest.approx(mask.sum() * 1.5 if spacing else np.nan, nan_ok=True)
    assert np.isnan(values["mae_volume_mm3"]) == (spacing is None)
    assert not any("masks" in record for record in metric.records)


def test_nothing_is_measured_unasked(generator: np.random.Generator) -> None:
    metric = filled(cases(generator))
    assert metric.distances_in_mm is None and not any("hd95" in key for key in metric.compute(HALF))
    assert "hd95" not in metric.case_table(HALF)["x"]["a"] and not any("hd95" in record for record in metric.records)


def test_pixels_and_millimetres_are_not_mixed(generator: np.random.Generator) -> None:
    found = cases(generator)
    some = filled({"y": found["y"]}, surfaces=True)
    both = filled({"y": found["y"]}, surfaces=True)
    both.add(filled({"z": found["z"]}, None, surfaces=True).records)
    for name in ("hd95_per_image", "hd95_per_case", "mae_volume_mm3"):
        assert both.compute(HALF)[name] == pytest.approx(some.compute(HALF)[name])


def test_slices_of_different_size_have_no_distance(generator: np.random.Generator) -> None:
    metric = filled(cases(generator, "y"), surfaces=True)
    other = cases(generator, "y", (12, 2, 5, 5))["y"]
    metric.measure_surfaces(HALF)
    for index, (guess, mask) in enumerate(zip(*other, strict=True)):
        for size in (guess, np.pad(guess, [(0, 0), (0, 1), (0, 0)])):
            padded = np.pad(mask, [(0, 0), (0, size.shape[1] - 5), (0, 0)])
            record = metric.reduce({"probabilities": size}, {"mask": padded}, (1, 1))
            metric.add([{"sample_id": f"w{index}{size.shape}", "group": "w", "source": "s"} | record])
    metric.finish()
    assert all(np.isnan(row["hd95"]) for row in metric.case_table(HALF)["w"].values())
    assert np.isfinite(metric.compute(HALF)["hd95_per_case"])


def test_whole_cases_are_drawn(generator: np.random.Generator) -> None:
    found = cases(generator)
    metric = filled(found, surfaces=True)
    index = np.array(["xyz".index(record["group"]) for record in metric.records])
    weighted = metric.compute(HALF, np.array([0, 2, 1])[index])
    repeated = filled({"y1": found["y"], "y2": found["y"], "z": found["z"]}, surfaces=True).compute(HALF)
    assert weighted == pytest.approx(repeated)
    # Slices that do not count are not part of their case.
    first = metric.compute(HALF, np.array([record["sample_id"] in ("y_0", "y_1") for record in metric.records], float))
    short = filled({"y": tuple(part[:2] for part in found["y"])}).compute(HALF)  # type: ignore[dict-item]
    assert {name: first[name] for name in short} == pytest.approx(short)


def test_bootstrap_draws_cases_not_slices(generator: np.random.Generator) -> None:
    """Twenty-four slices of two cases are two cases: every resample is one of three mixtures."""
    evaluator = Evaluator({"tumor": SPEC})
    evaluator.metrics["tumor"] = filled(cases(generator, "xy"))
    bootstrap = GroupBootstrap(["x", "y"], 60)
    step = evaluator.compute_by_group({"tumor": HALF}, bootstrap.names)
    drawn = {round(step(counts)["tumor"]["dice_per_case"], 9) for counts in bootstrap.counts}
    assert len(drawn) == 3


@pytest.mark.parametrize("skew", [None, (0.6, 0.0, 0.0), (-0.6, 0.0, 0.0)])
@pytest.mark.parametrize("native", [False, True])
def test_spacing_belongs_to_original_pixels(native: bool, skew: tuple[float, float, float] | None) -> None:
    """The working raster has half the rows and a quarter of the columns: one of its pixels holds eight original ones."""
    window = Window(0, 1, (0.25, 0.5), (0, 0), (0, 0), (8, 8), (8, 8), (8, 8), (16, 32))
    evaluator = Evaluator({"tumor": replace(SPEC, classes=("a",))}, native=native)
    guess = np.zeros((1, 8, 8), np.float32)
    guess[0, 2:6, 2:6] = 1.0
    mask = np.zeros((1, *((16, 32) if native else (8, 8))), np.uint8)
    known = ImageResult("s1", "case", "s", window, {"tumor": {"mask": mask}}, {}, (5.0, 1.0, 0.5), skew=skew)
    evaluator.update(ImageResult("s1", "case", "s", window, {"tumor": {"probabilities": guess}}), known)
    values = evaluator.compute({"tumor": {"a": 0.5}})["tumor"]
    assert values["mae_volume_mm3"] == pytest.approx(16 * 8 * 5 * 0.5 * (0.8 if skew else 1.0), rel=0.04)
    assert "steps" not in known.tasks["tumor"]


def test_multiclass_masks_have_distances_too() -> None:
    spec = TaskSpec("tissue", "segmentation", ("bg", "fg"), multilabel=False, volumetric=True)
    metric = SegmentationMetric(spec)
    metric.measure_surfaces({})
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1], mask[5, 5] = 1, 255
    probabilities = np.eye(2, dtype=np.float32)[np.roll(mask * (mask < 2), 2, axis=1)].transpose(2, 0, 1)
    record = metric.reduce({"probabilities": probabilities}, {"mask": mask, "steps": np.diag([1.0, 1.0, 3.0])}, (1, 1))
    metric.add([{"sample_id": "a", "group": "g", "source": "s"} | record])
    metric.finish()
    # The ignored pixel belongs to no class; two columns of 3 mm lie between the marked pixels.
    assert record["hd95"][1] == metric.records[0]["hd95_case"][1] == 6.0
    assert metric.compute({})["hd95_per_image"] == pytest.approx((record["hd95"][0] + 6) / 2)


def visits(*groups: str) -> Evaluator:
    """Two visits per group: the first is found perfectly, the second is missed. Three slices of 6 x 6 with 4 pixels each."""
    window = Window(0, 1, (1.0, 1.0), (0, 0), (0, 0), (6, 6), (6, 6), (6, 6), (6, 6))
    evaluator = Evaluator({"tumor": replace(SPEC, classes=("a",))})
    evaluator.measure_surfaces({"tumor": {"a": 0.5}})
    mask = np.zeros((1, 6, 6), np.uint8)
    mask[0, 2:4, 2:4] = 1
    for group in groups:
        for case, found in ((f"{group}-000", mask), (f"{group}-001", 0 * mask)):
            for name in (f"{case}/z{index}" for index in range(3)):
                known = ImageResult(name, group, "s", window, {"tumor": {"mask": mask}}, {}, (2.0, 1.0, 1.0), case)
                guess = ImageResult(name, group, "s", window, {"tumor": {"probabilities": found.astype(np.float32)}})
                evaluator.update(guess, known)
    evaluator.finish()
    return evaluator


def test_visits_of_one_patient_are_volumes_of_their_own() -> None:
    summary = visits("p0").summary({"tumor": {"a": 0.5}}, bootstrap=0)
    found = {case: rows["a"] for case, rows in summary["cases"]["tumor"].items()}
    diagonal = np.linalg.norm((3 * 2.0, 6, 6))
    assert found["p0-000"] == {
        "slices": 3, "dice": 1.0, "iou": 1.0, "hd95": 0.0, "volume_predicted_mm3": 24.0, "volume_annotated_mm3": 24.0
    }  # fmt: skip
    assert found["p0-001"] == {
        "slices": 3, "dice": 0.0, "iou": 0.0, "hd95": diagonal, "volume_predicted_mm3": 0.0, "volume_annotated_mm3": 24.0
    }  # fmt: skip
    values = summary["tasks"]["tumor"]
    assert len(found) == 2 and values["dice_per_case"] == values["iou_per_case"] == 0.5 and values["mae_volume_mm3"] == 12.0
    assert values["hd95_per_case"] == pytest.approx(diagonal / 2) and summary["n_groups"] == 1


def test_bootstrap_draws_all_visits_of_a_patient() -> None:
    evaluator = visits("p0", "p1")
    bootstrap = GroupBootstrap(evaluator.groups, 30)
    step = evaluator.compute_by_group({"tumor": {"a": 0.5}}, bootstrap.names)
    assert bootstrap.names == ["p0", "p1"] and len({tuple(counts) for counts in bootstrap.counts}) == 3
    # Drawn one by one, visits would also give 0 and 1.
    assert {step(counts)["tumor"]["dice_per_case"] for counts in bootstrap.counts} == {0.5}


def test_without_a_case_the_group_is_the_volume() -> None:
    evaluator = visits("p0")
    records = evaluator.records()
    records["tasks"]["tumor"] = [
        {key: value for key, value in record.items() if key != "case"} for record in records["tasks"]["tumor"]
    ]
    other = evaluator.empty()
    other.extend(records)
    table = other.summary({"tumor": {"a": 0.5}}, bootstrap=0)["cases"]["tumor"]
    assert list(table) == ["p0"] and table["p0"]["a"]["slices"] == 6 and table["p0"]["a"]["dice"] == pytest.approx(2 / 3)
