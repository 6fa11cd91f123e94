"""Bounds of numbers in a configuration: what lies outside means nothing, or would end a run in the middle. Torch-free.

The schema carries those of its own keys. Keys of registered parts are their arguments, whose types say nothing of a range; here
are the ranges of those of this package, by name, since one name means one thing. Keys of plug-ins have to be finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

SEEDS = 2**32 - 1  # the largest that numpy takes
Seed = Annotated[int, Field(ge=0, le=SEEDS)]
Count = Annotated[int, Field(ge=0, le=10**9)]
AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Side = Annotated[int, Field(ge=1, le=16384)]
Batch = Annotated[int, Field(ge=1, le=65536)]
Grey = Annotated[int, Field(ge=0, le=255)]
KernelSide = Annotated[int, Field(ge=1, le=255)]
Batches = AtLeastOne | Annotated[float, Field(gt=0, le=1)]  # so many, or that share of them
Devices = Literal[-1] | Annotated[int, Field(ge=1, le=10**4)]
DeviceWord = Annotated[str, Field(pattern=r"^(-1|[0-9]+(,[0-9]+)*,?)$")]
Factor = Annotated[float, Field(gt=0, le=100)]


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("Expected the smaller number first")
    return values


def _odd(values: tuple[int, int]) -> tuple[int, int]:
    if not all(value % 2 for value in values):
        raise ValueError("Expected odd numbers")
    return _rising(values)  # type: ignore[return-value]


def _finite(values: Any) -> Any:
    if wrong := [number for number in numbers(values) if not math.isfinite(number)]:
        raise ValueError(f"Expected finite numbers, found {wrong[0]}")
    return values


Rising = AfterValidator(_rising)
Odd = AfterValidator(_odd)
Finite = AfterValidator(_finite)

UNIT, SIZE, WEIGHT, PLACE = (0.0, 1.0), (1, 65536), (0.0, 1e6), (1, 10**7)
# Ranges of the arguments of parts, both ends included.
RANGES: dict[str, tuple[float, float]] = {
    # shares and probabilities
    "dropout": (0.0, 0.99), "drop_path": (0.0, 0.99), "label_smoothing": (0.0, 0.99), "score_threshold": UNIT, "nms": UNIT,
    "rpn_nms": UNIT, "rpn_fg_iou": UNIT, "rpn_bg_iou": UNIT, "rpn_positive_fraction": UNIT, "box_fg_iou": UNIT,
    "box_bg_iou": UNIT, "box_positive_fraction": UNIT, "prior_probability": (1e-9, 1 - 1e-9), "focal_alpha": UNIT,
    "top_p": UNIT, "dense_until": UNIT, "anchor_offset": UNIT, "tumor_free_share": UNIT, "min_brain_share": UNIT,
    "warmup_start": UNIT,
    "factor": (1e-9, 1 - 1e-9), "largest_share": UNIT, "balance": (0.0, 10.0),
    # widths, counts and levels
    "width": SIZE, "low_channels": SIZE, "reduce": SIZE, "hidden": SIZE, "decoder_channels": SIZE, "last_channels": SIZE,
    "representation_size": SIZE, "base_filters": SIZE, "rank": SIZE, "ranks": SIZE, "depth": (1, 5), "in_chans": (1, 1024),
    "output_stride": (8, 32), "image_size": (1, 16384), "low_level": (0, 6), "levels": (0, 12), "extra_levels": (0, 4),
    "convolutions": (0, 64), "rates": (1, 1024), "pool": (1, 1024), "roi_resolution": (1, 256), "stride": (1, 64),
    "peak_window": (1, 1001), "experts": (1, 1024), "top_k": (1, 1024), "classes": (1, 1024),
    "rpn_pre_nms_top_n_train": PLACE, "rpn_pre_nms_top_n_test": PLACE, "rpn_post_nms_top_n_train": PLACE,
    "rpn_post_nms_top_n_test": PLACE, "rpn_batch_size_per_image": PLACE, "box_batch_size_per_image": PLACE,
    "detections_per_image": PLACE, "candidates_per_level": PLACE, "max_points": PLACE, "max_peaks": PLACE,
    "boxes_per_image": PLACE, "patience": (0, 10**6), "step_size": (1, 10**6), "min_tumor_pixels": (0, 10**9),
    "slice_seed": (0, SEEDS), "age_bands": (0, 200), "tissue": (0, 255),
    # lengths
    "radius": (1e-6, 1e6), "suppression_radius": (0.0, 1e6), "smoothing": (0.0, 1e4), "sigma": (1e-3, 1e4),
    "center_sampling_radius": (1e-3, 1e4), "size_limit": (1e-3, 1e6), "anchor_sizes": (1e-3, 1e5), "aspect_ratios": (1e-3, 1e3),
    "cell_diameter": (1e-3, 1e6), "landmark_radius": (1e-3, 1e6), "box_size": (1e-3, 1e6), "white_cell_box_size": (1e-3, 1e6),
    "mask_size": (1e-3, 1e6), "pixel_scale": (1e-6, 1e6), "spacing": (1e-6, 1e6), "spacing_of": (1e-6, 1e6),
    # weights and exponents of losses and balancers
    "alpha": WEIGHT, "beta": WEIGHT, "gamma": WEIGHT, "focal_gamma": WEIGHT, "offset_weight": WEIGHT, "l1_weight": WEIGHT,
    "load_balance_weight": WEIGHT, "entropy_weight": WEIGHT, "importance_weight": WEIGHT, "load_weight": WEIGHT,
    "focal_weight": WEIGHT, "dice_weight": WEIGHT, "bce_weight": WEIGHT, "cross_entropy_weight": WEIGHT,
    "tversky_weight": WEIGHT, "boundary_weight": WEIGHT, "fp_weight": WEIGHT, "fn_weight": WEIGHT, "weights": WEIGHT,
    "class_weights": WEIGHT, "positive_weight": WEIGHT, "smooth": (0.0, 1e6), "delta": (1e-9, 1e6), "loss_cap": (1e-9, 1e9),
    "clamp": (1e-6, 50.0), "init": (-50.0, 50.0), "default_init": (-50.0, 50.0), "threshold": (0.0, 1e6),
    "warmup_epochs": (0.0, 1e6),
}  # fmt: skip
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a plain value, at every depth."""
    if isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def texts(value: Any) -> Iterator[str]:
    """Yield the texts of a plain value, at every depth."""
    if isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from texts(entry)
    elif isinstance(value, str):
        yield value


def text_problem(value: Any) -> str | None:
    """Return what is wrong with a text, or with one inside a value; None where nothing is."""
    if value == "":
        return "It is empty. Give a value, or null"
    if any(CONTROL.search(text) for text in texts(value)):
        return "It holds a line break or another character that cannot be seen. Remove it"
    return None


def takes_bool(annotation: Any) -> bool:
    """Return whether a type has a place for true and false."""
    if annotation is Any or annotation in (bool, dict, list) or hasattr(annotation, "model_fields"):
        return True
    return isinstance(annotation, bool) or any(map(takes_bool, get_args(annotation)))


def has_bool(value: Any) -> bool:
    """Return whether a plain value is true or false, or holds one."""
    if isinstance(value, dict | list | tuple):
        return any(map(has_bool, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def part_problems(values: dict[str, Any], where: str, ours: bool) -> list[str]:
    """Check the numbers and texts of a part.

    Args:
        values: Its keys, of the right types.
        where: Config path, for messages.
        ours: Whether it is a part of this package, so that its keys have the ranges above.
    """
    problems = []
    for key, value in values.items():
        path = f"`{where}.{key}` is `{value!r}`"
        if wrong := text_problem(value):
            problems.append(f"{path}. {wrong}.")
        low, high = RANGES.get(key, (-math.inf, math.inf)) if ours else (-math.inf, math.inf)
        found = list(numbers(value)) if key not in ("options", "loss", "expert", "detector") else []
        if not all(map(math.isfinite, map(float, _small(found)))):
            problems.append(f"{path}. Expected a finite number.")
        elif any(not low <= number <= high for number in found):
            problems.append(f"{path}. Expected {'numbers' if len(found) > 1 else 'a number'} from {low:g} to {high:g}.")
    return problems


def _small(found: list[float]) -> Iterator[float]:
    """Yield numbers that fit into a float: a whole number may be longer."""
    for number in found:
        yield number if abs(number) < 10**300 or not isinstance(number, int) else math.inf
