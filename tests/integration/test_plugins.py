"""Parts from outside the package: an installed distribution, and a file named on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import words

from mtl.config.plan import Plan
from mtl.core import plugins

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = '''
from torch import Tensor, nn

from mtl.core.registry import HEADS
from mtl.heads.segmentation.base import SegmentationHead
{imports}

@HEADS.register("{name}")
class LinearHead({base}):
    """A linear probe."""

    def __init__(self, spec, channels: tuple, strides: tuple, *, loss: dict, level: int = -1) -> None:
        super().__init__(spec, channels, strides, loss)
        self.level = level
        self.logits = nn.Conv2d(channels[level], len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        return self.logits(features[self.level])
'''
YAML = "defaults: [/loss@loss: dice_bce, _self_]\nname: {name}\nfeatures: encoder\nlevel: -1\n"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "probe-heads"
version = "1.0"

[project.entry-points."mtl.heads"]
probes = "probe_heads.heads"

[tool.setuptools]
packages = ["probe_heads", "probe_heads.heads"]

[tool.setuptools.package-data]
probe_heads = ["configs/**/*.yaml"]
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip has installed a small distribution with a head, its base class and its YAML."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    write(source / "pyproject.toml", PROJECT)
    # Importing the package fails before torch is there: whatever is known before was read, not imported.
    write(source / "probe_heads" / "__init__.py", "import sys\nassert 'torch' in sys.modules, 'imported too early'\n")
    base = "from mtl.heads.segmentation.base import SegmentationHead\n\n\nclass Base(SegmentationHead):\n    pass\n"
    write(source / "probe_heads" / "base.py", base)
    write(source / "probe_heads" / "heads" / "__init__.py", "")
    text = HEAD.format(name="installed_linear", base="Base", imports="from probe_heads.base import Base\n")
    write(source / "probe_heads" / "heads" / "linear.py", text)
    write(source / "probe_heads" / "configs" / "head" / "installed_linear.yaml", YAML.format(name="installed_linear"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True, timeout=200)
    return target


def python(*arguments: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(folder) for folder in (REPOSITORY, site) if folder)
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=250
    )


def mtl(*arguments: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "mtl", *arguments, cwd=cwd, site=site)


def trained(smears: Path, cwd: Path, *more: str, site: Path | None = None) -> dict:
    """Train a tiny run and return its configuration."""
    done = mtl("train", *words(smears, cwd / "run", "debug=fast", "tasks=[segmentation]", *more), cwd=cwd, site=site)
    assert done.returncode == 0, done.stderr
    return json.loads((cwd / "run" / "config.json").read_text(encoding="utf-8"))


def image(smears: Path) -> str:
    return str(next(path for path in sorted(smears.rglob("*")) if path.suffix in (".jpg", ".png")))


def test_an_installed_head_trains_predicts_and_is_missed(smears: Path, site: Path, tmp_path: Path) -> None:
    config = trained(smears, tmp_path, "head@heads.segmentation=installed_linear", site=site)
    assert config["plugins"] == ["probe_heads.heads"]
    assert config["heads"]["segmentation"]["level"] == -1
    predict = ["predict", "checkpoint=run", f"source={image(smears)}", "output=out"]
    done = mtl(*predict, cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("*.json"))
    missed = mtl(*predict, cwd=tmp_path)
    assert missed.returncode == 4 and len(missed.stderr.splitlines()) == 1
    assert "best.ckpt` needs the plug-in `probe_heads.heads`" in missed.stderr
    missed = mtl("train", "resume=run", cwd=tmp_path)
    assert missed.returncode == 2 and "needs the plug-in `probe_heads.heads`" in missed.stderr


def test_mistakes_in_keys_of_an_installed_head_are_answered_before_torch(smears: Path, site: Path, tmp_path: Path) -> None:
    wrong = mtl("train", *words(smears, tmp_path / "run"), "head@heads.segmentation=installed_linear",
                "heads.segmentation.levl=1", "tasks=[segmentatio]", cwd=tmp_path, site=site)  # fmt: skip
    assert wrong.returncode == 2 and "Did you mean `level`?" in wrong.stderr and "Did you mean `segmentation`?" in wrong.stderr
    assert "imported too early" not in wrong.stderr
    wrong = mtl("train", *words(smears, tmp_path / "run"), "head@heads.segmentation=installed_linea", cwd=tmp_path, site=site)
    assert wrong.returncode == 2 and "Did you mean `installed_linear`?" in wrong.stderr
    assert "installed_linear" in mtl("train", "--help", cwd=tmp_path, site=site).stdout


def test_a_file_named_on_the_command_line_is_named_again_later(
    smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = HEAD.format(name="own_linear", base="SegmentationHead", imports="")
    file = write(tmp_path / "mine" / "own_linear_head.py", text)
    write(tmp_path / "mine" / "configs" / "head" / "own_linear.yaml", YAML.format(name="own_linear"))
    named = "plugins=[mine/own_linear_head.py]"
    config = trained(smears, tmp_path, "head@heads.segmentation=own_linear", named)
    assert config["plugins"] == [str(file)]

    refused = mtl("evaluate", "checkpoint=run", cwd=tmp_path)
    assert refused.returncode == 4 and f"plugins=[{file}]" in refused.stderr
    assert mtl("evaluate", "checkpoint=run", "bootstrap=10", "report=false", named, cwd=tmp_path).returncode == 0
    assert Plan.from_words(["task=malaria_mttl", f"plugins=[{file}]"]).config.plugins == []  # named, but not used
    resumed = mtl("train", "resume=run", named, "trainer.max_epochs=2", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr

    moved = (tmp_path / "mine").rename(tmp_path / "moved") / file.name
    code = f"import mtl; print(sorted(mtl.load('run', 'cpu', plugins=[{str(moved)!r}]).specs))"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "['segmentation']", done.stderr


def test_composition_by_hydra_itself_finds_a_named_plugin(tmp_path: Path) -> None:
    file = write(tmp_path / "swept_head.py", HEAD.format(name="swept_linear", base="SegmentationHead", imports=""))
    write(tmp_path / "configs" / "head" / "swept_linear.yaml", YAML.format(name="swept_linear"))
    chosen = ["task=malaria_mttl", "head@heads.segmentation=swept_linear", f"plugins=[{file}]"]
    done = mtl("train", *chosen, "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0 and "name: swept_linear" in done.stdout, done.stderr
