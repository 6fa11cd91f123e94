"""The complete check of a configuration: schema, parts, and whether they fit together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from mtl.config.bounds import text_problem
from mtl.config.compose import compose
from mtl.config.data_schema import DataConfig, DataGenericConfig
from mtl.config.keys import GROUPS_OF_PARTS, SECTIONS
from mtl.config.parts import HEAD_KEYS, check_part, plugins_of, validate
from mtl.config.schema import ComposedConfig, RunConfig
from mtl.config.stages import check_score_weights, check_stages, part_names
from mtl.core import plugins
from mtl.core.decision import deciding_problem
from mtl.core.errors import ConfigError, MtlError, unknown
from mtl.core.family import DataFamily
from mtl.core.names import folder_name_problem
from mtl.core.parts import ENCODER, neck_chain
from mtl.core.registry import (
    ADAPTERS,
    BALANCERS,
    DATA_FAMILIES,
    ENCODERS,
    HEADS,
    LOSSES,
    NECKS,
    SCHEDULERS,
    STUDY_METRICS,
    Registry,
)
from mtl.core.task import TaskSpec, higher_is_better

ANY_KIND = "any"
NECK_KEYS = frozenset({"shared", "features"})
# What the JSON files and the table of predictions hold of an image, under these names.
SAID_OF_IMAGES = frozenset({
    "image", "width", "height", "counts", "precision", "thresholds", "tasks", "object", "task", "class", "score", "x_min",
    "y_min", "x_max", "y_max", "x", "y",
})  # fmt: skip
DATA_KEYS = frozenset(DataGenericConfig.model_fields)


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep the garbage collector from looking through what is built at the start, which takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collection()
def load_config(config_name: str, overrides: list[str], model: type[BaseModel]) -> dict[str, Any]:
    """Compose and check the small configuration of another verb."""
    composed, problems = compose(config_name, overrides)
    if not composed:
        raise ConfigError(problems)
    values, found = validate(model, composed, "")
    if problems + found:
        raise ConfigError(problems + found)
    return values


def check_run_config(config: dict[str, Any], problems: Iterable[str] = ()) -> tuple[RunConfig, DataFamily]:
    """Check a composed training configuration and fill in every default.

    Args:
        config: Plain configuration with the keys of `RunConfig`.
        problems: What is already known to be wrong; reported together with the rest.

    Returns:
        The checked configuration, and the family of its data.

    Raises:
        ConfigError: With one line for everything that is wrong.
    """
    values, found = validate(ComposedConfig, config, "", ("task", "experiment", "debug"))
    if lacking := plugins.missing(values.get("plugins", []), "This run"):
        raise ConfigError([*problems, *lacking])
    in_parts, in_data = check_parts(values)
    problems = [*problems, *found, *in_parts, *in_data, *_check_folder_names(values)]
    family = cache(lambda: build_family(DataConfig.model_validate(values["data"])))
    if not problems:
        problems += _check_fit(values, family)
    elif not in_data:
        with suppress(KeyError, TypeError, AttributeError, ValidationError):  # a broken section may be in the way
            problems += [problem for problem in _check_fit(values, family) if problem not in problems]
    if problems:
        raise ConfigError(problems)
    if values["backbone"].get("in_chans", 0) is None:
        values["backbone"]["in_chans"] = family().channels
    values["plugins"] = sorted(_used_plugins(values))  # not those that were merely named
    return RunConfig.model_validate(values), family()


def _check_folder_names(values: dict[str, Any]) -> list[str]:
    """Check what names the folder of a new run; one that is resumed has its folder."""
    names = {} if values.get("resume") else {key: values.get(key) for key in ("suite", "name")}
    # Empty texts and control characters were refused with the other values.
    told = {key: name for key, name in names.items() if isinstance(name, str) and not text_problem(name)}
    found = [folder_name_problem(name, key) for key, name in told.items()]
    return [problem for problem in found if problem]


def stored_config(values: dict[str, Any], where: str) -> RunConfig:
    """Read the configuration of a run that was checked before it was trained; what it names need not exist any more.

    Args:
        values: As in config.json and in checkpoints.
        where: The file, for messages.

    Raises:
        ConfigError: Another release wrote it, or it was edited.
    """
    _, problems = validate(RunConfig, values, "")
    if problems:
        raise ConfigError(
            f"The configuration in `{where}` is not one of this release: {problems[0]} Use the release that wrote it, or train "
            "again."
        )
    return RunConfig.model_validate(values)


def check_data(config: Any, where: str = "data") -> tuple[dict[str, Any], list[str]]:
    """Check the `data` section: generic keys by the schema, the others by the family's signature."""
    data, problems = check_part(DATA_FAMILIES, config, where, extra=DATA_KEYS)
    generic, found = validate(DataGenericConfig, {key: data[key] for key in DATA_KEYS if key in data}, where)
    return {**data, **generic}, problems + found


def build_family(data: DataConfig) -> DataFamily:
    """Build the reader that a `data` section describes; what it finds out about files lies beside the image cache."""
    family = DATA_FAMILIES.build(data.part, where="data")
    assert isinstance(family, DataFamily)
    family.memo_folder = data.cache.place
    return family


def kind_of(head: dict[str, Any]) -> str:
    """Return the kind of task that a checked head serves; a head around experts serves the kind of its experts."""
    kind = str(HEADS.entry(head["name"]).constant("kind"))
    return kind_of(head["expert"]) if kind == ANY_KIND else kind


def _used_plugins(values: dict[str, Any]) -> set[str]:
    """Return the plug-ins that a checked configuration takes parts from."""
    parts = [(registry, values[section]) for registry, section in SECTIONS if values[section] is not None]
    parts += [(SCHEDULERS, stage["scheduler"]) for stage in values["stages"].values() if stage["scheduler"] is not None]
    for registry, section in GROUPS_OF_PARTS:
        parts += [(registry, part) for part in values[section].values()]
    return set().union(*(plugins_of(registry, part) for registry, part in parts))


def check_parts(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Check the sections that are registered parts; one that is missing or no mapping is the schema's business.

    Returns:
        The problems of the network and of `data`.
    """
    problems: list[str] = []

    def check(registry: Registry, holder: dict[str, Any], key: str, where: str, extra: frozenset[str] = frozenset()) -> None:
        if isinstance(holder.get(key), dict):
            holder[key], found = check_part(registry, holder[key], where, extra)
            problems.extend(found)

    def several(registry: Registry, section: str, extra: frozenset[str] = frozenset()) -> None:
        if isinstance(values.get(section), dict):
            for name in values[section]:
                check(registry, values[section], name, f"{section}.{name}", extra)

    check(ENCODERS, values, "backbone", "backbone")
    check(ADAPTERS, values, "peft", "peft")
    several(NECKS, "necks", NECK_KEYS)
    several(HEADS, "heads", HEAD_KEYS)
    check(BALANCERS, values, "balancer", "balancer")
    check(SCHEDULERS, values, "scheduler", "scheduler")
    several(STUDY_METRICS, "study_metrics")
    found: list[str] = []
    if isinstance(values.get("data"), dict):
        values["data"], found = check_data(values["data"])
    return problems, found


def _check_fit(values: dict[str, Any], family_of: Callable[[], DataFamily]) -> list[str]:
    """Check that names in one section mean something in another, and in the family of the data."""
    problems = [unknown("task", task, values["heads"], "tasks") for task in values["tasks"] if task not in values["heads"]]
    if len(set(values["tasks"])) != len(values["tasks"]):
        problems.append(f"`tasks` names a task twice: {values['tasks']}. Name each task once.")
    problems += _check_split(values["data"]["split"], "data.split")
    try:
        family = family_of()
        specs = family.specs()
    except MtlError as error:
        return [*problems, str(error)]
    problems += _check_necks(values["necks"])
    entries = HEADS.entries()
    active = [task for task in values["tasks"] if task in values["heads"]]
    for task in active:
        head = values["heads"][task]
        kind = kind_of(head)
        if task not in specs:
            problems.append(
                unknown("task", task, specs, "tasks")
                + f" The data family `{values['data']['name']}` has no labels for `{task}` "
                "with these settings."
            )
        elif kind != specs[task].kind:
            fitting = [name for name, entry in entries.items() if entry.constants.get("kind") in (specs[task].kind, ANY_KIND)]
            path, inner = (f"{task}.expert", head["expert"]) if "expert" in head else (task, head)
            problems.append(
                f"`heads.{path}.name` is `{inner['name']}`, a {kind} head, but the data label `{task}` for {specs[task].kind}. "
                f"Heads that fit: {', '.join(sorted(fitting))}."
            )
        if "expert" in head and not entries[head["expert"]["name"]].constant("mixable"):
            problems.append(
                f"`heads.{task}.expert` is `{head['expert']['name']}`, whose outputs cannot be averaged. Choose another head."
            )
        inner = head.get("expert", {}).get("detector")
        if inner and not entries[inner["name"]].constant("mixable"):
            problems.append(
                f"`heads.{task}.expert.detector` is `{inner['name']}`, whose outputs cannot be averaged. Choose another "
                "head, for example fcos."
            )
        if "detector" in head and kind_of(head["detector"]) != "detection":
            problems.append(
                f"`heads.{task}.detector` is `{head['detector']['name']}`, a {kind_of(head['detector'])} head. Choose one that "
                "finds boxes."
            )
        if task in specs and specs[task].rules.fixed_scale and values["data"]["geometry"]["mode"] != "tiles":
            problems.append(
                f"`data.geometry.mode` is {values['data']['geometry']['mode']}, but `{task}` looks for points within distances "
                "in microns, which needs a fixed scale. Set data.geometry.mode=tiles."
            )
        if task in specs and specs[task].whole_image and values["data"]["geometry"]["mode"] == "tiles":
            problems.append(
                f"`data.geometry.mode` is tiles, but the label of `{task}` says something of a whole image, which no window "
                "shows. Set data.geometry.mode=stretch or letterbox, or leave the task out of `tasks`."
            )
        sources = [ENCODER, *values["necks"]]
        if head.get("features", ENCODER) not in sources:
            problems.append(unknown("feature source", head["features"], sources, f"heads.{task}.features"))
    if problems:
        return problems
    problems += _check_names(values, active)
    problems += _check_deciders(values["study_metrics"], {task: specs[task] for task in active}, specs)
    given = values["backbone"].get("in_chans")
    if given is not None and given != family.channels:
        problems.append(
            f"`backbone.in_chans` is {given}, but the images have {family.channels}. Set it to null, or change the data "
            "settings."
        )
    logged = {f"val/{task}/{metric}" for task in active for metric in (*specs[task].metrics, "loss")}
    logged |= {"val/score", "val/loss"}
    if values["monitor"] not in logged:
        problems.append(unknown("metric", values["monitor"], logged, "monitor"))
    problems += _check_primary(values["evaluation"]["primary"], specs)
    problems += check_score_weights(values["evaluation"]["score_weights"], active, "`tasks`")
    problems += _check_losses(values, active)
    if values["runtime"]["compile"] and BALANCERS.entry(values["balancer"]["name"]).constants.get("needs_gradients"):
        problems.append(
            f"`runtime.compile=true` cannot be combined with balancer={values['balancer']['name']}: a compiled network may be "
            "passed backwards only once per step, not once per task. Set runtime.compile=false, or choose another balancer."
        )
    return problems + check_stages(values, family.sources, logged)


def _check_split(split: dict[str, Any], where: str) -> list[str]:
    """Refuse a split file that nothing would read."""
    if split.get("file") is None or split.get("scheme") == "file":
        return []
    scheme = f"{where}.scheme"
    return [f"`{where}.file` has no effect with {scheme}={split.get('scheme')}. Set {scheme}=file, or leave the file out."]


def _check_losses(values: dict[str, Any], active: list[str]) -> list[str]:
    """Check that no loss can be negative where the balancer would then weight it without an end."""
    balancer, losses = values["balancer"]["name"], LOSSES.entries()
    if not BALANCERS.entry(balancer).constants.get("needs_positive_losses"):
        return []
    heads = {task: values["heads"][task].get("expert", values["heads"][task]) for task in active}
    chosen = {task: head["loss"]["name"] for task, head in heads.items() if isinstance(head.get("loss"), dict)}
    return [
        f"`heads.{task}.loss` is {loss}, which can be negative, so that balancer={balancer} would weight it ever more. Choose "
        "another loss, or another balancer."
        for task, loss in chosen.items()
        if loss in losses and losses[loss].constants.get("can_be_negative")
    ]


def _check_deciders(study: dict[str, dict[str, Any]], specs: dict[str, TaskSpec], offered: dict[str, TaskSpec]) -> list[str]:
    """Check tasks whose class is to stand for that of a detected box; what is switched off leaves its metric out."""
    problems: list[str | None] = []
    chosen: dict[str, tuple[str, str]] = {}
    for name, metric in study.items():
        task, decider, where = metric.get("task"), metric.get("classes_from"), f"study_metrics.{name}.classes_from"
        if not decider or task not in specs or decider not in specs:
            if decider in offered and not offered[decider].rules.of_boxes:
                fitting = [name for name, spec in offered.items() if spec.rules.of_boxes]
                problems.append(unknown("task that classifies boxes", decider, fitting or ["none"], where))
            continue
        problems.append(deciding_problem(specs, task, decider, where))
        first, other = chosen.setdefault(task, (decider, where))
        if first != decider:
            problems.append(
                f"`{where}` is `{decider}`, but `{other}` is `{first}`, and the counts of `{task}` can follow one only. "
                "Set both to the same task, or one of them to null."
            )
    return [problem for problem in problems if problem]


def _check_necks(necks: dict[str, dict[str, Any]]) -> list[str]:
    """Check the keys of necks that the model consumes."""
    problems = []
    for name, neck in necks.items():
        if not isinstance(neck.get("shared", True), bool):
            problems.append(f"`necks.{name}.shared` is `{neck['shared']!r}`. Expected true or false.")
        source = neck.get("features", ENCODER)
        if source not in (ENCODER, *necks):
            problems.append(unknown("feature source", source, [ENCODER, *necks], f"necks.{name}.features"))
        elif source != ENCODER and neck.get("shared", True) and not necks[source].get("shared", True):
            problems.append(
                f"`necks.{name}` is shared, but reads `{source}`, of which each head has a copy. Set "
                f"necks.{name}.shared=false, or necks.{source}.shared=true."
            )
    if not problems:
        for name in necks:
            try:
                neck_chain(name, necks)
            except ValueError as error:
                return [f"`necks.{name}.features`: the necks read each other in a circle ({error}). One must read the encoder."]
    return problems


def _check_primary(primary: dict[str, str], specs: dict[str, TaskSpec]) -> list[str]:
    """Check the metrics by which tasks are to be judged: they enter a mean, so that all must lie in [0, 1] and rise."""
    problems = []
    for task, metric in primary.items():
        where = f"evaluation.primary.{task}"
        if task not in specs:
            problems.append(unknown("task", task, specs, "evaluation.primary"))
            continue
        fitting = [name for name in specs[task].metrics if higher_is_better(name)]
        if metric not in fitting:
            problems.append(unknown("metric", metric, fitting, where))
    return problems


def _check_names(values: dict[str, Any], active: list[str]) -> list[str]:
    """Check dictionaries that are keyed by task or part; a task that is merely switched off is fine."""
    problems = []
    known = list(values["heads"])
    for key in ("weights", "init"):
        if isinstance(values["balancer"].get(key), dict):
            problems += [unknown("task", n, known, f"balancer.{key}") for n in values["balancer"][key] if n not in known]
    weights = values["evaluation"]["score_weights"]
    problems += [unknown("task", n, known, "evaluation.score_weights") for n in weights if n not in known]
    for name, metric in values["study_metrics"].items():
        if name in known:
            problems.append(
                f"`study_metrics.{name}` has the name of a task, so that their results could not be told apart. Give the "
                f"metric another key; the tasks are {', '.join(known)}."
            )
        if name in SAID_OF_IMAGES:
            problems.append(
                f"`study_metrics.{name}` has the name of what predictions say of every image. Give the metric another key "
                f"than {', '.join(sorted(SAID_OF_IMAGES))}."
            )
        alone = {"task": metric.get("task"), "classes_from": metric.get("classes_from")}
        named = {key: [task] if task else [] for key, task in alone.items()} | {"tasks": metric.get("tasks", [])}
        named = {key: tasks for key, tasks in named.items() if isinstance(tasks, list)}  # else it is reported with its type
        for key, tasks in named.items():
            problems += [unknown("task", n, known, f"study_metrics.{name}.{key}") for n in tasks if n not in known]
    parts = part_names(values["necks"], values["heads"])
    problems += [unknown("part", n, parts, "optimizer.parts") for n in values["optimizer"]["parts"] if n not in parts]
    return problems
