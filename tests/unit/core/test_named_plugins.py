from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtl.config.compose import choices, take_plugins
from mtl.config.plan import Plan
from mtl.core import plugins, registry
from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS, LOSSES, Registry

HEAD = """
from mtl.core.registry import HEADS
from mtl.heads.segmentation.base import SegmentationHead

@HEADS.register("{name}")
class Probe(SegmentationHead):
    def __init__(self, spec, channels, strides, *, loss: dict, level: int = -1) -> None:
        super().__init__(spec, channels, strides, loss)
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what a test names."""
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for parts in (HEADS, LOSSES):
        monkeypatch.setattr(parts, "_parts", {**parts._parts})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(action) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.problems


def test_groups_of_entry_points_are_the_packages_of_the_registries():
    packages = {entry.package for entry in vars(registry).values() if isinstance(entry, Registry)}
    assert packages == set(plugins.GROUPS)


def test_a_file_brings_a_part_that_is_read_but_not_imported(tmp_path: Path):
    file = write(tmp_path / "probe_read.py", HEAD.format(name="probe") + "\nraise RuntimeError('imported')\n")
    assert "probe" not in HEADS.names()
    assert plugins.use([str(file)]) == [str(file)]
    entry = HEADS.entry("probe")
    assert (entry.constant("kind"), entry.constant("mixable")) == ("segmentation", True)
    assert entry.parameters["level"].default == -1 and entry.plugin == str(file)
    assert "probe_read" not in sys.modules
    (problem,) = problems_of(lambda: HEADS.get("probe"))
    assert str(file) in problem and "RuntimeError: imported" in problem


def test_a_part_of_a_plugin_is_built(tmp_path: Path):
    plugins.use([str(write(tmp_path / "smooth_loss.py", LOSS))])
    assert LOSSES.build({"name": "halved", "factor": 0.25}).factor == 0.25
    with pytest.raises(ConfigError, match="Did you mean `factor`"):
        LOSSES.build({"name": "halved", "factr": 0.25})


LOSS = """
from mtl.core.registry import LOSSES
from mtl.losses.base import Loss

@LOSSES.register("halved")
class Halved(Loss):
    kinds = ("heatmap",)

    def __init__(self, spec=None, *, factor: float = 0.5) -> None:
        super().__init__(spec)
        self.factor = factor

    def compute(self, prediction, target):
        return self.factor * (prediction - target).abs().mean()
"""


def test_a_package_is_read_with_all_its_modules_and_without_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "outer_pack" / "__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "outer_pack" / "heads" / "__init__.py", "")
    write(tmp_path / "outer_pack" / "heads" / "deep" / "one.py", HEAD.format(name="deep_probe"))
    yaml = write(tmp_path / "outer_pack" / "configs" / "head" / "deep_probe.yaml", "name: deep_probe\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.use(["outer_pack.heads"]) == ["outer_pack.heads"]
    assert HEADS.entry("deep_probe").module == "outer_pack.heads.deep.one"
    assert plugins.config_folders() == [yaml.parents[1]]
    assert "deep_probe" in choices("head")


def test_two_parts_of_one_name_are_refused_and_both_files_named(tmp_path: Path):
    first = write(tmp_path / "twice_one.py", HEAD.format(name="unet"))
    second = write(tmp_path / "twice_two.py", HEAD.format(name="fcos"))
    plugins.use([str(first), str(second)])
    found = problems_of(HEADS.entries)
    assert len(found) == 2
    assert "`unet`" in found[0] and str(Path("segmentation", "unet.py")) in found[0] and str(first) in found[0]
    assert "`fcos`" in found[1] and str(second) in found[1]


def test_two_classes_registered_under_one_name_at_run_time_are_refused():
    own = Registry("head", "mtl.heads", "OWN")
    own.register("same")(type("One", (), {}))
    with pytest.raises(ConfigError, match=r"Two heads are called `same`: `One` .* `Two`"):
        own.register("same")(type("Two", (), {}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_package.heads", "There is no module `no_such_package.heads`"),
        ("../x", "There is no plug-in"),
        ("gone.py", "Did you mean .*gon.py"),
        ("json.py", "is hidden by another module of its name"),
        ("my-heads.py", "Rename it"),
    ],
)
def test_a_wrong_plugin_is_answered_in_one_sentence(name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for file in ("gon.py", "json.py", "my-heads.py"):
        write(tmp_path / file, "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        plugins.use([name])


def test_broken_sources_are_answered_in_one_sentence_each(tmp_path: Path):
    write(tmp_path / "broken_pack" / "__init__.py", "@HEADS.register(\n")
    write(tmp_path / "broken_pack" / "latin.py", "").write_bytes(b"# HEADS.register( \xff")
    plugins.use([str(tmp_path / "broken_pack")])
    found = problems_of(HEADS.entries)
    assert len(found) == 2
    assert "is not valid Python (line 1" in found[0] and "latin.py` cannot be read" in found[1]


def test_what_a_file_asks_for_is_known_only_if_named(tmp_path: Path):
    file = write(tmp_path / "moved_probe.py", HEAD.format(name="moved"))
    elsewhere = "/somewhere/else/moved_probe.py"
    (problem,) = plugins.missing([elsewhere], "`best.ckpt`")
    assert problem.startswith(f"`best.ckpt` needs the plug-in `{elsewhere}`") and f"plugins=[{elsewhere}]" in problem
    plugins.use([str(file)])
    assert plugins.missing([elsewhere], "`best.ckpt`") == []


def test_words_with_awkward_paths_reach_hydra(tmp_path: Path):
    file = write(tmp_path / "it's (mine)" / "awkward_probe.py", HEAD.format(name="awkward"))
    ready, problems = take_plugins(["seed=1", f"plugins=[{file}]"])
    assert problems == [] and ready[0] == "seed=1"
    assert ready[1] == "plugins=['" + str(file).replace("'", "\\'") + "']"
    for wrong in ("plugins={a: b}", "plugins=[1]", "plugins=[[a]]"):
        assert "Cannot read" in take_plugins([wrong])[1][0]


def test_a_folder_of_yaml_files_may_not_hide_ours(tmp_path: Path):
    write(tmp_path / "mine" / "configs" / "head" / "unet.yaml", "name: unet\n")
    write(tmp_path / "mine" / "configs" / "head" / "my_unet.yaml", "name: unet\n")
    _, problems = take_plugins([f"plugins=[{tmp_path / 'mine'}]"])
    assert len(problems) == 1 and "Rename one of them" in problems[0]
    assert "my_unet" in choices("head")


@pytest.mark.parametrize("content", [b"name: [\n", b"\xff\xfe\x00"])
def test_a_damaged_yaml_of_a_plugin_is_one_sentence(content: bytes, tmp_path: Path):
    folder = tmp_path / "mine" / "configs" / "neck"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_bytes(content)
    words = ["task=malaria_mttl", f"plugins=[{tmp_path / 'mine'}]", "+neck@necks.broken=broken"]
    assert ["damaged" in problem for problem in problems_of(lambda: Plan.from_words(words))] == [True]
