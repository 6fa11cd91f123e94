"""The section `data` of a configuration: its keys, types and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mtl.config.bounds import (
    AtLeastOne,
    Batch,
    Factor,
    Grey,
    KernelSide,
    Odd,
    Rising,
    Seed,
    Share,
    Side,
    Weight,
)
from mtl.config.strict import Part, Strict
from mtl.core.files import cache_folder
from mtl.core.places import Place

BATCHES_AHEAD = 2


class GeometryConfig(Strict):
    """How an image becomes network inputs (`mtl.imaging.geometry`)."""

    mode: Literal["stretch", "letterbox", "tiles"]
    size: tuple[Side, Side]
    scale: float = Field(gt=0, le=1000)
    overlap: int = Field(ge=0, le=16384)
    fill: Grey | Annotated[list[Grey], Field(min_length=1)]
    min_visible: float = Field(ge=0, le=1)


class ClaheConfig(Strict):
    """Contrast limited adaptive histogram equalisation of the L channel of LAB."""

    clip_limit: float = Field(2.5, gt=0, le=1000)
    tiles: int = Field(16, ge=1, le=256)


class CropConfig(Strict):
    """Cut off a dark border around the picture (`mtl.imaging.content`)."""

    threshold: float = Field(0.06, gt=0, lt=1)
    margin: float = Field(0.0, ge=0, lt=0.5)


class ForegroundConfig(Strict):
    """Standardise grey values inside the foreground, the brain of an MR image (`mtl.imaging.intensity`)."""

    method: Literal["zscore", "percentile"] = "zscore"
    limit: float = Field(4.0, gt=0, le=1000)


class StainConfig(Strict):
    """Bring the colours of stained tissue to one reference (`mtl.imaging.stain`)."""

    method: Literal["macenko", "reinhard"] = "macenko"
    density: float = Field(0.15, gt=0, le=10)


class PreprocessingConfig(Strict):
    """What happens to pixels in training, evaluation and prediction alike."""

    foreground: ForegroundConfig | None
    stain: StainConfig | None
    crop: CropConfig | None
    circle: bool
    clahe: ClaheConfig | None
    mean: Annotated[list[Annotated[float, Field(ge=-1000, le=1000)]], Field(min_length=1)] | None
    std: Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)] | None


class AffineConfig(Strict):
    """Random scaling, shift, rotation (degrees) and shear (degrees)."""

    probability: Share
    scale: Annotated[tuple[Factor, Factor], Rising]
    translate: Share
    rotate: float = Field(ge=0, le=180)
    shear: float = Field(ge=0, le=80)


class ColorJitterConfig(Strict):
    """Random brightness, contrast, saturation and hue."""

    probability: Share
    brightness: Share
    contrast: Share
    saturation: Share
    hue: float = Field(ge=0, le=0.5)


class StainJitterConfig(Strict):
    """Random amounts of the stains in haematoxylin-eosin-DAB space."""

    probability: Share
    strength: Share


class IntensityJitterConfig(Strict):
    """Random contrast and brightness of each channel inside the foreground, as shares of the value range."""

    probability: Share
    contrast: Share
    brightness: Share


class BlurConfig(Strict):
    """Gaussian blur."""

    probability: Share
    kernel: Annotated[tuple[KernelSide, KernelSide], Odd]


class NoiseConfig(Strict):
    """Gaussian noise; `std` as a share of the value range."""

    probability: Share
    std: Annotated[tuple[Share, Share], Rising]


class AugmentationConfig(Strict):
    """Training-time transforms; image and every target move together (`mtl.data.pipeline.transforms`)."""

    random_offset: bool
    horizontal_flip: Share
    vertical_flip: Share
    rotate90: Share
    affine: AffineConfig
    color_jitter: ColorJitterConfig
    stain_jitter: StainJitterConfig
    intensity_jitter: IntensityJitterConfig
    channel_dropout: Share
    blur: BlurConfig
    noise: NoiseConfig


class SplitConfig(Strict):
    """Which groups train, select and test (`mtl.data.pipeline.splits`)."""

    scheme: Literal["holdout", "kfold", "leave_one_out", "file", "official"]
    ratios: tuple[Share, Share, Share]
    folds: int = Field(ge=2, le=10**6)
    fold: int = Field(ge=0, le=10**6)
    val_group_by: str | None
    seed: Seed
    file: Place | None
    stratify: bool


class LoaderConfig(Strict):
    """Batches."""

    batch_size: Batch
    eval_batch_size: Batch | None
    num_workers: Annotated[int, Field(ge=0, le=512)] | Literal["auto"]
    prefetch: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    pin_memory: bool
    sampler: Literal["shuffle", "class_aware"]
    priority_class: str | None
    samples_per_epoch: AtLeastOne | None
    mixing: Literal["mixed", "alternating"]
    source_weights: dict[str, Weight]
    temperature: float = Field(gt=0, le=1e9)

    @property
    def processes(self) -> int:
        """How many processes load data; `auto` is settled when a run starts, and whoever did not ask for it gets none."""
        return self.num_workers if isinstance(self.num_workers, int) else 0

    @property
    def batches_ahead(self) -> int:
        """How many batches each of them prepares ahead."""
        return self.prefetch if isinstance(self.prefetch, int) else BATCHES_AHEAD


class CacheConfig(Strict):
    """Memory-mapped cache of the images at network scale (`mtl.data.pipeline.cache`)."""

    enabled: bool
    folder: Place | None

    @property
    def place(self) -> Path | None:
        """Folder of the cache, and of what is remembered about files; None where nothing may be written."""
        if not self.enabled:
            return None
        return cache_folder() if self.folder is None else Path(self.folder)


class DataGenericConfig(Strict):
    """The keys of `data` that every family has (configs/data/default.yaml); the others belong to the family of `data.name`."""

    geometry: GeometryConfig
    preprocessing: PreprocessingConfig
    augmentation: AugmentationConfig | None
    largest_loss: float = Field(1.0, ge=0, le=1)  # of a run from before there was the key; the default stands in default.yaml
    split: SplitConfig
    loader: LoaderConfig
    cache: CacheConfig


class DataConfig(DataGenericConfig):
    """A whole `data` section, after its family's own keys were checked against the family's signature."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def part(self) -> Part:
        """The settings of the family."""
        return {"name": self.name, **(self.model_extra or {})}
