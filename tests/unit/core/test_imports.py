"""What is withheld is missing for a while, and there afterwards."""

from __future__ import annotations

import importlib
import sys

import pytest

from mtl.core.imports import withheld


def test_a_package_is_missing_only_inside() -> None:
    sys.modules.pop("this", None)
    with withheld("this", "json"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("this")
        assert importlib.import_module("json").loads("1") == 1  # it was there before
    assert "this" not in sys.modules and importlib.util.find_spec("this") is not None
