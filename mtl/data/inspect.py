"""Tables and figures about a data set: how much of what there is, and whether the annotations sit where they should."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.types import Record, Sample
from mtl.data.base import DataFamily

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"Infected": "#d62728", "Healthy": "#1f4fd8", "WBC": "#8e24aa"}
OTHER_COLORS = ("#2ca02c", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")
LARGEST_SIDE = 1600  # pixels of an overlay
NAMED_BARS = 40  # more groups than this are drawn without names


def class_color(name: str, index: int = 0) -> str:
    """Return the colour of a class, the same in every figure."""
    return COLORS.get(name, OTHER_COLORS[index % len(OTHER_COLORS)])


def write_stats(family: DataFamily, records: list[Record], output: Path) -> list[Path]:
    """Write tables (images, groups, sizes of objects) and figures of a data set.

    Args:
        family: Reader of the data set.
        records: The images to count.
        output: Folder; created where it is missing.

    Returns:
        The files written.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for record in records for name in record.class_counts))
    # A share of infected cells means something only where all cells of a field were counted.
    counts_fields = bool(family.object_classes) and {"Infected", "Healthy"} <= set(names)
    unit = "patient" if all("patient" in record.groups for record in records) else "group"
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.groups.get("patient", record.group)].append(record)

    images = [
        {
            "sample_id": record.sample_id,
            unit: group,
            "height": record.size[0] if record.size else "",
            "width": record.size[1] if record.size else "",
            "pixel_scale": f"{record.pixel_scale:.6g}",
            "stratum": record.stratum,
            **_counts([record], names, counts_fields),
        }
        for group, members in sorted(groups.items())
        for record in members
    ]
    summary = [
        {unit: group, "images": len(members), **_counts(members, names, counts_fields)}
        for group, members in sorted(groups.items())
    ]
    summary.append({unit: "all", "images": len(records), **_counts(records, names, counts_fields)})
    written = [_write_csv(output / "images.csv", images), _write_csv(output / f"{unit}s.csv", summary)]
    written.append(_save(_plot_counts(summary[:-1], names, unit), output / "counts.png"))
    if counts_fields:
        written.append(_save(_plot_parasitemia(groups, unit), output / "parasitemia.png"))
    sizes = _object_sizes(family, records)
    if sizes:
        written.append(_write_csv(output / "sizes.csv", _size_rows(sizes)))
        written.append(_save(_plot_sizes(sizes), output / "sizes.png"))
    return written


def show_samples(family: DataFamily, records: list[Record], output: Path, count: int, seed: int) -> list[Path]:
    """Write some images with their annotations drawn on them.

    Args:
        family: Reader of the data set.
        records: Images to choose from.
        output: Folder; created where it is missing.
        count: How many images.
        seed: Of the choice.

    Returns:
        The files written, in the order of `records`.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(seed).permutation(len(records))[: max(0, count)]
    written = []
    for record in (records[index] for index in sorted(chosen)):
        sample = family.read_labels(record)
        sample.image = family.read_image(record)
        title = "\n".join([record.sample_id, *_label_texts(family, sample)])
        figure = plot(sample, family.object_classes, title)
        written.append(_save(figure, output / f"{record.sample_id.replace('/', '__').replace(' ', '_')}.png"))
    return written


def plot(sample: Sample, classes: tuple[str, ...], title: str | None = None, axes: Axes | None = None) -> Figure:
    """Draw an image with its objects.

    Outlines drawn by an expert are solid. For objects known by a point the point is marked and the box derived from it is
    dashed.

    Args:
        sample: With its image [H, W, 3] uint8.
        classes: Names behind `sample.objects.labels`.
        title: Text above; None writes the sample id.
        axes: Where to draw; None makes a figure of the size of the image (at most 1600 px).

    Returns:
        The figure that was drawn on.
    """
    import cv2
    from matplotlib.figure import Figure

    height, width = sample.image.shape[:2]
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    image = sample.image
    if shrink < 1:
        image = cv2.resize(image, (round(width * shrink), round(height * shrink)), interpolation=cv2.INTER_AREA)
    if axes is None:
        side = max(4.0, max(image.shape[:2]) / 100)
        ratio = side / max(height, width)
        legend = 0.35 if sample.objects is not None else 0.05
        figure = Figure(figsize=(max(4.5, width * ratio), height * ratio + 0.5 + legend), dpi=100, layout="constrained")
        axes = figure.subplots()
    # The extent puts the corner of the first pixel at (0, 0), as all coordinates here have it.
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_title(title or sample.sample_id, fontsize=8)
    if sample.objects is not None:
        _draw_objects(axes, sample, classes)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    drawn_on = axes.get_figure(root=True)
    assert drawn_on is not None
    return drawn_on


def _draw_objects(axes: Axes, sample: Sample, classes: tuple[str, ...]) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    objects = sample.objects
    assert objects is not None
    boxes, handles = objects.boxes, []
    for index, name in enumerate(classes):
        color = class_color(name, index)
        mine = objects.labels == index
        drawn, derived = np.flatnonzero(mine & ~objects.derived), np.flatnonzero(mine & objects.derived)
        axes.add_collection(PolyCollection([objects.outlines[i] for i in drawn], facecolors="none", edgecolors=color, lw=1.1))
        if len(derived):
            corners = [boxes[i][[[0, 1], [2, 1], [2, 3], [0, 3]]] for i in derived]
            axes.add_collection(PolyCollection(corners, facecolors="none", edgecolors=color, lw=0.8, linestyles="--"))
            axes.plot(*objects.points[derived].T, ".", color=color, markersize=3)
        if len(drawn):
            handles.append(Line2D([], [], color=color, label=f"{name} ({len(drawn)})"))
        if len(derived):
            text = f"{name} ({len(derived)}, box from point)"
            handles.append(Line2D([], [], color=color, linestyle="--", marker=".", label=text))
    if handles:
        axes.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), fontsize=8, frameon=False
        )


def _label_texts(family: DataFamily, sample: Sample) -> list[str]:
    texts = []
    for spec in family.specs().values():
        kind, _, name = spec.label.partition(":")
        if kind == "class" and name in sample.labels:
            value = sample.labels[name]
            texts.append(spec.classes[int(value)] if spec.kind == "classification" else f"{name} {value:g}")
    return texts


def parasitemia(records: list[Record]) -> float:
    """Infected red cells in percent of all red cells on these images; NaN where there are none."""
    infected = sum(record.class_counts.get("Infected", 0) for record in records)
    total = infected + sum(record.class_counts.get("Healthy", 0) for record in records)
    return 100 * infected / total if total else float("nan")


def _counts(records: list[Record], names: list[str], with_parasitemia: bool) -> dict[str, Any]:
    counts: dict[str, Any] = {name: sum(record.class_counts.get(name, 0) for record in records) for name in names}
    if with_parasitemia:
        counts["parasitemia_percent"] = f"{parasitemia(records):.2f}"
    return counts


def _object_sizes(family: DataFamily, records: list[Record]) -> dict[tuple[str, bool], np.ndarray]:
    """Collect (width, height) of boxes in reference pixels by (class, derived from a point)."""
    found: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
    if not family.object_classes:
        return {}
    for record in records:
        objects = family.read_labels(record).objects
        if objects is None or len(objects) == 0:
            continue
        boxes = objects.boxes
        sides = (boxes[:, 2:] - boxes[:, :2]) / record.pixel_scale
        for index, name in enumerate(family.object_classes):
            for derived in (False, True):
                mine = (objects.labels == index) & (objects.derived == derived)
                if mine.any():
                    found[name, derived].append(sides[mine])
    return {key: np.concatenate(parts) for key, parts in sorted(found.items())}


def _size_rows(sizes: dict[tuple[str, bool], np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    for (name, derived), sides in sizes.items():
        row: dict[str, Any] = {"class": name, "outline": "from point" if derived else "annotated", "count": len(sides)}
        for column, side in enumerate(("width", "height")):
            for quantile in (5, 50, 95):
                row[f"{side}_p{quantile}"] = f"{np.percentile(sides[:, column], quantile):.1f}"
        rows.append(row)
    return rows


def _plot_counts(rows: list[dict[str, Any]], names: list[str], unit: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    named = len(rows) <= NAMED_BARS
    figure = Figure(figsize=(2.5 + 3 * len(names), max(2.2, min(len(rows), NAMED_BARS) * 0.24 + 1.2)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        values = [row[name] for row in rows]
        bars = axes.barh(range(len(rows)), values, height=0.8 if named else 1.0, color=class_color(name, index))
        if named:
            axes.bar_label(bars, fontsize=7, padding=2)
            axes.margins(x=0.15)
        axes.margins(y=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(f"{name}: {sum(values)}", fontsize=9)
        axes.set_xlabel("count")
    panels[0].invert_yaxis()
    if named:
        panels[0].set_yticks(range(len(rows)), [str(row[unit]) for row in rows], fontsize=7)
    else:
        panels[0].set_ylabel(f"{len(rows)} {unit}s, in the order of {unit}s.csv")
    return figure


def _plot_parasitemia(groups: dict[str, list[Record]], unit: str) -> Figure:
    from matplotlib.figure import Figure

    order = sorted(groups, key=lambda group: (np.nan_to_num(parasitemia(groups[group]), nan=-1.0), group))
    named = len(order) <= NAMED_BARS
    figure = Figure(figsize=(6.5, max(2.2, min(len(order), NAMED_BARS) * 0.24 + 1.2)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), [parasitemia(groups[group]) for group in order], color="#e8a0a0", label=unit)
    points = [(parasitemia([record]), row) for row, group in enumerate(order) for record in groups[group]]
    axes.plot(*zip(*points, strict=True), "o", color=COLORS["Infected"], markersize=3, label="image", linestyle="none")
    for limit in (2, 10):
        axes.axvline(limit, color="0.6", lw=0.8, linestyle=":")
    axes.set_xlabel("parasitemia: infected red cells in % (dotted: limits of the strata)")
    if named:
        axes.set_yticks(range(len(order)), order, fontsize=7)
    else:
        axes.set_ylabel(f"{len(order)} {unit}s")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _plot_sizes(sizes: dict[tuple[str, bool], np.ndarray]) -> Figure:
    from matplotlib.figure import Figure

    annotated = {name: sides for (name, derived), sides in sizes.items() if not derived}
    derived = {name: sides for (name, is_derived), sides in sizes.items() if is_derived}
    figure = Figure(figsize=(10, 4), layout="constrained")
    limit = 1.1 * max(float(np.percentile(sides, 99.5)) for sides in sizes.values())
    for column, (axes, side) in enumerate(zip(figure.subplots(1, 2), ("width", "height"), strict=True)):
        for index, (name, sides) in enumerate(annotated.items()):
            values = sides[:, column]
            text = f"{name}: median {np.median(values):.0f}, n {len(values)}"
            bins = list(np.linspace(0, limit, 50))
            axes.hist(values, bins, density=True, histtype="step", color=class_color(name, index), label=text)
        for index, (name, sides) in enumerate(derived.items()):
            text = f"{name}: {np.median(sides[:, column]):.0f} set for points, n {len(sides)}"
            axes.axvline(float(np.median(sides[:, column])), color=class_color(name, index), linestyle="--", lw=1, label=text)
        axes.set_xlim(0, limit)
        axes.set_xlabel(f"{side} of the box in reference pixels")
        axes.set_ylabel("density" if annotated else "")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
    return figure


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path))
    return path
