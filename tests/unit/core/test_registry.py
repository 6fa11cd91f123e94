from __future__ import annotations

import subprocess
import sys

import pytest

from mtl.core import plugins
from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS, BALANCERS, DATA_FAMILIES, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS, STUDY_METRICS

REGISTRIES = [ADAPTERS, BALANCERS, ENCODERS, HEADS, LOSSES, NECKS, SCHEDULERS, DATA_FAMILIES, STUDY_METRICS]


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


def test_a_known_name_parses_only_its_own_file_and_what_it_inherits():
    code = (
        "from mtl.core import registry; parsed = []; read = registry.read_source; "
        "registry.read_source = lambda path, module: (parsed.append(path.name), read(path, module))[1]; "
        "assert len(registry.HEADS.names()) > 10 and registry.HEADS.entry('unet').constant('kind') == 'segmentation'; "
        "assert parsed == ['unet.py'], parsed"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_parts_of_one_file_with_one_name_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "double_head.py"
    file.write_text('@HEADS.register("double")\nclass A: ...\n\n\n@HEADS.register("double")\nclass B: ...\n', encoding="utf-8")
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins.use([str(file)])
    with pytest.raises(ConfigError, match=r"Two heads in `.*double_head.py` are called `double`: `A` and `B`"):
        HEADS.entries()


def test_a_part_below_the_top_level_is_no_part(tmp_path, monkeypatch):
    file = tmp_path / "quoted_head.py"
    file.write_text('TEXT = """\n@HEADS.register("quoted")\nclass A: ...\n"""\n', encoding="utf-8")
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins.use([str(file)])
    with pytest.raises(ConfigError, match="not at the top level of the module"):
        HEADS.entry("quoted")
