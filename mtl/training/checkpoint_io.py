"""How Lightning writes and reads checkpoints here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO

from mtl.runs.checkpoint import load_without_code, save_atomic


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, so that a crash or a full disk leaves the previous checkpoint untouched."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Save one file; `storage_options` is part of Lightning's interface and unused.

        Raises:
            TrainingError: The file cannot be written (disk full, no permission, quota).
        """
        save_atomic(checkpoint, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and plain values; code in the file is never run, whatever `weights_only` says.

        Raises:
            CheckpointError: The file is missing, broken or holds something else.
        """
        return load_without_code(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint file; a missing one is fine."""
        Path(path).unlink(missing_ok=True)
