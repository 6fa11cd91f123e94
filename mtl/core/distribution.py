"""Under which name the program is installed: `mtl` on the package index belongs to somebody else."""

from __future__ import annotations

DISTRIBUTION = "mtl-medical"


def install_command(extra: str = "") -> str:
    """Return the shell command that installs the program, with one of its optional dependencies.

    Args:
        extra: Name of a group in `project.optional-dependencies`; none installs the newest release itself.
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install -U {DISTRIBUTION}"
