"""Annotation files of NIH-NLM-ThinBloodSmearsPf: one line per cell, errors named by file and line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LABELS = {"parasitized": 0, "uninfected": 1, "white_blood_cell": 2}


@dataclass
class Cell:
    """One row of an annotation file."""

    number: int  # position among the rows
    label: int
    vertices: np.ndarray  # [1, 2] for a point
    is_polygon: bool


@dataclass
class Annotation:
    """What one annotation file says; `problems` name file and line, `repeated` counts rows that say again what another says."""

    size: tuple[int, int] | None = None  # (height, width)
    declared: int = 0
    rows: int = 0
    cells: list[Cell] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    repeated: int = 0


def read_annotation(path: Path) -> Annotation:
    """Parse an annotation file; what cannot be used ends up in `problems` or `unknown`, never in `cells`."""
    found = Annotation()
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        found.problems.append(f"{path}: cannot be read ({error.strerror}).")
        return found
    try:
        numbers = [float(token) for token in lines[0].strip().rstrip(",").split(",")]
        found.declared, width, height = map(int, numbers)
        if width <= 0 or height <= 0 or numbers != [found.declared, width, height]:
            raise ValueError
    except (IndexError, ValueError, OverflowError):
        first = lines[0].strip() if lines else ""
        found.problems.append(f"{path}:1: expected `<rows>,<width>,<height>`, found `{first[:60]}`.")
        return found
    found.size = (height, width)
    seen: dict[bytes, tuple[int, int]] = {}  # line and label by shape
    for number, line in enumerate(lines[1:]):
        tokens = [token.strip() for token in line.strip().rstrip(",").split(",")]
        if tokens == [""]:
            continue
        found.rows += 1
        try:
            if len(tokens) < 7:
                raise ValueError(f"expected at least 7 values, found {len(tokens)}")
            label = LABELS.get(tokens[1].casefold())
            if label is None:
                found.unknown[tokens[1]] += 1
                continue
            vertices, is_polygon = _parse_shape(tokens[3:], width, height)
        except ValueError as error:
            found.problems.append(f"{path}:{number + 2}: {error}.")
            continue
        line_before, label_before = seen.setdefault(vertices.tobytes(), (number + 2, label))
        if line_before == number + 2:
            found.cells.append(Cell(number, label, vertices, is_polygon))
        elif label_before == label:
            found.repeated += 1
        else:
            found.problems.append(f"{path}:{number + 2}: the cell of line {line_before} is there again with another label.")
    if _in_shares(found.cells):
        found.problems.append(
            f"{path}: all coordinates lie between 0 and 1, as shares of the image do; expected its pixels. Convert them."
        )
        found.cells, found.size = [], None  # an image whose cells nobody knows, not one without cells
    return found


def _in_shares(cells: list[Cell]) -> bool:
    """Return whether all of several cells, or a polygon, lie in the first pixel."""
    if not cells or (len(cells) == 1 and not cells[0].is_polygon):
        return False
    return all(float(cell.vertices.max()) <= 1 for cell in cells)


def _parse_shape(tokens: list[str], width: int, height: int) -> tuple[np.ndarray, bool]:
    """Turn `[Point|Polygon, n, x1, y1, ...]` into vertices; the text of a ValueError says what is wrong."""
    shape, count, *values = tokens
    is_polygon = shape.casefold() == "polygon"
    if not is_polygon and shape.casefold() != "point":
        raise ValueError(f"expected `Point` or `Polygon`, found `{shape[:40]}`")
    try:
        numbers, declared = np.asarray([float(value) for value in values]), int(count)
    except ValueError:
        raise ValueError("a coordinate or the number of points is not a number") from None
    if not np.isfinite(numbers).all():
        raise ValueError("a coordinate is not finite")
    if len(numbers) != 2 * declared or (not is_polygon and declared != 1):
        raise ValueError(f"{shape} with {declared} points declared, but {len(numbers)} coordinates follow")
    vertices = numbers.reshape(-1, 2)
    limits = np.asarray([width, height])
    outside = (vertices <= -1) | (vertices >= limits + 1)
    if outside.any():
        x, y = vertices[outside.any(axis=1)][0]
        raise ValueError(f"({x:g}, {y:g}) lies outside the image of {width} x {height} pixels")
    vertices = np.clip(vertices, 0, limits)  # less than a pixel: rounding
    if is_polygon and declared < 3:
        raise ValueError(f"a polygon needs at least 3 vertices, found {declared}")
    if is_polygon and abs(_area(vertices)) < 1e-3:
        raise ValueError("the polygon has no area")
    return vertices.astype(np.float32), is_polygon


def _area(vertices: np.ndarray) -> float:
    """Signed area of a closed polygon [n, 2] (shoelace formula)."""
    x, y = vertices[:, 0], vertices[:, 1]
    return float(0.5 * (x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def centroid(vertices: np.ndarray) -> np.ndarray:
    """Centre of mass of a closed polygon [n, 2]; the mean vertex where that falls outside its extent."""
    exact = vertices.astype(np.float64)
    origin = exact.mean(axis=0)
    x, y = (exact - origin).T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    total = cross.sum()
    if abs(total) < 1e-9:
        return origin
    centre = origin + np.asarray([((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]) / (3 * total)
    inside = (centre >= exact.min(axis=0)).all() and (centre <= exact.max(axis=0)).all()
    return centre if inside else origin  # a self-crossing outline can throw its centre of mass far away
