"""The shape of a configuration: what exists besides the registered parts, with types and meanings.

Parts (backbone, heads, losses, ...) are not listed here: their keys are the keyword-only arguments of the registered class
(`mtl.core.registry`), checked by `mtl.config.parts`. Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from mtl.config.bounds import (
    AtLeastOne,
    Batch,
    Batches,
    Count,
    Devices,
    DeviceWord,
    Factor,
    Finite,
    Grey,
    KernelSide,
    Odd,
    Rate,
    Rising,
    Seed,
    Share,
    Side,
    Weight,
)  # fmt: skip
from mtl.config.strict import Strict
from mtl.core.files import cache_folder

Part = dict[str, Any]


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
    file: str | None
    stratify: bool


class LoaderConfig(Strict):
    """Batches."""

    batch_size: Batch
    eval_batch_size: Batch | None
    num_workers: int = Field(ge=0, le=512)
    prefetch: int = Field(ge=1, le=1024)
    pin_memory: bool
    sampler: Literal["shuffle", "class_aware"]
    priority_class: str | None
    samples_per_epoch: AtLeastOne | None
    mixing: Literal["mixed", "alternating"]
    source_weights: dict[str, Weight]
    temperature: float = Field(gt=0, le=1e9)


class CacheConfig(Strict):
    """Memory-mapped cache of the images at network scale (`mtl.data.pipeline.cache`)."""

    enabled: bool
    folder: str | None

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


class OptimizerPartConfig(Strict):
    """What one part does differently."""

    lr: Rate | None = None
    floor: Rate | None = None
    weight_decay: Rate | None = None


class OptimizerConfig(Strict):
    """One optimizer, one parameter group per part (`mtl.training.optim`)."""

    name: str = "adamw"
    lr: float = Field(1e-3, gt=0, le=1000)
    floor: Rate = 1e-6
    weight_decay: Rate = 1e-4
    options: Annotated[dict[str, Any], Finite] = {}
    parts: dict[str, OptimizerPartConfig] = {}


class TrainerConfig(Strict):
    """Arguments of `pytorch_lightning.Trainer`; a key that is left out keeps Lightning's default.

    Left out on purpose, because the run directory and the honesty rules depend on them or because no run here uses them:
    callbacks, logger, plugins, default_root_dir, enable_checkpointing, num_sanity_val_steps, use_distributed_sampler,
    reload_dataloaders_every_n_epochs, limit_test_batches, limit_predict_batches, barebones, model_registry,
    enable_autolog_hparams.
    `fast_dev_run` and `val_check_interval` are known so that other values than Lightning's default are refused: the first
    leaves no checkpoint behind (use `debug=fast`), and validation takes place between epochs.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Devices | Literal["auto"] | DeviceWord | Annotated[list[Count], Field(min_length=1)] = "auto"
    num_nodes: int = Field(1, ge=1, le=10**5)
    precision: Literal["32-true", "32", 32, "16-mixed", "bf16-mixed"] = "32-true"
    max_epochs: int = Field(10, ge=1, le=10**6)
    min_epochs: Count | None = None
    max_steps: int = Field(-1, ge=-1, le=10**9)
    min_steps: Count | None = None
    max_time: str | None = None
    limit_train_batches: Batches | None = None
    limit_val_batches: Batches | None = None
    overfit_batches: Batches | Literal[0] = 0.0
    fast_dev_run: Literal[False] = False
    val_check_interval: None = None
    check_val_every_n_epoch: int = Field(1, ge=1, le=10**6)
    log_every_n_steps: AtLeastOne = 50
    enable_progress_bar: bool | None = None
    enable_model_summary: bool = False
    accumulate_grad_batches: Batch = 1
    gradient_clip_val: Weight | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: Literal["simple", "advanced"] | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False


class EarlyStoppingConfig(Strict):
    """Stop when the monitored metric has not improved for `patience` validations."""

    patience: int = Field(20, ge=1, le=10**6)
    min_delta: Weight = 0.0


class EmaConfig(Strict):
    """Exponential moving average of the weights; validation and checkpoints use the average."""

    decay: float = Field(0.999, gt=0, lt=1)


class CallbacksConfig(Strict):
    """What happens around training; null switches a callback off."""

    early_stopping: EarlyStoppingConfig | None = None
    ema: EmaConfig | None = None


class WandbConfig(Strict):
    """Weights & Biases; `offline` needs no login."""

    project: str = "mtl"
    entity: str | None = None
    offline: bool = True
    tags: list[str] = []


class LoggerConfig(Strict):
    """Loggers beside `metrics.csv`, which is always written."""

    tensorboard: bool = False
    wandb: WandbConfig | None = None


class EvaluationConfig(Strict):
    """How results are scored and shown."""

    bootstrap: int = Field(1000, ge=0, le=10**6)
    hit_radius: float = Field(72.0, gt=0, le=1e6)
    resolution: Literal["working", "native"] = "working"
    score_weights: dict[str, Weight] = {}
    hd95: bool = False
    primary: dict[str, str] = {}
    cases: int = Field(3, ge=0, le=1000)


class RuntimeConfig(Strict):
    """How the same computation is carried out."""

    channels_last: bool = False
    compile: bool = False


class PathsConfig(Strict):
    """Where a run is written: `run_dir`, or `<output_root>/<suite>/<name or timestamp>`."""

    output_root: str = "runs"
    run_dir: str | None = None


class StageConfig(Strict):
    """One step of a curriculum (`mtl.config.stages`); what it leaves open is as in the rest of the configuration."""

    tasks: list[str] | None = Field(None, min_length=1)
    sources: list[str] | None = Field(None, min_length=1)
    start: str = "previous"
    freeze: list[str] = []
    epochs: int = Field(ge=1, le=10**6)
    optimizer: Annotated[dict[str, Any], Finite] = {}
    scheduler: Part | None = None
    weights: dict[str, Weight] = {}
    loader: Annotated[dict[str, Any], Finite] = {}
    monitor: str | None = None


Data = TypeVar("Data")


class Sections(Strict, Generic[Data]):
    """The sections of a training configuration; `data` is plain until its family is known."""

    suite: str
    name: str | None = None
    seed: Seed = 0
    plugins: list[str] = []
    tasks: list[str] = Field(min_length=1)
    backbone: Part
    peft: Part | None = None
    necks: dict[str, Part] = {}
    heads: dict[str, Part] = Field(min_length=1)
    data: Data
    balancer: Part
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: Part
    trainer: TrainerConfig = TrainerConfig()
    callbacks: CallbacksConfig = CallbacksConfig()
    logger: LoggerConfig = LoggerConfig()
    study_metrics: dict[str, Part] = {}
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    paths: PathsConfig = PathsConfig()
    monitor: str = "val/score"
    stages: dict[str, StageConfig] = {}
    resume: str | None = None


ComposedConfig = Sections[Part]


class RunConfig(Sections[DataConfig]):
    """A complete, checked training configuration (`mtl.config.load.check_run_config`)."""
