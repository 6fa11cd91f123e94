"""The mean of a metric over several tasks (mean over lesions)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.core.registry import STUDY_METRICS
from mtl.core.task import TaskSpec
from mtl.metrics.base import StudyMetric, TaskMetric


@STUDY_METRICS.register("task_mean")
class TaskMean(StudyMetric):
    """Unweighted mean of the metrics of several tasks, under the names that they have there.

    Always over all of its tasks: a mean over fewer ones under the same name would mislead, so a metric that is not defined for
    one task (no lesion of its kind in the split) has no mean either.

    Args:
        specs: Active tasks by name.
        group_by: What a group is.
        tasks: The tasks.
        metrics: Their metrics to average; empty takes all that they share.
    """

    def __init__(
        self, specs: dict[str, TaskSpec], group_by: str = "patient", *, tasks: list, metrics: list = [],  # noqa: B006 (a literal)
    ) -> None:  # fmt: skip
        super().__init__(specs, group_by)
        if len(tasks) < 2 or len(set(tasks)) < len(tasks):
            raise ConfigError(f"Study metric `task_mean` has `tasks: {list(tasks)}`. Expected two or more tasks, each once.")
        if missing := [task for task in tasks if task not in specs]:
            raise ConfigError([unknown("task", task, specs, "task_mean.tasks") for task in missing])
        shared = [name for name in specs[tasks[0]].metrics if all(name in specs[task].metrics for task in tasks)]
        if not shared:
            raise ConfigError(f"The tasks {', '.join(tasks)} of study metric `task_mean` share no metric. Average alike tasks.")
        if wrong := [name for name in metrics if name not in shared]:
            raise ConfigError([unknown("metric", name, shared, "task_mean.metrics") for name in wrong])
        self.tasks = tuple(tasks)
        self.names = tuple(metrics) or tuple(shared)

    def compute(
        self, metrics: dict[str, TaskMetric], thresholds: dict[str, dict[str, float]],
        weights: dict[str, np.ndarray] | None = None, values: dict[str, dict[str, float]] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return the means."""
        if values is None:
            values = {
                task: metrics[task].compute(thresholds[task], None if weights is None else weights[task]) for task in self.tasks
            }
        return {name: float(np.mean([values[task][name] for task in self.tasks])) for name in self.names}

    def details(self, metrics: dict[str, TaskMetric], thresholds: dict[str, dict[str, float]]) -> dict[str, Any]:
        """Return the table of what is averaged."""
        values = {task: metrics[task].compute(thresholds[task]) for task in self.tasks}
        return {
            "per_task": {
                task: {name: values[task][name] for name in self.names} | {"n": len(metrics[task].records)}
                for task in self.tasks
            }
        }

    def notes(self, values: dict[str, float]) -> list[str]:
        """Return which means are not defined."""
        undefined = [name for name, value in values.items() if not np.isfinite(value)]
        return [f"no mean of {', '.join(undefined)}, because a task has no such value here."] if undefined else []

    def baseline(
        self, found: Mapping[str, dict[str, Any]], metrics: Mapping[str, TaskMetric], training_value: float
    ) -> dict[str, Any] | None:
        """Average the baselines of the tasks."""
        if not all(task in found for task in self.tasks):
            return None
        means = {name: float(np.mean([found[task]["metrics"][name] for task in self.tasks])) for name in self.names}
        return {"name": "mean of the tasks' baselines", "metrics": means}
