"""From an image array to what the network says about it, in the coordinates of the image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtl.core.errors import DataError
from mtl.core.raster import to_original
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, SampleMeta, Window
from mtl.data.images import read_rgb
from mtl.inference.tiling import Arrays, Stitcher

PixelScale = float | Callable[[tuple[int, int]], float]
DEFAULT_THRESHOLD = 0.5


@dataclass
class Prediction:
    """Everything the network says about one image.

    Boxes and points are in pixels of the original image. Maps stay in the working raster, the resolution at which they were
    computed; `mask` brings a hard mask to the original size.

    Attributes:
        window: Sizes and scales of the image.
        specs: The tasks, by name.
        thresholds: Decision thresholds by task, chosen on validation.
        tasks: By task. detection: `boxes` [N, 4], `scores`, `labels`, above the head's low floor, best first.
            roi_classification: `probabilities` [N, C], row by row for the boxes of the first detection task. segmentation:
            `probabilities` [K, h, w]. heatmap: `heatmap` [K, h, w], `stride` (working pixels), `points`, `scores`, `labels`.
            classification: `probabilities` [C]. regression: `value` ().
    """

    window: Window
    specs: dict[str, TaskSpec]
    thresholds: dict[str, dict[str, float]]
    tasks: dict[str, Arrays]

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
        """Name of the task that counts come from: the first detection task."""
        return first_detection(self.specs, self.tasks)

    @property
    def counts(self) -> dict[str, int]:
        """Number of detected objects per class at the stored threshold; empty without a detection task."""
        task = self.detection_task
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
            [K, H, W] uint8 in {0, 1} for independent channels, else [H, W] uint8 class indices.
        """
        spec, probabilities = self.specs[task], self.tasks[task]["probabilities"]
        channels = [to_original(channel, self.window, size) for channel in probabilities]
        if not spec.multilabel:
            return np.argmax(channels, axis=0).astype(np.uint8)
        # In the arrays' own precision, as the metric compares.
        pairs = zip(channels, spec.classes, strict=True)
        return np.stack([channel >= np.float32(self.threshold(task, name)) for channel, name in pairs]).astype(np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: what was found at the stored thresholds, without maps."""
        tasks = {task: {"kind": self.specs[task].kind, **self._summary(task)} for task in self.tasks}
        height, width = self.size
        content: dict[str, Any] = {"width": width, "height": height}
        if self.detection_task is not None:
            content |= {"counts": self.counts, "parasitemia": self.parasitemia}
        return {**content, "thresholds": {task: self.thresholds.get(task, {}) for task in self.tasks}, "tasks": tasks}

    def _summary(self, task: str) -> dict[str, Any]:
        spec, arrays = self.specs[task], self.tasks[task]
        if spec.kind == "detection":
            return {"objects": self._objects_json(task, "boxes", "box")}
        if spec.kind == "heatmap":
            return {"points": self._objects_json(task, "points", "point")}
        if spec.kind == "segmentation":
            mask = self.mask(task, self.window.working_size)
            areas = (
                mask.mean(axis=(1, 2)) if spec.multilabel else [(mask == index).mean() for index in range(len(spec.classes))]
            )
            return {"area_fraction": {name: round(float(area), 6) for name, area in zip(spec.classes, areas, strict=True)}}
        if spec.kind == "classification":
            probabilities = {name: _number(p) for name, p in zip(spec.classes, arrays["probabilities"], strict=True)}
            return {"class": spec.classes[int(np.argmax(arrays["probabilities"]))], "probabilities": probabilities}
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
                values = {c: _number(p) for c, p in zip(self.specs[roi].classes, found[extra][index], strict=True)}
                row[roi] = {"class": max(values, key=lambda c: values[c]), "probabilities": values}
            rows.append(row)
        return rows


@dataclass
class Outcome:
    """What became of one file: `prediction` and the pixels it was made from, or `error`."""

    path: Path
    image: np.ndarray | None = None
    prediction: Prediction | None = None
    error: DataError | None = None


@dataclass
class _Job:
    """One image on its way through the network."""

    number: int
    image: np.ndarray
    working: np.ndarray
    windows: list[Window] = field(default_factory=list)


class Predictor:
    """Applies a trained model to images of any size.

    Preprocessing, windows, stitching and thresholds are those of training and evaluation.

    Args:
        model: Offers `specs`, `preprocessing`, `forward` and `decode`; moved to `device` and put into eval mode.
        device: `auto` or a torch device.
        thresholds: Decision thresholds by task, from the checkpoint.
        pixel_scale: Original pixels per reference pixel: a number, or a rule that takes (height, width).
        batch_size: Windows per forward pass.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device = "auto",
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
        pixel_scale: PixelScale = 1.0,
        batch_size: int = 4,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.specs: dict[str, TaskSpec] = dict(model.specs)
        self.thresholds = {task: dict(values) for task, values in (thresholds or {}).items()}
        self.pixel_scale = pixel_scale
        self.batch_size = batch_size

    def predict(self, image: np.ndarray, pixel_scale: float | None = None) -> Prediction:
        """Predict one image.

        Args:
            image: [H, W, C] (or [H, W] grey) uint8, RGB order, as stored.
            pixel_scale: Original pixels per reference pixel; None applies the predictor's rule.
        """
        (prediction,) = self.predict_batch([image], pixel_scale)
        return prediction

    def predict_batch(self, images: Iterable[np.ndarray], pixel_scale: float | None = None) -> Iterator[Prediction]:
        """Predict images one after the other; windows of several images share a forward pass."""
        jobs = (self._prepare(number, image, pixel_scale) for number, image in enumerate(images))
        for _, prediction in self._run(jobs):
            yield prediction

    def predict_paths(self, paths: Iterable[Path], pixel_scale: float | None = None, prefetch: int = 2) -> Iterator[Outcome]:
        """Predict files, in order; the next ones are decoded while the network works on the current one.

        A file that cannot be decoded gives an `Outcome` with `error`, and the others go on.

        Args:
            paths: Image files.
            pixel_scale: As in `predict`.
            prefetch: Images decoded ahead.
        """
        waiting: dict[int, Outcome] = {}
        order: deque[int] = deque()

        def jobs() -> Iterator[_Job]:
            for number, (path, result) in enumerate(self._read_ahead(paths, pixel_scale, prefetch)):
                order.append(number)
                waiting[number] = Outcome(path)
                try:
                    job = result.result()
                except DataError as error:
                    waiting[number].error = error
                    continue
                waiting[number].image = job.image
                yield job

        def finished() -> Iterator[Outcome]:
            while order and (waiting[order[0]].prediction is not None or waiting[order[0]].error is not None):
                yield waiting.pop(order.popleft())

        for number, prediction in self._run(jobs()):
            waiting[number].prediction = prediction
            yield from finished()
        yield from finished()

    def _read_ahead(
        self, paths: Iterable[Path], pixel_scale: float | None, prefetch: int
    ) -> Iterator[tuple[Path, Future[_Job]]]:
        def work(number: int, path: Path) -> _Job:
            return self._prepare(number, read_rgb(path), pixel_scale)

        queue: deque[tuple[Path, Future[_Job]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as pool:
            try:
                for number, path in enumerate(paths):
                    queue.append((path, pool.submit(work, number, path)))
                    if len(queue) > prefetch:
                        yield queue.popleft()
                yield from queue
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, number: int, image: np.ndarray, pixel_scale: float | None) -> _Job:
        preprocessing = self.model.preprocessing
        pixels = check_image(image, len(preprocessing.mean))
        size = (pixels.shape[0], pixels.shape[1])
        rule = self.pixel_scale if pixel_scale is None else pixel_scale
        scale = float(rule(size)) if callable(rule) else float(rule)
        if not scale > 0:
            raise DataError(f"pixel_scale is {scale}; expected a number above 0 (original pixels per reference pixel).")
        content = preprocessing.content(pixels)
        working = preprocessing.working(pixels, scale, content)
        return _Job(number, pixels, working, preprocessing.windows(size, scale, content))

    def _run(self, jobs: Iterable[_Job]) -> Iterator[tuple[int, Prediction]]:
        """Feed windows of all images through the network in full batches; yield images as they complete."""
        stitcher = Stitcher(self.specs)
        batch: list[tuple[SampleMeta, np.ndarray]] = []

        def flush() -> Iterator[tuple[int, Prediction]]:
            self._forward(batch, stitcher)
            batch.clear()
            for result in stitcher.pop_complete():
                yield int(result.sample_id), self._to_original(result)

        for job in jobs:
            for window in job.windows:
                crop = self.model.preprocessing.geometry.crop(job.working, window)
                meta = SampleMeta(str(job.number), "", "", window)
                batch.append((meta, self.model.preprocessing.normalize(crop)))
                if len(batch) >= self.batch_size:
                    yield from flush()
        if batch:
            yield from flush()

    @torch.inference_mode()
    def _forward(self, batch: list[tuple[SampleMeta, np.ndarray]], stitcher: Stitcher) -> None:
        images = torch.from_numpy(np.stack([pixels for _, pixels in batch])).to(self.device)
        predictions = self.model.decode(self.model(images))
        detection = first_detection(self.specs, predictions)
        for row, (meta, _) in enumerate(batch):
            arrays = {task: {key: _to_numpy(value) for key, value in rows[row].items()} for task, rows in predictions.items()}
            for task, spec in self.specs.items():
                # Classes of detected boxes travel with their boxes, so that stitching keeps the two aligned.
                if spec.kind == "roi_classification" and task in arrays:
                    probabilities = arrays.pop(task)["probabilities"]
                    if detection is not None:
                        arrays[detection][f"probabilities/{task}"] = probabilities
            stitcher.add(meta, arrays)

    def _to_original(self, result: ImageResult) -> Prediction:
        window, tasks = result.window, {task: dict(arrays) for task, arrays in result.tasks.items()}
        for arrays in list(tasks.values()):
            if "boxes" in arrays:
                boxes = window.working_to_original(arrays["boxes"].reshape(-1, 2, 2))
                arrays["boxes"] = _inside(boxes, window).reshape(-1, 4)
            if "points" in arrays:
                arrays["points"] = _inside(window.working_to_original(arrays["points"]), window)
            for key in [key for key in arrays if key.startswith("probabilities/")]:
                tasks[key.partition("/")[2]] = {"probabilities": arrays.pop(key)}
        return Prediction(window, self.specs, self.thresholds, {task: tasks[task] for task in self.specs if task in tasks})


def first_detection(specs: Mapping[str, TaskSpec], among: Iterable[str]) -> str | None:
    """Return the name of the first detection task among those given."""
    return next((task for task, spec in specs.items() if spec.kind == "detection" and task in among), None)


def check_image(image: np.ndarray, channels: int) -> np.ndarray:
    """Return the image as [H, W, channels]; grey images are repeated.

    Raises:
        DataError: Not an image array of the expected form.
    """
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] == 1 and channels > 1:
        array = np.repeat(array, channels, axis=2)
    if array.ndim != 3 or array.shape[2] != channels or not array.size or array.dtype != np.uint8:
        raise DataError(
            f"Expected an image array [height, width, {channels}] of uint8, found shape {list(np.shape(image))} of "
            f"{np.asarray(image).dtype}."
        )
    return array


def _inside(points: np.ndarray, window: Window) -> np.ndarray:
    """Undo what rounding moved over the edge of the original image; [..., 2]."""
    height, width = window.original_size
    return np.clip(points, 0, np.array([width, height], points.dtype))


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return (value.float() if value.is_floating_point() else value).cpu().numpy()
    return np.asarray(value)


def _number(value: Any, digits: int = 4) -> float:
    return round(float(value), digits)
