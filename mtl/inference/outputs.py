"""What prediction leaves on disk: one JSON, masks, heatmaps and an overlay per image, one CSV for all."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mtl.core.files import write_bytes, write_json
from mtl.core.raster import to_original
from mtl.core.task import TaskSpec
from mtl.inference.drawing import overlay
from mtl.inference.predictor import Outcome, Prediction

OBJECT_COLUMNS = ["object", "task", "class", "score", "x_min", "y_min", "x_max", "y_max", "x", "y"]
SPREADSHEET_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def output_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Give each input a distinct file stem: its own where that is unique, else with its folders and suffix in front.

    Names that differ in case only count as equal, since some file systems do not tell them apart.
    """
    files = list(paths)
    candidates = {path: [path.stem, f"{path.stem}_{path.suffix[1:]}"] for path in files}
    for path in files:
        parents = [part for part in path.parts[:-1] if part not in (path.anchor, ".", "..")]
        longer = ["__".join([*parents[-depth:], path.stem]) for depth in range(1, len(parents) + 1)]
        candidates[path] += [*longer, *(f"{name}_{path.suffix[1:]}" for name in longer)]
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
        while f"{path.stem}_{number}".lower() in taken:
            number += 1
        names[path] = f"{path.stem}_{number}"
        taken.add(names[path].lower())
    return names


class PredictionWriter:
    """Writes predictions into a folder; every file appears whole or not at all.

    Per image: `<name>.json`; `<name>_<task>.png` for masks (class values, or 0 / 255 with the class in the name) and heatmaps
    (16 bit, 65535 = 1); `<name>_overlay.png`. For all: `predictions.csv` with one row per object, image-level
    values repeated, and one row without object for an image in which nothing was found. The CSV is complete on `close`.

    Args:
        folder: Created if needed.
        paths: All inputs, so that equal stems do not overwrite each other.
        specs: The tasks; they decide the columns.
        overlays: Write overlays.
        masks: Write mask and heatmap PNGs.
    """

    def __init__(
        self, folder: str | Path, paths: Iterable[Path], specs: dict[str, TaskSpec], overlays: bool = True, masks: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = output_names(paths)
        self.specs = specs
        self.overlays = overlays
        self.masks = masks
        self.table = self.folder / "predictions.csv"
        self._partial = self.folder / f".predictions.csv.{os.getpid()}.partial"
        self._file: IO[str] | None = self._partial.open("w", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, csv_columns(specs), restval="", extrasaction="raise")
        self._rows.writeheader()

    def write(self, outcome: Outcome) -> Path:
        """Write one image; returns its JSON file."""
        if outcome.image is None or outcome.prediction is None or self._file is None:
            raise ValueError("only successful outcomes can be written, and only before close()")
        prediction, name = outcome.prediction, self.names[outcome.path]
        if self.masks:
            for suffix, pixels in map_images(prediction):
                write_png(self.folder / f"{name}_{suffix}.png", pixels)
        if self.overlays:
            write_png(self.folder / f"{name}_overlay.png", overlay(outcome.image, prediction))
        self._rows.writerows(csv_rows(outcome.path, prediction))
        target = self.folder / f"{name}.json"
        write_json(target, {"image": str(outcome.path), **prediction.to_json()})
        return target

    def close(self) -> None:
        """Put `predictions.csv` in its place."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._partial.replace(self.table)

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an error too: the rows of the images that were finished are worth keeping.
        self.close()


def csv_columns(specs: dict[str, TaskSpec]) -> list[str]:
    """Return the columns of `predictions.csv` for a set of tasks."""
    finds_objects = any(spec.kind in ("detection", "heatmap") for spec in specs.values())
    columns = ["image", "width", "height", *(OBJECT_COLUMNS if finds_objects else [])]
    detections = [spec for spec in specs.values() if spec.kind == "detection"]
    if detections:
        columns += [f"n_{name}" for name in detections[0].classes]
        if {"Infected", "Healthy"} <= set(detections[0].classes):
            columns.append("parasitemia")
    for task, spec in specs.items():
        if spec.kind == "roi_classification":
            columns += [f"{task}_class", *(f"{task}_p_{name}" for name in spec.classes)]
        elif spec.kind == "segmentation":
            columns += [f"{task}_area_{name}" for name in spec.classes]
        elif spec.kind == "classification":
            columns += [f"{task}_class", *(f"{task}_p_{name}" for name in spec.classes)]
        elif spec.kind == "regression":
            columns.append(task)
    return columns


def csv_rows(path: Path, prediction: Prediction) -> list[dict[str, Any]]:
    """Return the rows of one image: one per object, or a single one if there is none."""
    content = prediction.to_json()
    image: dict[str, Any] = {"image": _cell(str(path)), "width": content["width"], "height": content["height"]}
    image |= {f"n_{name}": count for name, count in content.get("counts", {}).items()}
    if content.get("parasitemia") is not None:
        image["parasitemia"] = round(content["parasitemia"], 4)
    rows: list[dict[str, Any]] = []
    for task, entry in content["tasks"].items():
        image |= {f"{task}_area_{name}": area for name, area in entry.get("area_fraction", {}).items()}
        if entry["kind"] == "classification":
            image |= {f"{task}_class": entry["class"]} | {f"{task}_p_{n}": p for n, p in entry["probabilities"].items()}
        if entry["kind"] == "regression":
            image[task] = entry["value"]
        for number, found in enumerate(entry.get("objects", entry.get("points", [])), start=1):
            row = {"object": number, "task": task, "class": found["class"], "score": found["score"]}
            keys, place = (
                ("x_min", "y_min", "x_max", "y_max") if "box" in found else ("x", "y"),
                found.get("box", found.get("point")),
            )
            row |= dict(zip(keys, place, strict=True))
            for roi in (name for name in found if name in content["tasks"]):
                row |= {f"{roi}_class": found[roi]["class"]}
                row |= {f"{roi}_p_{name}": value for name, value in found[roi]["probabilities"].items()}
            rows.append(row)
    return [{**image, **row} for row in rows] or [image]


def map_images(prediction: Prediction) -> list[tuple[str, np.ndarray]]:
    """Return (file suffix, pixels) of every mask and heatmap, at the size of the original image."""
    found: list[tuple[str, np.ndarray]] = []
    for task, arrays in prediction.tasks.items():
        spec = prediction.specs[task]
        several = len(spec.classes) > 1
        if spec.kind == "segmentation" and not spec.multilabel:
            found.append((task, prediction.mask(task)))
        elif spec.kind == "segmentation":
            pairs = zip(spec.classes, prediction.mask(task), strict=True)
            found += [(f"{task}_{_slug(name)}" if several else task, mask * np.uint8(255)) for name, mask in pairs]
        elif spec.kind == "heatmap":
            for name, channel in zip(spec.classes, arrays["heatmap"], strict=True):
                full = to_original(channel, prediction.window, stride=float(arrays["stride"]))
                full = np.rint(np.clip(full, 0, 1) * 65535)
                found.append((f"{task}_{_slug(name)}" if several else task, full.astype(np.uint16)))
    return found


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


def _cell(text: str) -> str:
    """Keep a spreadsheet from running a file name as a formula."""
    return f"'{text}" if text.startswith(SPREADSHEET_FORMULAS) else text
