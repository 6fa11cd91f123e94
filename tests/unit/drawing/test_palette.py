"""One palette: every class of every family has one colour, wherever it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl.config.plan import Plan
from mtl.core.family import DataFamily
from mtl.core.registry import DATA_FAMILIES
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Objects, Sample
from mtl.drawing.palette import BRIGHTEST, PALETTE, colours_of, hexadecimal, on_white
from mtl.evaluation import grid
from mtl.inference.pictures import layers_of
from mtl.inference.slides.outputs import draw_overview
from mtl.report import figures
from mtl.report.data_pages import class_colours, plot
from mtl.runs.build import model_config

FAMILIES = {name: DATA_FAMILIES.build({"name": name}) for name in DATA_FAMILIES.names()}
SUITES = ("malaria_mttl", "malaria_cells", "idrid_mtl", "brain_joint", "skin_mtl", "tiger_mtl")
SIZE = (40, 60)


def truth_of(spec: TaskSpec) -> dict[str, np.ndarray]:
    """An annotation with every class of a task in it."""
    count = len(spec.classes)
    points = np.tile([[30.0, 20.0]], (count, 1))
    if spec.kind == "segmentation":
        return {"mask": np.ones((count, *SIZE), np.uint8) if spec.multilabel else np.zeros(SIZE, np.uint8)}
    return {"points": points, "boxes": np.concatenate([points - 5, points + 5], axis=1), "labels": np.arange(count)}


def in_data_pages(family: DataFamily) -> dict[str, Colour]:
    """Colours in the legend of `mtl data show`."""
    from matplotlib.colors import to_rgb

    names = family.object_classes
    square = np.asarray([[10, 10], [20, 10], [20, 20], [10, 20]], np.float32)
    objects = Objects([square] * len(names), np.arange(len(names)), np.tile([[15.0, 15.0]], (len(names), 1)).astype(np.float32),
                      np.zeros(len(names), bool))  # fmt: skip
    masks = {
        name: np.ones(SIZE, bool) for spec in family.specs().values() if spec.label[:5] == "mask:" for name in spec.classes
    }
    sample = Sample(np.zeros((*SIZE, 3), np.uint8), "a", "g", "s", objects=objects)
    legend = plot(sample, names, class_colours(family), regions=masks).axes[0].get_legend()
    found = {}
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True) if legend else ():
        colour = handle.get_facecolor() if hasattr(handle, "get_facecolor") else handle.get_color()
        found[text.get_text().rpartition(" (")[0]] = tuple(round(255 * part) for part in to_rgb(colour))
    return found


def in_overlays(specs: dict[str, TaskSpec]) -> dict[str, set[Colour]]:
    """Colours in the legends of overlays, in which each task stands alone."""
    found: dict[str, set[Colour]] = {}
    for task, spec in specs.items():
        if spec.kind in ("detection", "segmentation", "points"):
            legend = layers_of({task: truth_of(spec)}, specs, SIZE).legend
            for (colour, text), name in zip(legend, sorted(spec.classes, key=spec.classes.index), strict=False):
                assert name in text
                found.setdefault(name, set()).add(colour)
    return found


def in_the_grid(specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Colour]]:
    """Colours with which masks are tinted in the grid of a report."""
    masked = {task: spec for task, spec in specs.items() if spec.kind == "segmentation"}
    used: list[Colour] = []
    tint = grid.tint
    monkeypatch.setattr(grid, "tint", lambda image, mask, colour: used.append(colour) or tint(image, mask, colour))
    truth = {task: truth_of(spec) for task, spec in masked.items()}
    grid.draw_grid(np.zeros((*SIZE, 3), np.uint8), truth, {}, masked, SIZE)
    found: dict[str, set[Colour]] = {}
    for name, colour in zip((name for spec in masked.values() for name in spec.classes), used, strict=True):
        found.setdefault(name, set()).add(colour)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_has_one_colour_in_all_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family: Any = FAMILIES[name]
    specs = family.specs()
    wanted = class_colours(family)
    assert wanted.items() >= colours_of(specs.values()).items() >= {
        name: colour for name, colour in family.colours.items() if any(name in spec.classes for spec in specs.values())
    }.items()  # fmt: skip
    assert in_data_pages(family).items() <= wanted.items()
    drawn = [in_overlays(specs), in_the_grid(specs, monkeypatch)]
    for found in drawn:
        assert found == {name: {wanted[name]} for name in found}
    masked = {name for spec in specs.values() if spec.kind == "segmentation" for name in spec.classes}
    assert masked == drawn[1].keys() <= drawn[0].keys()
    for number, (label, colour) in enumerate(wanted.items()):
        assert figures.of_class(label, number, wanted) == hexadecimal(on_white(colour))


@pytest.mark.parametrize("suite", SUITES)
def test_a_single_task_twin_has_the_colours_of_its_suite(suite: str) -> None:
    """Specs in a checkpoint have a colour for each class, whichever tasks are active."""
    whole = Plan.from_words([f"task={suite}"])
    wanted = class_colours(FAMILIES[whole.config.data.name])
    for task in whole.config.tasks:
        (stored,) = model_config(Plan.from_words([f"task={suite}", f"tasks=[{task}]"]))["specs"]
        spec = TaskSpec.from_dict(stored)
        assert dict(zip(spec.classes, spec.colours, strict=True)) == {name: wanted[name] for name in spec.classes}


def test_the_palette_fills_in_what_nobody_declared() -> None:
    red = (200, 0, 0)
    first = TaskSpec("first", "segmentation", ("a", "b"), colours=(None, red))
    second = TaskSpec("second", "detection", ("c", "a"))
    assert colours_of([first, second]) == {"b": red, "a": PALETTE[0], "c": PALETTE[1]}
    later = TaskSpec("later", "detection", ("a",), colours=(red,))
    assert colours_of([second, later])["a"] == red  # whoever declares one is heard
    many = TaskSpec("many", "classification", tuple("abcdefg"))
    assert colours_of([many])["g"] == PALETTE[0]


def test_bright_colours_are_darker_as_lines_on_white() -> None:
    assert on_white((0, 0, 139)) == (0, 0, 139)
    for colour in ((0, 255, 255), (255, 235, 0), (255, 255, 255)):
        red, green, blue = on_white(colour)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue == pytest.approx(BRIGHTEST, abs=1)
        assert max(abs(a * colour[1] - b * green) for a, b in ((red, colour[0]), (blue, colour[2]))) <= 255  # same hue
    curve = {"threshold": [0.2, 0.5, 0.8], "cell": [0.1, 0.6, 0.3], "pooled": [0.2, 0.5, 0.3]}
    figure = figures.threshold_curve(curve, {}, "F1", {"cell": (225, 25, 25)})
    assert figure is not None
    lines = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
    assert lines == {"cell": "#e11919", "pooled": "#000000"}


def test_the_overview_of_a_slide_has_the_colours_of_its_tissue() -> None:
    picture, whole = np.full((60, 80, 3), 200, np.uint8), np.ones((60, 80))
    colour = FAMILIES["tiger"].colours["stroma"]
    drawn = draw_overview(picture, [("stroma", whole)], None, None, [], {"stroma": colour})
    assert (np.abs(drawn.astype(int) - colour) <= 1).all(axis=2).any()  # the patch of the legend
