from __future__ import annotations

from pathlib import Path

import pytest
from tiger_tools import generate_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Regions in the layout of TIGER, with every case of labels."""
    return generate_folder(tmp_path)
