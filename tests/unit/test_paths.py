"""One owner of the paths of a run, one way to write a file, and only what Lightning documents."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtl
from mtl.core.errors import CheckpointError
from mtl.runs.folder import RunFolder, checkpoint_path, require_checkpoint

PACKAGE = Path(mtl.__file__).parent
OWNER = "runs/folder.py"
FILES = (
    "best.ckpt", "last.ckpt", "stage_", "metrics.json", "config.json", "split.csv", "metrics.csv", "records.json", "cases.csv",
    "environment.json", "log.txt", "output.txt", "profile.txt",
)  # fmt: skip
FOLDERS = ("checkpoints", "predictions")
# Strings that name something else.
OTHERS = {
    ("encoders/hub.py", "checkpoints"),  # of torch hub
    ("config/verbs.py", "predictions"),  # where `mtl predict` writes
}
# Calls that open a file under its own name, where they write into a folder that appears as a whole, and which need no file.
PLAIN = ("write_text", "write_bytes", "savefig", "imwrite")
IN_NEW_FOLDERS = ("data/families/", "data/pipeline/cache.py")
IN_MEMORY = ("figure.savefig(out,", "FigureCanvasAgg(figure).print_png(picture)")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def strings(tree: ast.Module) -> Iterator[str]:
    """Strings of a module, parts of f-strings too, without docstrings."""
    documentation = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node.value


def test_the_files_of_a_run_are_named_in_one_place() -> None:
    found = [
        f"{file}: {text!r}"
        for file, tree in sources()
        for text in strings(tree)
        if file != OWNER and (file, text) not in OTHERS and (text in FOLDERS or any(name in text for name in FILES))
    ]
    assert found == []


def test_unfinished_files_are_named_in_one_place() -> None:
    found = [(file, text) for file, tree in sources() for text in strings(tree) if ".partial" in text]
    # The other is a folder, in which an interrupted cache is completed.
    assert {file for file, _ in found} == {"core/files.py", "data/pipeline/cache.py"}
    assert {text for file, text in found if file != "core/files.py"} == {".partial"}


def test_files_are_written_in_one_way() -> None:
    """`mtl.core.files` writes beside and renames; generators and the cache write plainly, into folders that are renamed."""
    found = []
    for file, tree in sources():
        if file == "core/files.py" or file.startswith(IN_NEW_FOLDERS):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            target = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            modes = [value.value for value in node.args if isinstance(value, ast.Constant)]
            opens = node.func.attr == "open" and any(str(mode)[:1] in ("w", "x") for mode in modes)
            saves = node.func.attr in ("save", "print_png") and target != "torch"
            if (opens and target != "partial") or node.func.attr in PLAIN or saves:
                found.append(f"{file}: {ast.unparse(node)}")
    found = [line for line in found if not line.partition(": ")[2].startswith(IN_MEMORY)]
    assert found == []


LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning")


def test_nothing_private_of_lightning_is_used() -> None:
    """So that a new release of it breaks nothing without notice; `lightning_fabric` is what it is built on."""
    wrong = []
    for file, tree in sources():
        names = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names]
            )
            if name.partition(".")[0] in LIGHTNING
        }
        wrong += [f"{file} imports {name}" for name in names if name.startswith("lightning") or "._" in name]
        if not names:
            continue
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"}  # fmt: skip
        wrong += [
            f"{file}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__")
            if node.attr not in own
        ]
    assert wrong == []


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert RunFolder.of(run.best) == RunFolder.of(run.stage("joint")) == run
    assert RunFolder.of(tmp_path / "elsewhere" / "copy.ckpt").path == tmp_path / "elsewhere"
    assert checkpoint_path(run.path) == run.path
    run.checkpoints.mkdir(parents=True)
    run.best.touch()
    assert checkpoint_path(str(run.path)) == run.best and checkpoint_path(run.last) == run.last


@pytest.mark.parametrize("name", ["metrics", "records", "cases", "figures", "report"])
def test_an_evaluation_has_the_files_of_a_run_in_its_own_folder(name: str) -> None:
    run = RunFolder(Path("run"))
    own = getattr(run.evaluation("val"), name)
    assert own == Path("run/evaluation/val") / getattr(run, name).relative_to(run.path)


def test_a_wrong_checkpoint_is_answered_without_torch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    code = "import sys; from mtl.runs.folder import require_checkpoint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
    for path, words in ((tmp_path / "none", "does not exist"), (run.path, "not a run with a finished epoch")):
        with pytest.raises(CheckpointError, match=words):
            require_checkpoint(path)
    run.last.touch()
    with pytest.raises(CheckpointError, match=r"Did you mean .*last"):
        require_checkpoint(run.path)
    run.best.touch()
    require_checkpoint(run.path)
