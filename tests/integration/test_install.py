"""The wheel holds everything that the installed command needs. Slow: builds it with the packages of the index."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]


def call(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without the path of the checkout: only what was installed may be found.
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MTL_DATA_DIR")}
    return subprocess.run(
        [*words], cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = call(*pip, "wheel", str(REPOSITORY), "--no-deps", "-q", "-w", str(folder), cwd=folder)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("the build tool cannot be downloaded here")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("mtl_medical-*.whl"))


def test_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mtl/py.typed", "mtl/report/report.html.j2", "mtl/configs/train.yaml"} <= names
    configs = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {f"mtl/{name}" for name in configs} <= names
    code = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "mtl").rglob("*.py")}
    assert code <= names and not any(name.startswith(("tests/", "docs/")) for name in names)


def test_installed_command_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    assert call(*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path).returncode == 0
    work = tmp_path / "work"
    work.mkdir()
    mtl = [sys.executable, str(site / "bin" / "mtl")]
    found = call(sys.executable, "-c", "import mtl; print(mtl.__file__)", cwd=work, PYTHONPATH=str(site))
    assert found.stdout.strip() == str(site / "mtl" / "__init__.py")
    done = call(*mtl, "train", "task=malaria_mttl", "backbone=resnet18", "--cfg", "job", cwd=work, PYTHONPATH=str(site))
    assert done.returncode == 0 and "architecture: resnet18" in done.stdout, done.stderr
    assert call(*mtl, "data", "synth", "malaria", "output=smears", "patients=3", "fields=1", "width=160", cwd=work,
                PYTHONPATH=str(site)).returncode == 0  # fmt: skip
    done = call(
        *mtl, "train", "task=malaria_mttl", "backbone=test_resnet", "data.root=smears", "debug=fast", "trainer=cpu",
        "name=first", "data.geometry.size=[64,64]", cwd=work, PYTHONPATH=str(site),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / "runs" / "malaria_mttl" / "first" / "report.html").is_file()
