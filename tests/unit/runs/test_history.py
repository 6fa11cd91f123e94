"""What a run saw, read from its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtl.core.errors import DataError
from mtl.core.files import partial_beside
from mtl.runs.history import history_columns, read_history, rows_before, training_summary, write_history
from mtl.training.callbacks.recorder import RunRecorder


def test_the_summary_adds_up_what_the_rows_say(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "step": 4, "samples": 8, "val/score": 0.2, "seconds": 1.5},
        {"epoch": 1, "step": 8, "samples": 16, "val/new": 0.1, "seconds": 2.25},
    ]
    write_history(tmp_path, rows)
    assert [row["val/new"] for row in read_history(tmp_path)] == ["", "0.1"]
    expected = {"epochs": 2, "steps": 8, "samples_seen": 16, "seconds": 3.75, "stopped_early": False}
    assert training_summary(tmp_path, max_epochs=2) == expected
    assert training_summary(tmp_path, max_epochs=3) == expected | {"stopped_early": True}


def test_no_history_is_no_summary(tmp_path: Path) -> None:
    assert read_history(tmp_path) == [] and training_summary(tmp_path, 3) is None
    (tmp_path / "metrics.csv").write_text("epoch,step,seconds\n0,1,2.0\n")  # of an older release
    assert training_summary(tmp_path, 3) is None


def test_best_is_published_again_after_a_kill(tmp_path: Path) -> None:
    """A partial file of a killed run is linked to an old checkpoint; writing into it would damage that one."""
    recorder = RunRecorder(tmp_path, "val/score", True)
    recorder.last.parent.mkdir()
    recorder.last.write_bytes(b"old")
    recorder._publish()
    partial_beside(recorder.best).hardlink_to(recorder.best)
    recorder.last.unlink()
    recorder.last.write_bytes(b"new")
    old = recorder.best.open("rb")
    recorder._publish()
    assert recorder.best.read_bytes() == b"new" and old.read() == b"old"
    assert sorted(path.name for path in recorder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_rows_of_earlier_stages_come_back_as_numbers(tmp_path: Path) -> None:
    rows = [
        {"stage": "first", "epoch": 0, "step": 4, "val/score": 0.25},
        {"stage": "second", "epoch": 1, "step": 8, "val/new": 1e-3},
    ]
    write_history(tmp_path, rows)
    assert rows_before(tmp_path, "second") == rows[:1] and rows_before(tmp_path, "third") == rows
    columns, stages = history_columns(read_history(tmp_path))
    np.testing.assert_array_equal(columns["val/new"], [np.nan, 1e-3])
    assert [(stage.name, stage.first, stage.last) for stage in stages] == [("first", 0, 0), ("second", 1, 1)]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"epoch,step\nseven,1\n", b"a;b\n1;2\n"])
def test_a_damaged_history_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.csv.*Remove it"):
        read_history(tmp_path)
