"""From an image array to what the network says about it, in the coordinates of the image."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from mtl.core.decision import box_probabilities
from mtl.core.errors import ConfigError, DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Arrays, ImageResult, SampleMeta, Window
from mtl.data.formats.images import grey_channels, grey_values
from mtl.inference.ahead import ahead
from mtl.inference.finite import NotFiniteError, check_finite
from mtl.inference.inputs import input_of, read_pixels
from mtl.inference.prediction import Prediction
from mtl.inference.settings import Limits, changed_thresholds, checked_conditions, chosen_tasks
from mtl.inference.volumes import VolumePrediction, predict_case
from mtl.inference.weights import hold_weights
from mtl.metrics.base import StudyMetric
from mtl.runs.precision import Computation
from mtl.stitching.stitcher import Stitcher

PixelScale = float | Callable[[tuple[int, int], str], float]


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

    Preprocessing, windows, stitching and thresholds are those of training and evaluation. A network for MR slices takes grey
    values: pictures lose their colour and fill the channels as in training, and volumes are read slice by slice
    (`mtl.inference.volumes`).

    Args:
        model: Offers `specs`, `preprocessing`, `forward` and `decode`; moved to `device` and put into eval mode.
        device: `auto` or a torch device.
        thresholds: Decision thresholds by task, from the checkpoint.
        pixel_scale: Original pixels per reference pixel: a number, or a rule that takes (height, width) and the name of the
            file without folder and suffix, empty for arrays.
        batch_size: Windows per forward pass.
        modalities: Names of the channels of a network for MR slices; empty for one that takes pictures in colour. None looks
            at the preprocessing: whoever standardises a foreground takes grey values.
        picture_modality: Which channel a picture fills, or `repeat` for all of them.
        microns: The reference pixel is a micron (`DataFamily.microns`); slides need that.
        study: Study metrics of the run, by name; predictions say what they say of an image or a slide, and nothing without.
        computation: The precision and memory format of the network.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device = "auto",
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
        pixel_scale: PixelScale = 1.0,
        batch_size: int = 4,
        modalities: Sequence[str] | None = None,
        picture_modality: str = "repeat",
        microns: bool = False,
        study: Mapping[str, StudyMetric] | None = None,
        computation: Computation = Computation(),  # noqa: B008 (frozen)
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.computation = computation
        computation.arrange(self.model)
        hold_weights(self.model)
        self.specs: dict[str, TaskSpec] = dict(model.specs)
        self.thresholds = {task: dict(values) for task, values in (thresholds or {}).items()}
        self.pixel_scale = pixel_scale
        self.batch_size = batch_size
        if modalities is None:
            preprocessing = model.preprocessing
            modalities = ("grey",) * len(preprocessing.mean) if preprocessing.foreground is not None else ()
        self.modalities = tuple(modalities)
        self.picture_modality = picture_modality
        self.microns = microns
        self.study = dict(study or {})
        self.when: dict[str, dict[str, float]] = {}

    def adjusted(
        self, thresholds: Limits | None = None, tasks: Iterable[str] | None = None, when: Limits | None = None
    ) -> Predictor:
        """Return a predictor of the same network with other settings.

        Args:
            thresholds: Decision thresholds in place of stored ones: by task one number (`{"detection": 0.3}`), or numbers by
                class (`{"lesions": {"exudates": 0.4}}`).
            tasks: Names of the tasks that are predicted; None is all.
            when: How likely a class of an image has to be for its masks to be shown: by task a probability of the positive one
                of two classes (`{"presence": 0.3}`), or probabilities by class.

        Raises:
            ConfigError: The network has no such task or class, or a number does not lie between 0 and 1.
        """
        other = copy.copy(self)
        if tasks is not None:
            other.specs = chosen_tasks(self.specs, tasks)
            other.study = {name: metric for name, metric in self.study.items() if _uses(metric) <= other.specs.keys()}
            if idle := self.when.keys() - other.specs.keys():
                raise ConfigError(f"`when` looks at `{min(idle)}`, which is not among the tasks that are predicted. Add it.")
        other.thresholds = changed_thresholds(other.specs, self.thresholds, thresholds or {})
        other.when = checked_conditions(other.specs, when) if when is not None else other.when
        return other

    @overload
    def predict(
        self, source: np.ndarray, pixel_scale: float | None = None, thresholds: Limits | None = None,
        tasks: Iterable[str] | None = None, when: Limits | None = None,
    ) -> Prediction: ...  # fmt: skip

    @overload
    def predict(
        self, source: Any, pixel_scale: float | None = None, thresholds: Limits | None = None,
        tasks: Iterable[str] | None = None, when: Limits | None = None,
    ) -> Any: ...  # fmt: skip

    def predict(
        self, source: Any, pixel_scale: float | None = None, thresholds: Limits | None = None,
        tasks: Iterable[str] | None = None, when: Limits | None = None,
    ) -> Any:  # fmt: skip
        """Predict an image, a volume, or a list of these.

        Args:
            source: The path of an image, of a volume or of a case folder; a PIL image; or an array [H, W, C] (or [H, W] grey)
                uint8, RGB order, as stored. For a network of MR slices also grey values of any type, or [H, W, modalities]
                float32; a missing modality is a channel of zeros. Or a list of any of these.
            pixel_scale: Original pixels per reference pixel; None applies the predictor's rule.
            thresholds: As in `adjusted`, for this call.
            tasks: As in `adjusted`, for this call.
            when: As in `adjusted`, for this call.

        Returns:
            A `Prediction`; of a volume or a case folder a `VolumePrediction`; of a list a list of these, in its order.

        Raises:
            DataError: Not one of these, a file that cannot be read, a slide, or a folder that is no case.
            ConfigError: A setting that does not fit the network.
        """
        changed = thresholds is not None or tasks is not None or when is not None
        predictor = self.adjusted(thresholds, tasks, when) if changed else self
        if isinstance(source, list | tuple):
            return predictor._predict_all(source, pixel_scale)
        (found,) = predictor._predict_all([source], pixel_scale)
        return found

    def _predict_all(self, items: Sequence[Any], pixel_scale: float | None) -> list[Prediction | VolumePrediction]:
        """Predict several things; windows of the images among them share forward passes."""
        inputs = [input_of(item, self.microns, bool(self.modalities)) for item in items]
        found: dict[int, Prediction | VolumePrediction] = {}
        jobs = (
            self._prepare(number, entry.read(), pixel_scale, entry.name)
            for number, entry in enumerate(inputs)
            if entry.case is None
        )
        found |= dict(self._run(jobs))
        for number, entry in enumerate(inputs):
            if entry.case is not None:
                outcome = predict_case(self, entry.case)
                if outcome.prediction is None:
                    assert outcome.error is not None
                    raise outcome.error
                found[number] = outcome.prediction
        return [found[number] for number in range(len(inputs))]

    def predict_batch(self, images: Iterable[np.ndarray], pixel_scale: float | None = None) -> Iterator[Prediction]:
        """Predict images one after the other; windows of several images share a forward pass."""
        jobs = (self._prepare(number, image, pixel_scale) for number, image in enumerate(images))
        for _, prediction in self._run(jobs):
            yield prediction

    def predict_paths(
        self, paths: Iterable[Path], pixel_scale: float | None = None, prefetch: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Predict files, in order; the next ones are decoded while the network works on the current one.

        A file that cannot be decoded gives an `Outcome` with `error`, and the others go on.

        Args:
            paths: Image files.
            pixel_scale: As in `predict`.
            prefetch: Images decoded ahead; None is as many as share a forward pass.
        """
        waiting: dict[int, Outcome] = {}
        order: deque[int] = deque()

        def jobs() -> Iterator[_Job]:
            def work(item: tuple[int, Path]) -> _Job:
                pixels = read_pixels(item[1], bool(self.modalities))
                return self._prepare(item[0], pixels, pixel_scale, item[1].stem)

            for (number, path), result in ahead(work, enumerate(paths), self.batch_size if prefetch is None else prefetch):
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

        for number, prediction in self._run(jobs(), lambda number: str(waiting[number].path)):
            waiting[number].prediction = prediction
            yield from finished()
        yield from finished()

    def _prepare(self, number: int, image: np.ndarray, pixel_scale: float | None, name: str = "") -> _Job:
        preprocessing = self.model.preprocessing
        pixels = self._grey(image) if self.modalities else check_image(image, len(preprocessing.mean))
        size = (pixels.shape[0], pixels.shape[1])
        rule = self.pixel_scale if pixel_scale is None else pixel_scale
        scale = float(rule(size, name)) if callable(rule) else float(rule)
        if not scale > 0:
            raise DataError(f"pixel_scale is {scale}; expected a number above 0 (original pixels per reference pixel).")
        content = preprocessing.content(pixels)
        working = preprocessing.working(pixels, scale, content)
        return _Job(number, pixels, working, preprocessing.windows(size, scale, content))

    def _grey(self, image: np.ndarray) -> np.ndarray:
        """Return the image of a network for MR slices, [H, W, modalities] float32."""
        array, count = np.asarray(image), len(self.modalities)
        if array.ndim == 3 and array.dtype != np.uint8 and array.shape[2] == count:
            if not np.isfinite(array).all():
                raise DataError("The image has grey values that are not numbers (NaN or infinite). Replace them.")
            return array.astype(np.float32, copy=False)
        return grey_channels(grey_values(array), self.modalities, self.picture_modality)

    def _run(self, jobs: Iterable[_Job], name: Callable[[int], str] = "image {}".format) -> Iterator[tuple[int, Prediction]]:
        """Yield images as they complete; windows of several images share a forward pass."""
        stitcher = Stitcher(self.specs)
        try:
            for meta, arrays in self.predict_windows(self._crops(jobs)):
                stitcher.add(meta, arrays)
                for result in stitcher.pop_complete():
                    yield int(result.sample_id), self._to_original(result)
        except NotFiniteError as error:  # which knows an image by its number
            raise NotFiniteError(error.task, name(int(error.image))) from error

    def _crops(self, jobs: Iterable[_Job]) -> Iterator[tuple[SampleMeta, np.ndarray]]:
        preprocessing = self.model.preprocessing
        for job in jobs:
            for window in job.windows:
                crop = preprocessing.geometry.crop(job.working, window)
                yield SampleMeta(str(job.number), "", "", window), preprocessing.normalize(crop)

    def predict_windows(
        self, windows: Iterable[tuple[SampleMeta, np.ndarray]]
    ) -> Iterator[tuple[SampleMeta, dict[str, Arrays]]]:
        """Feed windows [C, h, w], normalised, through the network in full batches.

        Yields:
            Each window, in order, with what the heads say of it, in network pixels: by task, numpy arrays.
        """
        batch: list[tuple[SampleMeta, np.ndarray]] = []
        for window in windows:
            batch.append(window)
            if len(batch) >= self.batch_size:
                yield from self._forward(batch)
                batch = []
        if batch:
            yield from self._forward(batch)

    @torch.inference_mode()
    def _forward(self, batch: list[tuple[SampleMeta, np.ndarray]]) -> list[tuple[SampleMeta, dict[str, Arrays]]]:
        images = self.computation.arranged(torch.from_numpy(np.stack([pixels for _, pixels in batch])).to(self.device))
        every = self.specs.keys() == self.model.specs.keys()
        with self.computation.autocast(self.device):
            outputs = self.model(images) if every else self.model(images, list(self.specs))
            predictions = self.model.decode(outputs)
        decoded = [
            {task: {key: _to_numpy(value) for key, value in rows[row].items()} for task, rows in predictions.items()}
            for row in range(len(batch))
        ]
        check_finite(outputs, decoded, [meta.sample_id for meta, _ in batch])
        return [(meta, arrays) for (meta, _), arrays in zip(batch, decoded, strict=True)]

    def _to_original(self, result: ImageResult) -> Prediction:
        window, tasks = result.window, {task: dict(arrays) for task, arrays in result.tasks.items()}
        for arrays in tasks.values():
            if "boxes" in arrays:
                arrays["boxes"] = points_to_original(arrays["boxes"].reshape(-1, 2, 2), window).reshape(-1, 4)
            if "points" in arrays:
                arrays["points"] = points_to_original(arrays["points"], window)
        for task, decider in {pair for metric in self.study.values() for pair in metric.deciders.items()}:
            if decider in tasks:
                tasks[task][box_probabilities(decider)] = tasks[decider]["probabilities"]
        ordered = {task: tasks[task] for task in self.specs if task in tasks}
        return Prediction(window, self.specs, self.thresholds, ordered, self.study, self.when, self.computation.precision)


def _uses(metric: StudyMetric) -> set[str]:
    """Return the tasks that a study metric cannot do without."""
    return {*metric.tasks, *metric.deciders.keys(), *metric.deciders.values()}


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


def points_to_original(points: np.ndarray, window: Window) -> np.ndarray:
    """Map working-raster points [..., 2] into the original image, also what rounding moved over its edge."""
    found = window.working_to_original(points)
    height, width = window.original_size
    return np.clip(found, 0, np.array([width, height], found.dtype))


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return (value.float() if value.is_floating_point() else value).cpu().numpy()
    return np.asarray(value)
