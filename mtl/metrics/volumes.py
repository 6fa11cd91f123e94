"""Cases: the slices of a volume taken together, and the surfaces of their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtl.metrics.base import TaskMetric, case_of, natural
from mtl.metrics.surface import diagonal, hd95, pack, unpack


@dataclass
class Cases:
    """Counts of C volumes, summed over their slices. A group (patient) may have several.

    Attributes:
        names: C names of cases.
        share: [C] how often each counts.
        slices: [C] number of slices that count.
        hits, predicted, truth: [C, K] pixels.
        predicted_mm3, truth_mm3: [C, K] volumes; NaN where the size of a voxel is not known.
    """

    names: list[str]
    share: np.ndarray
    slices: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    predicted_mm3: np.ndarray
    truth_mm3: np.ndarray


def sum_cases(
    metric: TaskMetric, hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> Cases:  # fmt: skip
    """Add the counts [records, K] of the slices of each case.

    A case weighs what its slices weigh (bootstraps draw whole groups, all cases of one together); slices of weight 0 are not
    part of it.
    """
    names, index = metric.case_index()
    share = np.zeros(len(names))
    np.maximum.at(share, index, weight)
    counted = weight > 0
    voxel = metric.stacked("voxel")

    def total(values: np.ndarray) -> np.ndarray:
        kept = np.where(counted[:, None], values, 0.0)
        columns = [np.bincount(index, kept[:, k], minlength=len(names)) for k in range(kept.shape[1])]
        return np.stack(columns, axis=1)

    slices = np.bincount(index, counted, minlength=len(names))
    sizes = (predicted * voxel[:, None], truth * voxel[:, None])
    return Cases(names, share, slices, total(hits), total(predicted), total(truth), *map(total, sizes))


def measure_surfaces(
    predicted: np.ndarray, truth: np.ndarray, steps: np.ndarray | None, volumetric: bool
) -> dict[str, Any]:  # fmt: skip
    """Measure the distance of surfaces in one image, and keep its masks for the volume that it is a slice of.

    Args:
        predicted: [K, H, W] bool.
        truth: [K, H, W] bool.
        steps: [3, 3] vectors to the next slice, row and column in millimetres (`step_vectors`); None measures in pixels.
        volumetric: Keep the masks until `finish_surfaces`.

    Returns:
        `hd95` [K], `hd95_mm` (is it in millimetres?), `diagonal` of the image; `masks` where they are kept.
    """
    known, steps = steps is not None, np.eye(3) if steps is None else steps
    found: dict[str, Any] = {
        "hd95": np.array([hd95(*pair, steps[1:]) for pair in zip(predicted, truth, strict=True)]),
        "hd95_mm": np.bool_(known),
        "diagonal": np.float64(diagonal(truth.shape[1:], steps[1:])),
    }
    if volumetric:
        masks = [(pack(first), pack(second)) for first, second in zip(predicted, truth, strict=True)]
        found["masks"] = {"shape": truth.shape[1:], "steps": steps, "classes": masks}
    return found


def finish_surfaces(records: list[dict[str, Any]]) -> None:
    """Measure the volumes whose masks are kept, drop the masks.

    Every slice gets `hd95_case` [K], `annotated_case` [K] (is there anything?) and `diagonal_case` of its volume.

    The images of a case, in the order of their names (numbers by value), are consecutive slices. A case whose slices differ in
    size has no such distance (NaN).
    """
    cases: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "masks" in record:
            cases.setdefault(case_of(record), []).append(record)
    for slices in cases.values():
        slices.sort(key=lambda record: natural(record["sample_id"]))
        kept = [record.pop("masks") for record in slices]
        distance, whole = _measure_volume(kept)
        annotated = np.sum([record["truth"] for record in slices], axis=0) > 0
        for record in slices:
            record |= {"hd95_case": distance, "diagonal_case": np.float64(whole), "annotated_case": annotated}


def _measure_volume(kept: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Distance by class, and the diagonal of the volume."""
    first = kept[0]
    classes = len(first["classes"])
    if any(slice_["shape"] != first["shape"] or not np.allclose(slice_["steps"], first["steps"]) for slice_ in kept):
        return np.full(classes, np.nan), float("nan")
    shape, steps = (len(kept), *first["shape"]), first["steps"]

    def volume(index: int, side: int) -> np.ndarray:
        return np.stack([unpack(slice_["classes"][index][side], first["shape"]) for slice_ in kept])

    return np.array([hd95(volume(k, 0), volume(k, 1), steps) for k in range(classes)]), diagonal(shape, steps)
