"""One slide from file to results, and whether that has been done before."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mtl.config.verbs import SlideConfig
from mtl.core.decision import DEFAULT_THRESHOLD
from mtl.core.errors import DataError
from mtl.core.files import plain, write_json
from mtl.core.json_text import parse_json
from mtl.core.names import readable
from mtl.data.formats.slides import SlideFile, open_slide
from mtl.drawing.palette import colours_of
from mtl.imaging.stain import restain
from mtl.inference.outputs import write_png
from mtl.inference.predictor import Predictor
from mtl.inference.result_names import MASK, OVERVIEW, POINTS, SCORE, SLIDE_FILES
from mtl.inference.slides import outputs
from mtl.inference.slides.outputs import SlideOutcome
from mtl.inference.slides.raster import (
    Resized,
    Tissue,
    mask_of,
    overview,
    overview_size,
    sample,
    tissue_by_colour,
    tissue_from_file,
)
from mtl.inference.slides.scan import NO_TISSUE, Scan, completed_settings, scan_tasks, slide_metric, tissue_values
from mtl.inference.slides.tumor_bulk import tumor_bulk

FORMAT = 5  # of the results; a higher one makes finished slides start again
# Spacings that differ by less are taken for equal: nothing is resized, and areas and distances use the true one.
SAME_SPACING = 0.02
LARGEST_FACTOR = 4.0  # a slide that is enlarged by more shows the network nothing that it knows
STAINED = 0.05  # least saturation of what counts when a stain is measured
Progress = Callable[[int, int], None]


class SlidePredictor:
    """Predicts slides and writes a folder for each; what is finished is not done again.

    Args:
        predictor: Of a network that can be used on slides.
        settings: The keys of `slide`; what they leave out is taken from the run.
        checkpoint: sha256 of the checkpoint.
        masks: Write `tissue.tif`.
        overviews: Write `overview.png`.

    Raises:
        ConfigError: The network cannot be used on slides.
        DataError: The folder of tissue masks does not exist.
    """

    def __init__(
        self, predictor: Predictor, settings: SlideConfig, checkpoint: str, masks: bool = True, overviews: bool = True
    ) -> None:
        self.cells, self.tissue = scan_tasks(predictor, settings)
        self.predictor, self.settings, self.checkpoint = predictor, completed_settings(predictor, settings), checkpoint
        self.metric = slide_metric(predictor)
        if settings.tissue_masks is not None and not Path(settings.tissue_masks).is_dir():
            raise DataError(
                f"`slide.tissue_masks={settings.tissue_masks}` is no folder; expected one with <slide>_tissue.tif. Correct it, "
                "or set slide.tissue_masks=null to look for tissue by colour."
            )
        wanted = {
            MASK: masks and self.tissue is not None, POINTS: self.cells is not None,
            OVERVIEW: overviews, SCORE: True,
        }  # fmt: skip
        self.files = [name for name, wanted_too in wanted.items() if wanted_too]

    def predict(self, path: Path, folder: Path, progress: Progress = lambda done, total: None) -> SlideOutcome:
        """Predict one slide; a file that cannot be read and a folder that cannot be written give an outcome with `error`.

        `til-score.json` is written last and marks a finished slide.

        Args:
            path: The slide.
            folder: For its results.
            progress: Called with rows done and rows in all.
        """
        try:
            fingerprint = self.fingerprint(path)
            done = self._finished(folder, fingerprint)
            if done is not None:
                return SlideOutcome(path, done, skipped=True)
            outputs.clear(folder, SLIDE_FILES)
            with ExitStack() as stack:
                slide = stack.enter_context(open_slide(path))
                summary = self._predict(slide, folder, stack, progress)
            summary |= {"fingerprint": fingerprint}
            write_json(folder / SCORE, summary)
            return SlideOutcome(path, plain(summary))
        except DataError as error:
            return SlideOutcome(path, error=error)
        except OSError as error:  # what reads turns its own into DataError
            reason = f"its results cannot be written to {folder} ({error.strerror or error})"
            return SlideOutcome(path, error=DataError(f"{path}: {reason}. Make room, or choose another output."))

    def fingerprint(self, path: Path) -> str:
        """Return what decides the results: checkpoint, tasks, thresholds, settings, files wanted, size and time of files."""
        inputs = [path] if self.settings.tissue_masks is None else [path, mask_of(path, self.settings.tissue_masks)]
        try:
            stamps = [[file.stat().st_size, file.stat().st_mtime_ns] for file in inputs]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
        used = {task: self.predictor.thresholds.get(task, {}) for task in sorted(self.predictor.specs)}
        computation = self.predictor.computation.to_dict()
        facts = [FORMAT, self.checkpoint, computation, used, self.settings.model_dump(), sorted(self.files), stamps]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _finished(self, folder: Path, fingerprint: str) -> dict[str, Any] | None:
        try:
            summary = parse_json((folder / SCORE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        complete = isinstance(summary, dict) and all((folder / name).is_file() for name in self.files)
        return summary if complete and summary.get("fingerprint") == fingerprint else None

    def _predict(self, slide: SlideFile, folder: Path, stack: ExitStack, progress: Progress) -> dict[str, Any]:
        um = self._spacing(slide)
        geometry, preprocessing = self.predictor.model.preprocessing.geometry, self.predictor.model.preprocessing
        mean_um = (um[0] + um[1]) / 2
        if mean_um * geometry.scale > LARGEST_FACTOR:
            raise DataError(
                f"{slide.path}: a pixel measures {mean_um:.3g} microns, and this network looks at {1 / geometry.scale:.3g}; "
                f"expected at most {LARGEST_FACTOR:.0f} times as much. Take a finer scan, or correct slide.spacing."
            )
        same = abs(mean_um * geometry.scale - 1) <= SAME_SPACING
        pixel_scale = geometry.scale if same else 1 / mean_um
        size = geometry.working_size(slide.size, pixel_scale)
        picture = self._picture(slide, size)
        tissue = self._find_tissue(slide, picture, size, stack)
        raster = Resized(slide, size)
        if preprocessing.stain is not None:
            # Without a mask, and looking everywhere: what is colourful tells the stain.
            stained = tissue_by_colour(picture, STAINED, size) if tissue is None and picture is not None else tissue
            stain = preprocessing.stain_of(sample(raster, stained, geometry.size))
            raster = Resized(slide, size, treat=lambda pixels: restain(pixels, stain))
        scan = Scan(self.predictor, raster, pixel_scale, tissue, self.cells, self.tissue)
        bands = scan.bands(progress)
        network_um = um[0] / scan.window.scale[0], um[1] / scan.window.scale[1]
        if MASK in self.files and self.tissue is not None:
            values = {"no tissue": NO_TISSUE, **tissue_values(self.predictor, self.tissue)}
            outputs.write_mask(folder / MASK, size, bands, network_um, values)
        deque(bands, maxlen=0)  # the end too: a writer stops at its last tile
        return self._report(scan, slide, folder, um, network_um, picture, tissue)

    def _spacing(self, slide: SlideFile) -> tuple[float, float]:
        given = self.settings.spacing
        if given is not None:
            return given, given
        if slide.spacing is None:
            raise DataError(
                f"{slide.path}: does not say how many microns a pixel measures. Set slide.spacing=<microns per pixel>."
            )
        x, y = slide.spacing
        if abs(x / y - 1) > SAME_SPACING:
            raise DataError(
                f"{slide.path}: its pixels measure {x:.3g} x {y:.3g} microns; expected squares. Set "
                "slide.spacing=<microns per pixel>."
            )
        return x, y

    def _picture(self, slide: SlideFile, size: tuple[int, int]) -> np.ndarray | None:
        """Return the overview, of the size of the grid of areas, if anything needs it."""
        stain = self.predictor.model.preprocessing.stain is not None
        by_colour = self.settings.tissue_masks is None and (stain or self.settings.min_saturation is not None)
        if by_colour or OVERVIEW in self.files:
            return overview(slide, overview_size(size))
        return None

    def _find_tissue(
        self, slide: SlideFile, picture: np.ndarray | None, size: tuple[int, int], stack: ExitStack
    ) -> Tissue | None:
        if self.settings.tissue_masks is not None:
            tissue, close = tissue_from_file(mask_of(slide.path, self.settings.tissue_masks), slide, size)
            stack.callback(close)
            return tissue
        if self.settings.min_saturation is None or picture is None:
            return None
        return tissue_by_colour(picture, self.settings.min_saturation, size)

    def _report(
        self, scan: Scan, slide: SlideFile, folder: Path, um: tuple[float, float], network_um: tuple[float, float],
        picture: np.ndarray | None, tissue: Tissue | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write the cells and the overview; return the content of `til-score.json`."""
        specs, pixel = self.predictor.specs, network_um[0] * network_um[1]
        areas = dict(zip(specs[self.tissue].classes, scan.areas, strict=True)) if self.tissue else {}
        names = specs[self.cells].classes if self.cells else ()
        if self.cells is not None:
            labels = [names[label] for label in scan.points["labels"]] if len(names) > 1 else None
            outputs.write_points(folder / POINTS, scan.points["points"], scan.points["scores"], um, labels)
        threshold = float(self.predictor.thresholds.get(self.cells or "", {}).get("score", DEFAULT_THRESHOLD))
        sure = scan.points["scores"] >= threshold
        rows, columns = scan.square_of(scan.points["points"][sure])
        bulk = self._bulk(areas, pixel, scan)
        cells = int(sure.sum()) if bulk is None else int(bulk[rows, columns].sum())
        stroma = areas.get(self.settings.stroma or "")
        area = None if stroma is None else float((stroma if bulk is None else stroma[bulk]).sum()) * pixel
        counts = np.bincount(scan.points["labels"][sure], minlength=len(names))
        grid_um = um[0] * slide.size[1] / scan.grid[1], um[1] * slide.size[0] / scan.grid[0]
        summary = {
            "slide": readable(slide.path), "width": slide.size[1], "height": slide.size[0],
            "til_score": self.metric.of_slide(cells, area) if self.metric and self.cells and area is not None else None,
            "note": self._note(area),
            "cells": cells if self.cells is not None else None, "stroma_area_um2": area,
            "tumor_bulk": self.settings.tumor_bulk,
            "bulk_area_um2": None if bulk is None else float(bulk.sum()) * grid_um[0] * grid_um[1],
            "counts": {name: int(counts[index]) for index, name in enumerate(names)},
            "areas_um2": {name: float(counted.sum()) * pixel for name, counted in areas.items()},
            "spacing_um": list(um), "mask_spacing_um": list(network_um),
            "windows": scan.window.count, "windows_with_tissue": scan.looked_at,
            "thresholds": {task: self.predictor.thresholds.get(task, {}) for task in (self.cells, self.tissue) if task},
            "checkpoint": self.checkpoint, "precision": self.predictor.computation.precision,
            "settings": self.settings.model_dump(),
        }  # fmt: skip
        if picture is not None and OVERVIEW in self.files:
            shares = [(name, counted.astype(np.float32) / np.float32(scan.square_pixels)) for name, counted in areas.items()]
            density = None
            if self.cells is not None:
                extent = slide.size[0] * um[1], slide.size[1] * um[0]
                density = outputs.density_of(scan.points["points"][sure] * um, extent)
            lines = legend_lines(summary, density)
            drawn = outputs.draw_overview(
                picture, shares, density, bulk, lines, colours_of(specs.values()), _inside(scan, picture, tissue)
            )
            write_png(folder / OVERVIEW, drawn)
        return summary

    def _note(self, area: float | None) -> str | None:
        """Return why there is no TIL score; None where there is one."""
        settings = self.settings
        if self.cells is None:
            return f"no TIL score: the network has no task{_named(settings.cells)} that finds cells (slide.cells)"
        if self.tissue is None:
            return f"no TIL score: the network has no task{_named(settings.tissue)} that tells the tissue (slide.tissue)"
        if self.metric is None:
            return "no TIL score: the run has no study metric that scores slides (study_metrics)"
        if area is None:
            names = ", ".join(self.predictor.specs[self.tissue].classes)
            return f"no TIL score: `{self.tissue}` has no class `{settings.stroma}`; set slide.stroma to one of {names}"
        return None if area > 0 else f"no TIL score: {no_stroma(settings.tumor_bulk)}"

    def _bulk(self, areas: dict[str, np.ndarray], pixel: float, scan: Scan) -> np.ndarray | None:
        if not self.settings.tumor_bulk or self.settings.tumor not in areas:
            return None
        # More than half of a square of the grid.
        return tumor_bulk(areas[self.settings.tumor] > scan.square_pixels / 2, float(np.sqrt(scan.square_pixels * pixel)))


def _inside(scan: Scan, picture: np.ndarray, tissue: Tissue | None) -> np.ndarray:
    """Return which share of each square of the overview is tissue; where nobody said, what is colourful."""
    classified = scan.areas.sum(axis=0) / np.float32(scan.square_pixels) if len(scan.areas) else np.ones(scan.grid, np.float32)
    if tissue is None:
        tissue = tissue_by_colour(picture, STAINED, scan.grid)
    elif len(scan.areas):
        return classified  # there is no class outside tissue
    return np.asarray(classified * tissue.overview(scan.grid))


def _named(task: str | None) -> str:
    return "" if task is None else f" `{task}`"


def no_stroma(bulk: bool) -> str:
    """Return why a slide has no score."""
    return "no stroma in the bulk" if bulk else "no stroma"


def legend_lines(summary: dict[str, Any], density: np.ndarray | None) -> list[str]:
    """Return the figures of a slide as short lines."""
    score = summary["til_score"]
    lines = []
    if score is not None:
        lines.append(f"TIL score {score:.1f} %" if np.isfinite(score) else f"TIL score: {no_stroma(summary['tumor_bulk'])}")
    if summary["cells"] is not None:
        lines.append(f"{summary['cells']} cells")
    if summary["stroma_area_um2"] is not None:
        lines.append(f"stroma {summary['stroma_area_um2'] / 1e6:.2f} mm2")
    if summary["tumor_bulk"]:
        lines.append("inside the tumour bulk (outlined)")
    if density is not None:
        lines.append(f"up to {float(density.max()):.0f} cells per mm2")
    return lines
