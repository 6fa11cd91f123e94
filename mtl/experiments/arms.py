"""`mtl compare`: train the arms of a comparison under the same conditions and table them."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mtl.config.data_schema import GeometryConfig
from mtl.config.keys import ALLOWED, EPOCHS, FREE, SHARED, VOLATILE, leaves
from mtl.config.plan import Plan
from mtl.config.verbs import CompareConfig
from mtl.config.words import written
from mtl.core.errors import INTERRUPTED, ConfigError, DataError, TrainingError, unknown
from mtl.core.files import file_hash
from mtl.core.names import folder_name_problem
from mtl.core.plugins import use
from mtl.experiments.own_process import train_in_own_process
from mtl.runs.folder import RunFolder
from mtl.runs.lock import held, refuse_if_held
from mtl.runs.stored import read_config

if TYPE_CHECKING:
    from mtl.evaluation.summaries import RunSummary

OWN = ("seed=", "resume=", "paths.run_dir=", "paths.output_root=", "name=")  # what a comparison gives each run
ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# Entries of the scores of a run that a comparison needs, and what they are.
COMPARED: dict[str, tuple[type, ...]] = {
    "thresholds": (dict,), "budget": (int, type(None)), "training": (dict, type(None)), "thresholds_source": (str,),
    "resolution": (str,), "baseline": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run of a comparison."""

    arm: str
    task: str | None  # the only task of a single-task twin
    seed: int
    folder: Path
    overrides: tuple[str, ...]


def compare(
    suite: str,
    seeds: int | list[int],
    arms: str | list[str] | dict[str, list[str]] | None,
    overrides: list[str],
    name: str | None,
    output_root: str,
    reference: str | None,
    bootstrap: int,
    plugins: Iterable[str] = (),
) -> Path:
    """Train what is missing, then write `comparison.md` and `comparison.csv`.

    A finished run is reused, an interrupted one is resumed, so the same command can be repeated until everything is there.

    Args:
        suite: Task suite (`task=`).
        seeds: How many seeds (0, 1, ...), or which.
        arms: Named override sets; names without overrides are the suite as it is, `task=` among the overrides takes another
            suite of the same data and tasks. `stl` as a word in a name (`stl`, `stl_fcos`) trains each task of the suite alone.
        overrides: Given to every run.
        name: Folder below `output_root`; None takes the suite.
        output_root: Where comparisons live.
        reference: Arm the others are compared with; None takes the first of single tasks, else the first.
        bootstrap: Resamples of the paired intervals.
        plugins: Modules or paths of files with parts that a run needs; installed ones are known.

    Returns:
        Path of `comparison.md`.

    Raises:
        ConfigError: The arms do not compose, or differ in what a comparison must hold equal, or another process is at it.
        TrainingError: A run failed; its log is named.
    """
    from mtl.experiments.comparison import write_comparison

    named = use(plugins)
    shared = [*([written("plugins", named)] if named else []), *overrides]  # the runs are processes of their own
    arms = ["mtl", "stl"] if arms is None else arms
    if problem := folder_name_problem(suite if name is None else name, "suite" if name is None else "name"):
        raise ConfigError(problem)
    folder = Path(output_root) / (suite if name is None else name)
    arm_overrides = _arm_overrides(arms)
    runs = _plan(suite, seeds, arm_overrides, shared, folder)
    plans = _settled({run: Plan.from_words(list(run.overrides)) for run in runs})
    _check_shared(plans)
    _check_budget(plans)
    base = reference or next((arm for arm in arm_overrides if is_single(arm)), next(iter(arm_overrides)))
    if base not in arm_overrides:
        raise ConfigError(unknown("arm", base, arm_overrides, "reference"))
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        _train_all(runs, plans, folder)
        summaries = [load_run(run.arm, run.seed, run.folder) for run in runs]
        given = {"plugins": named, "name": name, "output_root": output_root, "reference": reference, "bootstrap": bootstrap}
        write_comparison(folder, summaries, base, bootstrap, _command(suite, seeds, arms, overrides, given))
    Console().print(str(folder / "comparison.md"), markup=False)
    return folder / "comparison.md"


def _settled(plans: dict[Run, Plan]) -> dict[Run, Plan]:
    """Let all runs whose precision is left open compute alike: as one of them already did, else as suits this machine."""
    from mtl.runs.precision import AUTO, Computation, settled

    open_ = {
        run: plan for run, plan in plans.items() if AUTO in (plan.config.trainer.precision, plan.config.runtime.channels_last)
    }
    if not open_:
        return plans
    before = [
        Plan.from_stored(read_config(place), str(place.config))
        for place in (RunFolder(run.folder) for run in open_)
        if place.config.is_file()
    ]
    common = Computation.of((before[0] if before else settled(next(iter(open_.values())))[0]).config)
    chosen = {}
    for run, plan in open_.items():
        precision, channels_last = plan.config.trainer.precision, plan.config.runtime.channels_last
        chosen[run] = plan.computing(
            common.precision if precision == AUTO else precision,
            channels_last if isinstance(channels_last, bool) else common.channels_last,
        )
    return plans | chosen


def _train_all(runs: list[Run], plans: dict[Run, Plan], folder: Path) -> None:
    from mtl.report.comparison import ONE_SEED

    console = Console()
    if len({run.seed for run in runs}) == 1 and len({run.arm for run in runs}) > 1:
        console.print(f"note: {ONE_SEED}", markup=False)
    for index, run in enumerate(runs):
        started = time.monotonic()
        state = _bring_up_to_date(run, plans[run])
        place = run.folder.relative_to(folder)
        console.print(f"[{index + 1}/{len(runs)}] {place}: {state} ({time.monotonic() - started:.0f} s)", markup=False)


def load_run(arm: str, seed: int, folder: Path) -> RunSummary:
    """Read a finished run for a comparison."""
    from mtl.evaluation.summaries import RunSummary
    from mtl.runs.build import build_evaluator
    from mtl.runs.results import load_records, read_metrics

    run = RunFolder(folder)
    metrics, records = read_metrics(run.metrics), load_records(run.records)
    plan = Plan.from_stored(read_config(run), str(run.config))
    if missing := [key for key in COMPARED if key not in metrics]:
        raise DataError(
            f"`{run.metrics}` lacks `{'`, `'.join(missing)}`, which a comparison needs. Score the run again with evaluate.py "
            "of this release, or train it again."
        )
    wrong = [key for key, kind in COMPARED.items() if not isinstance(metrics[key], kind)]
    if wrong:
        raise DataError(f"`{run.metrics}` has no usable `{wrong[0]}`: it was edited. Score the run again with evaluate.py.")
    if not run.split.is_file():
        raise DataError(f"`{run.path}` lacks {run.split.name}, which tells its split. Restore it, or train the run again.")
    evaluator = build_evaluator(plan, records["specs"])
    evaluator.extend(records)
    data = plan.config.data
    return RunSummary(
        arm=arm,
        seed=seed,
        evaluator=evaluator,
        thresholds=metrics["thresholds"],
        split_hash=file_hash(run.split)[:12],
        budget=metrics["budget"],
        seen=(metrics["training"] or {}).get("samples_seen"),
        thresholds_source=metrics["thresholds_source"],
        image_size=geometry_words(data.geometry),
        resolution=metrics["resolution"],
        augmentation=json.dumps(
            data.model_dump(mode="json", include={"augmentation", "preprocessing", "geometry"}), sort_keys=True
        ),
        baseline=metrics["baseline"],
        notes=metrics.get("notes", []),
    )


def geometry_words(geometry: GeometryConfig) -> str:
    """Return in a few words what the network sees of an image."""
    height, width = geometry.size
    more = f", scale {geometry.scale:g}, overlap {geometry.overlap}" if geometry.mode == "tiles" else ""
    return f"{geometry.mode} {height} x {width}{more}"


def is_single(arm: str) -> bool:
    """Return whether an arm trains each task alone: `stl` is a word of its name."""
    return "stl" in re.split(r"[^a-z0-9]", arm.lower())


def _arm_overrides(arms: str | list[str] | dict[str, list[str]]) -> dict[str, list[str]]:
    found = (
        {name: list(extra or []) for name, extra in arms.items()}
        if isinstance(arms, dict)
        else {name: [] for name in ([arms] if isinstance(arms, str) else arms)}
    )
    if not found:
        raise ConfigError("`arms` is empty. Expected names such as arms=[mtl,stl].")
    for name, extra in found.items():
        if not ARM.fullmatch(name):
            raise ConfigError(f"Arm `{name}` cannot be the name of a folder. Expected letters, digits, `_`, `-`, `+` and `.`.")
        if not extra and not is_single(name) and name != "mtl" and not isinstance(arms, dict):
            raise ConfigError(
                f"Arm `{name}` has no overrides, so it would be the suite as it is. Expected mtl, stl, or a mapping: "
                f"'arms={{{name}:[balancer=uncertainty]}}'."
            )
    return found


def _check_shared(plans: dict[Run, Plan]) -> None:
    """Refuse arms that cannot be compared before hours are spent on them."""
    first: dict[int, Run] = {}
    values = {run: _shared(plan) for run, plan in plans.items()}
    for run, own in values.items():
        other = first.setdefault(run.seed, run)
        differing = [key for key, value in own.items() if value != values[other].get(key)]
        if differing:
            key = differing[0]
            raise ConfigError(
                f"Arms `{other.arm}` and `{run.arm}` cannot be compared because they differ in {', '.join(differing)} "
                f"(`{key}` is {values[other].get(key)!r} and {own[key]!r}). Give such settings to all arms, "
                "behind `--`."
            )


def _check_budget(plans: dict[Run, Plan]) -> None:
    """Refuse arms that would see different numbers of images because not every image has labels for every task."""
    one = next(iter(plans.values()))
    if one.config.data.loader.samples_per_epoch is not None:
        return
    if len({(frozenset(plan.config.tasks), repr(plan.config.stages)) for plan in plans.values()}) == 1:
        return
    specs = one.family.specs()
    try:
        records = one.records
    except DataError:  # finished runs are tabled without their data, and training says best what is wrong with it
        return
    sizes: dict[int, str] = {}
    for plan in plans.values():
        for stage in plan.stages:
            known = sum(
                any(record.knows(specs[task].label) for task in stage.tasks)
                for record in records
                if record.training and (stage.sources is None or record.source in stage.sources)
            )
            sizes.setdefault(known, f"stage {stage.name}" if stage.name else "+".join(stage.tasks))
    if len(sizes) > 1:
        listed = ", ".join(f"{size} for {tasks}" for size, tasks in sizes.items())
        raise ConfigError(
            f"The runs cannot be compared because an epoch would hold different numbers of images ({listed}): not every image "
            "has labels for every task. Give all runs one budget with data.loader.samples_per_epoch, behind `--`."
        )


def _shared(plan: Plan) -> dict[str, Any]:
    """Return by name the settings of a run that all runs of its seed must share."""
    config = plan.to_dict()
    found = {key: plan.total_epochs if key == EPOCHS else _get(config, key) for key in SHARED if key != "data"}
    data = leaves(config["data"], "data").items()
    return found | {key: value for key, value in data if not key.removeprefix("data.").startswith(FREE)}


def _get(values: dict[str, Any], key: str) -> Any:
    value: Any = values
    for step in key.split("."):
        value = value[step] if isinstance(value, dict) and step in value else None
    return value


def _plan(suite: str, seeds: int | list[int], arms: dict[str, list[str]], overrides: list[str], folder: Path) -> list[Run]:
    tasks = Plan.from_words([f"task={suite}", *overrides]).config.tasks
    given = [word for extra in (overrides, *arms.values()) for word in extra if word.lstrip("+").startswith(OWN)]
    if given:
        raise ConfigError(f"`{given[0]}` is for the comparison to decide. Leave it out; `seeds` says which seeds are trained.")
    runs = []
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        for arm, extra in arms.items():
            for task in tasks if is_single(arm) else [None]:
                place = folder / arm / (task or "") / f"seed{seed}"
                own_suite = [word for word in extra if word.startswith("task=")] or [f"task={suite}"]
                others = [word for word in extra if not word.startswith("task=")]
                words = [*own_suite, *overrides, *others, f"seed={seed}", written("paths.run_dir", str(place))]
                runs.append(Run(arm, task, seed, place, (*words, *([written("tasks", [task])] if task else []))))
    return runs


def _bring_up_to_date(run: Run, plan: Plan) -> str:
    """Train a run unless it is finished; resume it where it stopped."""
    place = RunFolder(run.folder)
    if place.config.is_file():
        before, now = leaves(read_config(place)), leaves(json.loads(json.dumps(plan.to_dict())))
        changed = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
        if serious := sorted(key for key in changed if not any(key == v or key.startswith(f"{v}.") for v in VOLATILE)):
            listed = ", ".join(f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in serious[:4])
            raise ConfigError(
                f"`{run.folder}` was trained with other settings ({listed}{', ...' if len(serious) > 4 else ''}). Use another "
                "name= for this comparison, or remove that folder."
            )
        refuse_if_held(run.folder)
        if place.metrics.is_file():
            return "finished before"
        again = [key for key in ALLOWED if key in changed or (key == "plugins" and now[key])]  # plug-ins are named each time
        words = [written("resume", str(run.folder)), *(written(key, now[key]) for key in again)]
        state = "resumed"
    else:
        computation = ("trainer.precision", "runtime.channels_last")  # settled for all runs of the comparison
        words = [*run.overrides, *(written(key, _get(plan.to_dict(), key)) for key in computation)]
        state = "trained"
    run.folder.mkdir(parents=True, exist_ok=True)
    log = place.output
    status = train_in_own_process(words, log)
    if status == INTERRUPTED:
        error = TrainingError(f"Interrupted in `{run.folder}`. What is finished is kept; repeat the command to go on.")
        error.exit_code = INTERRUPTED
        raise error
    if status:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1]
        raise TrainingError(
            f"The run `{run.folder}` failed with status {status}: {last.removeprefix('error: ')} See `{log}`; repeat the "
            "command to go on."
        )
    return state


def _command(suite: str, seeds: Any, arms: Any, overrides: list[str], given: dict[str, Any]) -> str:
    """Repeat the settings as shell words, for the page that documents the comparison."""
    defaults = CompareConfig.model_validate({"suite": suite}).model_dump()

    words = [written("suite", suite), written("seeds", seeds), written("arms", arms)]
    words += [written(key, value) for key, value in given.items() if value != defaults[key]]
    return " ".join(shlex.quote(word) for word in ["mtl", "compare", *words, *(["--", *overrides] if overrides else [])])
