"""Score a checkpoint: `metrics.json`, per-image records and the report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from mtl.config.load import build_family
from mtl.config.stages import stages_of, start_files, total_epochs
from mtl.core.errors import TrainingError
from mtl.core.plugins import use
from mtl.core.types import ImageResult, Record
from mtl.data.datamodule import MultiTaskDataModule
from mtl.evaluation.baselines import TrainingStatistics, baseline_summary, source_notes
from mtl.evaluation.cases import CaseKeeper
from mtl.evaluation.loop import WholeImageScorer
from mtl.evaluation.metrics_file import main_metrics, save_cases, save_records, write_metrics
from mtl.inference.loading import PRETRAINING_NOTE, LoadedModel, checkpoint_path, load_model
from mtl.metrics.evaluator import Evaluator
from mtl.metrics.til import TilScore
from mtl.training.build import build_evaluator
from mtl.training.history import read_history, training_summary
from mtl.training.stages import stage_file, trained_in

log = logging.getLogger("mtl")

# What a reader must know about figures on the images of the training run.
OWN_SPLIT_NOTES = {
    "test": "No {unit} is in two splits: training, selection and test are kept apart by {unit}.",
    "val": "The checkpoint and the thresholds were chosen on these images: these figures are not a test.",
    "train": "The network was trained on these images: these figures are not a test.",
    "all": "All images are scored, those of training and selection among them: these figures are not a test.",
}
FINER_NOTE = "No {unit} of a test image is in training or selection; those two are kept apart by {finer} only."


def separation(data: dict[str, Any]) -> str:
    """Say which unit the split of a run keeps apart."""
    unit, finer = str(data.get("group_by", "group")), data["split"]["val_group_by"]
    return FINER_NOTE.format(unit=unit, finer=finer) if finer else OWN_SPLIT_NOTES["test"].format(unit=unit)


@dataclass
class Evaluation:
    """What scoring one split gave.

    Attributes:
        summary: Body of `metrics.json`.
        evaluator: Holds one record per image.
        loaded: The model and what its checkpoint says.
        datamodule: Gives the images for figures.
        split: The split that was scored.
        notes: What a reader of the figures must know.
        cases: The images kept for the report.
    """

    summary: dict[str, Any]
    evaluator: Evaluator
    loaded: LoadedModel
    datamodule: MultiTaskDataModule
    split: str
    notes: list[str]
    cases: CaseKeeper

    @property
    def results(self) -> dict[str, tuple[ImageResult, ImageResult]]:
        """By sample id, (prediction, truth) of the images kept for the report."""
        return self.cases.results


def evaluate(
    checkpoint: str,
    split: str = "test",
    output: str | None = None,
    data: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    bootstrap: int | None = None,
    report: bool = True,
    plugins: Iterable[str] = (),
) -> dict[str, Any]:
    """Score a checkpoint and write `metrics.json`, `predictions/records.json` and `report.html`.

    Args:
        checkpoint: File or run directory.
        split: `train`, `val`, `test` of the training run, or `all` images of the data folder.
        output: Folder for the results; None takes `evaluation/` of the run and there the name of the split or, for another
            data folder, of that folder.
        data: `{"root": ...}` to score another folder. A folder that training did not use is scored as a whole.
        batch_size: Windows per step; None as in training.
        device: `auto`, `cpu`, `cuda`, ...
        bootstrap: Resamples of the intervals; None as in training.
        report: Write `report.html` too.
        plugins: Modules or paths of files with parts that the checkpoint needs; installed ones are known.

    Returns:
        The content of `metrics.json`.
    """
    if not log.handlers:
        logging.basicConfig(format="%(message)s")
        log.setLevel(logging.INFO)
    use(plugins)
    path = checkpoint_path(checkpoint)
    loaded = load_model(path, device)
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    root = (data or {}).get("root")
    evaluation = score(loaded, split, root, batch_size, bootstrap)
    folder = Path(output) if output else run_dir / "evaluation" / _result_name(evaluation, root)
    metrics = write_results(evaluation, folder, run_dir, report)
    log.info(result_lines(metrics))
    for note in evaluation.notes:
        log.info("note: %s", note)
    log.info("metrics: %s", folder / "metrics.json")
    return metrics


def evaluate_run(run_dir: Path, device: str) -> dict[str, Any]:
    """Score the best checkpoint of a finished run on its test split, into the run directory.

    Raises:
        TrainingError: No validation gave a number that could select a checkpoint.
    """
    best = run_dir / "checkpoints" / "best.ckpt"
    if not best.is_file():
        raise TrainingError(
            f"No epoch of `{run_dir}` has a defined value of the metric that selects best.ckpt. Expected a number from at "
            "least one validation: check `monitor` and trainer.check_val_every_n_epoch, or score the last epoch with "
            f"evaluate.py checkpoint={best.with_name('last.ckpt')}."
        )
    loaded = load_model(best, device)
    evaluation = score(loaded, "test")
    stages = score_stages(loaded.config, run_dir, device, evaluation.datamodule)
    evaluation.summary |= {"stages": stages} if stages else {}
    metrics = write_results(evaluation, run_dir, run_dir, report=True)
    log.info(result_lines(metrics))
    return metrics


def score_stages(config: dict[str, Any], run_dir: Path, device: str, datamodule: MultiTaskDataModule) -> dict[str, Any]:
    """Score the best checkpoint of every stage of a curriculum on the test split.

    Returns:
        By stage: `epochs` finished, `tasks` trained so far, `metrics` and `ci95` by task; empty without a curriculum.
    """
    found: dict[str, Any] = {}
    trained: dict[str, list[str]] = {}
    rows = read_history(run_dir)
    for stage in (stage for stage in stages_of(config) if stage.name):
        before = trained.get(stage.start, trained_in(stage.start) if stage.start in start_files(config) else [])
        trained[stage.name] = [task for task in config["tasks"] if task in before or task in stage.tasks]
        # No report is drawn, so that no cases need be kept.
        loaded = load_model(stage_file(run_dir, stage.name), device)
        tasks = score(loaded, "test", cases=0, datamodule=datamodule).summary["tasks"]
        found[stage.name] = {
            "epochs": sum(row.get("stage") == stage.name for row in rows),
            "tasks": trained[stage.name],
            "metrics": {task: {name: tasks[task][name] for name in tasks[task]["ci95"]} for task in tasks},
            "ci95": {task: tasks[task]["ci95"] for task in tasks},
        }
    return found


def score(
    loaded: LoadedModel,
    split: str,
    root: str | None = None,
    batch_size: int | None = None,
    bootstrap: int | None = None,
    cases: int | None = None,
    datamodule: MultiTaskDataModule | None = None,
) -> Evaluation:
    """Predict and score every image of a split; arguments as in `evaluate`.

    `cases` overrides `evaluation.cases`; `datamodule` is that of another evaluation with the same data and preprocessing.

    The thresholds are those in the checkpoint, chosen on validation; nothing here chooses one.
    """
    config = loaded.config
    data = {**config["data"]}
    if root is not None:
        data["root"] = root
    if batch_size is not None:
        data["loader"] = {**data["loader"], "eval_batch_size": batch_size}
    model = loaded.model
    datamodule = datamodule or MultiTaskDataModule(
        build_family(data), model.specs, model.preprocessing, data, config["tasks"], config["seed"]
    )
    split, notes = _choose_split(datamodule, loaded, split)
    if seen := loaded.pretraining:
        notes.append(PRETRAINING_NOTE.format(count=len(seen), names=", ".join(seen[:5])))
    evaluator = build_evaluator(config, model.specs)
    if config["evaluation"]["hd95"]:
        evaluator.measure_surfaces(loaded.thresholds)
    kept = _run(loaded, datamodule, split, evaluator, config["evaluation"]["cases"] if cases is None else cases)
    evaluator.finish()
    resamples = config["evaluation"]["bootstrap"] if bootstrap is None else bootstrap
    summary = evaluator.summary(loaded.thresholds, resamples)
    notes += summary.pop("notes")
    summary["baseline"] = baseline_summary(evaluator, _training_statistics(datamodule, loaded, evaluator))
    notes += source_notes(summary["tasks"], summary["baseline"])
    return Evaluation(summary, evaluator, loaded, datamodule, split, notes, kept)


def _run(loaded: LoadedModel, datamodule: MultiTaskDataModule, split: str, evaluator: Evaluator, count: int) -> CaseKeeper:
    """Predict and score every image of the split; keep the `count` worst and best ones for the report."""
    cases = CaseKeeper(evaluator, loaded.thresholds, count)
    scorer = WholeImageScorer(loaded.model, evaluator, datamodule.plain(split).truth, cases if cases.count else None)
    device = next(loaded.model.parameters()).device
    loader = datamodule.evaluation_dataloader(split)
    with torch.inference_mode():
        for batch in track(loader, description=f"scoring {split}", transient=True, disable=not sys.stdout.isatty()):
            batch = batch.to(device)
            scorer.update(loaded.model(batch.images), batch)
    return cases


def _choose_split(datamodule: MultiTaskDataModule, loaded: LoadedModel, split: str) -> tuple[str, list[str]]:
    """Apply the training run's split where the images are the same, else score everything; say which.

    The same means the same names and the same content: another folder can use the same names for other images.
    """
    unit = str(loaded.config["data"].get("group_by", "group"))
    hashed = datamodule.hash_records()
    if {(record.sample_id, record.content_hash) for record in hashed} == {
        (row["sample_id"], row["content_hash"]) for row in loaded.split
    }:
        datamodule.use_split({row["sample_id"]: row["split"] for row in loaded.split})
        return split, [separation(loaded.config["data"]) if split == "test" else OWN_SPLIT_NOTES[split]]
    development = [row for row in loaded.split if row["split"] in ("train", "val")]
    used, groups = {row["content_hash"] for row in development}, {(row["source"], row["group"]) for row in development}
    notes = [
        f"Not the images of the training run: all {len(datamodule.labelled)} labelled images of the data folder are scored, "
        "and baselines that need class counts take them from these images."
    ]
    if seen := sum(record.content_hash in used for record in hashed):
        notes.append(f"{seen} of them were used in training or selection, so these figures are not a test.")
    if akin := sum(record.content_hash not in used and (record.source, record.group) in groups for record in hashed):
        notes.append(
            f"{akin} other images bear the name of a {unit} of training or selection; if it is the same {unit}, these figures "
            "are too good."
        )
    return "all", notes


def _result_name(evaluation: Evaluation, root: str | None) -> str:
    """Name the folder of an evaluation: after the split or a foreign data folder, and the checkpoint unless it is the best."""
    own = evaluation.datamodule.has_split or not root
    name = evaluation.split if own else f"data_{Path(str(root)).resolve().name}"
    checkpoint = evaluation.loaded.path.stem
    return name if checkpoint == "best" else f"{checkpoint}_{name}"


def _training_statistics(datamodule: MultiTaskDataModule, loaded: LoadedModel, evaluator: Evaluator) -> TrainingStatistics:
    """Count classes in the training images, for the baselines.

    For another folder than that of the training run its own images stand in; the baseline is then a little too good.
    """
    records = datamodule.drawn_records if datamodule.has_split else datamodule.records
    study = loaded.config["study_metrics"].items()
    percentages = {name: (metric["infected"], metric["healthy"]) for name, metric in study if "infected" in metric}
    means = _mean_scores(datamodule, evaluator, records)
    return TrainingStatistics.from_records(loaded.model.specs, records, means=means, percentages=percentages)


def _mean_scores(datamodule: MultiTaskDataModule, evaluator: Evaluator, records: list[Record]) -> dict[str, float]:
    """Average the TIL score of the training slides, for which their masks have to be read; left out where none has one."""
    means: dict[str, float] = {}
    for name, metric in evaluator.study.items():
        if isinstance(metric, TilScore):
            both = [r.sample_id for r in records if all(r.knows(evaluator.specs[task].label) for task in metric.tasks)]
            images = datamodule.plain("train" if datamodule.has_split else "all") if both else None
            mean = metric.mean_of_truth(images.truth(sample_id) for sample_id in both) if images else float("nan")
            means |= {name: mean} if np.isfinite(mean) else {}
    return means


def write_results(evaluation: Evaluation, folder: Path, run_dir: Path, report: bool) -> dict[str, Any]:
    """Write `metrics.json`, `predictions/records.json` and the report; return the content of the former."""
    config = evaluation.loaded.config
    metrics = write_metrics(
        folder / "metrics.json",
        evaluation.summary,
        suite=config["suite"],
        split=evaluation.split,
        checkpoint=_relative(evaluation.loaded.path, run_dir),
        seed=config["seed"],
        budget=budget(config, evaluation.datamodule),
        thresholds_source=evaluation.loaded.thresholds_source,
        training=training_summary(run_dir, total_epochs(config)),
        notes=evaluation.notes,
    )
    save_records(folder / "predictions" / "records.json", evaluation.evaluator)
    save_cases(folder / "predictions" / "cases.csv", metrics["cases"])
    if report:
        from mtl.evaluation.run_report import write_run_report

        write_run_report(evaluation, metrics, folder, run_dir)
    return metrics


def budget(config: dict[str, Any], datamodule: MultiTaskDataModule) -> int | None:
    """Return how many training samples the run was allowed to see, or None for another data folder."""
    if not datamodule.has_split:
        return None
    total = 0
    for stage in stages_of(config):
        loader = stage.config["data"]["loader"]
        total += datamodule.for_stage(stage.tasks, stage.sources, loader, stage.seed).samples_per_epoch * stage.epochs
    return total


def result_lines(metrics: dict[str, Any]) -> str:
    """Word the main figures: per task the primary metrics, their interval and the baseline."""
    lines = [f"{metrics['split']} split, {metrics['n_samples']} images, score {_number(metrics['score'])}"]
    for task, values in metrics["tasks"].items():
        lines.append(f"  {task}: {_figures(main_metrics(values['ci95']), values, metrics['baseline'].get(task))}")
    for name, values in metrics["study"].items():
        lines.append(f"  {name}: {_figures(list(values['ci95']), values, metrics['baseline'].get(name))}")
    return "\n".join(lines)


def _figures(names: list[str], values: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """List metrics with their interval and, where there is one, the baseline and what the source alone gives."""
    parts = []
    for name in names:
        interval = (values.get("ci95") or {}).get(name)
        spread = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
        beside = f" (baseline {_number(baseline['metrics'].get(name))}" if baseline else ""
        if baseline:
            source = baseline.get("from_source")
            beside += f", from source {_number(source['metrics'].get(name))})" if source else ")"
        parts.append(f"{name} {_number(values[name])}{spread}{beside}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    return "n/a" if value is None or value != value else f"{value:.3f}"


def _relative(path: Path, run_dir: Path) -> str:
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else path.as_posix()
