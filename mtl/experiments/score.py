"""Score a checkpoint: `metrics.json`, per-image records and the report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from mtl.config.plan import Plan
from mtl.core.errors import TrainingError
from mtl.core.plugins import use
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.evaluation.baselines import baseline_summary, source_notes
from mtl.evaluation.examples import ExampleKeeper
from mtl.evaluation.results import OWN_SPLIT_NOTES, Evaluation, budget, result_lines, separation, training_statistics
from mtl.inference.scoring import WholeImageScorer
from mtl.metrics.evaluator import Evaluator
from mtl.runs.build import build_evaluator
from mtl.runs.folder import ResultFolder, RunFolder, checkpoint_path
from mtl.runs.history import read_history, training_summary
from mtl.runs.loading import PRETRAINING_NOTE, LoadedModel, load_model
from mtl.runs.results import save_cases, save_records, save_tables, write_metrics
from mtl.runs.stages import trained_in

log = logging.getLogger("mtl")


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
    run_dir = RunFolder.of(path).path
    root = (data or {}).get("root")
    plan = Plan.of_trained(loaded.config, root, batch_size)
    evaluation = score(loaded, split, bootstrap, plan=plan)
    place = ResultFolder(Path(output)) if output else RunFolder(run_dir).evaluation(_result_name(evaluation, root))
    metrics = write_results(evaluation, place, run_dir, report)
    log.info(result_lines(metrics))
    for note in evaluation.notes:
        log.info("note: %s", note)
    log.info("metrics: %s", place.metrics)
    return metrics


def evaluate_run(plan: Plan, run_dir: Path, device: str) -> dict[str, Any]:
    """Score the best checkpoint of a finished run on its test split, into the run directory.

    Args:
        plan: With which it was trained.
        run_dir: Its directory.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        TrainingError: No validation gave a number that could select a checkpoint.
    """
    run = RunFolder(run_dir)
    best = run.best
    if not best.is_file():
        raise TrainingError(
            f"No epoch of `{run_dir}` has a defined value of the metric that selects {best.name}. Expected a number from at "
            "least one validation: check `monitor` and trainer.check_val_every_n_epoch, or score the last epoch with "
            f"evaluate.py checkpoint={run.last}."
        )
    loaded = load_model(best, device)
    evaluation = score(loaded, "test", plan=plan)
    stages = score_stages(plan, run_dir, device, evaluation.datamodule)
    evaluation.summary |= {"stages": stages} if stages else {}
    metrics = write_results(evaluation, run, run_dir, report=True)
    log.info(result_lines(metrics))
    return metrics


def score_stages(plan: Plan, run_dir: Path, device: str, datamodule: MultiTaskDataModule) -> dict[str, Any]:
    """Score the best checkpoint of every stage of a curriculum on the test split.

    Returns:
        By stage: `epochs` finished, `tasks` trained so far, `metrics` and `ci95` by task; empty without a curriculum.
    """
    found: dict[str, Any] = {}
    trained: dict[str, list[str]] = {}
    rows = read_history(run_dir)
    for stage in (stage for stage in plan.stages if stage.name):
        before = trained.get(stage.start, trained_in(stage.start) if stage.from_file else [])
        trained[stage.name] = [task for task in plan.config.tasks if task in before or task in stage.tasks]
        # No report is drawn, so that no examples need be kept.
        loaded = load_model(RunFolder(run_dir).stage(stage.name), device)
        tasks = score(loaded, "test", examples=0, plan=plan, datamodule=datamodule).summary["tasks"]
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
    bootstrap: int | None = None,
    examples: int | None = None,
    plan: Plan | None = None,
    datamodule: MultiTaskDataModule | None = None,
) -> Evaluation:
    """Predict and score every image of a split; arguments as in `evaluate`.

    `examples` overrides `evaluation.cases`; `plan` is that of the run, or of its evaluation on other data, and made here where
    None; `datamodule` is that of another evaluation with the same data and preprocessing.

    The thresholds are those in the checkpoint, chosen on validation; nothing here chooses one.
    """
    plan = plan or Plan.of_trained(loaded.config)
    model, settings = loaded.model, plan.config.evaluation
    datamodule = datamodule or MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)
    split, notes = _choose_split(datamodule, loaded, split)
    if seen := loaded.pretraining:
        notes.append(PRETRAINING_NOTE.format(count=len(seen), names=", ".join(seen[:5])))
    evaluator = build_evaluator(plan, model.specs)
    if settings.hd95:
        evaluator.measure_surfaces(loaded.thresholds)
    kept = _run(loaded, datamodule, split, evaluator, settings.cases if examples is None else examples)
    evaluator.finish()
    resamples = settings.bootstrap if bootstrap is None else bootstrap
    summary = evaluator.summary(loaded.thresholds, resamples)
    notes += summary.pop("notes")
    summary["baseline"] = baseline_summary(evaluator, training_statistics(datamodule, evaluator))
    notes += source_notes(summary["tasks"], summary["baseline"])
    return Evaluation(summary, evaluator, loaded, plan, datamodule, split, notes, kept)


def _run(loaded: LoadedModel, datamodule: MultiTaskDataModule, split: str, evaluator: Evaluator, count: int) -> ExampleKeeper:
    """Predict and score every image of the split; keep the `count` worst and best ones for the report."""
    examples = ExampleKeeper(evaluator, loaded.thresholds, count)
    scorer = WholeImageScorer(
        loaded.model, evaluator, datamodule.unaugmented(split).truth, examples if examples.count else None
    )
    device = next(loaded.model.parameters()).device
    loader = datamodule.evaluation_dataloader(split)
    with torch.inference_mode():
        for batch in track(loader, description=f"scoring {split}", transient=True, disable=not sys.stdout.isatty()):
            batch = batch.to(device)
            scorer.update(loaded.model(batch.images), batch)
    return examples


def _choose_split(datamodule: MultiTaskDataModule, loaded: LoadedModel, split: str) -> tuple[str, list[str]]:
    """Apply the training run's split where the images are the same, else score everything; say which.

    The same means the same names and the same content: another folder can use the same names for other images.
    """
    unit = datamodule.family.group_by
    hashed = datamodule.hash_records()
    if {(record.sample_id, record.content_hash) for record in hashed} == {
        (row["sample_id"], row["content_hash"]) for row in loaded.split
    }:
        datamodule.use_split({row["sample_id"]: row["split"] for row in loaded.split})
        apart = separation(unit, loaded.config.data.split.val_group_by)
        return split, [apart if split == "test" else OWN_SPLIT_NOTES[split]]
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


def write_results(evaluation: Evaluation, place: ResultFolder, run_dir: Path, report: bool) -> dict[str, Any]:
    """Write `metrics.json`, `predictions/records.json` and the report; return the content of the former."""
    plan = evaluation.plan
    metrics = write_metrics(
        place.metrics,
        evaluation.summary,
        suite=plan.config.suite,
        split=evaluation.split,
        checkpoint=_relative(evaluation.loaded.path, run_dir),
        seed=plan.config.seed,
        budget=budget(plan, evaluation.datamodule),
        thresholds_source=evaluation.loaded.thresholds_source,
        training=training_summary(run_dir, plan.total_epochs),
        notes=evaluation.notes,
    )
    save_records(place.records, evaluation.evaluator)
    save_cases(place.cases, metrics["cases"])
    save_tables(place, evaluation.evaluator, evaluation.loaded.thresholds)
    if report:
        from mtl.report.run_report import write_run_report

        write_run_report(evaluation, metrics, place.path, run_dir)
    return metrics


def _relative(path: Path, run_dir: Path) -> str:
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else path.as_posix()
