"""The history of a run, `metrics.csv`: written after every epoch, read by resuming, scores and report. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import write_table
from mtl.runs.folder import LAST, RunFolder

History = dict[str, np.ndarray]


@dataclass(frozen=True)
class StageSpan:
    """The epochs of a stage of a curriculum.

    Attributes:
        name: Its name.
        first, last: Its epochs, counted over the whole run.
    """

    name: str
    first: float
    last: float


def write_history(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per finished epoch; a column appears as soon as one row has it."""
    write_table(RunFolder(run_dir).history, rows, list(dict.fromkeys(key for row in rows for key in row)))


def read_history(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of the history, one per finished epoch; none where the file is missing.

    Raises:
        DataError: It is something else.
    """
    path = RunFolder(run_dir).history
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{str(key): value or "" for key, value in row.items()} for row in csv.DictReader(file)]
    except OSError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`{path}` is damaged: {error}. Remove it; a resumed run writes it anew from {LAST}.") from error
    if rows and not all(_is_number(row.get("epoch", "")) for row in rows):
        raise DataError(
            f"`{path}` holds no number in its column `epoch`. Expected one row per finished epoch. Remove it; a resumed run "
            f"writes it anew from {LAST}."
        )
    return rows


def history_columns(rows: Sequence[Mapping[str, str]]) -> tuple[History, list[StageSpan]]:
    """Turn the rows of a history into columns.

    Returns:
        Its columns as float arrays, NaN for empty cells. The stages that its column `stage` names.
    """
    columns = [name for name in (rows[0] if rows else ()) if name and name != "stage"]
    history = {name: np.array([_float(row.get(name)) for row in rows]) for name in columns}
    names = [row.get("stage") or "" for row in rows]
    if not any(names) or "epoch" not in history:
        return history, []
    stages: dict[str, StageSpan] = {}
    for name, epoch in zip(names, history["epoch"].tolist(), strict=True):
        stages[name] = StageSpan(name, stages[name].first if name in stages else epoch, epoch)
    return history, list(stages.values())


def _float(text: str | None) -> float:
    return float(text) if text and _is_number(text) else float("nan")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def rows_before(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """Return the rows of the stages before one, as the recorder wrote them.

    Args:
        run_dir: The run directory.
        stage: Name of the stage; its own rows, of an epoch that is trained again, are left out.
    """
    rows = []
    for row in read_history(run_dir):
        if row.get("stage", "") == stage:
            break
        rows.append({key: value if key == "stage" else _number(value) for key, value in row.items() if value})
    return rows


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def training_summary(run_dir: Path, max_epochs: int) -> dict[str, Any] | None:
    """Return what a run really saw, in contrast to the budget it was allowed.

    Args:
        run_dir: The run directory.
        max_epochs: What `trainer.max_epochs` allowed.

    Returns:
        `epochs` finished, optimizer `steps`, `samples_seen` over all ranks, `seconds` of training and validation, and
        `stopped_early` (fewer epochs than allowed); None without a history.
    """
    rows = read_history(run_dir)
    if not rows or "samples" not in rows[-1]:
        return None
    epochs = int(rows[-1]["epoch"]) + 1
    return {
        "epochs": epochs,
        "steps": int(rows[-1]["step"]),
        "samples_seen": int(rows[-1]["samples"]),
        "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
        "stopped_early": epochs < max_epochs,
    }
