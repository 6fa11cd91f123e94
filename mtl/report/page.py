"""`report.html`: one self-contained page with everything needed to judge a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.files import plain, write_text
from mtl.core.task import Colour
from mtl.metrics.points import FALSE_POSITIVES_PER_MM2
from mtl.report import figures, tables, training
from mtl.runs.folder import ResultFolder
from mtl.runs.history import history_columns, read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTIONS = {"native": "at the size of the original images", "working": "at the size at which the network works"}


@dataclass
class Example:
    """One image of the gallery.

    Attributes:
        title: Image and what to look at.
        score: Score of the image alone (`Evaluator.image_scores`).
        prediction: Overlay of the prediction: [H, W, 3] uint8, a PNG or JPEG file, or its bytes.
        truth: The same with the annotation; None where one picture shows both.
        group: Heading under which it is shown (`Worst examples`).
    """

    title: str
    score: float
    prediction: np.ndarray | Path | bytes
    truth: np.ndarray | Path | bytes | None = None
    group: str = ""


@dataclass
class ReportContent:
    """What a report shows.

    Attributes:
        metrics: Content of `metrics.json`: `suite`, `split`, `checkpoint`, `seed`, the summary of the evaluator, and `baseline`
            (by task: `name`, `metrics`) if there is one.
        curves: From `Evaluator.curves`.
        commit: Commit of the program.
        duration: Training time in seconds.
        history: Rows of the run's history; None looks in the folder of the report.
        best_epoch: Epoch of the scored checkpoint, marked in the curves; counted within its stage.
        best_stage: Name of that stage; empty without a curriculum.
        kept_apart: What the split keeps apart, in a sentence or two; empty where nothing is known of it.
        split_sizes: (images, groups) by split, for the header.
        split_note: What these numbers leave out.
        examples: Gallery.
        colours: By class.
        notes: Warnings of data, weights and training; those of the evaluator are added.
        config: Resolved configuration.
        environment: Versions and device.
    """

    metrics: dict[str, Any]
    curves: dict[str, Any] = field(default_factory=dict)
    commit: str = ""
    duration: float | None = None
    history: list[dict[str, str]] | None = None
    best_epoch: float | None = None
    best_stage: str = ""
    kept_apart: str = ""
    split_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    split_note: str = ""
    examples: list[Example] = field(default_factory=list)
    colours: dict[str, Colour] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write `report.html` into a run directory, and each figure as SVG into `figures/`; return the path of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    drawings = _Drawings(ResultFolder(folder).figures, content.colours)
    metrics = plain(content.metrics)
    sections = [_section(name, metrics, content.curves.get(name, {}), drawings) for name in metrics["tasks"]]
    sections += [_section(name, metrics, content.curves.get(name, {}), drawings, "study") for name in metrics.get("study", {})]
    environment = Environment(
        loader=PackageLoader("mtl", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": tables.number, "label": tables.label, "arrow": tables.arrow, "code": tables.code,
        "interval": tables.interval_text,
    }  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        header=_header(content, metrics),
        metrics=metrics,
        overview=_overview(sections),
        any_source=any(section["from_source"] for section in sections),
        sections=sections,
        stages=tables.stage_table(metrics),
        training=_training(content, folder, metrics, drawings),
        # What is kept apart stands in the header.
        notes=[n for n in dict.fromkeys([*content.notes, *metrics.get("notes", [])]) if n != content.kept_apart],
        examples=_gallery(content.examples),
        config=json.dumps(plain(content.config), indent=2) if content.config else "",
        environment=plain(content.environment),
    )
    target = ResultFolder(folder).report
    write_text(target, page)
    return target


class _Drawings:
    """Turns figures into data URIs and keeps each as a file; knows the colours of classes."""

    def __init__(self, folder: Path, colours: dict[str, Colour]) -> None:
        self.folder, self.colours = folder, colours

    def add(self, name: str, alt: str, figure: Figure | None) -> dict[str, str] | None:
        if figure is None:
            return None
        svg = figures.to_svg(figure)
        write_text(self.folder / f"{name}.svg", svg)
        return {"uri": figures.svg_uri(svg), "alt": alt, "width": f"{figure.get_figwidth() * 96:.0f}"}


def _header(content: ReportContent, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    unit = metrics.get("group_by", "group")
    sizes = [
        f"{split} {tables.counted(images, 'image')} of {tables.counted(groups, unit)}"
        for split, (images, groups) in content.split_sizes.items()
    ]
    rows = [
        ("Scored on", f"{metrics.get('split')}: {tables.counted(metrics.get('n_samples'), 'image')} of "
                      f"{tables.counted(metrics.get('n_groups'), unit)}"),
        ("Masks compared", RESOLUTIONS.get(metrics.get("resolution", ""), "") if _has_masks(metrics) else ""),
        ("Kept apart", content.kept_apart),
        ("Data of the run", "; ".join([*sizes, *([content.split_note] if content.split_note else [])])),
        ("Checkpoint", metrics.get("checkpoint")),
        ("Precision", _precision(metrics.get("computation"))),
        ("Seed", metrics.get("seed")),
        ("Commit", content.commit),
        ("Training time", "" if content.duration is None else _duration(content.duration)),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _precision(computation: dict[str, Any] | None) -> str:
    """Return in which precision a network was scored; empty of results of a release that did not say so."""
    if not computation:
        return ""
    return computation["precision"] + (", channels_last" if computation["channels_last"] else "")


def _has_masks(metrics: dict[str, Any]) -> bool:
    return any("dice_pooled" in entry for entry in metrics["tasks"].values())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _training(
    content: ReportContent, folder: Path, metrics: dict[str, Any], drawings: _Drawings
) -> list[dict[str, str]]:  # fmt: skip
    """Draw the history of the run."""
    history, stages = history_columns(read_history(folder) if content.history is None else content.history)
    best = content.best_epoch
    if best is not None:
        best += sum(stage.first for stage in stages if stage.name == content.best_stage)
    primaries = {task: next(iter(entry["ci95"])) for task, entry in metrics["tasks"].items() if entry["ci95"]}
    found = [
        drawings.add("training", "Training curves", training.training_curves(history, best, stages, primaries)),
        drawings.add("experts", "Use of experts over training", training.expert_use(history, best, stages)),
    ]
    return [drawing for drawing in found if drawing]


def _section(
    name: str, metrics: dict[str, Any], curves: dict[str, Any], drawings: _Drawings, part: str = "tasks"
) -> dict[str, Any]:
    """Collect tables and figures of one task or study metric."""
    entry = metrics[part][name]
    baseline = (metrics.get("baseline") or {}).get(name)
    thresholds = metrics.get("thresholds", {}).get(name, {})
    found = [draw(name, curves, thresholds, entry, drawings) for draw in _DRAWERS]
    guess = (baseline or {}).get("from_source") or {}
    unit, cases = (metrics.get("hd95_units") or {}).get(name), (metrics.get("cases") or {}).get(name)
    return {
        "name": name,
        "n": entry.get("n"),
        "rows": [
            {
                "metric": metric, "value": entry.get(metric), "ci": interval,
                "baseline": baseline["metrics"].get(metric) if baseline else None,
                "from_source": guess.get("metrics", {}).get(metric),
            }
            for metric, interval in entry["ci95"].items()
        ],
        "baseline": baseline["name"] if baseline else "",
        "from_source": guess.get("name", ""),
        "thresholds": thresholds,
        "hd95_unit": unit,
        "tables": [
            *tables.task_tables(entry, baseline, curves.get("per_task") or {}),
            *([tables.case_table(cases, unit)] if cases else []),
        ],
        "figures": [figure for some in found for figure in some if figure],
        "compared": [tables.counted(count, unit) for unit, count in (entry.get("compared") or {}).items()],
        "left_out": curves.get("without_truth"),
    }  # fmt: skip


def _overview(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first (primary) metric of each section."""
    return [{"name": s["name"], "n": s["n"], "baseline_name": s["baseline"], **s["rows"][0]} for s in sections if s["rows"]]


Drawer = Callable[[str, dict[str, Any], dict[str, float], dict[str, Any], _Drawings], list[dict[str, str] | None]]


def _draw_curves(
    name: str, curves: dict[str, Any], thresholds: dict[str, float], entry: dict[str, Any], drawings: _Drawings
) -> list[dict[str, str] | None]:
    found: list[dict[str, str] | None] = []
    per_class = entry.get("per_class") or {}
    if "froc" in curves:
        keys = {rate: f"sensitivity_at_{rate}" for rate in FALSE_POSITIVES_PER_MM2}
        points, intervals = ({rate: of.get(key) for rate, key in keys.items()} for of in (entry, entry["ci95"]))
        average = {key: row.get("froc") for key, row in per_class.items()}
        figure = figures.free_response(curves["froc"], points, intervals, average, drawings.colours)
        found.append(drawings.add(f"{name}_froc", f"{name}: sensitivity over false positives per mm²", figure))
    if "roc" in curves:
        figure = figures.operating_curve(curves["roc"], drawings.colours)
        found.append(drawings.add(f"{name}_roc", f"{name}: sensitivity over 1 - specificity", figure))
    if "precision_recall" in curves:
        # Boxes have an `ap` too, but over several overlaps.
        area = next((key for key in ("aupr", "ap50", "ap") if any(key in row for row in per_class.values())), "ap50")
        average = {key: row.get(area) for key, row in per_class.items()}
        figure = figures.precision_recall(curves["precision_recall"], average, area.upper(), drawings.colours)
        found.append(drawings.add(f"{name}_precision_recall", f"{name}: precision over recall", figure))
    for key, measure in (("f1", "F1"), ("dice", "Dice")):
        if key in curves:
            figure = figures.threshold_curve(curves[key], thresholds, measure, drawings.colours)
            found.append(drawings.add(f"{name}_{key}", f"{name}: {measure} over threshold", figure))
    return found


def _draw_confusion(
    name: str, curves: dict[str, Any], thresholds: dict[str, float], entry: dict[str, Any], drawings: _Drawings
) -> list[dict[str, str] | None]:
    table = curves.get("confusion")
    if not table:
        return []
    figure = figures.confusion(table["counts"], table["classes"], table.get("predicted"))
    return [drawings.add(f"{name}_confusion", f"{name}: confusion matrix", figure)]


def _draw_agreement(
    name: str, curves: dict[str, Any], thresholds: dict[str, float], entry: dict[str, Any], drawings: _Drawings
) -> list[dict[str, str] | None]:
    sign, words = curves.get("sign", ""), tables.label(name)
    return [
        drawings.add(f"{name}_{unit}", f"{name}: agreement per {unit}", figures.agreement(pairs, unit, words, sign))
        for unit, pairs in curves.get("agreement", {}).items()
    ]


_DRAWERS: tuple[Drawer, ...] = (_draw_curves, _draw_confusion, _draw_agreement)


def _gallery(examples: list[Example]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        pictures = {
            "prediction": image_uri(example.prediction),
            "truth": None if example.truth is None else image_uri(example.truth),
        }
        entry = {
            "title": example.title,
            "score": example.score,
            "wide": example.truth is None or _is_wide(example.prediction),
            **pictures,
        }
        groups.setdefault(example.group or "Examples", []).append(entry)
    return groups


def _is_wide(picture: np.ndarray | Path | bytes) -> bool:
    """Return whether a picture holds panels side by side and needs the width of the page."""
    return isinstance(picture, np.ndarray) and picture.shape[1] > 2 * picture.shape[0]


def image_uri(image: np.ndarray | Path | bytes) -> str:
    """Return a picture as a data URI; arrays [H, W, 3] uint8 become JPEG."""
    if isinstance(image, np.ndarray):
        import cv2

        # OpenCV wants BGR.
        done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
        if not done:
            raise ValueError(f"Cannot encode a picture of shape {image.shape}, expected [H, W, 3] uint8.")
        content = encoded.tobytes()
    else:
        content = image.read_bytes() if isinstance(image, Path) else image
    image_format = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"
