"""What prediction leaves on disk: one JSON, masks, maps and an overlay per image or volume, one CSV for all."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mtl.core.files import beside, remove_stale, write_bytes, write_json
from mtl.core.names import readable
from mtl.core.task import TaskSpec
from mtl.data.formats.volumes import write_map, write_mask
from mtl.inference.images import is_case
from mtl.inference.pictures import overlay
from mtl.inference.prediction import Prediction, counting_task
from mtl.inference.predictor import Outcome
from mtl.inference.result_names import FIRST_COLUMNS, SCORE, TABLE, mark_results, output_names
from mtl.inference.selection import Hidden, hidden_columns, narrowed_content
from mtl.inference.slides.outputs import SlideOutcome
from mtl.inference.verdicts import verdict_columns, verdict_values
from mtl.inference.volumes import CaseOutcome, VolumePrediction
from mtl.kinds.base import rules_of
from mtl.metrics.base import StudyMetric

OBJECT_COLUMNS = ["object", "task", "class", "score", "x_min", "y_min", "x_max", "y_max", "x", "y"]
SLIDE_COLUMNS = ["til_score", "stroma_area_um2", "cells_in_bulk"]
SUFFIX_OF: dict[str, tuple[str, ...]] = {"mask": (), "confidence_map": ("confidence",), "heatmap": ()}
SPREADSHEET_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Written:
    """An image, a volume or a slide whose files are there: its JSON file, and its rows of the table to come."""

    target: Path
    rows: list[dict[str, Any]]


class _Files:
    """The files of one image or volume, as they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Path] = []

    def new(self, name: str) -> Path:
        self.made.append(self.folder / name)
        return self.made[-1]


class PredictionWriter:
    """Writes predictions into a folder; every file appears whole or not at all, and every row has its files.

    Per image: `<name>.json`; `<name>_<task>.png` for masks (class values, or 0 / 255) and heatmaps (16 bit, 65535 = 1),
    `<name>_<task>_confidence.png` beside a mask (16 bit), all with the class in the name where a task has several channels;
    `<name>_overlay.png`. Per volume: `<name>.json`, masks as `<name>_<task>.nii.gz` on the voxels of the volume
    (`mtl.inference.volumes.labels_of`), `<name>_<task>_confidence.nii.gz` (float32), an overlay of the slice with the largest
    predicted area. For all: `predictions.csv` with one row per object, image-level values repeated, and one row without object
    for an image in which nothing was found, for a volume and for a slide (its files lie in `<name>/`, see
    `mtl.inference.slides.run`). The CSV is complete on `close`.

    Args:
        folder: Created if needed.
        paths: All inputs, so that equal stems do not overwrite each other.
        specs: The tasks; they decide the columns.
        overlays: Write overlays.
        masks: Write masks, confidence maps and heatmaps.
        slides: Some inputs are predicted as slides.
        study: Study metrics of the run; those that have a value of an image get a column.
        hidden: Classes that are left out of files and pictures, by task (`mtl.inference.selection.hidden_classes`).
    """

    def __init__(
        self, folder: str | Path, paths: Iterable[Path], specs: dict[str, TaskSpec], overlays: bool = True, masks: bool = True,
        slides: bool = False, study: Mapping[str, StudyMetric] | None = None, hidden: Hidden | None = None,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        endings = result_endings(specs)
        self.names = output_names(paths, endings)
        mark_results(self.folder, self.names.values(), endings)
        self.specs = specs
        self.overlays = overlays
        self.masks = masks
        self.study = dict(study or {})
        self.hidden, self.counted = hidden or {}, counting_task(specs, specs)
        self._hidden_columns = hidden_columns(self.hidden, self.counted)
        self.table = self.folder / TABLE
        remove_stale(self.folder / "*")
        self._whole = ExitStack()
        partial = self._whole.enter_context(beside(self.table))
        self._file: IO[str] | None = partial.open("w", newline="", encoding="utf-8")
        columns = csv_columns(specs, any(map(is_case, self.names)), slides, self.study)
        columns = [name for name in columns if name not in self._hidden_columns]
        self._rows = csv.DictWriter(self._file, columns, restval="", extrasaction="raise")
        self._rows.writeheader()

    def write(self, outcome: Outcome | CaseOutcome | SlideOutcome) -> Path:
        """Write one image or volume, or the row of a slide, whose files are there; returns its JSON file.

        A row is written when all files of its image are. After an error none of them is left.
        """
        return self.add(self.write_files(outcome))

    def write_files(self, outcome: Outcome | CaseOutcome | SlideOutcome) -> Written:
        """Write the files of one image or volume, in any thread; of a slide they are there. After an error none is left."""
        if not (outcome.summary if isinstance(outcome, SlideOutcome) else outcome.prediction):
            raise ValueError("only successful outcomes can be written")
        if isinstance(outcome, SlideOutcome):
            return Written(self.folder / self.names[outcome.path] / SCORE, [slide_row(outcome.path, outcome.summary)])
        files = _Files(self.folder)
        try:
            return self._write(outcome, files)
        except BaseException:
            for path in files.made:
                path.unlink(missing_ok=True)
            raise

    def add(self, written: Written) -> Path:
        """Write the rows of an image, volume or slide whose files are there; returns its JSON file."""
        if self._file is None:
            raise ValueError("rows can only be written before close()")
        for row in written.rows:
            self._rows.writerow({name: value for name, value in row.items() if name not in self._hidden_columns})
        return written.target

    def _write(self, outcome: Outcome | CaseOutcome, files: _Files) -> Written:
        """Write the files of an image or a volume."""
        assert outcome.prediction is not None
        name, prediction = self.names[outcome.path], outcome.prediction
        if isinstance(prediction, VolumePrediction):
            content = {"volume": readable(outcome.path), **self._write_volume(name, prediction, files)}
            rows = [volume_row(outcome.path, prediction)]
        else:
            assert isinstance(outcome, Outcome) and outcome.image is not None
            content = {"image": readable(outcome.path), **prediction.to_json()}
            narrowed_content(content, self.hidden, self.counted)
            rows = csv_rows(outcome.path, content, self.specs, self.study)
            if self.masks:
                for task, key, class_name, pixels in map_images(prediction):
                    if class_name in self.hidden.get(task, ()):
                        continue
                    file = f"{name}_{'_'.join(_slug(word) for word in (task, class_name, *SUFFIX_OF[key]) if word)}.png"
                    write_png(files.new(file), pixels)
                    _note(content["tasks"][task], key, class_name, file)
            if self.overlays:
                write_png(files.new(f"{name}_overlay.png"), overlay(outcome.image, prediction, hidden=self.hidden))
        target = files.new(f"{name}.json")
        write_json(target, content)
        return Written(target, rows)

    def _write_volume(self, name: str, prediction: VolumePrediction, files: _Files) -> dict[str, Any]:
        content, grid = prediction.to_json(), prediction.case.grid
        narrowed_content(content, self.hidden, None)
        for key, maps in (("mask", prediction.masks), ("confidence_map", prediction.confidence)) if self.masks else ():
            write: Any = write_mask if key == "mask" else write_map
            for task, by_class in maps.items():
                for class_name, array in by_class.items():
                    if class_name in self.hidden.get(task, ()):
                        continue
                    file = f"{name}_{'_'.join(_slug(word) for word in (task, class_name, *SUFFIX_OF[key]) if word)}.nii.gz"
                    write(files.new(file), array, grid)
                    _note(content["tasks"][task], key, class_name, file)
        if self.overlays and prediction.shown is not None:
            _, image, slice_prediction = prediction.shown
            write_png(files.new(f"{name}_overlay.png"), overlay(image, slice_prediction, hidden=self.hidden))
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


def result_endings(specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return everything that may follow the name of an image or a volume in the names of its results."""
    found = [".json", "_overlay.png"]
    for task, spec in specs.items():
        for words in ((task,), *((task, name) for name in spec.classes)):
            front = "".join(f"_{_slug(word)}" for word in words)
            found += [f"{front}.png", f"{front}_confidence.png", f"{front}.nii.gz", f"{front}_confidence.nii.gz"]
    return found


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
    columns = [*FIRST_COLUMNS, *(OBJECT_COLUMNS if finds_objects else [])]
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
        columns += verdict_columns(spec) if volumes else []
    return [*columns, *(["slices", "withheld_slices"] if volumes else []), *(SLIDE_COLUMNS if slides else [])]


def csv_rows(
    path: Path, content: dict[str, Any], specs: dict[str, TaskSpec], study: Mapping[str, StudyMetric] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of one image, of which `content` is the JSON: one per object, or a single one if there is none."""
    image: dict[str, Any] = {"image": _harmless(path), "width": content["width"], "height": content["height"]}
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
    row: dict[str, Any] = {"image": _harmless(path), "width": width, "height": height, "slices": slices}
    row["withheld_slices"] = len(prediction.withheld)  # of which masks and volumes show nothing
    for task in prediction.masks:
        row |= {f"{task}_{name}_volume_mm3": round(volume, 3) for name, volume in prediction.volumes_mm3(task).items()}
        row |= {f"{task}_{name}_slices": len(found) for name, found in prediction.slices_with(task).items()}
    for task in prediction.statements:
        row |= {f"{task}_{name}_slices": count for name, count in prediction.slice_counts(task).items()}
    for task, verdict in prediction.verdicts.items():
        row |= verdict_values(prediction.specs[task], verdict)
    return row


def slide_row(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one slide, of which `summary` is the content of its `til-score.json`."""
    row = {key: summary[key] for key in ("width", "height", *SLIDE_COLUMNS[:2])} | {"image": _harmless(path)}
    if summary["bulk_area_um2"] is not None:  # else all cells count, and `n_<class>` says how many
        row["cells_in_bulk"] = summary["cells"]
    whole, task = summary["width"] * summary["height"] * math.prod(summary["spacing_um"]), summary["settings"]["tissue"]
    row |= {f"{task}_{name}_area_ratio": round(area / whole, 6) for name, area in summary["areas_um2"].items()}
    return row | {f"n_{name}": count for name, count in summary["counts"].items()}


def map_images(prediction: Prediction) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yield (task, `mask`, `confidence_map` or `heatmap`, class, pixels) of every map, at the size of the original image.

    The class is empty where a task has one channel.
    """
    for task in filter(prediction.shows, prediction.tasks):
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


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def _harmless(path: Path) -> str:
    """Return a file name that no spreadsheet runs as a formula, and that is text in any case."""
    text = readable(path)
    return f"'{text}" if text.startswith(SPREADSHEET_FORMULAS) else text
