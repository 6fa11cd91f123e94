"""Outlines of objects: cut at the border of a raster, and filled.

Coordinates are continuous; a pixel belongs to an outline when its centre does. OpenCV's `fillPoly` also paints every
pixel that the border touches (a 10 x 10 square becomes 121 pixels, a disc of radius 7.3 gains 15 %), hence the own fill.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mtl.core.types import Objects

MIN_SIDE = 0.1  # pixels; a box below this counts as having no area


Size = tuple[int, int]


def clip_objects(objects: Objects, size: Size, min_visible: float = 0.0) -> tuple[Objects, int]:
    """Clip outlines to the raster and drop what is hardly visible or has no area.

    Args:
        objects: In pixels of the raster; points are left where they are.
        size: (height, width) of the raster.
        min_visible: Objects whose box keeps a smaller fraction of its area inside are dropped.

    Returns:
        The clipped objects and how many were dropped.
    """
    if len(objects) == 0:
        return objects, 0
    outlines, fraction = _clip(objects.outlines, size)
    keep = (fraction > 0) & (fraction >= min_visible)
    return replace(objects, outlines=outlines).select(keep), int((~keep).sum())


def cut_to_content(objects: Objects, size: Size, min_visible: float) -> tuple[Objects, np.ndarray, np.ndarray]:
    """Keep of each object what the picture shows, before a transform moves the picture's border into the frame.

    Without this, an outline that goes on beyond the border would mark fill as object, and objects of neighbouring windows
    could be moved into the frame without their pixels.

    Args:
        objects: In pixels of the raster.
        size: (height, width) of the image content, at the top left of the raster.
        min_visible: As in `clip_objects`.

    Returns:
        Objects of which any pixel is shown, with outlines and mask outlines clipped; which of them are visible enough for a
        box [N] bool; whose point lies inside [N] bool.
    """
    if len(objects) == 0:
        return objects, np.zeros(0, bool), np.zeros(0, bool)
    outlines, fraction = _clip(objects.outlines, size)
    shown, mask_outlines = fraction > 0, objects.mask_outlines
    if mask_outlines is not None:
        mask_outlines, mask_fraction = _clip(mask_outlines, size)
        shown |= mask_fraction > 0
    enough = (fraction > 0) & (fraction >= min_visible)
    inside = points_inside(objects, size)
    return replace(objects, outlines=outlines, mask_outlines=mask_outlines).select(shown), enough[shown], inside[shown]


def points_inside(objects: Objects, size: Size) -> np.ndarray:
    """[N] bool, True where the point of an object lies inside a raster of (height, width)."""
    return np.all((objects.points >= 0) & (objects.points < np.asarray(size[::-1])), axis=1)


def _clip(outlines: list[np.ndarray], size: Size) -> tuple[list[np.ndarray], np.ndarray]:
    """Clip outlines; also return [N] which fraction of each box is inside, 0 where no area of the outline is."""
    height, width = size
    points, counts = np.concatenate(outlines), np.asarray([len(outline) for outline in outlines])
    firsts = np.cumsum(counts) - counts
    boxes = np.concatenate([np.minimum.reduceat(points, firsts), np.maximum.reduceat(points, firsts)], axis=1)
    inside = np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32))
    sides, visible_sides = boxes[:, 2:] - boxes[:, :2], inside[:, 2:] - inside[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(visible_sides.min(1) >= MIN_SIDE, visible_sides.prod(1) / sides.prod(1), 0.0)
    clipped = list(outlines)
    for index in np.flatnonzero((fraction > 0) & (boxes != inside).any(1)):
        outline = clip_outline(outlines[index], size)
        # A slanted outline can miss the raster although its box reaches into it.
        if len(outline) >= 3 and np.ptp(outline, axis=0).min() >= MIN_SIDE:
            clipped[index] = outline
        else:
            fraction[index] = 0.0
    return clipped, fraction


def clip_outline(outline: np.ndarray, size: Size) -> np.ndarray:
    """Cut a closed outline [n, 2] at the border of the raster (Sutherland and Hodgman 1974); may come out empty."""
    height, width = size
    points = np.asarray(outline, np.float32)
    for axis, limit, sign in ((0, 0.0, 1.0), (0, float(width), -1.0), (1, 0.0, 1.0), (1, float(height), -1.0)):
        if len(points) == 0:
            break
        distance = sign * (points[:, axis] - limit)
        if distance.min() >= 0:  # most outlines cross one border
            continue
        after, distance_after = np.roll(points, -1, axis=0), np.roll(distance, -1)
        kept: list[np.ndarray] = []
        for index in range(len(points)):
            if distance[index] >= 0:
                kept.append(points[index])
            if (distance[index] >= 0) != (distance_after[index] >= 0):
                share = distance[index] / (distance[index] - distance_after[index])
                crossing = points[index] + share * (after[index] - points[index])
                crossing[axis] = limit
                kept.append(crossing)
        points = np.asarray(kept, np.float32).reshape(-1, 2)
    return points


def fill_outlines(outlines: list[np.ndarray], size: Size) -> np.ndarray:
    """Return [H, W] bool, True where a pixel's centre lies inside any of the closed outlines.

    Scan lines over all edges at once: every edge adds its direction at the column where it crosses a row, the running sum
    along the row is the winding number.
    """
    height, width = size
    outlines = [outline for outline in outlines if len(outline) >= 3]
    if not outlines:
        return np.zeros(size, bool)
    points = np.concatenate(outlines).astype(np.float64)
    counts = np.asarray([len(outline) for outline in outlines])
    firsts = np.cumsum(counts) - counts
    following = np.arange(1, len(points) + 1)
    following[firsts + counts - 1] = firsts
    after = points[following]
    area = np.add.reduceat(points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1], firsts)
    # One direction for all, so that overlapping outlines add up instead of cancelling.
    forwards = np.repeat(area >= 0, counts)[:, None]
    start, end = np.where(forwards, points, after), np.where(forwards, after, points)
    downwards = start[:, 1] < end[:, 1]
    top, bottom = np.where(downwards[:, None], start, end), np.where(downwards[:, None], end, start)
    first = np.clip(np.ceil(top[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(bottom[:, 1] - 0.5), 0, height).astype(np.int64)  # exclusive
    rows = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(start)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    run, rise = bottom[edge, 0] - top[edge, 0], bottom[edge, 1] - top[edge, 1]
    crossing = top[edge, 0] + (row + 0.5 - top[edge, 1]) / rise * run
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    # Integers add up in a tenth of the time that a sum of floats takes, each of which waits for the one before.
    change = np.zeros(height * (width + 1), np.int32)
    np.add.at(change, row * (width + 1) + column, np.where(downwards[edge], 1, -1).astype(np.int32))
    winding = np.cumsum(change.reshape(height, width + 1)[:, :width], axis=1, dtype=np.int32)
    return winding != 0
