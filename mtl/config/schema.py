"""The shape of a configuration: what exists besides the registered parts, with types and meanings.

Parts (backbone, heads, losses, ...) are not listed here: their keys are the keyword-only arguments of the registered class
(`mtl.core.registry`), checked by `mtl.config.parts`. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from mtl.config.bounds import (
    AtLeastOne,
    Batch,
    Batches,
    Count,
    Devices,
    DeviceWord,
    Finite,
    Rate,
    Seed,
    Weight,
)  # fmt: skip
from mtl.config.data_schema import DataConfig
from mtl.config.strict import Part, Strict
from mtl.core.places import Place

# `auto` is settled before a run starts (`mtl.runs.precision`), so that stored configurations name what was done.
Precision = Literal["auto", "32-true", "32", 32, "16-mixed", "bf16-mixed"]
ChannelsLast = Literal["auto"] | bool


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
    precision: Precision = "auto"
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
    examples: int = Field(4, ge=0, le=1000)


class EvaluationConfig(Strict):
    """How results are scored and shown."""

    bootstrap: int = Field(1000, ge=0, le=10**6)
    hit_radius: float = Field(72.0, gt=0, le=1e6)
    resolution: Literal["working", "native"] = "working"
    score_weights: dict[str, Weight] = {}
    class_weighting: Literal["equal", "known"] = "equal"
    hd95: bool = False
    primary: dict[str, str] = {}
    cases: int = Field(3, ge=0, le=1000)


class AskedConfig(Strict):
    """What a run was asked for before `runtime.fit=auto` made its batches smaller."""

    batch_size: Batch
    accumulate_grad_batches: Batch


class RuntimeConfig(Strict):
    """How the same computation is carried out."""

    channels_last: ChannelsLast = "auto"
    compile: bool = False
    fit: Literal["warn", "auto"] | None = "warn"
    asked: AskedConfig | None = None


class PathsConfig(Strict):
    """Where a run is written: `run_dir`, or `<output_root>/<suite>/<name or timestamp>`."""

    output_root: Place = "runs"
    run_dir: Place | None = None


class StageConfig(Strict):
    """One step of a curriculum (`mtl.config.stages`); what it leaves open is as in the rest of the configuration."""

    tasks: list[str] | None = Field(None, min_length=1)
    sources: list[str] | None = Field(None, min_length=1)
    start: Place = "previous"
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
    monitor_smoothing: AtLeastOne = 1
    select: Literal["best", "last"] = "best"
    stages: dict[str, StageConfig] = {}
    resume: Place | None = None


ComposedConfig = Sections[Part]


class RunConfig(Sections[DataConfig]):
    """A complete, checked training configuration (`mtl.config.load.check_run_config`)."""
