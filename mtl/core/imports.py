"""Libraries that others import only because they are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def withheld(*names: str) -> Iterator[None]:
    """Let packages appear not to be installed for as long as another one is imported that can do without them.

    Args:
        names: Top-level packages; those that are imported already stay as they are.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how Python marks what is not to be found
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
