"""What prediction leaves on disk: one JSON, masks, maps and an overlay per image or volume, one CSV for all."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mtl.core.files import beside, remove_stale, write_bytes, write_json
from mtl.core.task import TaskSpec
from mtl.data.formats.volumes import write_mask
from mtl.inference.images import is_case, stem
from mtl.inference.pictures import overlay
from mtl.inference.prediction import Prediction, counting_task
from mtl.inference.predictor import Outcome
from mtl.inference.slides.outputs import SCORE, SlideOutcome
from mtl.inference.volumes import CaseOutcome, VolumePrediction
from mtl.kinds.base import rules_of
from mtl.metrics.base import StudyMetric

OBJECT_COLUMNS = ["object", "task", "class", "score", "x_min", "y_min", "x_max", "y_max", "x", "y"]
SLIDE_COLUMNS = ["til_score", "stroma_area_um2", "cells_in_bulk"]
SUFFIX_OF: dict[str, tuple[str, ...]] = {"mask": (), "confidence_map": ("confidence",), "heatmap": ()}
SPREADSHEET_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def output_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Give each input a distinct file stem: its own where that is unique, else with its folders and suffix in front.

    Names that differ in case only count as equal, since some file systems do not tell them apart.
    """
    files = list(paths)
    candidates = {path: [stem(path), f"{stem(path)}_{_ending(path)}"] for path in files}
    for path in files:
        parents = [part for part in path.parts[:-1] if part not in (path.anchor, ".", "..")]
        longer = ["__".join([*parents[-depth:], stem(path)]) for depth in range(1, len(parents) + 1)]
        candidates[path] += [*longer, *(f"{name}_{_ending(path)}" for name in longer)]
    names: dict[Path, str] = {}
    open_paths, taken = files, set()
    for level in range(max((len(entry) for entry in candidates.values()), default=0)):
        wanted = {path: candidates[path][min(level, len(candidates[path]) - 1)] for path in open_paths}
        counts = Counter(name.lower() for name in wanted.values())
        for path, name in wanted.items():
            if counts[name.lower()] == 1 and name.lower() not in taken:
                names[path] = name
        taken |= {name.lower() for name in names.values()}
        open_paths = [path for path in open_paths if path not in names]
    for path in open_paths:
        number = 2
        while f"{stem(path)}_{number}".lower() in taken:
            number += 1
        names[path] = f"{stem(path)}_{number}"
        taken.add(names[path].lower())
    return names


class PredictionWriter:
    """Writes predictions into a folder; every file appears whole or not at all.

    Per image: `<name>.json`; `<name>_<task>.png` for masks (class values, or 0 / 255) and heatmaps (16 bit, 65535 = 1),
    `<name>_<task>_confidence.png` beside a mask (16 bit), all with the class in the name where a task has several channels;
    `<name>_overlay.png`. Per volume: `<name>.json`, masks as `<name>_<task>.nii.gz` on the voxels of the volume
    (`mtl.inference.volumes.labels_of`), an overlay of the slice with the largest predicted area. For all: `predictions.csv`
    with one row per object, image-level values repeated, and one row without object for an image in which nothing was found,
    for a volume and for a slide (its files lie in `<name>/`, see `mtl.inference.slides.run`). The CSV is complete on `close`.

    Args:
        folder: Created if needed.
        paths: All inputs, so that equal stems do not overwrite each other.
        specs: The tasks; they decide the columns.
        overlays: Write overlays.
        masks: Write masks, confidence maps and heatmaps.
        slides: Some inputs are predicted as slides.
        study: Study metrics of the run; those that have a value of an image get a column.
    """

    def __init__(
        self, folder: str | Path, paths: Iterable[Path], specs: dict[str, TaskSpec], overlays: bool = True, masks: bool = True,
        slides: bool = False, study: Mapping[str, StudyMetric] | None = None,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = output_names(paths)
        self.specs = specs
        self.overlays = overlays
        self.masks = masks
        self.study = dict(study or {})
        self.table = self.folder / "predictions.csv"
        remove_stale(self.folder / "*")
        self._whole = ExitStack()
        partial = self._whole.enter_context(beside(self.table))
        self._file: IO[str] | None = partial.open("w", newline="", encoding="utf-8")
        columns = csv_columns(specs, any(map(is_case, self.names)), slides, self.study)
        self._rows = csv.DictWriter(self._file, columns, restval="", extrasaction="raise")
        self._rows.writeheader()

    def write(self, outcome: Outcome | CaseOutcome | SlideOutcome) -> Path:
        """Write one image or volume, or the row of a slide, whose files are there; returns its JSON file."""
        if self._file is None or not (outcome.summary if isinstance(outcome, SlideOutcome) else outcome.prediction):
            raise ValueError("only successful outcomes can be written, and only before close()")
        if isinstance(outcome, SlideOutcome):
            self._rows.writerow(slide_row(outcome.path, outcome.summary))
            return self.folder / self.names[outcome.path] / SCORE
        assert outcome.prediction is not None
        name, prediction = self.names[outcome.path], outcome.prediction
        if isinstance(prediction, VolumePrediction):
            content = {"volume": str(outcome.path), **self._write_volume(name, prediction)}
            self._rows.writerow(volume_row(outcome.path, prediction))
        else:
            assert isinstance(outcome, Outcome) and outcome.image is not None
            content = {"image": str(outcome.path), **prediction.to_json()}
            self._rows.writerows(csv_rows(outcome.path, content, self.specs, self.study))
            if self.masks:
                for task, key, class_name, pixels in map_images(prediction):
                    file = f"{name}_{'_'.join(_slug(word) for word in (task, class_name, *SUFFIX_OF[key]) if word)}.png"
                    write_png(self.folder / file, pixels)
                    _note(content["tasks"][task], key, class_name, file)
            if self.overlays:
                write_png(self.folder / f"{name}_overlay.png", overlay(outcome.image, prediction))
        target = self.folder / f"{name}.json"
        write_json(target, content)
        return target

    def _write_volume(self, name: str, prediction: VolumePrediction) -> dict[str, Any]:
        content = prediction.to_json()
        if self.masks:
            for task, masks in prediction.masks.items():
                for class_name, labels in masks.items():
                    file = f"{name}_{'_'.join(_slug(word) for word in (task, class_name) if word)}.nii.gz"
                    write_mask(self.folder / file, labels, prediction.case.grid)
                    _note(content["tasks"][task], "mask", class_name, file)
        if self.overlays and prediction.shown is not None:
            _, image, slice_prediction = prediction.shown
            write_png(self.folder / f"{name}_overlay.png", overlay(image, slice_prediction))
        return content

    def close(self) -> None:
        """Put `predictions.csv` in its place."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._whole.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, raised: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an error too: the rows of the images that were finished are worth keeping.
        self.close()


def csv_columns(
    specs: dict[str, TaskSpec], volumes: bool = False, slides: bool = False, study: Mapping[str, StudyMetric] | None = None
) -> list[str]:
    """Return the columns of `predictions.csv` for a set of tasks.

    Args:
        specs: The tasks.
        volumes: There are some among the inputs.
        slides: There are some among the inputs.
        study: Study metrics by name.
    """
    finds_objects = any(rules_of(spec).finds for spec in specs.values())
    columns = ["image", "width", "height", *(OBJECT_COLUMNS if finds_objects else [])]
    counted = counting_task(specs, specs)
    if counted is not None:
        columns += [f"n_{name}" for name in specs[counted].classes]
    columns += [name for name, metric in (study or {}).items() if metric.value_of == "image"]
    for task, spec in specs.items():
        rules = rules_of(spec)
        columns += rules.columns(spec)
        if volumes and rules.areas:
            columns += [f"{task}_{name}_volume_mm3" for name in spec.classes]
        if volumes and (rules.areas or rules.image_level):
            columns += [f"{task}_{name}_slices" for name in spec.classes]
    return [*columns, *(["slices"] if volumes else []), *(SLIDE_COLUMNS if slides else [])]


def csv_rows(
    path: Path, content: dict[str, Any], specs: dict[str, TaskSpec], study: Mapping[str, StudyMetric] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of one image, of which `content` is the JSON: one per object, or a single one if there is none."""
    image: dict[str, Any] = {"image": _harmless(str(path)), "width": content["width"], "height": content["height"]}
    image |= {f"n_{name}": count for name, count in content.get("counts", {}).items()}
    for name, metric in (study or {}).items():
        if content.get(name) is not None:
            image[name] = round(content[name], metric.digits)
    rows: list[dict[str, Any]] = []
    for task, entry in content["tasks"].items():
        image |= rules_of(specs[task]).column_values(specs[task], entry)
        for number, found in enumerate(entry.get("objects", entry.get("points", [])), start=1):
            row = {"object": number, "task": task, "class": found["class"], "score": found["score"]}
            keys, place = (
                ("x_min", "y_min", "x_max", "y_max") if "box" in found else ("x", "y"),
                found.get("box", found.get("point")),
            )
            row |= dict(zip(keys, place, strict=True))
            for other in (name for name in found if name in specs):
                row |= rules_of(specs[other]).column_values(specs[other], found[other])
            rows.append(row)
    return [{**image, **row} for row in rows] or [image]


def volume_row(path: Path, prediction: VolumePrediction) -> dict[str, Any]:
    """Return the row of one volume."""
    slices, height, width = prediction.case.grid.size
    row: dict[str, Any] = {"image": _harmless(str(path)), "width": width, "height": height, "slices": slices}
    for task in prediction.masks:
        row |= {f"{task}_{name}_volume_mm3": round(volume, 3) for name, volume in prediction.volumes_mm3(task).items()}
        row |= {f"{task}_{name}_slices": len(found) for name, found in prediction.slices_with(task).items()}
    for task in prediction.statements:
        row |= {f"{task}_{name}_slices": count for name, count in prediction.slice_counts(task).items()}
    return row


def slide_row(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one slide, of which `summary` is the content of its `til-score.json`."""
    row = {key: summary[key] for key in ("width", "height", *SLIDE_COLUMNS[:2])} | {"image": _harmless(str(path))}
    if summary["bulk_area_um2"] is not None:  # else all cells count, and `n_<class>` says how many
        row["cells_in_bulk"] = summary["cells"]
    whole, task = summary["width"] * summary["height"] * math.prod(summary["spacing_um"]), summary["settings"]["tissue"]
    row |= {f"{task}_{name}_area_ratio": round(area / whole, 6) for name, area in summary["areas_um2"].items()}
    return row | {f"n_{name}": count for name, count in summary["counts"].items()}


def map_images(prediction: Prediction) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yield (task, `mask`, `confidence_map` or `heatmap`, class, pixels) of every map, at the size of the original image.

    The class is empty where a task has one channel.
    """
    for task in prediction.tasks:
        for key, name, pixels in rules_of(prediction.specs[task]).maps(prediction.of(task)):
            yield task, key, name, pixels


def _note(entry: dict[str, Any], key: str, class_name: str, file: str) -> None:
    """Name a file in the JSON entry of its task: as a value, or by class where there are several."""
    if class_name:
        entry.setdefault(key, {})[class_name] = file
    else:
        entry[key] = file


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W] (uint8 or uint16) or [H, W, 3] RGB uint8 pixels."""
    import cv2

    array = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    ok, data = cv2.imencode(".png", np.ascontiguousarray(array))
    if not ok:
        raise ValueError(f"cannot encode an array of shape {pixels.shape} and type {pixels.dtype} as PNG")
    write_bytes(path, data.tobytes())


def _ending(path: Path) -> str:
    return path.name[len(stem(path)) :].lstrip(".")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def _harmless(text: str) -> str:
    """Return a file name that no spreadsheet runs as a formula."""
    return f"'{text}" if text.startswith(SPREADSHEET_FORMULAS) else text
