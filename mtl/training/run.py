"""One training run from a checked configuration to a report."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, EMAWeightAveraging

from mtl.config.load import build_family
from mtl.core.errors import ConfigError, TrainingError
from mtl.core.files import write_json
from mtl.core.task import LOWER_IS_BETTER
from mtl.data.datamodule import MultiTaskDataModule
from mtl.model import MultiTaskModel
from mtl.training.build import build_balancer, build_evaluator, build_model
from mtl.training.callbacks.progress import progress_callbacks
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.checkpoint_io import AtomicCheckpointIO
from mtl.training.environment import environment
from mtl.training.loggers import build_loggers
from mtl.training.module import MultiTaskModule

log = logging.getLogger("mtl")
RUN_DIR_VARIABLE = "MTL_RUN_DIR"


def train(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, evaluate on the test split and write the report.

    Args:
        config: From `mtl.config.load`; `resume` names the run directory of an interrupted run.

    Returns:
        The content of `metrics.json`, and the objects of the run (`module`, `datamodule`, `trainer`, `run_dir`).

    Raises:
        MtlError: With a sentence for the user.
    """
    run_dir = Path(config["resume"]) if config["resume"] else new_run_dir(config)
    start_log(run_dir)
    resume_from = run_dir / "checkpoints" / "last.ckpt" if config["resume"] else None
    if resume_from is not None and not resume_from.is_file():
        resume_from = None  # stopped before the first epoch was finished: the run begins anew in its directory
    if not config["resume"] and is_main_process():
        write_json(run_dir / "config.json", config)
        write_json(run_dir / "environment.json", environment())
    objects = _fit(config, run_dir, resume_from)
    metrics: dict[str, Any] = {}
    trainer: pl.Trainer = objects["trainer"]
    if trainer.is_global_zero:
        from mtl.evaluation.evaluate import evaluate_run

        metrics = evaluate_run(run_dir, device=str(objects["module"].device))
        log.info("report: %s", run_dir / "report.html")
    if trainer.world_size > 1:
        trainer.strategy.barrier()
    return metrics, {**objects, "run_dir": run_dir}


def _fit(config: dict[str, Any], run_dir: Path, resume_from: Path | None) -> dict[str, Any]:
    pl.seed_everything(config["seed"], verbose=False)
    model = build_model(config, load_weights=resume_from is None)
    report_weights(model)
    evaluator = build_evaluator(config, model.specs)
    datamodule = MultiTaskDataModule(
        build_family(config["data"]), model.specs, model.preprocessing, config["data"], config["tasks"], config["seed"]
    )
    split_file = run_dir / "split.csv"
    datamodule.setup("fit", split_file=split_file if config["resume"] and split_file.is_file() else None)
    if is_main_process():
        datamodule.save_split(split_file)
    log.info(datamodule.describe_split())
    module = MultiTaskModule(model, build_balancer(config), evaluator, config)
    module.split_rows = datamodule.split_rows()
    recorder = RunRecorder(run_dir, config["monitor"], higher_is_better(config["monitor"]))
    trainer = build_trainer(config, run_dir, [recorder, *_callbacks(config)])
    started = time.monotonic()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    except SystemExit as stop:
        raise _interrupted(run_dir, recorder) from stop
    except OSError as error:
        raise TrainingError(
            f"Training stopped: {error}. Finished epochs are in `{recorder.last}`; go on with resume={run_dir}"
        ) from error
    if trainer.interrupted:
        raise _interrupted(run_dir, recorder)
    log.info("trained for %.0f s", time.monotonic() - started)
    return {"module": module, "datamodule": datamodule, "trainer": trainer, "recorder": recorder}


def report_weights(model: MultiTaskModel) -> None:
    """Log where the encoder's weights come from, key by key; say so when a frozen encoder has none."""
    report = model.encoder.report
    if report is not None:
        for line in report.describe():
            log.info(line)
    elif not any(parameter.requires_grad for parameter in model.encoder.body.parameters()):
        log.warning(
            "The backbone is frozen and its weights are random. Set backbone.weights=<file> or backbone.pretrained=true."
        )


def _interrupted(run_dir: Path, recorder: RunRecorder) -> TrainingError:
    """Word the end of a run that was stopped with Ctrl-C; the last finished epoch is what it keeps."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = f"last.ckpt holds epoch {recorder.last_epoch + 1}" if recorder.last.is_file() else "no epoch was finished yet"
    error = TrainingError(f"Interrupted; {kept}. Go on with: python train.py resume={run_dir}")
    error.exit_code = 130
    return error


def build_trainer(config: dict[str, Any], run_dir: Path, callbacks: list[Callback]) -> pl.Trainer:
    """Build Lightning's Trainer; a key the user left alone keeps Lightning's default."""
    arguments = {key: value for key, value in config["trainer"].items() if value is not None and key != "fast_dev_run"}
    if not config["trainer"]["enable_progress_bar"]:
        arguments["enable_progress_bar"] = bool(progress_callbacks(config["trainer"]["enable_progress_bar"]))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        **arguments,
        callbacks=[*callbacks, *(progress_callbacks(arguments["enable_progress_bar"]))],
        logger=build_loggers(config, run_dir) or False,
        default_root_dir=run_dir,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,  # `best` must never come from a sanity check
        use_distributed_sampler=False,  # our samplers shard without padding
    )


def _callbacks(config: dict[str, Any]) -> list[Callback]:
    found: list[Callback] = []
    stopping, ema = config["callbacks"]["early_stopping"], config["callbacks"]["ema"]
    if stopping:
        mode = "max" if higher_is_better(config["monitor"]) else "min"
        found.append(EarlyStopping(config["monitor"], mode=mode, check_on_train_epoch_end=False, **stopping))
    if ema:
        found.append(EMAWeightAveraging(decay=ema["decay"]))
    return found


def higher_is_better(monitor: str) -> bool:
    """Say in which direction a logged metric improves."""
    return monitor.rpartition("/")[2] not in LOWER_IS_BETTER


def is_main_process() -> bool:
    """Say whether this process is global rank 0, before and after the ranks were started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))) == 0


def new_run_dir(config: dict[str, Any]) -> Path:
    """Create the run directory: `paths.run_dir`, or `<output_root>/<suite>/<name or timestamp>`.

    Raises:
        ConfigError: It exists already and holds a run.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited and not is_main_process():
        return Path(inherited)
    if not is_main_process() and not (config["paths"]["run_dir"] or config["name"]):
        raise ConfigError("Several processes were started from outside (torchrun, srun): give them one place with name=<name>.")
    parent = Path(config["paths"]["output_root"]) / config["suite"]
    if config["paths"]["run_dir"] or config["name"]:
        run_dir = Path(config["paths"]["run_dir"] or parent / config["name"])
        if is_main_process() and (run_dir / "config.json").exists():
            raise ConfigError(
                f"`{run_dir}` holds a run already. Go on with it by resume={run_dir}, choose another name=, or remove the folder."
            )
        run_dir.mkdir(parents=True, exist_ok=True)
    else:
        run_dir = _timestamped(parent)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)  # for the processes that `strategy=ddp` starts
    return run_dir


def _timestamped(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{count}" for count in range(2, 1000))):
        run_dir = parent / f"{stamp}{suffix}"
        try:
            run_dir.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            continue
        return run_dir
    raise ConfigError(f"No free run directory below `{parent}`. Give a name with name=<name>.")


def start_log(run_dir: Path) -> None:
    """Send the log of this process to standard output and to `log.txt` of the run."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    if not is_main_process():
        log.addHandler(logging.NullHandler())
        return
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(run_dir / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(console)
    log.addHandler(file)
    log.info("run: %s", run_dir)


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """Read the configuration of a run."""
    config: dict[str, Any] = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    return config
