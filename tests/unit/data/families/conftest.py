from __future__ import annotations

from pathlib import Path

import pytest
from tiger_tools import draw_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Regions in the layout of TIGER, with every case of labels."""
    return draw_folder(tmp_path)
