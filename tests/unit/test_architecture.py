"""The floors of the house: imports run downwards only, without a circle, wherever in a file they stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mtl
from mtl.core.registry import DATA_FAMILIES

PACKAGE = Path(mtl.__file__).parent
# From the top floor down. A room imports from lower floors and from itself; `mtl` is the package's own `__init__`.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"cli"}),
    frozenset({"mtl", "experiments"}),
    frozenset({"training", "report"}),
    frozenset({"evaluation"}),
    frozenset({"inference"}),
    frozenset({"runs"}),
    frozenset({"model", "data"}),
    frozenset({"heads", "encoders", "necks", "kinds"}),
    frozenset({"metrics", "imaging", "drawing", "stitching", "config", "losses", "balancing", "layers"}),
    frozenset({"core"}),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that no framework may enter, whatever the reason: they work in a program that has neither.
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf"}
WITH_FRAMEWORKS = {"training", "data", "config", "cli", "experiments"}
WITHOUT_FAMILIES = {
    "inference",
    "runs",
    "report",
    "drawing",
    "evaluation",
    "metrics",
    "stitching",
    "imaging",
    "config",
    "training",
}
LONGEST = 400


def room_of(module: str) -> str:
    """`mtl.heads.roi` -> `heads`; the package itself -> `mtl`."""
    steps = module.split(".")
    return steps[1] if len(steps) > 1 else steps[0]


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["mtl", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """Names of the modules that a file imports, also inside functions and for type checking only."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide where a thing comes from"
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= whole or {node.module}
    return found


def test_imports_run_downwards() -> None:
    files = dict(sources())
    wrong = []
    for name, tree in files.items():
        room = room_of(name)
        assert room in FLOOR_OF, f"{name}: a new room needs its floor in the table"
        for other in imported(tree, set(files)):
            if other.partition(".")[0] == "mtl" and room_of(other) != room and FLOOR_OF[room_of(other)] <= FLOOR_OF[room]:
                wrong.append(f"{name} imports {other}")
            if other.partition(".")[0] in FRAMEWORKS and room not in WITH_FRAMEWORKS:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_rooms_that_serve_all_families_name_none() -> None:
    """No import of a family, and no string that is the name of one."""
    wrong = []
    for name, tree in sources():
        if room_of(name) in WITHOUT_FAMILIES:
            wrong += [f"{name} imports {other}" for other in imported(tree, set()) if other.startswith("mtl.data.families")]
            words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            wrong += [f"{name} names {family}" for family in DATA_FAMILIES.names() if family in words]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    files = dict(sources())
    graph = {name: imported(tree, set(files)) & set(files) - {name} for name, tree in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_room_of_the_table_exists() -> None:
    assert {room_of(name) for name, _ in sources()} == set(FLOOR_OF)


def test_the_page_shows_the_same_floors() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*? \| (.*) \|$", page.partition("| floor | rooms |")[2].partition("\n\n")[0], flags=re.MULTILINE)
    floors = [{step.removesuffix(".py") for step in re.findall(r"`mtl/(\w+)", row)} for row in rows]
    expected = [set(rooms) - {"__main__"} for rooms in FLOORS]
    shown = [{"mtl" if room == "__init__" else room for room in rooms} for rooms in floors if rooms]
    assert shown == [rooms for rooms in expected if rooms]


def test_no_module_is_too_long() -> None:
    long = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}
