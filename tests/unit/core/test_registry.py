from __future__ import annotations

import subprocess
import sys

import pytest

from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS, BALANCERS, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS, SOURCES, STUDY_METRICS

REGISTRIES = [ADAPTERS, BALANCERS, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS, SOURCES, STUDY_METRICS]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.symbol)
def test_every_declared_part_can_be_imported_under_its_name(registry):
    assert registry.names()
    for name in registry.names():
        assert callable(registry.get(name))


def test_names_and_keys_are_known_without_importing_torch():
    code = (
        "import sys; from mtl.core.registry import HEADS; "
        "assert 'nms' in HEADS.entry('faster_rcnn').parameters; "
        "assert HEADS.entry('unet').constants['kind'] == 'segmentation'; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_and_key_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean `unet`"):
        HEADS.build({"name": "unett"})
    with pytest.raises(ConfigError, match="Did you mean `smooth`"):
        LOSSES.build({"name": "dice_bce", "smoth": 1.0})


def test_two_registries_of_one_package_do_not_mix():
    assert "timm" in ENCODERS.names()
    assert "timm" not in ADAPTERS.names()
