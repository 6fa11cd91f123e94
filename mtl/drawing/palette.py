"""Colours of classes, the same in every picture and figure: declared by the data family, or from a neutral palette."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mtl.core.task import Colour, TaskSpec

# Okabe and Ito: told apart with colour-deficient sight.
BLACK, ORANGE, SKY_BLUE, GREEN = (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)
YELLOW, BLUE, VERMILION, PURPLE = (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)

PALETTE: tuple[Colour, ...] = (ORANGE, GREEN, PURPLE, SKY_BLUE, VERMILION, YELLOW)  # over images
LINES: tuple[Colour, ...] = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)  # on white
PEAK_COLOUR: Colour = (0, 220, 255)
INK, PAPER = (30, 30, 30), (255, 255, 255)
BRIGHTEST = 160.0  # luminance of a line on white, of 255


def colours_of(specs: Iterable[TaskSpec]) -> dict[str, Colour]:
    """Return the colour of every class of some tasks.

    A class has the colour that its task declares; the others take the palette in turn, in the order of the tasks. A class
    of several tasks has one colour.
    """
    declared: dict[str, Colour] = {}
    others: dict[str, None] = {}
    for spec in specs:
        for name, colour in zip(spec.classes, spec.colours or (None,) * len(spec.classes), strict=True):
            if colour is None:
                others.setdefault(name)
            else:
                declared[name] = colour
    left = [name for name in others if name not in declared]
    return declared | {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(left)}


def coloured(spec: TaskSpec, colours: Mapping[str, Colour]) -> TaskSpec:
    """Return a task with a colour for each of its classes."""
    return replace(spec, colours=tuple(colours[name] for name in spec.classes))


def on_white(colour: Colour) -> Colour:
    """Return a colour as it is where a line of it can be seen on white, else darker, in the same hue."""
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    share = min(1.0, BRIGHTEST / max(luminance, 1.0))
    red, green, blue = (round(share * part) for part in colour)
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """Return a colour as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
