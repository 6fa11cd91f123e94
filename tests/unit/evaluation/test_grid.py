"""The grid of many masks: which panels there are, and what they show."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl.core.task import TaskSpec
from mtl.evaluation import grid
from mtl.evaluation.grid import COLUMNS, GAP, draw_grid, tint, wants_grid

LESIONS = {
    "lesions_ma": "microaneurysms", "lesions_he": "haemorrhages", "lesions_ex": "hard_exudates", "lesions_se": "soft_exudates",
    "optic_disc": "optic_disc",
}  # fmt: skip
COLOURS = ((0, 255, 255), (255, 0, 255), (182, 245, 0), (0, 255, 0), (255, 11, 85))
COLOUR_OF = dict(zip(LESIONS.values(), COLOURS, strict=True))
SPECS = {
    "grade": TaskSpec("grade", "classification", ("no_dr", "mild_npdr"), ordinal=True),
    **{task: TaskSpec(task, "segmentation", (name,), colours=(COLOUR_OF[name],)) for task, name in LESIONS.items()},
}
SIZE = (64, 96)
IMAGE = np.full((*SIZE, 3), 100, np.uint8)


def square(row: int, column: int, side: int) -> np.ndarray:
    mask = np.zeros((1, *SIZE), np.float32)
    mask[0, row : row + side, column : column + side] = 1
    return mask


def panels_of(picture: np.ndarray, rows: int) -> list[np.ndarray]:
    """Cut the panels, with their titles, out of a grid."""
    height, width = (picture.shape[0] + GAP) // rows, (picture.shape[1] + GAP) // COLUMNS
    return [
        picture[row * height : (row + 1) * height - GAP, column * width : (column + 1) * width - GAP]
        for row in range(rows)
        for column in range(COLUMNS)
    ]


def scene() -> tuple[dict[str, Any], dict[str, Any]]:
    truth: dict[str, Any] = {task: {"mask": square(8 * n, 8 * n, 12)} for n, task in enumerate(LESIONS)}
    prediction = {task: {"probabilities": square(8 * n, 8 * n + 40, 12) * 0.6} for n, task in enumerate(LESIONS)}
    prediction["grade"] = {"probabilities": np.array([0.3, 0.7])}
    return truth, prediction


def share_of(panel: np.ndarray, task: str) -> float:
    """Share of a panel's picture in the tint of a class."""
    tinted = np.rint(100 * 0.3 + np.array(COLOUR_OF[LESIONS[task]]) * 0.7)
    return float((np.abs(panel[-160:].astype(int) - tinted) <= 1).all(axis=2).mean())


def test_five_lesions_give_three_rows_of_four() -> None:
    truth, prediction = scene()
    del truth["lesions_se"]
    picture = draw_grid(IMAGE, truth, prediction, SPECS, SIZE, {"optic_disc": {"optic_disc": 0.65}}, panel=240)
    panels = panels_of(picture, 3)
    assert picture.shape == (3 * (16 + 160 + GAP) - GAP, 4 * (240 + GAP) - GAP, 3)
    assert (panels[0][-160:] == 100).all()
    words = panels[1][-160:]
    assert (words == 255).mean() > 0.8 and (words < 80).any()
    for number, task in enumerate(LESIONS):
        annotation, predicted = panels[2 + 2 * number], panels[3 + 2 * number]
        if task == "lesions_se":
            assert share_of(annotation, task) == 0 and annotation[-160:].mean() > 180  # pale, and says so
        else:
            assert share_of(annotation, task) > 0.01
        # The optic disc lies below its threshold.
        assert (share_of(predicted, task) > 0.01) == (task != "optic_disc")
        others = [other for other in LESIONS if other != task]
        assert all(share_of(panel, other) == 0 for panel in (annotation, predicted) for other in others)


def test_masks_lie_where_they_are() -> None:
    truth, prediction = scene()
    panel = panels_of(draw_grid(IMAGE, truth, prediction, SPECS, SIZE, panel=240), 3)[4][-160:]
    rows, columns, _ = np.nonzero(np.abs(panel.astype(int) - 100) > 3)
    # Rows and columns 8 to 20 of 64 x 96, enlarged 2.5 times; the contour reaches one pixel out.
    assert abs(rows.min() - 20) <= 1 and abs(rows.max() - 49) <= 1
    assert abs(columns.min() - 20) <= 1 and abs(columns.max() - 49) <= 1


def test_words_say_what_is_known(monkeypatch: Any) -> None:
    written: list[list[str]] = []
    write = grid._write
    monkeypatch.setattr(grid, "_write", lambda picture, lines, **more: written.append(lines) or write(picture, lines, **more))
    truth, prediction = scene()
    draw_grid(IMAGE, truth, prediction, SPECS, SIZE)
    draw_grid(IMAGE, truth | {"grade": {"label": np.array(0)}}, prediction, SPECS, SIZE)
    assert written[0] == ["grade", "   annotated: not annotated", "   predicted: mild npdr 0.70", ""]
    assert written[1][1] == "   annotated: no dr"
    written.clear()
    only = {"grade": {"label": np.array(0)}}
    draw_grid(IMAGE, only, prediction, SPECS, SIZE)
    assert written.count(["not annotated"]) == 5


def test_points_get_panels_and_channels_of_one_task_too() -> None:
    specs = {
        "lesions": TaskSpec("lesions", "segmentation", tuple(LESIONS.values()), colours=COLOURS),
        "landmarks": TaskSpec("landmarks", "heatmap", ("optic_disc_centre", "fovea")),
    }
    masks = np.concatenate([square(8 * n, 8 * n, 10) for n in range(5)])
    points = {"points": np.array([[20.0, 30.0]]), "labels": np.array([0]), "scores": np.array([0.9])}
    picture = draw_grid(IMAGE, {"lesions": {"mask": masks}}, {"lesions": {"probabilities": masks}, "landmarks": points}, specs,
                        SIZE, panel=240)  # fmt: skip
    panels = panels_of(picture, 4)
    assert all(share_of(panels[2 + 2 * n], task) > 0.01 for n, task in enumerate(LESIONS))
    assert panels[12][-160:].mean() > 180 and (panels[13][-160:] != 100).any() and (panels[14] == 255).all()


def test_specks_and_large_truth_masks_stay_visible() -> None:
    mask = np.zeros((960, 1440), bool)
    mask[480, 720] = True
    image = np.full((160, 240, 3), 100, np.uint8)
    marked = tint(image, mask, (0, 255, 255))
    rows, columns, _ = np.nonzero(marked != image)
    assert len(rows) and np.abs(rows - 80).max() <= 2 and np.abs(columns - 120).max() <= 2
    assert (image == 100).all() and (tint(image, mask & False, (0, 255, 255)) == image).all()


def test_three_independent_masks_are_many() -> None:
    def specs(*tasks: tuple[str, tuple[str, ...], bool]) -> dict[str, TaskSpec]:
        return {name: TaskSpec(name, "segmentation", classes, multilabel=several) for name, classes, several in tasks}

    assert wants_grid(SPECS) and wants_grid(specs(("a", ("x", "y"), True), ("b", ("z",), True)))
    assert not wants_grid(specs(("a", ("x", "y"), True)))
    assert not wants_grid(specs(("tissue", ("x", "y", "z", "w"), False)))
