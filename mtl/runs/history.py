"""What `metrics.csv` of a run says about its training. Imports neither torch nor Lightning."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def read_history(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv`, one per finished epoch; none where the file is missing."""
    try:
        with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


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
    """Say what a run really saw, in contrast to the budget it was allowed.

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
