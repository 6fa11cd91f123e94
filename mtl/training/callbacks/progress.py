"""Progress for people: a bar in a terminal, nothing but the log's epoch lines elsewhere."""

from __future__ import annotations

import sys

from pytorch_lightning.callbacks import Callback, RichProgressBar


def progress_callbacks(enabled: bool | None) -> list[Callback]:
    """Return the progress bar if it is wanted: `enabled`, or, when None, if standard output is a terminal."""
    wanted = sys.stdout.isatty() if enabled is None else enabled
    return [RichProgressBar(leave=False)] if wanted else []
