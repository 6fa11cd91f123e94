"""Colours of classes, the same in every picture and figure."""

from __future__ import annotations

Colour = tuple[int, int, int]


CLASS_COLOURS: dict[str, Colour] = {
    "Infected": (225, 25, 25), "Healthy": (30, 90, 245), "WBC": (150, 40, 190),
    # Retinal lesions, as published.
    "microaneurysms": (0, 255, 255), "haemorrhages": (255, 0, 255), "hard_exudates": (182, 245, 0),
    "soft_exudates": (0, 255, 0), "optic_disc": (255, 11, 85),
    # What stands out from haematoxylin and eosin.
    "tumor": (213, 94, 0), "stroma": (0, 158, 115), "other": (86, 180, 233), "lymphocyte": (255, 235, 0),
}  # fmt: skip


UNREMARKABLE = frozenset({"Healthy"})  # drawn with thin lines


# Okabe and Ito: told apart with colour-deficient sight.
PALETTE: tuple[Colour, ...] = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))


MASK_COLOUR: Colour = (20, 150, 70)


PEAK_COLOUR: Colour = (0, 220, 255)


INK, PAPER = (30, 30, 30), (255, 255, 255)


def colour_of(name: str, names: tuple[str, ...] = ()) -> Colour:
    """Return the colour of a class: fixed for blood cells and retinal lesions, otherwise by its position among `names`."""
    if name in CLASS_COLOURS:
        return CLASS_COLOURS[name]
    return PALETTE[(names.index(name) if name in names else 0) % len(PALETTE)]


def mask_colour(name: str, names: list[str]) -> Colour:
    """Return the colour of a mask: as of its class, but one of its own where it is the only mask of unknown meaning."""
    return MASK_COLOUR if len(names) == 1 and name not in CLASS_COLOURS else colour_of(name, tuple(names))
