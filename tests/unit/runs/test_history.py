"""What a run saw, read from its files."""

from __future__ import annotations

from pathlib import Path

from mtl.runs.history import read_history, training_summary
from mtl.training.callbacks.recorder import RunRecorder, table


def test_the_summary_adds_up_what_the_rows_say(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "step": 4, "samples": 8, "val/score": 0.2, "seconds": 1.5},
        {"epoch": 1, "step": 8, "samples": 16, "val/new": 0.1, "seconds": 2.25},
    ]
    (tmp_path / "metrics.csv").write_text(table(rows))
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
    recorder._copy_to_best()
    recorder.best.with_suffix(".partial").hardlink_to(recorder.best)
    recorder.last.unlink()
    recorder.last.write_bytes(b"new")
    old = recorder.best.open("rb")
    recorder._copy_to_best()
    assert recorder.best.read_bytes() == b"new" and old.read() == b"old"
    assert sorted(path.name for path in recorder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
