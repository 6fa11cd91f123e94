"""Segmentation: a mask per class, independent channels or one class per pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl.core.decision import DEFAULT_THRESHOLD
from mtl.core.errors import DataError
from mtl.core.raster import resize_mask, to_original
from mtl.core.registry import KINDS
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays
from mtl.drawing.layers import Layers
from mtl.imaging.outlines import Size, fill_outlines
from mtl.kinds.base import Annotations, RecordChange, TaskKind, TaskPrediction, TrainingStatistics, rounded
from mtl.kinds.objects import members
from mtl.metrics.segmentation import SegmentationMetric, overlap
from mtl.stitching.joiners import MapJoiner


@KINDS.register("segmentation")
class Segmentation(TaskKind):
    """Prediction: `probabilities` [K, h, w]. Target: [K, H, W] uint8 of independent channels, else [H, W] class indices."""

    metric_class = SegmentationMetric
    lower_is_better = frozenset({"hd95*"})
    areas = True

    # -- from labels to a batch ----------------------------------------------------------------------------------------

    def class_mask(self, spec: TaskSpec) -> str | None:
        """Return the mask of a task with one class per pixel."""
        return None if spec.multilabel else spec.label_name

    def target(self, spec: TaskSpec, annotations: Annotations) -> Any:
        """Return a stored mask in the order of the classes, or the outlines of the objects, filled."""
        if not annotations.knows(spec.label):
            return None
        name = spec.label_name
        return _stored(spec, annotations.masks[name], name) if name else _filled(spec, annotations)

    def stack(self, spec: TaskSpec, rows: Sequence[Any], size: Size) -> Any:
        """Return [B, K, H, W] float32 or [B, H, W] int64; nothing, or pixels to ignore, where absent."""
        import torch

        absent = (
            np.zeros((len(spec.classes), *size), np.uint8) if spec.multilabel else np.full(size, spec.ignore_index, np.uint8)
        )
        stacked = torch.from_numpy(np.stack([absent if row is None else row for row in rows]))
        return stacked.float() if spec.multilabel else stacked.long()

    def truth(self, target: Any) -> Arrays:
        """Return `mask`."""
        return {"mask": np.asarray(target)}

    def joiner(self) -> MapJoiner:
        """Blend probabilities."""
        return MapJoiner()

    # -- baselines -----------------------------------------------------------------------------------------------------

    def baselines(self, spec: TaskSpec, statistics: TrainingStatistics) -> dict[str, RecordChange]:
        """Mark nothing or everything; with one class per pixel, one class everywhere."""
        if spec.multilabel:
            return {"all background": _all_background, "all foreground": _all_foreground}
        return {f"{name} everywhere": _one_class(index) for index, name in enumerate(spec.classes)}

    # -- files of predictions ------------------------------------------------------------------------------------------

    def summary(self, found: TaskPrediction) -> dict[str, Any]:
        """Return the share of the image that each class covers."""
        return {name: round(share, 6) for name, share in self.area_ratios(found).items()}

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return a column per class."""
        return [f"{spec.name}_{name}_area_ratio" for name in spec.classes]

    def column_values(self, spec: TaskSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shares."""
        return {f"{spec.name}_{key}": share for key, share in entry.items() if key.endswith("_area_ratio")}

    def scored(self, spec: TaskSpec, record: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return per class the annotated and the predicted share of the compared pixels, in mm3 where known, and the Dice."""
        metric = SegmentationMetric(spec)
        metric.add([dict(record)])
        hits, predicted, truth = (table[0] for table in metric.counts(dict(thresholds)))
        found: dict[str, Any] = {}
        for side, counts in (("annotated", truth), ("predicted", predicted)):
            for name, count in zip(spec.classes, counts.tolist(), strict=True):
                found[f"{side}_{name}_share"] = round(count / max(int(record["pixels"]), 1), 6)
                if np.isfinite(record.get("voxel", np.nan)):
                    found[f"{side}_{name}_mm3"] = round(count * float(record["voxel"]), 3)
        dice, _ = overlap(hits, predicted, truth)
        return found | {f"dice_{name}": rounded(value) for name, value in zip(spec.classes, dice, strict=True)}

    def maps(self, found: TaskPrediction) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield the mask (class values, or 0 and 255) and how sure it is (16 bit), for each independent channel."""
        mask, confidence = self.mask(found, _original(found)), np.rint(self.confidence_map(found) * 65535).astype(np.uint16)
        if not found.spec.multilabel:
            yield "mask", "", mask
            yield "confidence_map", "", confidence
            return
        names = found.spec.classes if len(found.spec.classes) > 1 else ("",)
        yield from (("mask", name, channel * np.uint8(255)) for name, channel in zip(names, mask, strict=True))
        yield from (("confidence_map", name, channel) for name, channel in zip(names, confidence, strict=True))

    def mask(self, found: TaskPrediction, size: Size) -> np.ndarray:
        """Return the mask at the thresholds; a border that was cut off is background. Not to be written to."""
        if size != _original(found):
            return self._hard(found, size)
        if "mask" not in found.memo:
            found.memo["mask"] = self._hard(found, size)
        mask: np.ndarray = found.memo["mask"]
        return mask

    def _hard(self, found: TaskPrediction, size: Size) -> np.ndarray:
        assert found.window is not None
        spec, probabilities = found.spec, found.arrays["probabilities"]
        channels = [to_original(channel, found.window, size) for channel in probabilities]
        if not spec.multilabel:
            return np.argmax(channels, axis=0).astype(np.uint8)
        # In the arrays' own precision, as the metric compares.
        pairs = zip(channels, spec.classes, strict=True)
        return np.stack([channel >= np.float32(found.threshold(name)) for channel, name in pairs]).astype(np.uint8)

    def confidence_map(self, found: TaskPrediction) -> np.ndarray:
        """Return the probability of each class, or that of the predicted one."""
        assert found.window is not None
        channels = [to_original(channel, found.window) for channel in found.arrays["probabilities"]]
        values = np.stack(channels) if found.spec.multilabel else np.max(channels, axis=0)
        return np.clip(values, 0.0, 1.0, out=values)

    def area_ratios(self, found: TaskPrediction) -> dict[str, float]:
        """Return the shares of the mask at the size of the original."""
        spec, mask = found.spec, self.mask(found, _original(found))
        shares = mask.mean(axis=(1, 2)) if spec.multilabel else [(mask == index).mean() for index in range(len(spec.classes))]
        return {f"{name}_area_ratio": float(share) for name, share in zip(spec.classes, shares, strict=True)}

    # -- pictures ------------------------------------------------------------------------------------------------------

    def channels(self, found: TaskPrediction) -> list[np.ndarray]:
        """Return the annotated masks, or the predicted ones at their thresholds."""
        spec = found.spec
        if "probabilities" in found.arrays:
            values = found.arrays["probabilities"]
            limits = [found.thresholds.get(name, DEFAULT_THRESHOLD) for name in spec.classes]
            return (
                [v >= t for v, t in zip(values, limits, strict=True)] if spec.multilabel else _one_hot(values.argmax(0), spec)
            )
        mask = found.arrays["mask"]
        return [channel > 0 for channel in mask] if spec.multilabel else _one_hot(mask, spec)

    def draw(self, layers: Layers, found: TaskPrediction) -> None:
        """Add the masks and the share of the whole picture that each covers, although they may show a part of it."""
        share, names = 1.0, layers.mask_names
        if layers.window is not None:
            left, top, right, bottom = layers.window.content_box
            share = (right - left) * (bottom - top) / float(np.prod(layers.window.original_size))
        for name, mask in zip(found.spec.classes, self.channels(found), strict=True):
            layers.masks.append((name, mask))
            title = name if names.count(name) == 1 else f"{found.spec.name} {name}"
            layers.legend.append((layers.colours[name], f"{title} area {_percent(share * mask.mean())}"))

    def for_pictures(self, spec: TaskSpec, truth: Arrays, box: tuple[int, int, int, int], size: Size) -> Arrays:
        """Shrink the mask; of independent channels nothing annotated vanishes."""
        import cv2

        left, top, right, bottom = box
        mask = truth["mask"][..., top:bottom, left:right]
        if spec.multilabel:
            return truth | {"mask": np.stack([resize_mask(channel, size) for channel in mask]).astype(np.uint8)}
        nearest = cv2.resize(np.ascontiguousarray(mask), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        return truth | {"mask": nearest}


def _original(found: TaskPrediction) -> Size:
    assert found.window is not None
    return found.window.original_size


def _one_hot(mask: np.ndarray, spec: TaskSpec) -> list[np.ndarray]:
    return [mask == index for index in range(len(spec.classes))]


def _percent(share: float) -> str:
    """Write a share with one decimal, small ones with one digit that is not zero."""
    value = 100 * float(share)
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.1g} %"


def _filled(spec: TaskSpec, annotations: Annotations) -> np.ndarray:
    """Fill outlines. Multiclass: pixels outside all get the class without members (background), or are ignored."""
    assert annotations.objects is not None
    mine, classes = members(spec, annotations.objects, annotations.object_classes)
    outlines = mine.outlines if mine.mask_outlines is None else mine.mask_outlines
    by_class = [[outlines[i] for i in np.flatnonzero(classes == k)] for k in range(len(spec.classes))]
    if spec.multilabel:
        return np.stack([fill_outlines(some, annotations.size) for some in by_class]).astype(np.uint8)
    background = next((k for k, names in enumerate(spec.members) if not names), spec.ignore_index)
    target = np.full(annotations.size, background, np.uint8)
    for k, some in enumerate(by_class):
        if some:
            target[fill_outlines(some, annotations.size)] = k
    return target


def _stored(spec: TaskSpec, mask: np.ndarray, name: str) -> np.ndarray:
    """Arrange a stored mask. Multilabel from one class per pixel: 0 is nothing, k + 1 is class k."""
    classes = len(spec.classes)
    if not spec.multilabel:
        highest = int(mask[mask != spec.ignore_index].max(initial=0))
        if mask.ndim != 2 or highest >= classes:
            raise DataError(
                f"Mask `{name}` has shape {mask.shape} and values up to {highest}; expected [H, W] with values below {classes} "
                f"(or {spec.ignore_index} for pixels to ignore)."
            )
        return mask.astype(np.uint8)
    if mask.ndim == 3:
        if mask.shape[2] != classes:
            raise DataError(f"Mask `{name}` has {mask.shape[2]} channels; task `{spec.name}` has {classes} classes.")
        return np.ascontiguousarray(np.moveaxis(mask, 2, 0) > 0).astype(np.uint8)
    if int(mask.max(initial=0)) > classes:
        raise DataError(f"Mask `{name}` has values up to {mask.max()}; expected 0 for nothing and 1 to {classes} for classes.")
    return (mask[None] == np.arange(1, classes + 1, dtype=mask.dtype)[:, None, None]).astype(np.uint8)


# -- baselines ---------------------------------------------------------------------------------------------------------


def _all_background(record: dict[str, Any]) -> dict[str, Any]:
    silent = {key: np.zeros_like(record[key]) for key in ("hits", "predicted", "curve_hits", "curve_predicted")}
    # An empty mask is one diagonal away from an annotated one.
    if "hd95" in record:
        silent["hd95"] = np.where(record["truth"] > 0, record["diagonal"], np.nan)
    if "hd95_case" in record:
        silent["hd95_case"] = np.where(record["annotated_case"], record["diagonal_case"], np.nan)
    return silent


def _all_foreground(record: dict[str, Any]) -> dict[str, Any]:
    hits = {key: np.ones_like(record[key]) * record["truth"][:, None] for key in ("hits", "curve_hits")}
    full = {key: np.full_like(record[key], record["pixels"]) for key in ("predicted", "curve_predicted")}
    return hits | full | _no_distance(record)


def _no_distance(record: dict[str, Any]) -> dict[str, Any]:
    """Surfaces of the annotation are not at hand any more, so what is not empty has no distance to them."""
    return {key: np.full_like(record[key], np.nan) for key in ("hd95", "hd95_case") if key in record}


def _one_class(index: int) -> RecordChange:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        confusion = np.zeros_like(record["confusion"])
        confusion[:, index] = record["truth"]
        counts = {"hits": confusion.diagonal()[:, None].copy(), "predicted": confusion.sum(0)[:, None]}
        return {"confusion": confusion} | counts | _no_distance(record)

    return change
