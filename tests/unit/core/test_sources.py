from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from mtl.core.declarations import Entry, declared
from mtl.core.errors import ConfigError
from mtl.core.sources import read_source

PACK = {
    "__init__.py": "from .base import Base\n",
    "base.py": """
class Base:
    kind = "segmentation"
    mixable: bool = False
    width = 3

    def __init__(self, spec, *, width: int = 8) -> None:
        pass
""",
    "left.py": "from pack_a import Base as Root\n\nclass Left(Root):\n    pass\n",
    "right.py": 'from .base import Base\n\nclass Right(Base):\n    kind = "points"\n    needs_boxes = True\n',
    "parts.py": """
import pack_a.right
from pack_a import left
from torch import nn

class Inner(nn.Module, left.Left):
    pass

@HEADS.register("inherits")
class Inherits(Inner):
    pass

@HEADS.register("diamond")
class Diamond(left.Left, pack_a.right.Right):
    def __init__(self, spec, *, depth: int = 2) -> None:
        pass

@HEADS.register("computed")
class Computed(left.Left):
    mixable = len("x") > 0

    def width(self) -> int:
        return 1

@HEADS.register("bare")
class Bare(nn.Module):
    kind: str
""",
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "pack_a").mkdir()
    for name, text in PACK.items():
        (folder / "pack_a" / name).write_text(text, encoding="utf-8")
    sys.path.append(str(folder))
    source = read_source(folder / "pack_a" / "parts.py", "pack_a.parts")
    found = {entry.name: entry for entry in declared(source, "HEADS")}
    sys.path.remove(str(folder))
    return found


def test_constants_and_keys_are_inherited_through_modules_without_importing(entries: dict[str, Entry]):
    assert "pack_a" not in sys.modules
    inherits = entries["inherits"]
    assert (inherits.constant("kind"), inherits.constant("mixable")) == ("segmentation", False)
    assert inherits.parameters["width"].default == 8


def test_the_lookup_order_is_that_of_python(entries: dict[str, Entry]):
    diamond = entries["diamond"]
    assert diamond.constant("kind") == "points"  # Right comes before Base, although Left inherits from Base
    assert diamond.constant("needs_boxes") is True
    assert list(diamond.parameters) == ["depth"]  # an own constructor takes what it says


def test_what_no_class_declares_is_an_error_that_names_file_and_class(entries: dict[str, Entry]):
    with pytest.raises(ConfigError, match=r"`Bare` in `.*parts.py` declares no `kind`. Add `kind = <literal>`"):
        entries["bare"].constant("kind")
    for key in ("mixable", "width"):  # the value of the base class would be wrong
        with pytest.raises(ConfigError, match=f"`Computed` in .* sets `{key}` to something that is no literal"):
            entries["computed"].constant(key)


def read(tmp_path: Path, text: str) -> dict[str, Entry]:
    file = tmp_path / "single_part.py"
    file.write_text(text, encoding="utf-8")
    read_source.cache_clear()
    return {entry.name: entry for entry in declared(read_source(file, "single_part"), "HEADS")}


def signature(arguments: str) -> str:
    return f'@HEADS.register("part")\ndef part(x, *, {arguments}):\n    """Sum it up.\n\n    More.\n    """\n'


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("int", int),
        ("'float | None'", float | None),
        ("typing.Any", Any),
        ("Literal['a', -1, None]", Literal["a", -1, None]),
        ("list[int] | dict[str, float]", list[int] | dict[str, float]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("tuple[int, str]", tuple[int, str]),
    ],
)
def test_annotations_are_read(written: str, expected: Any, tmp_path: Path):
    entry = read(tmp_path, signature(f"key: {written}"))["part"]
    assert entry.parameters["key"].annotation == expected and entry.parameters["key"].required
    assert entry.summary == "Sum it up."


@pytest.mark.parametrize(
    "written",
    [
        "Path",
        "list[Path]",
        "Literal",
        "().__class__.__bases__",
        "print('x')",
        "int + str",
        "dict[int]",
        "'int |'",
        "None | None",
    ],
)
def test_an_annotation_that_cannot_be_read_names_file_part_and_argument(written: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, signature(f"good: int = 1, key: {written} = None"))
    (problem,) = caught.value.problems
    assert problem.startswith("The argument `key` of `part` in `") and "single_part.py" in problem and "Literal" in problem


def test_a_default_that_is_no_literal_names_file_part_and_argument(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, signature("one: int = len('x'), two: float = 1e400 * 0, three: list = [SIZE]"))
    assert [problem.partition(" of `part`")[0] for problem in caught.value.problems] == [
        "The argument `one`", "The argument `two`", "The argument `three`",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@HEADS.register(NAME)\nclass A: ...\n", "Expected a name in quotes"),
        ("@HEADS.register('a')\nclass A(A): ...\n", "inherits itself"),
        ("class A: ...\nclass B(A): ...\n@HEADS.register('c')\nclass C(A, B): ...\n", "contradict each other"),
    ],
)
def test_declarations_that_python_would_refuse_are_refused_in_a_sentence(text: str, expected: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, text)


def test_a_registry_is_recognised_under_any_name_it_is_imported_as(tmp_path: Path):
    text = "from mtl.core.registry import HEADS as H\nfrom mtl.core import registry\n"
    text += "@H.register('one')\nclass A: ...\n@registry.HEADS.register('two')\nclass B: ...\n"
    text += "@LOSSES.register('three')\nclass C: ...\n"
    assert set(read(tmp_path, text)) == {"one", "two"}
