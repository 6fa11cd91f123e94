"""The shape of the configurations of all verbs but `train`; importing this module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mtl.config.bounds import Batch, Seed, Share
from mtl.config.schema import ChannelsLast, Precision
from mtl.config.strict import Part, Strict
from mtl.core.places import Place


def _once(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("Expected each seed once: a run trained twice would count twice")
    return seeds


class DataRootConfig(Strict):
    """What evaluation may replace of `data`."""

    root: Place | None = None
    largest_loss: float | None = Field(None, ge=0, le=1)


class EvaluateConfig(Strict):
    """`evaluate.py`: score a checkpoint."""

    checkpoint: Place
    split: Literal["train", "val", "test", "all"] | None = None
    output: Place | None = None
    data: DataRootConfig = DataRootConfig()
    batch_size: Batch | None = None
    device: str = "auto"
    precision: Precision = "auto"
    channels_last: ChannelsLast = "auto"
    bootstrap: int | None = Field(None, ge=0, le=10**6)
    report: bool = True
    plugins: list[str] = []


class SlideConfig(Strict):
    """What prediction has to know of whole-slide images."""

    spacing: float | None = Field(None, gt=0, le=1e6)
    tissue_masks: Place | None = None
    min_saturation: float | None = Field(0.05, gt=0, lt=1)
    tumor_bulk: bool = False
    cells: str | None = None
    tissue: str | None = None
    stroma: str | None = None
    tumor: str = "tumor"


class PredictConfig(Strict):
    """`predict.py`: use a checkpoint on images, slides and volumes."""

    checkpoint: Place
    source: Place
    output: Place = "predictions"
    batch_size: Batch = 4
    device: str = "auto"
    precision: Precision = "auto"
    channels_last: ChannelsLast = "auto"
    overlays: bool = True
    masks: bool = True
    tasks: list[str] | None = None
    classes: list[str] | None = None
    thresholds: dict[str, Share | dict[str, Share]] = {}
    when: dict[str, Share | dict[str, Share]] = {}
    pixel_scale: float | None = Field(None, gt=0, le=1e6)
    plugins: list[str] = []
    slide: SlideConfig = SlideConfig()


class SynthConfig(Strict):
    """`mtl data synth`: generate a small data set in the native layout."""

    output: Place
    patients: int = Field(8, ge=1, le=10**5)
    fields: int = Field(5, ge=1, le=10**4)
    seed: Seed = 0
    width: int | None = Field(None, ge=1, le=65536)
    kind: str | None = None
    overwrite: bool = False
    plugins: list[str] = []


class DataToolConfig(Strict):
    """`mtl data check|stats|show|prepare`."""

    data: Part
    output: Place = "data_report"
    count: int = Field(6, ge=1, le=10**4)
    seed: Seed = 0
    plugins: list[str] = []


class CompareConfig(Strict):
    """`mtl compare`: train the arms of a comparison and table them."""

    suite: str
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[list[Seed], Field(min_length=1), AfterValidator(_once)] = 3
    arms: str | list[str] | dict[str, list[str]] | None = None
    overrides: list[str] = []
    name: str | None = None
    output_root: Place = "runs/compare"
    reference: str | None = None
    bootstrap: int = Field(1000, ge=0, le=10**6)
    plugins: list[str] = []
