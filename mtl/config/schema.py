"""The shape of a configuration: what exists besides the registered parts, with types and meanings.

Parts (backbone, heads, losses, ...) are not listed here: their keys are the keyword-only arguments of the registered class
(`mtl.core.registry`), checked by `mtl.config.parts`. Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from mtl.core.files import cache_folder

Part = dict[str, Any]
Probability = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Refuses keys it does not know and values of the wrong type; nobody changes it once it is checked."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, defer_build=True)


class GeometryConfig(Strict):
    """How an image becomes network inputs (`mtl.imaging.geometry`)."""

    mode: Literal["stretch", "letterbox", "tiles"]
    size: tuple[PositiveInt, PositiveInt]
    scale: float = Field(gt=0)
    overlap: int = Field(ge=0)
    fill: int | list[int]
    min_visible: float = Field(ge=0, le=1)


class ClaheConfig(Strict):
    """Contrast limited adaptive histogram equalisation of the L channel of LAB."""

    clip_limit: float = Field(2.5, gt=0)
    tiles: PositiveInt = 16


class CropConfig(Strict):
    """Cut off a dark border around the picture (`mtl.imaging.content`)."""

    threshold: float = Field(0.06, gt=0, lt=1)
    margin: float = Field(0.0, ge=0, lt=0.5)


class ForegroundConfig(Strict):
    """Standardise grey values inside the foreground, the brain of an MR image (`mtl.imaging.intensity`)."""

    method: Literal["zscore", "percentile"] = "zscore"
    limit: float = Field(4.0, gt=0)


class StainConfig(Strict):
    """Bring the colours of stained tissue to one reference (`mtl.imaging.stain`)."""

    method: Literal["macenko", "reinhard"] = "macenko"
    density: float = Field(0.15, gt=0)


class PreprocessingConfig(Strict):
    """What happens to pixels in training, evaluation and prediction alike."""

    foreground: ForegroundConfig | None
    stain: StainConfig | None
    crop: CropConfig | None
    circle: bool
    clahe: ClaheConfig | None
    mean: list[float] | None
    std: list[float] | None


class AffineConfig(Strict):
    """Random scaling, shift, rotation (degrees) and shear (degrees)."""

    probability: Probability
    scale: tuple[float, float]
    translate: float = Field(ge=0)
    rotate: float = Field(ge=0)
    shear: float = Field(ge=0)


class ColorJitterConfig(Strict):
    """Random brightness, contrast, saturation and hue."""

    probability: Probability
    brightness: float = Field(ge=0)
    contrast: float = Field(ge=0)
    saturation: float = Field(ge=0)
    hue: float = Field(ge=0, le=0.5)


class StainJitterConfig(Strict):
    """Random amounts of the stains in haematoxylin-eosin-DAB space."""

    probability: Probability
    strength: float = Field(ge=0)


class IntensityJitterConfig(Strict):
    """Random contrast and brightness of each channel inside the foreground, as shares of the value range."""

    probability: Probability
    contrast: float = Field(ge=0)
    brightness: float = Field(ge=0)


class BlurConfig(Strict):
    """Gaussian blur."""

    probability: Probability
    kernel: tuple[PositiveInt, PositiveInt]


class NoiseConfig(Strict):
    """Gaussian noise; `std` as a share of the value range."""

    probability: Probability
    std: tuple[float, float]


class AugmentationConfig(Strict):
    """Training-time transforms; image and every target move together (`mtl.data.pipeline.transforms`)."""

    random_offset: bool
    horizontal_flip: Probability
    vertical_flip: Probability
    rotate90: Probability
    affine: AffineConfig
    color_jitter: ColorJitterConfig
    stain_jitter: StainJitterConfig
    intensity_jitter: IntensityJitterConfig
    channel_dropout: Probability
    blur: BlurConfig
    noise: NoiseConfig


class SplitConfig(Strict):
    """Which groups train, select and test (`mtl.data.pipeline.splits`)."""

    scheme: Literal["holdout", "kfold", "leave_one_out", "file", "official"]
    ratios: tuple[float, float, float]
    folds: int = Field(ge=2)
    fold: int = Field(ge=0)
    val_group_by: str | None
    seed: int
    file: str | None
    stratify: bool


class LoaderConfig(Strict):
    """Batches."""

    batch_size: PositiveInt
    eval_batch_size: PositiveInt | None
    num_workers: int = Field(ge=0)
    prefetch: PositiveInt
    pin_memory: bool
    sampler: Literal["shuffle", "class_aware"]
    priority_class: str | None
    samples_per_epoch: PositiveInt | None
    mixing: Literal["mixed", "alternating"]
    source_weights: dict[str, Annotated[float, Field(ge=0)]]
    temperature: float = Field(gt=0)


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

    lr: float | None = Field(None, ge=0)
    floor: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class OptimizerConfig(Strict):
    """One optimizer, one parameter group per part (`mtl.training.optim`)."""

    name: str = "adamw"
    lr: float = Field(1e-3, gt=0)
    floor: float = Field(1e-6, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    options: dict[str, Any] = {}
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
    devices: int | str | list[int] = "auto"
    num_nodes: PositiveInt = 1
    precision: str | int = "32-true"
    max_epochs: PositiveInt = 10
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    fast_dev_run: Literal[False] = False
    val_check_interval: None = None
    check_val_every_n_epoch: PositiveInt = 1
    log_every_n_steps: PositiveInt = 50
    enable_progress_bar: bool | None = None
    enable_model_summary: bool = False
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: Literal["simple", "advanced"] | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False


class EarlyStoppingConfig(Strict):
    """Stop when the monitored metric has not improved for `patience` validations."""

    patience: PositiveInt = 20
    min_delta: float = 0.0


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
    examples: int = Field(4, ge=0)


class EvaluationConfig(Strict):
    """How results are scored and shown."""

    bootstrap: int = Field(1000, ge=0)
    hit_radius: float = Field(72.0, gt=0)
    resolution: Literal["working", "native"] = "working"
    score_weights: dict[str, float] = {}
    hd95: bool = False
    primary: dict[str, str] = {}
    cases: int = Field(3, ge=0)


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
    epochs: PositiveInt
    optimizer: dict[str, Any] = {}
    scheduler: Part | None = None
    weights: dict[str, float] = {}
    loader: dict[str, Any] = {}
    monitor: str | None = None


Data = TypeVar("Data")


class Sections(Strict, Generic[Data]):
    """The sections of a training configuration; `data` is plain until its family is known."""

    suite: str
    name: str | None = None
    seed: int = Field(0, ge=0)
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
