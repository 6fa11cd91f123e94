"""Synthetic smears and single cells in the native layouts of the `malaria` and `malaria_cells` families."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mtl.core.errors import ConfigError
from mtl.data.families.malaria.painter import GeneratedCell, Style, generate_field, generate_single_cell, generate_style
from mtl.data.families.writing import new_folder, write_image

LABELS = ("Parasitized", "Uninfected", "White_Blood_Cell")
STYLE, FIELD, CROP = range(3)  # purposes of random streams


def generate_malaria(
    output: Path,
    patients: int,
    fields: int,
    seed: int,
    width: int = 1024,
    kind: Literal["points", "polygons", "both"] = "both",
    cells_per_field: tuple[int, int] = (150, 230),
    overwrite: bool = False,
) -> None:
    """Generate a data set of smears. Every fourth patient is healthy; every patient has a stain and a parasite load of its own.

    A field depends on (seed, patient, field) only, so adding patients or fields leaves earlier ones as they were.

    Args:
        output: New folder; receives `Point Set/` and/or `Polygon Set/`.
        patients: Number of patients.
        fields: Photographs per patient.
        seed: Of everything random.
        width: Of a photograph in pixels; a red cell measures about 144 * width / 5312.
        kind: What the experts drew; `both` gives every third patient polygons, the others points.
        cells_per_field: Fewest and most red cells that are completely visible.
        overwrite: Replace an earlier data set at `output`.
    """
    problems = [
        f"`{name}` is {value}; expected at least {least}."
        for name, value, least in (("patients", patients, 1), ("fields", fields, 1), ("width", width, 64), ("seed", seed, 0))
        if value < least
    ]
    if kind not in ("points", "polygons", "both"):
        problems.append(f"`kind` is {kind}; expected points, polygons or both.")
    if not 0 <= cells_per_field[0] <= cells_per_field[1]:
        problems.append(f"`cells_per_field` is {cells_per_field}; expected (fewest, most).")
    if problems:
        raise ConfigError(problems)
    with new_folder(Path(output), overwrite) as folder:
        for patient in range(patients):
            style = _style(seed, patient)
            polygons = kind == "polygons" or (kind == "both" and patient % 3 == 1)
            home = folder / ("Polygon Set" if polygons else "Point Set") / f"{101 + patient}{_slide(patient)}"
            (home / "Img").mkdir(parents=True)
            (home / "GT").mkdir()
            for number in range(fields):
                rng = np.random.default_rng([seed, FIELD, patient, number])
                image, cells = generate_field(style, rng, width, cells_per_field)
                stem = _photo(patient, number)
                write_image(home / "Img" / f"{stem}.jpg", image)
                text = _annotation(cells, image.shape[:2], number + 1, polygons, rng)
                (home / "GT" / f"{stem}.txt").write_text(text, encoding="utf-8")


def generate_malaria_cells(output: Path, patients: int, cells: int, seed: int, overwrite: bool = False) -> None:
    """Generate single-cell crops of the patients that `generate_malaria` generates for the same seed.

    Args:
        output: New folder; receives `Parasitized/` and `Uninfected/`.
        patients: Number of patients.
        cells: Crops per patient; half of them infected, none where the patient is healthy.
        seed: Of everything random.
        overwrite: Replace an earlier data set at `output`.
    """
    if patients < 1 or cells < 1 or seed < 0:
        raise ConfigError(f"patients={patients}, cells={cells}, seed={seed}: expected at least 1, 1 and 0.")
    with new_folder(Path(output), overwrite) as folder:
        for name in ("Parasitized", "Uninfected"):
            (folder / name).mkdir()
        for patient in range(patients):
            style = _style(seed, patient)
            for number in range(cells):
                rng = np.random.default_rng([seed, CROP, patient, number])
                infected = style.infected_share > 0 and number % 2 == 0
                name = f"{_slide(patient)}_{_photo(patient, number // 20)}_cell_{number + 1}.png"
                image = generate_single_cell(style, rng, infected)
                write_image(folder / ("Parasitized" if infected else "Uninfected") / name, image)


def _healthy(patient: int) -> bool:
    return patient % 4 == 3


def _style(seed: int, patient: int) -> Style:
    return generate_style(np.random.default_rng([seed, STYLE, patient]), _healthy(patient))


def _slide(patient: int) -> str:
    number = patient + 1
    return f"C{number}NThinF" if _healthy(patient) else f"C{number}P{number - number // 4}thinF"


def _photo(patient: int, number: int) -> str:
    day, second = patient % 28 + 1, number % 86400
    return f"IMG_201506{day:02d}_{second // 3600:02d}{second // 60 % 60:02d}{second % 60:02d}"


def _annotation(
    cells: list[GeneratedCell], size: tuple[int, int], number: int, polygons: bool, rng: np.random.Generator
) -> str:
    """Return the text of an annotation file; without a line break at its end, like the native ones."""
    height, width = size
    lines = [f"{len(cells)},{width},{height}"]
    for index, cell in enumerate(cells):
        shape = cell.shape
        if polygons:
            vertices = shape.outline(int(rng.integers(12, 24)), float(rng.uniform(0, 2 * np.pi)))
            vertices = vertices + rng.normal(0, 0.02 * shape.radius, vertices.shape)
        else:
            # Experts click somewhere on the cell, not at its centre.
            offset = np.clip(rng.normal(0, 0.12 * shape.radius, 2), -0.4 * shape.radius, 0.4 * shape.radius)
            vertices = np.asarray([[shape.x, shape.y]]) + offset
        vertices = np.clip(vertices, 0, [width, height])
        values = ",".join(f"{value:.2f}" for value in vertices.ravel())
        comment, form = ("No_comment", "Polygon") if polygons else ("No_Comment", "Point")
        lines.append(f"{number}-{index + 1},{LABELS[cell.label]},{comment},{form},{len(vertices)},{values}")
    return "\n".join(lines)
