"""JSON that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str, **options: Any) -> Any:
    """Return what JSON says.

    Args:
        text: The whole document.
        options: Of `json.loads`.

    Raises:
        ValueError: It is no JSON, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
