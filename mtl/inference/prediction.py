"""What the network says about one image, in the coordinates of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtl.core.raster import to_original
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Window

DEFAULT_THRESHOLD = 0.5
DIGITS = 4  # decimals of scores and probabilities in files


@dataclass
class Prediction:
    """Everything the network says about one image.

    Boxes and points are in pixels of the original image. Maps stay in the working raster, the resolution at which they were
    computed; `mask` and `confidence_map` bring them to the original size.

    Attributes:
        window: Sizes and scales of the image.
        specs: The tasks, by name.
        thresholds: Decision thresholds by task, chosen on validation.
        tasks: By task. detection: `boxes` [N, 4], `scores`, `labels`, above the head's low floor, best first.
            roi_classification: `probabilities` [N, C], row by row for the boxes of the first detection task. segmentation:
            `probabilities` [K, h, w]. heatmap: `heatmap` [K, h, w], `stride` (working pixels), `points`, `scores`, `labels`.
            points: `points` [N, 2], `scores`, `labels`, best first, and `radius` (): working pixels within which two points
            would be one cell. classification: `probabilities` [C]. regression: `value` ().
    """

    window: Window
    specs: dict[str, TaskSpec]
    thresholds: dict[str, dict[str, float]]
    tasks: dict[str, Arrays]
    _masks: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.window.original_size

    def threshold(self, task: str, name: str = "score") -> float:
        """Return a decision threshold of a task; 0.5 where none was stored."""
        return float(self.thresholds.get(task, {}).get(name, DEFAULT_THRESHOLD))

    def objects(self, task: str) -> Arrays:
        """Return the boxes or points of a task whose score reaches the stored threshold."""
        arrays = self.tasks[task]
        keep = arrays["scores"] >= self.threshold(task)
        names = ("boxes", "points", "scores", "labels")
        found = {name: arrays[name][keep] for name in names if name in arrays}
        if task == self.detection_task:
            for name, spec in self.specs.items():
                if spec.kind == "roi_classification" and name in self.tasks:
                    found[f"probabilities/{name}"] = self.tasks[name]["probabilities"][keep]
        return found

    @property
    def detection_task(self) -> str | None:
        """Name of the task whose boxes others look at: the first detection task."""
        return first_detection(self.specs, self.tasks)

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects per class of `counting_task` at the stored threshold; empty where no task finds objects."""
        task = counting_task(self.specs, self.tasks)
        if task is None:
            return {}
        classes = self.specs[task].classes
        found = np.bincount(self.objects(task)["labels"], minlength=len(classes))
        return {name: int(found[index]) for index, name in enumerate(classes)}

    @property
    def parasitemia(self) -> float | None:
        """Infected / (infected + healthy) red cells in percent; None without these classes or without cells."""
        counts = self.counts
        if "Infected" not in counts or "Healthy" not in counts:
            return None
        cells = counts["Infected"] + counts["Healthy"]
        return 100.0 * counts["Infected"] / cells if cells else None

    def mask(self, task: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the hard mask of a segmentation task.

        Args:
            task: Its name.
            size: (height, width) of the result, a picture of the whole original; None takes the original's own size. A border
                that was cut off is background.

        Returns:
            [K, H, W] uint8 in {0, 1} for independent channels, else [H, W] uint8 class indices. Not to be written to.
        """
        if size is not None and tuple(size) != self.size:
            return self._hard(task, size)
        if task not in self._masks:
            self._masks[task] = self._hard(task, self.size)
        return self._masks[task]

    def _hard(self, task: str, size: tuple[int, int]) -> np.ndarray:
        spec, probabilities = self.specs[task], self.tasks[task]["probabilities"]
        channels = [to_original(channel, self.window, size) for channel in probabilities]
        if not spec.multilabel:
            return np.argmax(channels, axis=0).astype(np.uint8)
        # In the arrays' own precision, as the metric compares.
        pairs = zip(channels, spec.classes, strict=True)
        return np.stack([channel >= np.float32(self.threshold(task, name)) for channel, name in pairs]).astype(np.uint8)

    def confidence_map(self, task: str) -> np.ndarray:
        """Return how sure the network is of each pixel of the original image, 0 to 1.

        Returns:
            [K, H, W] float32, the probability of each class, for independent channels, else [H, W], that of the predicted one.
        """
        channels = [to_original(channel, self.window) for channel in self.tasks[task]["probabilities"]]
        found = np.stack(channels) if self.specs[task].multilabel else np.max(channels, axis=0)
        return np.clip(found, 0.0, 1.0, out=found)

    def area_ratios(self, task: str) -> dict[str, float]:
        """Return the share of all pixels of the original image that each class covers, as `<class>_area_ratio`."""
        spec, mask = self.specs[task], self.mask(task)
        shares = mask.mean(axis=(1, 2)) if spec.multilabel else [(mask == index).mean() for index in range(len(spec.classes))]
        return {f"{name}_area_ratio": float(share) for name, share in zip(spec.classes, shares, strict=True)}

    @property
    def classification(self) -> dict[str, Any] | None:
        """What the classification task says: `predicted_class_id`, `class_name`, `confidence` and `probabilities` by class.

        Of several such tasks a dict of these by task; None without one.
        """
        return self._only("classification", lambda task: class_entry(self.tasks[task]["probabilities"], self.specs[task]))

    @property
    def segmentation(self) -> dict[str, Any] | None:
        """What the segmentation task says: `mask`, `confidence_map` and `<class>_area_ratio`, all of the original image.

        The mask is [H, W] uint8, the map [H, W] float32; both are [K, H, W] where one task has several independent classes. Of
        several such tasks a dict of these by task; None without one.
        """

        def entry(task: str) -> dict[str, Any]:
            mask, confidence = self.mask(task), self.confidence_map(task)
            if self.specs[task].multilabel and len(mask) == 1:
                mask, confidence = mask[0], confidence[0]
            return {"mask": mask, "confidence_map": confidence, **self.area_ratios(task)}

        return self._only("segmentation", entry)

    def _only(self, kind: str, entry: Callable[[str], dict[str, Any]]) -> dict[str, Any] | None:
        names = [task for task in self.tasks if self.specs[task].kind == kind]
        if len(names) == 1:
            return entry(names[0])
        return {task: entry(task) for task in names} or None

    def to_json(self) -> dict[str, Any]:
        """Return plain values: what was found at the stored thresholds, without maps."""
        tasks = {task: {"kind": self.specs[task].kind, **self._summary(task)} for task in self.tasks}
        height, width = self.size
        content: dict[str, Any] = {"width": width, "height": height}
        if counting_task(self.specs, self.tasks) is not None:
            content["counts"] = self.counts
        if self.detection_task is not None:
            content["parasitemia"] = self.parasitemia
        return {**content, "thresholds": {task: self.thresholds.get(task, {}) for task in self.tasks}, "tasks": tasks}

    def _summary(self, task: str) -> dict[str, Any]:
        spec, arrays = self.specs[task], self.tasks[task]
        if spec.kind == "detection":
            return {"objects": self._objects_json(task, "boxes", "box")}
        if spec.kind in ("heatmap", "points"):
            return {"points": self._objects_json(task, "points", "point")}
        if spec.kind == "segmentation":
            return {name: round(share, 6) for name, share in self.area_ratios(task).items()}
        if spec.kind == "classification":
            return class_entry(arrays["probabilities"], spec, DIGITS)
        if spec.kind == "regression":
            return {"value": _number(arrays["value"])}
        return {"boxes_of": self.detection_task}

    def _objects_json(self, task: str, key: str, name: str) -> list[dict[str, Any]]:
        found, classes = self.objects(task), self.specs[task].classes
        rows = []
        for index, (place, score, label) in enumerate(zip(found[key], found["scores"], found["labels"], strict=True)):
            row: dict[str, Any] = {name: [_number(v, 2) for v in place], "class": classes[int(label)], "score": _number(score)}
            for extra in (entry for entry in found if entry.startswith("probabilities/")):
                roi = extra.partition("/")[2]
                row[roi] = class_entry(found[extra][index], self.specs[roi], DIGITS)
            rows.append(row)
        return rows


def first_detection(specs: Mapping[str, TaskSpec], among: Iterable[str]) -> str | None:
    """Return the name of the first detection task among those given."""
    return next((task for task, spec in specs.items() if spec.kind == "detection" and task in among), None)


def counting_task(specs: Mapping[str, TaskSpec], among: Iterable[str]) -> str | None:
    """Return the name of the task that counts come from: the first that finds boxes, else the first that finds points."""
    given = list(among)
    found = (task for task, spec in specs.items() if spec.kind == "points" and task in given)
    return first_detection(specs, given) or next(found, None)


def class_entry(probabilities: np.ndarray, spec: TaskSpec, digits: int | None = None) -> dict[str, Any]:
    """Say which class is the most probable one.

    Args:
        probabilities: [C].
        spec: The task.
        digits: Decimals of the numbers; None keeps them as they are.

    Returns:
        `predicted_class_id`, `class_name`, `confidence` (its probability) and `probabilities` by class.
    """
    values = {
        name: float(p) if digits is None else round(float(p), digits)
        for name, p in zip(spec.classes, probabilities, strict=True)
    }
    best = int(np.argmax(probabilities))
    name = spec.classes[best]
    return {"predicted_class_id": best, "class_name": name, "confidence": values[name], "probabilities": values}


def _number(value: Any, digits: int = DIGITS) -> float:
    return round(float(value), digits)
