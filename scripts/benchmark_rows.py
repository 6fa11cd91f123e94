"""Rows of the benchmark's table, and the Markdown they become."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmark: begin (written by {script}) -->", "<!-- benchmark: end -->"


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        section: What it belongs to.
        what: What was measured.
        value: The number.
        unit: Its unit.
        note: Spread, target or conditions.
    """

    section: str
    what: str
    value: float
    unit: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def spread(values: list[float], digits: int = 3) -> str:
    """Return the quartiles of a sample as text."""
    if len(values) < 4:
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}, n = {len(values)}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"quartiles {low:.{digits}f} to {high:.{digits}f}, n = {len(values)}"


def markdown(result: dict[str, Any]) -> str:
    """Format a result as one table with what it was measured on."""
    environment = result["environment"]
    lines = [
        "```",
        result["command"],
        "```",
        "",
        *(f"- {key}: {value}" for key, value in environment.items()),
        "",
    ]
    if "table" in result:
        return "\n".join([*lines, *result["table"]])
    lines += ["| section | what | value | unit | note |", "|---|---|---:|---|---|"]
    last = ""
    for row in result["rows"]:
        section = row["section"] if row["section"] != last else ""
        last = row["section"]
        lines.append(f"| {section} | {row['what']} | {_number(row['value'])} | {row['unit']} | {row['note']} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def write_section(path: Path, text: str, script: str = "scripts/benchmark.py") -> None:
    """Replace the section of a page that a script generates, or add it at the end."""
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Benchmarks\n"
    begin = BEGIN.format(script=script)
    section = f"{begin}\n{text}\n{END}"
    if begin in page and END in page.partition(begin)[2]:
        before, _, after = page.partition(begin)
        page = before + section + after.partition(END)[2]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
