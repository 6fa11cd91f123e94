"""What the README shows works as typed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtl.config.load import load_config
from mtl.config.plan import Plan
from mtl.config.verbs import CompareConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if re.match(r"(python train\.py|mtl describe) ", line)]
FILES = {
    match[1]: match[2]
    for match in re.finditer(r"```(?:python|yaml)\n# ((?:mtl|configs)/\S+)\n(.*?)```", README, flags=re.DOTALL)
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_command_composes(command):
    words = [word for word in shlex.split(command, comments=True) if "=" in word]
    if words[0].startswith("resume="):
        pytest.skip("resume= takes its configuration from the run")
    words = [re.sub(r",.*", "", word) if " -m " in command else word for word in words]
    assert Plan.from_words(words).config.tasks


def test_every_comparison_composes():
    """Those of the README, and those that stand above the tables of results."""
    pages = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "results").glob("*.md")))]
    lines = [line for page in pages for line in page.splitlines() if line.startswith("mtl compare ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)[2:]
        end = words.index("--") if "--" in words else len(words)
        config = load_config("compare", words[:end], CompareConfig)
        for arm in config["arms"].values() if isinstance(config["arms"], dict) else [[]]:
            assert Plan.from_words([f"task={config['suite']}", *words[end + 1 :], *arm]).config.tasks


def test_linked_pages_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's head and data set added."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("mtl", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    assert len(FILES) == 5
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "train.py", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "run" / "report.html").is_file()
    shutil.rmtree(folder / "run")


@pytest.mark.slow
def test_the_head_of_the_readme_trains(extended, smears):
    run(
        extended, "task=malaria_mttl", "head@heads.segmentation=linear", "tasks=[segmentation]", "backbone=test_resnet",
        "debug=fast", "trainer=cpu", f"data.root={smears}", "data.geometry.size=[64,64]", "paths.run_dir=run",
    )  # fmt: skip


@pytest.mark.slow
def test_the_data_set_of_the_readme_trains(extended, cells):
    root = extended / "slides"
    for index, source in enumerate(sorted(cells.rglob("*.png"))):
        folder = root / ("malignant" if source.parent.name == "Parasitized" else "benign")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"{source.name.split('_')[0]}_{index}.png")
    run(
        extended, "task=slides", "backbone=test_resnet", "debug=fast", "trainer=cpu", f"data.root={root}",
        "data.geometry.size=[64,64]", "paths.run_dir=run",
    )  # fmt: skip
