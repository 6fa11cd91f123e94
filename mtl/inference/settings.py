"""What a user may set beside a checkpoint: tasks, thresholds, and when a mask is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtl.core.decision import positive_class
from mtl.core.errors import ConfigError, unknown
from mtl.core.task import TaskSpec
from mtl.kinds.base import first_of, rules_of

Limits = Mapping[str, float | Mapping[str, float]]


def chosen_tasks(specs: Mapping[str, TaskSpec], tasks: Iterable[str]) -> dict[str, TaskSpec]:
    """Return the specs of some tasks of a network, in its order.

    Raises:
        ConfigError: No such task, none at all, or a task about boxes without the task that finds them.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    problems = [unknown("task", name, specs, "tasks") for name in names if name not in specs]
    chosen = {task: spec for task, spec in specs.items() if task in names}
    finder = first_of(specs, specs, "boxes")
    for task, spec in chosen.items():
        if rules_of(spec).of_boxes and finder not in chosen:
            problems.append(f"`tasks` has `{task}`, which looks at the boxes of `{finder}`, but not `{finder}`. Add it.")
    if not names:
        problems.append(f"`tasks` is empty. Expected some of: {', '.join(specs)}.")
    if problems:
        raise ConfigError(problems)
    return chosen


def _by_task(given: Limits, where: str) -> Limits:
    if not isinstance(given, Mapping):
        raise ConfigError(f"`{where}` is {given!r}; expected numbers by task, as {{task: 0.3}}.")
    return given


def changed_thresholds(
    specs: Mapping[str, TaskSpec], stored: Mapping[str, Mapping[str, float]], given: Limits
) -> dict[str, dict[str, float]]:
    """Return the stored decision thresholds with others in place of some.

    Args:
        specs: The tasks, by name.
        stored: Of the checkpoint.
        given: By task, one number for all of its thresholds, or numbers by name: the class, or `score` of a task that finds
            objects.

    Raises:
        ConfigError: No such task or threshold, or a number outside 0 and 1.
    """
    changed = {task: dict(values) for task, values in stored.items()}
    problems: list[str] = []
    for task, value in _by_task(given, "thresholds").items():
        if task not in specs:
            problems.append(unknown("task", task, specs, "thresholds"))
            continue
        names = list(rules_of(specs[task]).metric(specs[task], 1.0).default_thresholds)
        if not names:
            problems.append(f"`thresholds.{task}`: this task decides without a threshold. Remove it.")
            continue
        problems += _not_shares(f"thresholds.{task}", value)
        wanted = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
        problems += [unknown("threshold", str(name), names, f"thresholds.{task}") for name in wanted if name not in names]
        changed[task] = {**changed.get(task, {}), **wanted}
    if problems:
        raise ConfigError(problems)
    return changed


def checked_conditions(specs: Mapping[str, TaskSpec], given: Limits) -> dict[str, dict[str, float]]:
    """Return how likely classes of an image have to be for its masks to be shown, by task and class.

    Args:
        specs: The tasks, by name.
        given: By task, probabilities by class; a number is that of the positive one of two classes.

    Raises:
        ConfigError: No such task or class, a number outside 0 and 1, or a task that states no class of an image.
    """
    found: dict[str, dict[str, float]] = {}
    problems: list[str] = []
    fitting = [task for task, spec in specs.items() if rules_of(spec).image_level and len(spec.classes) > 1]
    for task, value in _by_task(given, "when").items():
        if task not in fitting:
            problems.append(unknown("task that states a class of an image", task, fitting or ["none"], "when"))
            continue
        positive = positive_class(specs[task])
        if not isinstance(value, Mapping) and not positive:
            problems.append(
                f"`when.{task}` is {value}; expected a probability by class, as in when={{{task}: {{{specs[task].classes[-1]}: "
                "0.3}}."
            )
            continue
        problems += _not_shares(f"when.{task}", value)
        wanted = value if isinstance(value, Mapping) else {positive: value}
        problems += [
            unknown("class", str(name), specs[task].classes, f"when.{task}")
            for name in wanted
            if name not in specs[task].classes
        ]
        found[task] = dict(wanted)
    if given and not any(rules_of(spec).areas for spec in specs.values()):
        problems.append(f"`when` says when masks are shown, but none of the tasks has any: {', '.join(specs)}. Remove it.")
    if problems:
        raise ConfigError(problems)
    return found


def _not_shares(where: str, value: Any) -> list[str]:
    """Return a problem for each of one or several numbers that does not lie between 0 and 1."""
    given = {f"{where}.{name}": number for name, number in value.items()} if isinstance(value, Mapping) else {where: value}
    return [
        f"`{place}` is {number}; expected a number from 0 to 1."
        for place, number in given.items()
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1
    ]
