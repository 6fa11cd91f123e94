"""Score a checkpoint: `metrics.json`, per-image records and the report."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mtl.config.plan import Plan
from mtl.core.disk import keeping
from mtl.core.errors import TrainingError
from mtl.core.files import remove_stale
from mtl.core.plugins import use
from mtl.core.progress import track
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.evaluation.baselines import baseline_summary, source_notes
from mtl.evaluation.chosen import choose_split
from mtl.evaluation.examples import ExampleKeeper
from mtl.evaluation.results import Evaluation, budget, result_lines, training_statistics
from mtl.evaluation.selection import describe_selection, few_examples, monitored_tasks, selection_basis
from mtl.inference.scoring import WholeImageScorer
from mtl.metrics.evaluator import Evaluator
from mtl.runs.build import build_evaluator
from mtl.runs.folder import ResultFolder, RunFolder, checkpoint_path
from mtl.runs.history import read_history, training_summary
from mtl.runs.loading import PRETRAINING_NOTE, LoadedModel, load_model
from mtl.runs.precision import AUTO, Computation
from mtl.runs.results import metrics_content, save_cases, save_records, save_tables, write_metrics
from mtl.runs.stages import trained_in

log = logging.getLogger("mtl")


def evaluate(
    checkpoint: str,
    split: str | None = None,
    output: str | None = None,
    data: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str | int = AUTO,
    channels_last: str | bool = AUTO,
    bootstrap: int | None = None,
    report: bool = True,
    plugins: Iterable[str] = (),
) -> dict[str, Any]:
    """Score a checkpoint and write `metrics.json`, `predictions/records.json` and `report.html`.

    Args:
        checkpoint: File or run directory.
        split: `train`, `val`, `test` of the training run, or `all` images of the data folder; None is `test`, or `all` for
            a folder that does not hold the test images of the run.
        output: Folder for the results; None takes `evaluation/` of the run and there the name of the split or, for another
            data folder, of that folder.
        data: `{"root": ...}` to score another folder, and `largest_loss` where more of its labels may be unusable.
        batch_size: Windows per step; None as in training.
        device: `auto`, `cpu`, `cuda`, ...
        precision: As in `mtl.runs.precision.usable`: `auto` is that of the training where the device is made for it.
        channels_last: As in `mtl.runs.precision.usable`.
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
    loaded = load_model(path, device, precision, channels_last)
    log.info("precision: %s", loaded.computation)
    run_dir = RunFolder.of(path).path
    root, largest_loss = (data or {}).get("root"), (data or {}).get("largest_loss")
    plan = Plan.of_trained(loaded.config, root, batch_size, largest_loss)
    evaluation = score(loaded, split, bootstrap, plan=plan, elsewhere=root is not None)
    place = ResultFolder(Path(output)) if output else RunFolder(run_dir).evaluation(_result_name(evaluation, root))
    with keeping(lambda: "The run is as it was; files of this evaluation that were written are whole."):
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
    loaded = load_model(best, device, *_of_training(plan))
    evaluation = score(loaded, "test", plan=plan)
    stages = score_stages(plan, run_dir, device, evaluation.datamodule)
    evaluation.summary |= {"stages": stages} if stages else {}
    metrics = write_results(evaluation, run, run_dir, report=True)
    log.info(result_lines(metrics))
    return metrics


def _of_training(plan: Plan) -> tuple[str, bool]:
    """Return precision and channels_last of a finished run: its test split is scored as validation was."""
    computation = Computation.of(plan.config)
    return computation.precision, computation.channels_last


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
        loaded = load_model(RunFolder(run_dir).stage(stage.name), device, *_of_training(plan))
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
    split: str | None,
    bootstrap: int | None = None,
    examples: int | None = None,
    plan: Plan | None = None,
    datamodule: MultiTaskDataModule | None = None,
    elsewhere: bool = False,
) -> Evaluation:
    """Predict and score every image of a split; arguments as in `evaluate`.

    `examples` overrides `evaluation.cases`; `plan` is that of the run, or of its evaluation on other data, and made here where
    None; `datamodule` is that of another evaluation with the same data and preprocessing; `elsewhere` means other data than
    those of the run.

    The thresholds are those in the checkpoint, chosen on validation; nothing here chooses one.
    """
    plan = plan or Plan.of_trained(loaded.config)
    model, settings = loaded.model, plan.config.evaluation
    datamodule = datamodule or MultiTaskDataModule.from_plan(plan, model.specs, model.preprocessing)
    chosen = choose_split(datamodule, loaded, split, elsewhere)
    datamodule.check_files(datamodule.labelled if chosen.name == "all" else datamodule.records_by_split[chosen.name])
    notes = list(chosen.notes)
    if seen := loaded.pretraining:
        notes.append(PRETRAINING_NOTE.format(count=len(seen), names=", ".join(seen[:5])))
    notes += [*plan.notes, *(datamodule.gaps if chosen.trained else [])]
    evaluator = build_evaluator(plan, model.specs)
    if settings.hd95:
        evaluator.measure_surfaces(loaded.thresholds)
    kept = _run(loaded, datamodule, chosen.name, evaluator, settings.cases if examples is None else examples)
    evaluator.finish()
    resamples = settings.bootstrap if bootstrap is None else bootstrap
    summary = evaluator.summary(loaded.thresholds, resamples)
    notes += summary.pop("notes")
    summary["baseline"] = baseline_summary(evaluator, training_statistics(datamodule, evaluator, chosen))
    notes += source_notes(summary["tasks"], summary["baseline"])
    if chosen.trained:
        stage = next((stage for stage in plan.stages if stage.name == loaded.stage), plan.stages[-1])
        validated = datamodule.records_by_split["val"]
        basis = selection_basis(stage, model.specs, monitored_tasks(stage, evaluator.study), validated)
        summary["selection"] = basis
        notes += [describe_selection(basis, plan.family.group_by) + ".", *few_examples(basis)]
    return Evaluation(summary, evaluator, loaded, plan, datamodule, chosen, list(dict.fromkeys(notes)), kept)


def _run(loaded: LoadedModel, datamodule: MultiTaskDataModule, split: str, evaluator: Evaluator, count: int) -> ExampleKeeper:
    """Predict and score every image of the split; keep the `count` worst and best ones for the report."""
    examples = ExampleKeeper(evaluator, loaded.thresholds, count)
    scorer = WholeImageScorer(
        loaded.model, evaluator, datamodule.unaugmented(split).truth, examples if examples.count else None
    )
    device = next(loaded.model.parameters()).device
    loader = datamodule.evaluation_dataloader(split)
    computation = loaded.computation
    with torch.inference_mode():
        for batch in track(f"scoring {split}", loader, len(loader)):
            batch = batch.to(device)
            with computation.autocast(device):
                scorer.update(loaded.model(computation.arranged(batch.images)), batch)
    return examples


def _result_name(evaluation: Evaluation, root: str | None) -> str:
    """Name the folder of an evaluation: after the split or a foreign data folder, and the checkpoint unless it is the best."""
    own = evaluation.datamodule.has_split or not root
    name = evaluation.split if own else f"data_{Path(str(root)).resolve().name}"
    checkpoint = evaluation.loaded.path.stem
    return name if checkpoint == "best" else f"{checkpoint}_{name}"


def write_results(evaluation: Evaluation, place: ResultFolder, run_dir: Path, report: bool) -> dict[str, Any]:
    """Write `metrics.json`, `predictions/records.json` and the report; return the content of the former."""
    plan = evaluation.plan
    remove_stale(place.path / "*", below=True)
    place.metrics.unlink(missing_ok=True)  # written last: where it is, all the rest is there and belongs to it
    metrics = metrics_content(
        evaluation.summary,
        suite=plan.config.suite,
        split=evaluation.split,
        checkpoint=_relative(evaluation.loaded.path, run_dir),
        seed=plan.config.seed,
        budget=budget(plan, evaluation.datamodule, evaluation.chosen),
        thresholds_source=evaluation.loaded.thresholds_source,
        training=training_summary(run_dir, plan.total_epochs),
        computation=evaluation.loaded.computation.to_dict(),
        notes=evaluation.notes,
    )
    save_records(place.records, evaluation.evaluator)
    save_cases(place.cases, metrics["cases"])
    save_tables(place, evaluation.evaluator, evaluation.loaded.thresholds)
    if report:
        from mtl.report.run_report import write_run_report

        write_run_report(evaluation, metrics, place.path, run_dir)
    write_metrics(place.metrics, metrics)
    return metrics


def _relative(path: Path, run_dir: Path) -> str:
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else path.as_posix()
