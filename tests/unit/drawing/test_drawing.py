"""Pictures: colours, alignment, legends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.core.types import Window
from mtl.drawing.paint import paint, paint_heat, with_legend
from mtl.drawing.palette import PALETTE, PAPER, PEAK_COLOUR
from mtl.inference.pictures import draw_example, layers_of, overlay
from mtl.inference.predictor import Prediction

RED, BLUE, GREEN, CYAN = (225, 25, 25), (30, 90, 245), (20, 150, 70), (0, 255, 255)
SPECS = {
    "detection": TaskSpec(
        "detection", "detection", ("Infected", "Healthy", "WBC"), colours=(RED, BLUE, None), unremarkable=("Healthy",)
    ),
    "mask": TaskSpec("mask", "segmentation", ("cell",), colours=(GREEN,)),
    "grade": TaskSpec("grade", "segmentation", ("background", "tumour"), multilabel=False),
    "heatmap": TaskSpec("heatmap", "heatmap", ("Infected",)),
}
TRUTH = {
    "detection": {
        "boxes": np.array([[10, 10, 30, 30], [50, 10, 80, 30], [10, 60, 40, 90]], float),
        "labels": np.array([0, 1, 1]),
    }
}
PREDICTION = {"detection": {**TRUTH["detection"], "scores": np.array([0.9, 0.4, 0.8])}}
GREY = np.full((200, 400, 3), 128, np.uint8)


def coloured(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 0) -> np.ndarray:
    return np.argwhere((np.abs(picture.astype(int) - colour) <= tolerance).all(axis=2))


def test_boxes_land_where_they_are_in_the_colour_of_their_class() -> None:
    picture = paint(GREY, layers_of(TRUTH, SPECS, (100, 200)))
    red = coloured(picture, RED)
    # Twice the size of the raster that the boxes are given in; a pixel or two of line width.
    assert np.abs(red.min(0) - 20).max() <= 2 and np.abs(red.max(0) - 60).max() <= 2
    assert len(coloured(picture, BLUE)) and not len(coloured(picture, PALETTE[0]))
    assert (GREY == 128).all()


def test_thresholds_filter_and_the_legend_counts() -> None:
    study = {"parasitemia": STUDY_METRICS.build({"name": "parasitemia"}, SPECS)}
    layers = layers_of(PREDICTION, SPECS, (100, 200), {"detection": {"score": 0.5}}, study=study)
    texts = [text for _, text in layers.legend]
    assert texts == ["Infected 1", "Healthy 1", "WBC 0", "parasitemia 50.0 %"]
    assert [text for _, text in layers_of(TRUTH, SPECS, (100, 200)).legend][1] == "Healthy 2"


def test_masks_of_both_forms() -> None:
    mask = np.zeros((1, 50, 100), np.uint8)
    mask[0, 10:20, 10:30] = 1
    hard = layers_of({"mask": {"mask": mask}}, SPECS, (50, 100))
    soft = layers_of({"mask": {"probabilities": mask * 0.7}}, SPECS, (50, 100), {"mask": {"cell": 0.6}})
    strict = layers_of({"mask": {"probabilities": mask * 0.7}}, SPECS, (50, 100), {"mask": {"cell": 0.8}})
    np.testing.assert_array_equal(hard.masks[0][1], soft.masks[0][1])
    assert not strict.masks[0][1].any() and hard.legend[0][1] == "cell area 4.0 %"
    index = layers_of({"grade": {"mask": mask[0]}}, SPECS, (50, 100))
    assert [name for name, _ in index.masks] == ["background", "tumour"] and index.masks[1][1].sum() == 200


def test_heat_covers_its_own_cells_and_its_peak_is_ringed() -> None:
    heatmap = np.zeros((1, 13, 25), np.float32)  # stride 8 on a raster of 100 x 196: the last cells reach over the edge
    heatmap[0, 6, 12] = 1.0
    arrays = {
        "heatmap": heatmap, "stride": np.array(8.0), "sigma": np.array(1.0), "points": np.array([[100.0, 52.0]]),
        "scores": np.ones(1), "labels": np.zeros(1, int),
    }  # fmt: skip
    picture = paint_heat(np.full((100, 196, 3), 128, np.uint8), layers_of({"heatmap": arrays}, SPECS, (100, 196)))
    ring = coloured(picture, PEAK_COLOUR, tolerance=60)
    assert len(ring) and np.abs(ring.mean(0) - [52, 100]).max() < 1.5
    hottest = np.unravel_index(picture.astype(int).sum(2)[48:57, 96:105].argmax(), (9, 9))
    assert abs(hottest[0] - 4) <= 2 and abs(hottest[1] - 4) <= 2


def test_case_draws_annotations_and_predictions_above_the_threshold() -> None:
    truth = draw_example(GREY, TRUTH, SPECS, (100, 200))
    prediction = draw_example(GREY, PREDICTION, SPECS, (100, 200), {"detection": {"score": 0.5}})
    assert len(coloured(truth[:200], BLUE)) > len(coloured(prediction[:200], BLUE)) > 0
    assert len(coloured(truth[:200], RED)) == len(coloured(prediction[:200], RED)) > 0
    assert truth.shape[0] > 200 and truth.shape[1] == 400


def test_long_legends_wrap_and_empty_ones_work() -> None:
    entries = [((10, 20, 30), f"class {number}") for number in range(30)]
    assert with_legend(GREY, entries).shape[0] > with_legend(GREY, entries[:1]).shape[0] > 200
    assert with_legend(GREY, []).shape[1] == 400
    long = " ".join(f"finding{number} 0.5," for number in range(20))
    strip = with_legend(GREY, [(PAPER, long)])[len(GREY) :]
    assert len(strip) > 3 * len(with_legend(GREY, [(PAPER, "short")])[len(GREY) :])  # in several lines
    assert (strip[:, -4:] == 255).all()  # nothing runs out of the picture
    assert paint(GREY, layers_of({}, SPECS, (10, 10))).shape == GREY.shape


def test_classes_of_images_stand_in_the_legend() -> None:
    specs = {
        "grade": TaskSpec("grade", "classification", ("none", "moderate_npdr")),
        "age": TaskSpec("age", "regression", ()),
    }
    predicted = {"grade": {"probabilities": np.array([0.39, 0.61])}, "age": {"value": np.array(54.2)}}
    assert [text for _, text in layers_of(predicted, specs, (10, 10)).legend] == ["grade: moderate_npdr 0.61", "age: 54.2"]
    assert layers_of({"grade": {"label": np.array(1)}}, specs, (10, 10)).legend[0][1] == "grade: moderate_npdr"


def test_masks_of_several_tasks_differ_in_colour_and_name() -> None:
    def one(name: str) -> dict[str, np.ndarray]:
        mask = np.zeros((1, 100, 200), np.uint8)
        mask[0, 10:40, 10:40] = 1
        return {"mask": np.roll(mask, 60 * ("first", "second", "third").index(name), axis=2)}

    specs = {name: TaskSpec(name, "segmentation", (f"{name}_class",)) for name in ("first", "second", "third")}
    layers = layers_of({name: one(name) for name in specs}, specs, (100, 200))
    colours = [colour for colour, _ in layers.legend]
    assert len(set(colours)) == 3 and set(colours) <= set(PALETTE)
    picture = paint(GREY, layers)
    for place, colour in enumerate(colours):
        found = coloured(picture, colour, tolerance=45)  # thin lines are smoothed
        assert len(found) and (found[:, 1] // 120 == place).all()
    assert [text for _, text in layers.legend] == [f"{name}_class area 4.5 %" for name in specs]
    # One mask alone keeps its colour; the same class in two tasks is told apart by their names.
    assert [layers_of({name: one(name)}, specs, (100, 200)).legend[0][0] for name in specs] == colours
    twins = {name: TaskSpec(name, "segmentation", ("microaneurysms",), colours=(CYAN,)) for name in ("first", "second")}
    legend = layers_of({name: one(name) for name in twins}, twins, (100, 200)).legend
    assert [text for _, text in legend] == ["first microaneurysms area 4.5 %", "second microaneurysms area 4.5 %"]
    assert legend[0][0] == legend[1][0] == CYAN


def test_small_areas_are_not_called_zero() -> None:
    mask = np.zeros((1, 200, 200), np.uint8)
    mask[0, 0, :2] = 1
    assert layers_of({"mask": {"mask": mask}}, SPECS, (200, 200)).legend[0][1] == "cell area 0.005 %"
    assert layers_of({"mask": {"mask": mask * 0}}, SPECS, (200, 200)).legend[0][1] == "cell area 0.0 %"


# Of a picture of 200 x 400, the network saw columns 100 to 300 and rows 50 to 150, at half size.
CUT = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (50, 100), (64, 128), (50, 100), (200, 400), content=(100, 50, 300, 150))


def test_what_was_cut_off_leaves_masks_and_heat_in_their_places() -> None:
    mask = np.zeros((1, 50, 100), np.float32)
    mask[0, 10:20, 40:60] = 0.9  # original: rows 70 to 90, columns 180 to 220
    heatmap = np.zeros((1, 13, 25), np.float32)  # stride 4
    heatmap[0, 6, 12] = 1.0  # original: around row 102, column 200
    tasks = {
        "mask": {"probabilities": mask},
        "heatmap": {"heatmap": heatmap, "stride": np.array(4.0), "points": np.array([[200.0, 102.0]]),
                    "scores": np.ones(1), "labels": np.zeros(1, int)},
    }  # fmt: skip
    prediction = Prediction(CUT, {task: SPECS[task] for task in tasks}, {}, tasks)
    picture = overlay(GREY, prediction)[:200]
    rim = coloured(picture[:, :400], GREEN, tolerance=60)
    assert np.abs(rim.min(0) - [70, 180]).max() <= 1 and np.abs(rim.max(0) - [89, 219]).max() <= 1
    glow = picture[:, 408:].astype(int).sum(2)
    hottest = np.unravel_index(
        np.where(np.abs(np.indices(glow.shape) - [[[102]], [[200]]]).max(0) < 4, glow, 0).argmax(), (200, 400)
    )
    assert abs(hottest[0] - 102) <= 3 and abs(hottest[1] - 200) <= 3
    dim = np.full((200, 400), 3 * 64)
    assert (glow[:50] == dim[:50]).all() and (glow[:, 300:] == dim[:, 300:]).all()
    # 200 of 5000 pixels of the part, a quarter of the picture.
    assert layers_of(tasks, SPECS, (200, 400), None, CUT).legend[0][1] == "cell area 1.0 %"
    whole = layers_of(tasks, SPECS, (200, 400), None, replace(CUT, content=None))
    assert whole.legend[0][1] == "cell area 4.0 %"
    np.testing.assert_array_equal(prediction.mask("mask")[0, 75:85, 190:210], 1)
    assert prediction.mask("mask").sum() == 20 * 40 and prediction.mask("mask", (100, 200)).sum() == 10 * 20
