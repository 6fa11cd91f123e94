"""One grammar of words: a single run, a sweep, `resume=`, the other verbs and what `compare` passes on read them alike."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mtl.cli.main import guarded
from mtl.config import sweep
from mtl.config.compose import composition
from mtl.config.path_keys import PARTS
from mtl.config.plan import Plan
from mtl.config.words import read_word, value_of, written
from mtl.core.declarations import Entry, Parameter
from mtl.core.errors import INTERRUPTED, ConfigError, DataError, MtlError, TrainingError
from mtl.core.places import Place
from mtl.runs.resume import resumed_plan

# A word for a key that holds the name of a folder, and the name.
NAMES = {
    "étude/smears": "étude/smears", "set (1)/smears": "set (1)/smears", "0012": "0012", "1e5": "1e5", "true": "true",
    "a=b": "a=b", "#1 ~x %d!": "#1 ~x %d!", "it's": "it's", "'tis": "'tis", "'quoted, with comma'": "quoted, with comma",
    '"double é"': "double é", "back\\slash": "back\\slash", "ends\\": "ends\\", "[list]": "[list]", "{x: 1}": "{x: 1}",
    "${oc.env:WORDS_TEST}/é": "/home/é", "雪": "雪", "null": None,
}  # fmt: skip
# A word for any other key, and its value.
VALUES: dict[str, Any] = {
    "007": "007", "7": 7,
    "1_000": 1000, "1e-3": 0.001, "true": True, "null": None, "é": "é", "a b": "a b", "a=b": "a=b", "#1": "#1",
    "~/x": "~/x", "it's": "it's", "'a,b'": "a,b", "a\\,b": "a,b", "[é,'b, c',1]": ["é", "b, c", 1], "{a: [x#, {b: 'c,d'}]}":
    {"a": ["x#", {"b": "c,d"}]}, "set (1)": "set (1)", "int(3.7)": 3,
    "[unclosed": "[unclosed", "''": "", "x:y": "x:y", "50%": "50%",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDS_TEST", "/home")


def single(word: str) -> Any:
    key = word.partition("=")[0]
    made = composition("data_tool", ["data=malaria", word])
    assert made.problems == []
    value: Any = made.values
    for step in key.split("."):
        value = value[step]
    return value


def swept(word: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The values with which the runs of a sweep are planned."""
    key, seen = word.partition("=")[0].split("."), []

    def plan(_: Any, made: Any) -> Any:
        value = made.values
        for step in key:
            value = value[step]
        seen.append(value)

    monkeypatch.setattr(sweep.Plan, "from_composition", classmethod(plan))
    sweep.through_hydra(["-m", "task=malaria_cells", word], lambda _: None)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]  # checked first, then carried out
    return seen[len(seen) // 2 :]


def test_names_of_files_are_text_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text, expected in NAMES.items():
        assert value_of(f"data.root={text}") == expected, text  # `resume=`
    for text in ("étude, (1)/a=b", "0012", "'quoted, with comma'"):
        assert single(f"data.root={text}") == NAMES.get(text, text)
    several = ("set (1)/é", "'quoted, with comma'", "0012", "it's")
    assert swept(f"data.root={','.join(several)}", monkeypatch) == [NAMES.get(text, text) for text in several]
    assert swept("data.root=choice(007,'b,c')", monkeypatch) == ["007", "b,c"]


def test_keys_that_are_declared_as_places_hold_names(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = (
        "backbone.weights", "checkpoint", "data.cache.folder", "data.folders.brats", "data.root", "data.split.file", "name",
        "output", "output_root", "paths.output_root", "paths.run_dir", "resume", "slide.tissue_masks", "source",
        "stages.brain.start",
    )  # fmt: skip
    assert [key for key in keys if read_word(f"{key}=007").ready() != f"{key}='007'"] == []
    others = (
        "backbone.depth",
        "data.folders",
        "data.split.seed",
        "optimizer.lr",
        "stages.start",
        "stages.brain.epochs",
        "suite",
    )
    assert [key for key in others if read_word(f"{key}=007").ready() != f"{key}=007"] == []
    parameters = {key: Parameter(key, of, None, True) for key, of in (("atlas", Place | None), ("maps", dict[str, Place]))}
    entry = Entry("other", "other", Path("other.py"), "Other", parameters, plugin="other.py")
    monkeypatch.setitem(PARTS, "peft", (types.SimpleNamespace(entries=lambda: {"other": entry}), 1))  # a part of a plug-in
    assert read_word("peft.atlas=007").ready() == "peft.atlas='007'"
    assert read_word("peft.maps.left=a (1)").ready() == "peft.maps.left='a (1)'"
    assert read_word("peft.rank=007").ready() == "peft.rank=007"


def test_values_are_read_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text, expected in VALUES.items():
        found = value_of(f"x.y={text}")
        assert found == expected and type(found) is type(expected), text
    assert single("data.sets=[é,'b, c']") == ["é", "b, c"]
    assert swept("data.group_by='a,b',it's", monkeypatch) == ["a,b", "it's"]
    assert swept("tasks=[a],['b,c',d#]", monkeypatch) == [["a"], ["b,c", "d#"]]


@pytest.mark.parametrize(
    "value", [None, True, 7, 0.5, "é", "007", "null", "it's", "a,b", ["é", {"a": "b,c"}], "x/y.py", "\\", ""]
)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert value_of(written("some.key", value)) == value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("foo", "Cannot read `foo`. Expected key=value"),
        ("é=1", "`é` is no key. Expected letters, digits and _"),
        ("optimizer.lr = 1", "nothing around the `=`"),
        ("tasks=[a,]", "Cannot read `tasks=[a,]`. Expected key=value"),
        ("evaluation.primary={é: x}", "Cannot read `evaluation.primary={é:x}`"),
        ("task=skin_mtll", "Did you mean `skin_mtl`?"),
        ("optimizer.lrr=1", "Did you mean `lr`?"),
        (f"tasks={'[' * 2000}{']' * 2000}", "more than 30 brackets inside each other"),
        ("/etc=x", "Cannot read `/etc=x`"),
    ],
)
def test_an_error_in_a_sweep_is_that_of_a_single_run(
    word: str, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = []
    for words in ([word], ["-m", word]):
        assert guarded("train", ["task=malaria_cells", *words] if "task=" not in word else words) == 2
        said.append(capfd.readouterr().err)
    assert message in said[0] and said[0] == said[1]
    assert "hydra.cc" not in said[0] and "Exception" not in said[0] and len(said[0]) < 1500


def test_a_run_that_goes_on_is_not_swept(capfd: pytest.CaptureFixture[str]) -> None:
    """Its overrides would be dropped without a word."""
    assert guarded("train", ["-m", "optimizer.lr=1,2", "resume=runs/x"]) == 2
    assert "`resume=runs/x` goes on with one run as it was begun" in capfd.readouterr().err


def test_a_split_file_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`data.split.file` has no effect with data.split.scheme=holdout"):
        Plan.from_words(["task=malaria_cells", "data.split.file=x.csv"])


def test_several_values_are_refused_in_a_single_run() -> None:
    with pytest.raises(ConfigError, match=r"`optimizer.lr=1,2` holds several values.*with -m each value is a run"):
        Plan.from_words(["task=malaria_cells", "optimizer.lr=1,2"])


def test_the_runs_of_a_sweep_are_checked_before_the_first_and_fail_with_their_status(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    carried_out: list[Plan] = []
    with pytest.raises(ConfigError, match="Did you mean `step`"):
        sweep.through_hydra(["-m", "task=malaria_cells", "scheduler=constant,stepp"], carried_out.append)
    with pytest.raises(ConfigError, match=r"`optimizer.lr` is `-1`"):
        sweep.through_hydra(["-m", "task=malaria_cells", "optimizer.lr=1e-3,-1"], carried_out.append)
    assert carried_out == []
    assert guarded("train", ["-m", "task=malaria_cells", "data.root='/nowhere é'", "optimizer.lr=1e-3,1e-4"]) == 3
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and "`/nowhere é` does not exist" in said and len(said.splitlines()) == 1
    sweep.through_hydra(["-m", "task=skin_mtl", "scheduler=constant,plateau"], carried_out.append)
    assert [(plan.config.scheduler["name"], len(plan.left_out)) for plan in carried_out] == [("constant", 1), ("plateau", 0)]


def test_ctrl_c_ends_a_sweep(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that failed before it is still told; the status is that of Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    begun: list[float] = []

    def train(plan: Plan) -> None:
        begun.append(plan.config.optimizer.lr)
        error: MtlError = DataError("Broken.") if len(begun) == 1 else TrainingError("Interrupted. Go on.")
        if len(begun) == 2:
            error.exit_code = INTERRUPTED
        raise error

    monkeypatch.setattr("mtl.cli.train._train", train)
    assert guarded("train", ["-m", "task=malaria_cells", "optimizer.lr=0.1,0.2,0.3"]) == INTERRUPTED == 130
    assert capfd.readouterr().err == "error: Interrupted. Go on.\nerror: Broken.\n" and begun == [0.1, 0.2]


def test_a_run_that_goes_on_reads_words_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "run é").mkdir()
    config = Plan.from_words(["task=malaria_cells"]).to_dict()
    (tmp_path / "run é" / "config.json").write_text(json.dumps(config))
    words = ["data.loader.num_workers=010", "data.root='a, b'", "++data.cache.folder=0012"]
    plan = resumed_plan(str(tmp_path / "run é"), words)
    assert plan.config.data.loader.num_workers == 10  # YAML would read an octal number
    assert plan.config.data.part["root"] == "a, b" and plan.config.data.cache.folder == "0012"
    with pytest.raises(ConfigError, match="cannot be combined with resume="):
        resumed_plan(str(tmp_path / "run é"), ["name=x"])
    (tmp_path / "run é" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is damaged: it is nested too deeply"):
        resumed_plan(str(tmp_path / "run é"), [])


def test_words_behind_a_comparison_reach_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mtl.experiments import arms

    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []

    def train(words: list[str], log: Path) -> int:
        seen.append(words)
        return 130

    monkeypatch.setattr(arms, "train_in_own_process", train)
    own = ["suite=malaria_cells", "seeds=[007]", "arms=[mtl]", "output_root='out, é'"]
    assert guarded("compare", [*own, "--", "data.root=set (1)/é", "optimizer.lr=1e-3"]) == 130
    config = Plan.from_words(seen[0]).config
    assert config.data.part["root"] == "set (1)/é" and config.seed == 7
    assert config.paths.run_dir == "out, é/malaria_cells/mtl/seed7"


def test_deep_brackets_do_not_reach_the_parser_of_hydra() -> None:
    depth = sys.getrecursionlimit() * 2
    with pytest.raises(ConfigError, match="brackets inside each other"):
        read_word(f"x={'[' * depth}1{']' * depth}").ready()
