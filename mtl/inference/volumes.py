"""Whole volumes, slice by slice: read as in training, predicted, put together again in the patient's space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtl.core.errors import DataError
from mtl.core.names import readable
from mtl.core.task import TaskSpec
from mtl.data.formats.images import grey_channels
from mtl.data.formats.volumes import Volume, read_volume
from mtl.imaging.background import not_background
from mtl.inference.finite import NotFiniteError
from mtl.inference.images import case_files, split_name
from mtl.inference.prediction import Prediction
from mtl.inference.verdicts import verdict_of
from mtl.kinds.base import rules_of


class SlicePredictor(Protocol):
    """What reads slices: `mtl.inference.predictor.Predictor`, which cannot be named here, since it predicts volumes too."""

    specs: dict[str, TaskSpec]
    thresholds: dict[str, dict[str, float]]
    modalities: tuple[str, ...]
    picture_modality: str

    def predict_batch(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]: ...  # noqa: D102


@dataclass
class Case:
    """The volumes of one case as a network wants them.

    Attributes:
        path: As `find_images` names it.
        volumes: By modality; they lie on each other voxel by voxel.
        modalities: Channels of the network.
        picture_modality: Which channel a volume of unknown modality fills, or `repeat`.
        notes: What is worth knowing: missing and unused modalities.
    """

    path: Path
    volumes: dict[str, Volume]
    modalities: Sequence[str]
    picture_modality: str
    notes: list[str] = field(default_factory=list)

    @property
    def grid(self) -> Volume:
        """A volume that stands for all."""
        return next(iter(self.volumes.values()))

    @cached_property
    def shown(self) -> list[int]:
        """How many pixels of each slice, over all volumes, are not background."""
        counts = [np.count_nonzero(not_background(volume.array), axis=(1, 2)) for volume in self.volumes.values()]
        return [int(count) for count in np.sum(counts, axis=0)]

    def slice(self, number: int) -> np.ndarray:
        """Return one slice [H, W, modalities] float32; missing modalities are blank."""
        unknown = self.volumes.get("")
        if unknown is not None:
            return grey_channels(unknown.array[number], self.modalities, self.picture_modality)
        height, width = self.grid.size[1:]
        image = np.zeros((height, width, len(self.modalities)), np.float32)
        for channel, name in enumerate(self.modalities):
            if name in self.volumes:
                image[..., channel] = self.volumes[name].array[number]
        return image


@dataclass
class VolumePrediction:
    """What the network says about the slices of one case.

    Slices are counted from inferior to superior, from 0. All have a mask, as in evaluation; those that show nothing have no
    class. `masks`, `confidence` and slices are upright; `mask` and `confidence_map` return what lies on the stored voxels.

    Attributes:
        case: What was predicted.
        specs: The tasks, by name.
        thresholds: Decision thresholds by task.
        masks: By segmentation task and file suffix, [slices, rows, columns] uint8 labels (`mask_layout`).
        pixels: By segmentation task, [slices, classes] number of pixels.
        confidence: By segmentation task and class (`map_layout`), [slices, rows, columns] float16 how sure the network is;
            empty where nobody asked.
        withheld: Slices whose masks are blank because no class is likely enough there (`when`), and why.
        statements: By task that says one thing of each slice, {slice: what its kind writes of an image}.
        precision: In which the network computed.
        shown: The slice with the largest predicted area, its image and prediction; None for a blank volume without any.
    """

    case: Case
    specs: dict[str, TaskSpec]
    thresholds: dict[str, dict[str, float]]
    masks: dict[str, dict[str, np.ndarray]]
    pixels: dict[str, np.ndarray]
    statements: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    shown: tuple[int, np.ndarray, Prediction] | None = None
    confidence: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    withheld: dict[int, str] = field(default_factory=dict)
    precision: str = ""

    @property
    def affine(self) -> np.ndarray:
        """[4, 4] of the stored voxels: index to millimetres."""
        return np.diag([self.case.grid.mm] * 3 + [1.0]) @ self.case.grid.affine

    def mask(self, task: str, class_name: str = "") -> np.ndarray:
        """Return the labels (`labels_of`) of a segmentation task on the stored voxels, [x, y, z] uint8.

        Args:
            task: Its name.
            class_name: Of a task whose classes have a mask each.
        """
        return self.case.grid.stored(self.masks[task][class_name])

    def confidence_map(self, task: str, class_name: str = "") -> np.ndarray:
        """Return how sure the network is on the stored voxels, [x, y, z] float32 from 0 to 1.

        Args:
            task: Its name.
            class_name: Whose probability, where a task has several independent classes; of exclusive ones there is one map, of
                the predicted class.
        """
        return self.case.grid.stored(self.confidence[task][class_name]).astype(np.float32)

    @property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """What is said of the whole case, by task that states a class of each slice (`mtl.inference.verdicts`)."""
        said = {task: verdict_of(self.specs[task], rows) for task, rows in self.statements.items()}
        return {task: verdict for task, verdict in said.items() if verdict is not None}

    def volumes_mm3(self, task: str) -> dict[str, float]:
        """Return the volume of each class of a segmentation task in cubic millimetres, as masks show it: without `withheld`."""
        voxel = self.case.grid.voxel_mm3
        return {name: float(n) * voxel for name, n in zip(self.specs[task].classes, self.pixels[task].sum(axis=0), strict=True)}

    def slices_with(self, task: str) -> dict[str, list[int]]:
        """Return the slices in which each class of a segmentation task was found."""
        return {
            name: [int(number) for number in np.flatnonzero(column)]
            for name, column in zip(self.specs[task].classes, self.pixels[task].T, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without masks."""
        grid = self.case.grid
        content: dict[str, Any] = {
            "modalities": {name or "unknown": readable(volume.path) for name, volume in self.case.volumes.items()},
            "notes": self.case.notes,
            "size": list(grid.size),
            "spacing_mm": [round(length, 6) for length in grid.spacing],
            "voxel_mm3": round(grid.voxel_mm3, 6),
            "shown_slice": None if self.shown is None else self.shown[0],
            "precision": self.precision,
            "thresholds": {task: self.thresholds.get(task, {}) for task in self.specs},
        }
        if self.withheld:
            content["withheld_slices"] = {str(number): reason for number, reason in self.withheld.items()}
        return {**content, "tasks": {task: self._summary(task) for task in (*self.masks, *self.statements)}}

    def _summary(self, task: str) -> dict[str, Any]:
        spec = self.specs[task]
        if task in self.masks:
            volumes = {name: round(volume, 3) for name, volume in self.volumes_mm3(task).items()}
            return {
                "kind": spec.kind, "volume_mm3": volumes, "slices": self.slices_with(task), "labels": labels_of(spec),
            }  # fmt: skip
        rows = [{"slice": number, **entry} for number, entry in self.statements[task].items()]
        verdict = {"case": self.verdicts[task]} if task in self.verdicts else {}
        return {"kind": spec.kind, **verdict, "n_slices": self.slice_counts(task), "slices": rows}

    def slice_counts(self, task: str) -> dict[str, int]:
        """Return in how many slices each class of an image-level task was stated."""
        return rules_of(self.specs[task]).slice_counts(self.specs[task], self.statements[task].values())


@dataclass
class CaseOutcome:
    """What became of one case: `prediction`, or `error`."""

    path: Path
    prediction: VolumePrediction | None = None
    error: DataError | None = None


def read_case(path: Path, modalities: Sequence[str], picture_modality: str = "repeat") -> Case:
    """Open the volumes of a case; their voxels are read when slices are asked for.

    Args:
        path: As `find_images` names it.
        modalities: Channels of the network.
        picture_modality: Which channel a volume of unknown modality fills, or `repeat`.

    Raises:
        DataError: A file cannot be read, none has a modality that the network knows, or they do not lie on each other.
    """
    if not modalities:
        raise DataError(f"{path}: is a volume, but this model was trained on pictures. Choose images as the source.")
    files = case_files(path)
    single = path.is_file()
    if single and split_name(path)[1] not in modalities:
        files = {"": path}
    used = {name: file for name, file in files.items() if name in modalities or name == ""}
    if not used:
        raise DataError(
            f"{path}: has {' and '.join(sorted(files)) or 'no modality'}, but this model takes {', '.join(modalities)}. "
            "Add one of these volumes."
        )
    volumes = {name: read_volume(file) for name, file in used.items()}
    case = Case(path, volumes, modalities, picture_modality)
    case.notes += case.grid.notes
    for volume in volumes.values():
        if not volume.matches(case.grid):
            raise DataError(
                f"{volume.path}: does not lie on {case.grid.path.name} voxel by voxel (shapes {list(volume.shape)} and "
                f"{list(case.grid.shape)}, or other affines). Register the modalities of a case to one grid."
            )
    if "" in volumes:
        filled = "all channels" if picture_modality == "repeat" else f"the channel {picture_modality}"
        case.notes.append(f"The name does not tell a modality that the model knows, so the volume fills {filled}.")
    else:
        missing = [name for name in modalities if name not in volumes]
        case.notes += [f"{' and '.join(missing)} missing: a blank channel each."] if missing else []
    return case


def predict_case(
    predictor: SlicePredictor, path: Path, confidence: bool = True, progress: Callable[[int, int], None] | None = None
) -> CaseOutcome:
    """Predict one case; a file that cannot be read gives an outcome with `error`.

    Memory holds the volumes of the case, its masks, and the slices of one batch.

    Args:
        predictor: Of a network for MR slices.
        path: As `find_images` names it.
        confidence: Keep confidence maps.
        progress: Called with slices done and slices in all.
    """
    try:
        case = read_case(path, predictor.modalities, predictor.picture_modality)
        return CaseOutcome(path, _predict(predictor, case, confidence, progress))
    except DataError as error:
        return CaseOutcome(path, error=error)
    except NotFiniteError as error:  # which knows a slice by its number
        raise NotFiniteError(error.task, f"{path}, slice {error.image.rpartition(' ')[2]}") from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return CaseOutcome(path, error=DataError(f"{path}: cannot be predicted ({reason}). Replace it, or leave it out."))


def _predict(
    predictor: SlicePredictor, case: Case, confidence: bool, progress: Callable[[int, int], None] | None
) -> VolumePrediction:
    size, specs = case.grid.size, predictor.specs
    masked = {task: spec for task, spec in specs.items() if rules_of(spec).areas}
    found = VolumePrediction(
        case, specs, predictor.thresholds,
        {task: {name: np.full(size, nothing(spec), np.uint8) for name in mask_layout(spec)} for task, spec in masked.items()},
        {task: np.zeros((size[0], len(spec.classes)), np.int64) for task, spec in masked.items()},
        {task: {} for task, spec in specs.items() if rules_of(spec).image_level},
    )  # fmt: skip
    if confidence:
        found.confidence = {
            task: {name: np.zeros(size, np.float16) for name in map_layout(spec)} for task, spec in masked.items()
        }
    waiting: list[tuple[int, np.ndarray]] = []

    def slices() -> Iterator[np.ndarray]:
        for number in range(size[0]):
            image = case.slice(number)
            waiting.append((number, image))
            yield image

    largest = (0, 0)
    for prediction in predictor.predict_batch(slices()):
        number, image = waiting.pop(0)
        found.precision = prediction.precision
        if prediction.withheld:
            found.withheld[number] = prediction.withheld
        for task, spec in masked.items() if not prediction.withheld else ():
            for suffix, labels in label_slice(prediction.mask(task), spec).items():
                found.masks[task][suffix][number] = labels
            found.pixels[task][number] = _count(found.masks[task], number, spec)
            maps = prediction.confidence_map(task) if confidence else None
            if maps is not None:
                for kept, channel in zip(found.confidence[task].values(), maps.reshape(-1, *maps.shape[-2:]), strict=True):
                    kept[number] = channel
        if case.shown[number]:
            for task, entries in found.statements.items():
                entries[number] = rules_of(specs[task]).summary(prediction.of(task))
        area = sum(int(found.pixels[task][number].sum()) for task in masked), case.shown[number]
        if area > largest:
            largest, found.shown = area, (number, image, prediction)
        if progress is not None:
            progress(number + 1, size[0])
    return found


def nothing(spec: TaskSpec) -> int:
    """Return the value of a mask where no class is: 0, or what is ignored where each value is a class."""
    return 0 if spec.multilabel else spec.ignore_index


def mask_layout(spec: TaskSpec) -> list[str]:
    """Return the suffixes of the mask files of a segmentation task: one file without any, or one for each class."""
    return list(spec.classes) if spec.multilabel and len(spec.classes) > 1 and not spec.labels else [""]


def map_layout(spec: TaskSpec) -> list[str]:
    """Return the suffixes of the confidence maps of a segmentation task: one for each of several independent classes."""
    return list(spec.classes) if spec.multilabel and len(spec.classes) > 1 else [""]


def labels_of(spec: TaskSpec) -> dict[str, int | list[int]]:
    """Return by class which values of its mask file it has.

    One class, or each class in a file of its own, is 1. Regions inside each other share a file with the values of
    `TaskSpec.labels`. Exclusive classes are their index.
    """
    if spec.labels:
        return {name: sorted(values) for name, values in zip(spec.classes, spec.labels, strict=True)}
    return {name: 1 if spec.multilabel else index for index, name in enumerate(spec.classes)}


def label_slice(mask: np.ndarray, spec: TaskSpec) -> dict[str, np.ndarray]:
    """Turn the mask of one slice into the labels of its files.

    Of regions inside each other the innermost wins, so that what lies in it lies in all around it as well, whatever their own
    channels say.

    Args:
        mask: As `Prediction.mask`.
        spec: The task.

    Returns:
        By suffix (`mask_layout`), [H, W] uint8.
    """
    if not spec.multilabel:
        return {"": mask}
    if not spec.labels:
        return dict(zip(mask_layout(spec), mask, strict=True))
    labels = np.zeros(mask.shape[1:], np.uint8)
    for index in sorted(range(len(spec.labels)), key=lambda index: -len(spec.labels[index])):
        labels[mask[index] > 0] = spec.labels[index][0]
    return {"": labels}


def _count(masks: dict[str, np.ndarray], number: int, spec: TaskSpec) -> list[int]:
    """Count the pixels of each class in one slice of the mask files."""
    values = labels_of(spec)
    return [int(np.isin(masks.get(name, masks.get(""))[number], values[name]).sum()) for name in spec.classes]  # type: ignore[index]
