"""Tables and figures about a data set: how much of what there is, and whether the annotations sit where they should."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.core.family import DataFamily, Measure
from mtl.core.files import write_bytes, write_table
from mtl.core.task import Colour, TaskSpec
from mtl.core.types import Record, Sample
from mtl.drawing.palette import colours_of, hexadecimal
from mtl.imaging.preprocessing import Preprocessing
from mtl.kinds.base import Annotations, TaskPrediction, rules_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_SIDE = 1600  # pixels of an overlay
NAMED_BARS = 40  # more groups than this are drawn without names
PANELS = 5  # panels, or entries of a legend, side by side
LEGEND_ENTRY = 2.3  # inches
Colours = Mapping[str, Colour]


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
    measures, colours = family.measures(), class_colours(family, names)
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
            **_counts([record], names, measures),
        }
        for group, members in sorted(groups.items())
        for record in members
    ]
    summary = [
        {unit: group, "images": len(members), **_counts(members, names, measures)} for group, members in sorted(groups.items())
    ]
    summary.append({unit: "all", "images": len(records), **_counts(records, names, measures)})
    written = [_write_csv(output / "images.csv", images), _write_csv(output / f"{unit}s.csv", summary)]
    counts = _plot_counts(summary[:-1], names, unit, colours) if unit == "patient" else _plot_totals(records, names)
    written.append(_save(counts, output / "counts.png"))
    written += [_save(_plot_measure(measure, groups, unit), output / f"{measure.name}.png") for measure in measures]
    sizes = _object_sizes(family, records)
    if sizes:
        written.append(_write_csv(output / "sizes.csv", _size_rows(sizes)))
        written.append(_save(_plot_sizes(sizes, colours), output / "sizes.png"))
    return written


def show_samples(
    family: DataFamily, records: list[Record], output: Path, count: int, seed: int, preprocessing: Preprocessing
) -> list[Path]:
    """Write `count` of some images with their annotations drawn on them: objects, masks and, as text, classes.

    Args:
        family: Reader of the data set.
        records: Images to choose from.
        output: Folder; created where it is missing.
        count: How many images.
        seed: Of the choice.
        preprocessing: Makes the pictures.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(seed).permutation(len(records))[: max(0, count)]
    written = []
    for record in (records[index] for index in sorted(chosen)):
        sample = family.read_labels(record)
        sample.image = preprocessing.picture(family.read_image(record))
        title = "\n".join([record.sample_id, *_label_texts(family, sample)])
        figure = plot(sample, family.object_classes, class_colours(family), title, regions=_regions(family, sample))
        written.append(_save(figure, output / f"{record.sample_id.replace('/', '__').replace(' ', '_')}.png"))
    return written


def class_colours(family: DataFamily, names: Iterable[str] = ()) -> dict[str, Colour]:
    """Return the colours of all classes of a data set: as its tasks have them in every other picture.

    Args:
        family: Reader of the data set.
        names: Of classes that are counted; some may be in no task.
    """
    others = family.with_colours(TaskSpec("others", "classification", (*family.known_classes(), *names)))
    return colours_of([*family.specs().values(), *others.values()])


def plot(
    sample: Sample,
    classes: tuple[str, ...],
    colours: Colours,
    title: str | None = None,
    axes: Axes | None = None,
    regions: dict[str, np.ndarray] | None = None,
) -> Figure:
    """Draw an image with its objects and masks.

    Outlines drawn by an expert are solid. For objects known by a point the point is marked and the box derived from it is
    dashed. Masks are tinted, with their borders in full colour.

    Args:
        sample: With its image [H, W, 3] uint8.
        classes: Names behind `sample.objects.labels`.
        colours: By class.
        title: Text above; None writes the sample id.
        axes: Where to draw; None makes a figure of the size of the image (at most 1600 px).
        regions: [H, W] masks by class.

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
    image = _tinted(image, regions or {}, colours)
    entries = 0 if sample.objects is None else len(classes)
    entries += len(regions or {})
    columns = PANELS
    if axes is None:
        side = max(4.0, max(image.shape[:2]) / 100)
        ratio = side / max(height, width)
        figure_width = max(4.5, width * ratio)
        columns = max(1, min(PANELS, int(figure_width / LEGEND_ENTRY)))
        legend = 0.05 + 0.2 * -(-entries // columns)
        figure = Figure(figsize=(figure_width, height * ratio + 0.6 + legend), dpi=100, layout="constrained")
        axes = figure.subplots()
    # The extent puts the corner of the first pixel at (0, 0), as all coordinates here have it.
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_title(title or sample.sample_id, fontsize=8, wrap=True)
    handles = [] if sample.objects is None else _draw_objects(axes, sample, classes, colours)
    handles += _region_handles(regions or {}, colours)
    if handles:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
        axes.legend(handles=handles, ncols=min(len(handles), columns), fontsize=8, frameon=False, **place)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    drawn_on = axes.get_figure(root=True)
    assert drawn_on is not None
    return drawn_on


def _regions(family: DataFamily, sample: Sample) -> dict[str, np.ndarray]:
    """Return the stored masks [H, W] bool by class; a class that several tasks share comes once."""
    found: dict[str, np.ndarray] = {}
    for spec in family.specs().values():
        form, _, name = spec.label.partition(":")
        if form != "mask" or name not in sample.masks:
            continue
        mask = sample.masks[name]
        for number, class_name in enumerate(spec.classes):
            if class_name not in found:
                found[class_name] = mask[..., number] > 0 if mask.ndim == 3 else mask == number + int(spec.multilabel)
    return found


def _tinted(image: np.ndarray, regions: dict[str, np.ndarray], colours: Colours) -> np.ndarray:
    """Tint an image [h, w, 3] where masks of any size lie; the smallest spot keeps a pixel."""
    import cv2

    picture = image.astype(np.float32) if regions else image
    for name, region in regions.items():
        shares = cv2.resize(region.astype(np.float32), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA)
        shown = (shares > 0).astype(np.uint8)
        border = shown - cv2.erode(shown, np.ones((3, 3), np.uint8))
        strength = (0.2 * shown + 0.7 * border)[..., None]
        picture = picture * (1 - strength) + np.asarray(colours[name], np.float32) * strength
    return picture.astype(np.uint8)


def _region_handles(regions: dict[str, np.ndarray], colours: Colours) -> list[Any]:
    from matplotlib.patches import Patch

    shares = {name: f"{np.count_nonzero(region) / region.size:.2%}" for name, region in regions.items()}
    return [
        Patch(color=hexadecimal(colours[name]), label=f"{name} ({share if regions[name].any() else 'none'})")
        for name, share in shares.items()
    ]


def _draw_objects(axes: Axes, sample: Sample, classes: tuple[str, ...], colours: Colours) -> list[Any]:
    """Draw the objects; return the entries of the legend."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    objects = sample.objects
    assert objects is not None
    boxes = objects.boxes
    handles: list[Any] = []
    for index, name in enumerate(classes):
        color = hexadecimal(colours[name])
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
    return handles


def _label_texts(family: DataFamily, sample: Sample) -> list[str]:
    texts = []
    for spec in family.specs().values():
        rules, known = rules_of(spec), Annotations((0, 0), labels=sample.labels)
        target = rules.target(spec, known) if rules.image_level else None
        if target is not None:
            texts.append(f"{spec.name}: {rules.words(TaskPrediction(spec, rules.truth(target), known.size))}")
    return texts


def _counts(records: list[Record], names: list[str], measures: list[Measure]) -> dict[str, Any]:
    """Add up class counts, and compute what follows from them; a class that no record knows of stays blank."""
    counts: dict[str, Any] = {}
    for name in names:
        known = [record.class_counts[name] for record in records if name in record.class_counts]
        counts[name] = sum(known) if known else ""
    return counts | {f"{measure.name}_{measure.unit}": f"{measure.value(records):.2f}" for measure in measures}


def _object_sizes(family: DataFamily, records: list[Record]) -> dict[tuple[str, bool], np.ndarray]:
    """Collect (width, height) of boxes in reference pixels by (class, derived from a point)."""
    found: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
    if not family.object_classes:
        return {}
    for record in (record for record in records if record.knows("objects")):
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


def _plot_counts(rows: list[dict[str, Any]], names: list[str], unit: str, colours: Colours) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    named = len(rows) <= NAMED_BARS
    figure = Figure(figsize=(2.5 + 3 * len(names), max(2.2, min(len(rows), NAMED_BARS) * 0.24 + 1.2)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        values = [row[name] or 0 for row in rows]
        bars = axes.barh(range(len(rows)), values, height=0.8 if named else 1.0, color=hexadecimal(colours[name]))
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


def _plot_totals(records: list[Record], names: list[str]) -> Figure:
    """Draw one bar per class, by official part: where no patients are known, groups say little."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 1.2 + 0.28 * len(names)), layout="constrained")
    axes, left = figure.subplots(), np.zeros(len(names))
    for part in sorted({record.official_split or "images" for record in records}, reverse=True):
        mine = [record for record in records if (record.official_split or "images") == part]
        values = [sum(record.class_counts.get(name, 0) for record in mine) for name in names]
        color = {"train": "#9db8d9", "test": "#e8a0a0"}.get(part, "0.7")
        bars = axes.barh(names, values, left=left, color=color, label=part)
        left += values
    axes.bar_label(bars, [f"{total:g}" for total in left], fontsize=7, padding=2)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("images or objects with this class")
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
    return figure


def _plot_measure(measure: Measure, groups: dict[str, list[Record]], unit: str) -> Figure:
    from matplotlib.figure import Figure

    value = measure.value
    order = sorted(groups, key=lambda group: (np.nan_to_num(value(groups[group]), nan=-1.0), group))
    named = len(order) <= NAMED_BARS
    figure = Figure(figsize=(6.5, max(2.2, min(len(order), NAMED_BARS) * 0.24 + 1.2)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), [value(groups[group]) for group in order], color="#e8a0a0", label=unit)
    points = [(value([record]), row) for row, group in enumerate(order) for record in groups[group]]
    color = hexadecimal(measure.colour)
    axes.plot(*zip(*points, strict=True), "o", color=color, markersize=3, label="image", linestyle="none")
    for limit in measure.limits:
        axes.axvline(limit, color="0.6", lw=0.8, linestyle=":")
    axes.set_xlabel(measure.axis)
    if named:
        axes.set_yticks(range(len(order)), order, fontsize=7)
    else:
        axes.set_ylabel(f"{len(order)} {unit}s")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _plot_sizes(sizes: dict[tuple[str, bool], np.ndarray], colours: Colours) -> Figure:
    from matplotlib.figure import Figure

    annotated = {name: sides for (name, derived), sides in sizes.items() if not derived}
    derived = {name: sides for (name, is_derived), sides in sizes.items() if is_derived}
    figure = Figure(figsize=(10, 4), layout="constrained")
    limit = 1.1 * max(float(np.percentile(sides, 99.5)) for sides in sizes.values())
    for column, (axes, side) in enumerate(zip(figure.subplots(1, 2), ("width", "height"), strict=True)):
        for name, sides in annotated.items():
            values = sides[:, column]
            text = f"{name}: median {np.median(values):.0f}, n {len(values)}"
            bins = list(np.linspace(0, limit, 50))
            axes.hist(values, bins, density=True, histtype="step", color=hexadecimal(colours[name]), label=text)
        for name, sides in derived.items():
            text = f"{name}: {np.median(sides[:, column]):.0f} set for points, n {len(sides)}"
            axes.axvline(float(np.median(sides[:, column])), color=hexadecimal(colours[name]), linestyle="--", lw=1, label=text)
        axes.set_xlim(0, limit)
        axes.set_xlabel(f"{side} of the box in reference pixels")
        axes.set_ylabel("density" if annotated else "")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
    return figure


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(path, rows, list(rows[0]))
    return path


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_bytes(path, picture.getvalue())
    return path
