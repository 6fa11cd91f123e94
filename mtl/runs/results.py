"""The results of a run as files: scores (`metrics.json`), records and the table of the volumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.digest import with_digest, without_digest
from mtl.core.errors import DataError
from mtl.core.files import plain, write_table, write_text
from mtl.core.json_text import parse_json
from mtl.core.task import TaskSpec
from mtl.kinds.base import rules_of
from mtl.metrics.evaluator import Evaluator
from mtl.runs.folder import ResultFolder
from mtl.runs.stored import RECORDS_FORMAT, converted_records

# Shown beside the first metrics of a task: what challenges rank by and readers look for.
ALSO_SHOWN = (
    "quadratic_kappa", "aupr", "sensitivity", "specificity", "dice_nonempty", "dice_per_case", "hd95_per_case", "ap",
)  # fmt: skip
CASE_FIELDS = (
    "task", "case", "class", "slices", "dice", "iou", "hd95", "volume_predicted_mm3", "volume_annotated_mm3"
)  # fmt: skip


def metrics_content(
    summary: dict[str, Any], *, suite: str, split: str, checkpoint: str, seed: int, **more: Any
) -> dict[str, Any]:
    """Return the content of `metrics.json`.

    Args:
        summary: From `Evaluator.summary`.
        suite: Task suite.
        split: Which part of the data was scored.
        checkpoint: File that was scored.
        seed: Of the run.
        more: Further entries (`baseline` from `baseline_summary`); `notes` come before those of the summary.
    """
    notes = list(dict.fromkeys([*more.pop("notes", []), *summary.get("notes", [])]))
    content: dict[str, Any] = plain(
        {"suite": suite, "split": split, "checkpoint": checkpoint, "seed": seed} | summary | more | {"notes": notes}
    )
    return content


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """Write `metrics.json`; of an evaluation it comes last, so that everything is there where it is."""
    write_text(path, with_digest(json.dumps(content, indent=2, allow_nan=False)) + "\n")


def read_metrics(path: Path) -> dict[str, Any]:
    """Read `metrics.json`.

    Raises:
        DataError: The file is missing or is not what `write_metrics` writes.
    """
    content = _read(path)
    if "tasks" not in content:
        raise DataError(f"`{path}` holds no `tasks`. Expected scores that this program wrote; evaluate the run again.")
    return content


def main_metrics(names: Iterable[str]) -> list[str]:
    """Return the metrics of a task that are shown first: four, and those of `ALSO_SHOWN`."""
    names = list(names)
    return names[:4] + [name for name in names[4:] if name in ALSO_SHOWN]


def save_records(path: Path, evaluator: Evaluator) -> None:
    """Write what an evaluator holds as JSON, with the task specs; every number comes back exactly, in the same type."""
    records, specs = evaluator.records(), {task: spec.to_dict() for task, spec in evaluator.specs.items()}
    content = {"format": RECORDS_FORMAT, "group_by": evaluator.group_by, "specs": specs, "samples": records["samples"]}
    content["tasks"] = _encode(records["tasks"])
    write_text(path, with_digest(json.dumps(content, separators=(",", ":"), allow_nan=False)))


def save_cases(path: Path, cases: dict[str, Any]) -> None:
    """Write the volumes (`cases` of `metrics.json`) as CSV, one row per task, case and class; no file where there is none."""
    rows = [
        {"task": task, "case": case, "class": name, **row}
        for task, table in cases.items()
        for case, classes in table.items()
        for name, row in classes.items()
    ]
    if rows:
        write_table(path, rows, CASE_FIELDS)


def save_tables(place: ResultFolder, evaluator: Evaluator, thresholds: Mapping[str, Mapping[str, float]]) -> None:
    """Write for every task what is annotated and what is predicted as CSV, one row per image; none where no image is labelled.

    A task that classifies annotated objects also gets a table with one row per object.

    Args:
        place: Folder of the evaluation.
        evaluator: Holds the records.
        thresholds: Decision thresholds by task.
    """
    for task, spec in evaluator.specs.items():
        rules, own, images, objects = rules_of(spec), thresholds.get(task, {}), [], []
        for record in evaluator.metrics[task].records:
            known = {key: record[key] for key in ("sample_id", "group", "source", "case") if key in record}
            images.append(known | rules.scored(spec, record, own))
            rows = enumerate(rules.scored_objects(spec, record, own), start=1)
            objects += [known | {"object": number} | row for number, row in rows]
        for path, table in ((place.table(task), images), (place.object_table(task), objects)):
            if table:
                write_table(path, table, list(dict.fromkeys(column for row in table for column in row)))


def load_records(path: Path) -> dict[str, Any]:
    """Read what `save_records` wrote, for `Evaluator.extend`; `specs` holds the tasks, `group_by` what a group is.

    Raises:
        DataError: The file is missing, broken or of another format.
    """
    content = _read(path)
    try:
        content = converted_records(content, path)
        specs = {task: TaskSpec.from_dict(values) for task, values in content["specs"].items()}
        named = {sample["sample_id"]: (sample["group"], sample["source"]) for sample in content["samples"]}
        strange = [task for task in specs if not {record["sample_id"] for record in content["tasks"][task]} <= named.keys()]
        if not specs or strange:
            raise ValueError(f"records of unknown images in {strange[0]}" if strange else "no task")
        return {
            "group_by": content["group_by"], "specs": specs, "samples": content["samples"], "tasks": _decode(content["tasks"]),
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"`{path}` is not what this release writes ({type(error).__name__}: {error}). Evaluate the run again."
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        # The shortest text that gives the same float32 again; a plain tolist() would write 17 digits.
        numbers = [float(str(v)) for v in array.ravel()] if array.dtype == np.float32 else array.ravel().tolist()
        return {"dtype": str(array.dtype), "shape": list(array.shape), "data": plain(numbers)}
    return plain(value)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "data"}:
        numbers = [np.nan if number is None else number for number in value["data"]]
        return np.array(numbers, dtype=value["dtype"]).reshape(value["shape"])
    return {key: _decode(entry) for key, entry in value.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = without_digest(path.read_text(encoding="utf-8").rstrip("\n"))
        if text is None:
            raise DataError(f"`{path}` is not what was written: it was edited or is damaged. Evaluate the run again.")
        content = parse_json(text)
    except OSError as error:
        raise DataError(
            f"Cannot read `{path}`: {error.strerror}. Expected the {path.name} of a finished evaluation."
        ) from error
    except ValueError as error:
        raise DataError(f"`{path}` is not valid JSON ({error}). Expected the {path.name} of a finished evaluation.") from error
    if not isinstance(content, dict):
        raise DataError(f"`{path}` holds a {type(content).__name__}. Expected the {path.name} of a finished evaluation.")
    return content
