"""What docs/extending.md says a new part touches is all that it touches: its examples work in a copy of the project."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(python|yaml|diff)\n# ((?:mtl|configs)/\S+)\n(.*?)```", flags=re.DOTALL)
TOPICS = (
    "A neck", "A head", "A loss", "A balancer", "A data set", "A task kind", "A study metric", "A verb",
)  # fmt: skip


@dataclass
class Section:
    """What a section of the page says: files to touch, files to add as they stand, and changes of files."""

    named: set[str] = field(default_factory=set)
    added: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)


def read_sections() -> dict[str, Section]:
    sections = {}
    for text in PAGE.split("\n## ")[1:]:
        section = Section()
        for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE):
            section.named |= set(re.findall(r"`((?:mtl|configs)/[\w/.]+)`", row))
        for language, name, content in [*BLOCK.findall(text), *BLOCK.findall(README)]:
            if language == "diff":
                section.changed[name] = content
            elif name in section.named and not (ROOT / name).exists():
                section.added[name] = content
        sections[text.partition("\n")[0]] = section
    return sections


SECTIONS = read_sections()


@pytest.mark.parametrize("topic", TOPICS)
def test_the_table_lists_the_files_of_its_example(topic: str) -> None:
    section = SECTIONS[topic]
    assert section.named and section.named == section.added.keys() | section.changed.keys()


def test_every_example_stands_under_a_table() -> None:
    complete = {name for language, name, text in BLOCK.findall(PAGE) if language != "diff" and not (ROOT / name).exists()}
    assert complete <= set().union(*(SECTIONS[topic].added for topic in TOPICS))


def contents(folder: Path) -> dict[str, bytes]:
    """Files of the program below a checkout."""
    files = [path for name in ("mtl", "configs") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if "__pycache__" not in path.parts}


def replaced(text: str, change: str) -> str:
    """Apply the lines of a diff: those with - make room for those with +."""
    lines = change.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
    assert text.count(old) == 1
    return text.replace(old, new)


@dataclass(frozen=True)
class Copy:
    """A copy of the project with every example, and a folder to work in."""

    project: Path
    work: Path

    def mtl(self, *words: str, status: int = 0) -> str:
        """Run the command line in a process of its own; return what it printed."""
        return self.python("-m", "mtl", *words, status=status)

    def python(self, *words: str, status: int = 0) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.project), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.work, env=environment, capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    project, work = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("work")
    for name in ("mtl", "configs"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for topic in TOPICS:
        for name, text in SECTIONS[topic].added.items():
            (project / name).write_text(text, encoding="utf-8")
        for name, change in SECTIONS[topic].changed.items():
            (project / name).write_text(replaced((project / name).read_text(encoding="utf-8"), change), encoding="utf-8")
    draw_mitoses(work / "slides")
    return Copy(project, work)


def draw_mitoses(root: Path) -> None:
    """Eight patients with two images of 64 pixels; of the last one nobody looked for figures, the one before has none."""
    root.mkdir()
    random = np.random.default_rng(3)
    for number in range(16):
        pixels = random.integers(150, 200, (64, 64, 3), dtype=np.uint8)
        boxes = []
        for _ in range(0 if number == 14 else 1 + number % 3):
            x, y = (int(value) for value in random.integers(2, 46, 2))
            kind = ("mitosis", "lookalike")[int(random.integers(2))]
            pixels[y : y + 16, x : x + 16] = (60, 20, 90) if kind == "mitosis" else (20, 90, 60)
            boxes.append(f"{kind},{x},{y},{x + 16},{y + 16}")
        stem = f"p{number // 2}_{number % 2}"
        Image.fromarray(pixels).save(root / f"{stem}.png")
        if number != 15:
            (root / f"{stem}.csv").write_text("\n".join(["class,x_min,y_min,x_max,y_max", *boxes, ""]), encoding="utf-8")


TINY = ("backbone=test_resnet", "trainer=cpu", "debug=fast", "data.geometry.size=[64,64]", "data.loader.batch_size=4")
FIGURES = (
    "task=mitoses", "data.root=slides", "+neck@necks.narrow=narrow", "heads.detection.features=narrow",
    "+head@heads.number=counter", "tasks=[detection,number]", "balancer=equal_size",
    "study_metrics.count_error.name=count_error", *TINY,
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(copy: Copy) -> Path:
    """A run with the neck, the balancer, the data set, the task kind and the study metric of the page."""
    copy.mtl("train", *FIGURES, "paths.run_dir=run")
    return copy.work / "run"


def test_a_run_with_new_parts_is_scored(copy: Copy, run_dir: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert config["necks"]["narrow"]["width"] == 64 and config["balancer"] == {"name": "equal_size", "momentum": 0.1}
    assert config["heads"]["number"]["loss"] == {"name": "poisson"}
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["tasks"]) == {"detection", "number"}
    assert 0 <= metrics["tasks"]["number"]["close"] <= 1 and metrics["tasks"]["number"]["error"] >= 0
    assert metrics["baseline"]["number"]["name"] == "mean counts of training"
    # The same images, counted in two places.
    assert metrics["study"]["count_error"]["mae_image"] == pytest.approx(metrics["tasks"]["detection"]["count_mae"])
    assert (run_dir / "report.html").is_file()
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        weights = {key: float(value) for key, value in next(csv.DictReader(file)).items() if "weight" in key}
    assert len(weights) == 2 and all(value > 0 and value != 1 for value in weights.values())

    described = copy.mtl("describe", *FIGURES)
    assert "narrow" in described and "number" in described and "counter" in copy.mtl("train", "--help")

    split = copy.mtl("split", "checkpoint=run")
    assert sum(int(count) for count in re.findall(r": (\d+)$", split, flags=re.MULTILINE)) == 16
    assert copy.mtl("split", "--help").startswith("count the images of each split of a run")
    assert "  split " in copy.mtl("--help")
    assert "Did you mean `checkpoint`?" in copy.mtl("split", "chekpoint=run", status=2)


def test_a_new_kind_of_task_predicts(copy: Copy, run_dir: Path) -> None:
    copy.mtl("predict", "checkpoint=run", "source=slides/p0_0.png", "output=predictions")
    found = json.loads(next((copy.work / "predictions").rglob("p0_0.json")).read_text(encoding="utf-8"))
    counts = found["tasks"]["number"]["counts"]
    assert set(counts) == {"mitosis", "lookalike"} and all(value > 0 for value in counts.values())
    with (copy.work / "predictions" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["number_mitosis"]) == counts["mitosis"]


def test_a_new_data_set_is_checked(copy: Copy) -> None:
    assert "images: 16\npatients: 8\n" in copy.mtl("data", "check", "mitoses", "data.root=slides")
    broken = copy.work / "broken"
    shutil.copytree(copy.work / "slides", broken)
    (broken / "p1_0.csv").write_text("class,x_min,y_min,x_max,y_max\nmitosis,5,5,90,20\n", encoding="utf-8")
    (broken / "p2_0.csv").write_text("class,x_min,y_min,x_max,y_max\nmitosi,5,5,9,20\n", encoding="utf-8")
    told = copy.mtl("data", "check", "mitoses", "data.root=broken", status=3)
    assert "p1_0.csv:2: expected a box inside the image of 64 x 64 pixels" in told
    assert "p2_0.csv:2: expected a class of mitosis, lookalike, found `mitosi`" in told and "2 errors" in told


def test_a_new_head_and_a_new_loss_train(copy: Copy, smears: Path) -> None:
    copy.mtl(
        "train", "task=malaria_mttl", f"data.root={smears}", "tasks=[segmentation,parasitemia_percent]",
        "head@heads.segmentation=linear", "loss@heads.parasitemia_percent.loss=log_cosh", *TINY, "paths.run_dir=smears",
    )  # fmt: skip
    config = json.loads((copy.work / "smears" / "config.json").read_text(encoding="utf-8"))
    assert config["heads"]["segmentation"]["name"] == "linear"
    assert config["heads"]["parasitemia_percent"]["loss"] == {"name": "log_cosh", "scale": 1.0}
    metrics = json.loads((copy.work / "smears" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["tasks"]) == {"segmentation", "parasitemia_percent"}


def test_objects_of_a_new_data_set_are_the_boxes_of_its_files(copy: Copy) -> None:
    code = (
        "import json; from mtl.data.families.mitoses import Mitoses; family = Mitoses(root='slides');"
        "read = {record.sample_id: (record, family.read_labels(record).objects) for record in family.records()};"
        "rows = lambda found: None if found is None else [found.labels.tolist(), found.boxes.tolist(), found.points.tolist()];"
        "print(json.dumps({name: rows(found) for name, (_, found) in read.items()}));"
        "print(json.dumps({name: [record.group, record.labels] for name, (record, _) in read.items()}))"
    )
    objects, records = map(json.loads, copy.python("-c", code).splitlines())
    assert objects["p7_0"] == [[], [], []] and objects["p7_1"] is None  # none found, nobody looked
    assert records["p7_0"] == ["p7", ["objects"]] and records["p7_1"] == ["p7", []]
    with (copy.work / "slides" / "p1_0.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels, boxes, points = objects["p1_0"]
    assert labels == [["mitosis", "lookalike"].index(row["class"]) for row in rows]
    assert boxes == [[float(row[key]) for key in ("x_min", "y_min", "x_max", "y_max")] for row in rows]
    assert points == [[left + 8, top + 8] for left, top, _, _ in boxes]


@pytest.mark.slow
def test_the_tests_over_all_parts_take_new_ones_as_they_are(copy: Copy) -> None:
    """Those that the page promises to look at whatever is registered, for parts of which no table of theirs knows."""
    shutil.copytree(ROOT / "tests", copy.project / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy.project)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-vv", "tests/configs/test_flip_parts.py",
         "tests/configs/test_compose.py", "tests/contracts/test_heads.py", "-k",
         "narrow or linear or log_cosh or equal_size or mitoses or every_registered or yaml_with_every_key"],
        cwd=copy.project, env=os.environ | {"PYTHONPATH": str(copy.project), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for test in ("test_necks[narrow]", "test_losses[log_cosh-regression]", "test_balancers[equal_size]", "test_heads[linear]",
                 "test_decoded_form[linear]", "test_every_yaml_composes[data-mitoses]"):  # fmt: skip
        assert f"{test} PASSED" in done.stdout


def test_nothing_else_was_touched(copy: Copy) -> None:
    before, after = contents(ROOT), contents(copy.project)
    touched = {name for name in after if after[name] != before.get(name)}
    assert touched == set().union(*(SECTIONS[topic].named for topic in TOPICS))
    assert before.keys() <= after.keys()
