"""What the network says about one image, in the coordinates of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtl.core.decision import labels_of_boxes
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, Window
from mtl.kinds.base import DIGITS, TaskPrediction, first_of, rules_of
from mtl.kinds.classes import class_entry, image_entry
from mtl.metrics.base import StudyMetric, deciders_of
from mtl.runs.precision import FLOAT32


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
        study_metrics: Of the run, by name.
        when: How likely classes of the image have to be for its masks to be shown, by task and class.
        precision: In which the network computed (`mtl.runs.precision`).
    """

    window: Window
    specs: dict[str, TaskSpec]
    thresholds: dict[str, dict[str, float]]
    tasks: dict[str, Arrays]
    study_metrics: Mapping[str, StudyMetric] = field(default_factory=dict)
    when: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    precision: str = FLOAT32
    _found: dict[str, TaskPrediction] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.window.original_size

    def of(self, task: str) -> TaskPrediction:
        """Return what is said for one task, as its kind takes it."""
        if task not in self._found:
            own = self.thresholds.get(task, {})
            self._found[task] = TaskPrediction(self.specs[task], self.tasks[task], self.size, self.window, own)
        return self._found[task]

    @property
    def withheld(self) -> str:
        """Why the masks of this image are not shown; empty where they are."""
        for task, limits in self.when.items():
            for name, limit in limits.items():
                probability = float(self.tasks[task]["probabilities"][self.specs[task].classes.index(name)])
                if probability < limit:
                    return f"{task}: {name} {probability:.2f}, below {limit:g}"
        return ""

    def shows(self, task: str) -> bool:
        """Return whether files and pictures show what a task says: always, but for masks that are withheld."""
        return not (rules_of(self.specs[task]).areas and self.withheld)

    def threshold(self, task: str, name: str = "score") -> float:
        """Return a decision threshold of a task; 0.5 where none was stored."""
        return self.of(task).threshold(name)

    def objects(self, task: str) -> Arrays:
        """Return the boxes or points of a task whose score reaches the stored threshold."""
        arrays, keep = self.tasks[task], self.of(task).kept
        return {name: arrays[name][keep] for name in ("boxes", "points", "scores", "labels") if name in arrays}

    def classes_of_boxes(self, task: str) -> np.ndarray:
        """Return the probabilities [N, C] that a task gives to the boxes of `detection_task` that reach their threshold."""
        assert self.detection_task is not None
        return self.tasks[task]["probabilities"][self.of(self.detection_task).kept]

    @property
    def detection_task(self) -> str | None:
        """Name of the task whose boxes others look at: the first detection task."""
        return first_of(self.specs, self.tasks, "boxes")

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects per class of `counting_task` at the stored threshold; empty where no task finds objects.

        Where a study metric has another task decide the classes of boxes, these count.
        """
        task = counting_task(self.specs, self.tasks)
        if task is None:
            return {}
        classes = self.specs[task].classes
        decided = decided_tasks(self.tasks, self.specs, self.thresholds, self.study_metrics)
        found = np.bincount(decided[task]["labels"][self.of(task).kept], minlength=len(classes))
        return {name: int(found[index]) for index, name in enumerate(classes)}

    @property
    def study(self) -> dict[str, float | None]:
        """By name of a study metric that has a value of an image, that value; None where this image has none."""
        return study_values(self.study_metrics, self.tasks, self.thresholds)

    def mask(self, task: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the hard mask of a segmentation task, also where it is `withheld` from files and pictures.

        Args:
            task: Its name.
            size: (height, width) of the result, a picture of the whole original; None takes the original's own size. A border
                that was cut off is background.

        Returns:
            [K, H, W] uint8 in {0, 1} for independent channels, else [H, W] uint8 class indices. Not to be written to.
        """
        return rules_of(self.specs[task]).mask(self.of(task), self.size if size is None else size)

    def confidence_map(self, task: str) -> np.ndarray:
        """Return how sure the network is of each pixel of the original image, 0 to 1.

        Returns:
            [K, H, W] float32, the probability of each class, for independent channels, else [H, W], that of the predicted one.
        """
        return rules_of(self.specs[task]).confidence_map(self.of(task))

    def area_ratios(self, task: str) -> dict[str, float]:
        """Return the share of all pixels of the original image that each class covers, as `<class>_area_ratio`."""
        return rules_of(self.specs[task]).area_ratios(self.of(task))

    @property
    def classification(self) -> dict[str, Any] | None:
        """What the classification task says: `predicted_class_id`, `class_name`, `confidence` and `probabilities` by class.

        `probability_list` holds the probabilities in the order of the classes. Of several such tasks a dict of these by task;
        None without one.
        """

        def entry(task: str) -> dict[str, Any]:
            return image_entry(self.tasks[task]["probabilities"], self.specs[task], self.of(task).thresholds)

        return self._only("classification", entry)

    @property
    def segmentation(self) -> dict[str, Any] | None:
        """What the segmentation task says: `mask`, `confidence_map` and `<class>_area_ratio`, all of the original image.

        The mask is [H, W] uint8, the map [H, W] float32; both are [K, H, W] where one task has several independent classes.
        Where `when` is not met, only `withheld`, the reason. Of several such tasks a dict of these by task; None without one.
        """

        def entry(task: str) -> dict[str, Any]:
            if not self.shows(task):
                return {"withheld": self.withheld}
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
        return {
            **content,
            **self.study,
            "precision": self.precision,
            "thresholds": {task: self.thresholds.get(task, {}) for task in self.tasks},
            "tasks": tasks,
        }

    def _summary(self, task: str) -> dict[str, Any]:
        rules = rules_of(self.specs[task])
        if not self.shows(task):
            return {"withheld": self.withheld}
        if rules.of_boxes:
            return {"boxes_of": self.detection_task}
        entry = rules.summary(self.of(task))
        if task == self.detection_task:
            for other in (name for name in self.tasks if rules_of(self.specs[name]).of_boxes):
                rows = zip(entry["objects"], self.classes_of_boxes(other), strict=True)
                for row, probabilities in rows:
                    row[other] = class_entry(probabilities, self.specs[other], self.of(other).thresholds, DIGITS)
        if decider := deciders_of(self.study_metrics.values()).get(task):
            for row in (row for row in entry["objects"] if decider in row):
                row |= {"class": row[decider]["class_name"], "detector_class": row["class"]}
        return entry


def study_values(
    study: Mapping[str, StudyMetric], tasks: Mapping[str, Arrays], thresholds: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Return the values of one image, predicted or annotated, by study metric that has one of images.

    Args:
        study: By name.
        tasks: As `ImageResult.tasks`.
        thresholds: By task.
    """
    return {name: metric.value(tasks, thresholds) for name, metric in study.items() if metric.value_of == "image"}


def decided_tasks(
    tasks: Mapping[str, Arrays], specs: Mapping[str, TaskSpec], thresholds: Mapping[str, Mapping[str, float]],
    study: Mapping[str, StudyMetric],
) -> dict[str, Arrays]:  # fmt: skip
    """Return tasks with boxes in the classes in which study metrics count them.

    Args:
        tasks: As `ImageResult.tasks`, predicted or annotated.
        specs: The tasks.
        thresholds: By task.
        study: By name.
    """
    found = dict(tasks)
    for task, decider in deciders_of(study.values()).items():
        if task in found:
            labels = labels_of_boxes(found[task], decider, specs[decider], thresholds.get(decider, {}))
            found[task] = found[task] if labels is None else {**found[task], "labels": labels}
    return found


def counting_task(specs: Mapping[str, TaskSpec], among: Iterable[str]) -> str | None:
    """Return the name of the task that counts come from: the first that finds boxes, else the first that finds points."""
    given = list(among)
    return first_of(specs, given, "boxes") or first_of(specs, given, "points")
