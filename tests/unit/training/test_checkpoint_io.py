"""Checkpoints: whole or absent, and errors in words."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from mtl.core.errors import CheckpointError, TrainingError
from mtl.encoders.weights import read_weights
from mtl.runs.checkpoint import read_checkpoint
from mtl.runs.stored import FORMAT
from mtl.training.checkpoint_io import AtomicCheckpointIO

BIG = {"state_dict": {"weight": torch.zeros(1_000_000)}}


def good(**more: object) -> dict:
    return {"state_dict": {"weight": torch.ones(3)}, "mtl": {"format": FORMAT, "config": {"suite": "x"}, **more}}


def check_failure(folder: Path, error: TrainingError, target: Path) -> None:
    assert str(target) in str(error) and "bytes free" in str(error) and f"resume={folder}" in str(error)
    assert len(str(error).splitlines()) == 1
    assert [path.name for path in target.parent.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(target)["state_dict"]["weight"].tolist() == [1.0, 1.0, 1.0]


def test_round_trip_leaves_no_other_file(tmp_path: Path) -> None:
    plugin, target = AtomicCheckpointIO(), tmp_path / "run" / "checkpoints" / "last.ckpt"
    plugin.save_checkpoint(good(classes=["a"]), target)
    plugin.save_checkpoint(good(classes=["b"]), target)
    assert plugin.load_checkpoint(target)["mtl"]["classes"] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["last.ckpt"]
    plugin.remove_checkpoint(target)
    plugin.remove_checkpoint(target)
    assert not target.exists()


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    mounted = shutil.which("mount") and os.geteuid() == 0
    mounted = (
        mounted
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode
    )
    if not mounted:
        pytest.skip("no permission to mount a small disk")
    try:
        target = tmp_path / "checkpoints" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint(good(), target)
        with pytest.raises(TrainingError, match="No space left on device") as caught:
            AtomicCheckpointIO().save_checkpoint(BIG, target)
        check_failure(tmp_path, caught.value, target)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_file_size_limit_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(good(), target)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(TrainingError, match="File too large") as caught:
            AtomicCheckpointIO().save_checkpoint(BIG, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    check_failure(tmp_path, caught.value, target)


def test_failing_flush_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(good(), target)

    def full(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match="quota") as caught:
            AtomicCheckpointIO().save_checkpoint(BIG, target)
    check_failure(tmp_path, caught.value, target)


def test_a_program_error_while_saving_is_not_called_a_full_disk(tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> tuple:
            raise RuntimeError("no way")

    with pytest.raises(RuntimeError, match="no way"):
        AtomicCheckpointIO().save_checkpoint({"odd": Odd()}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint(good(weights=torch.arange(64.0)), path)
    content = path.read_bytes()
    for bit in random.Random(9).sample(range(8 * len(content)), 50):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        for load in (read_checkpoint, AtomicCheckpointIO().load_checkpoint, read_weights):  # also resume, hand-over, weights
            with pytest.raises(CheckpointError, match=r"damaged|neither"):
                load(path)
    path.write_bytes(content)
    (tmp_path / "moved.ckpt").hardlink_to(path)
    path.unlink()
    assert read_checkpoint(tmp_path / "moved.ckpt")["mtl"]["weights"].tolist() == list(range(64))


def test_a_checkpoint_without_a_digest_is_read_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(good(), path)
    logging.getLogger("mtl").propagate = True
    with caplog.at_level(logging.INFO, "mtl"):
        read_checkpoint(path), read_checkpoint(path)
    assert {record.getMessage() for record in caplog.records} == {
        f"{path} carries no digest (an earlier release or another program wrote it); the sums of its parts are right"
    }
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(3).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: it is not what was written"):
        read_checkpoint(path)


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_unreadable_files_are_named_with_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    AtomicCheckpointIO().save_checkpoint(good(), run / "checkpoints" / "best.ckpt")
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    cases: dict[str, tuple[object, str]] = {
        "text.ckpt": (b"hello, this is no checkpoint", "another kind of file"),
        "empty.ckpt": (b"", "0 bytes.* damaged"),
        "cut.ckpt": (whole[: len(whole) // 2], "incomplete"),
        "code.ckpt": (Code(), "needs code to be loaded"),
        "tensor.ckpt": (torch.zeros(2), "holds a Tensor"),
        "bare.ckpt": ({"conv1.weight": torch.zeros(2)}, "bare state dict with 1 tensors .*conv1.weight.*backbone.weights"),
        "lightning.ckpt": ({"state_dict": {}, "pytorch-lightning_version": "2"}, "another program"),
        "other.ckpt": ({"epoch": 3, "model": {}}, "entries `epoch`, `model`"),
        "partial.ckpt": ({"state_dict": {}, "mtl": {"format": 1}}, "lacks `mtl.config`"),
        "future.ckpt": ({"state_dict": {}, "mtl": {"format": FORMAT + 1, "config": {}}}, "Update it"),
    }
    for name, (content, expected) in cases.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(CheckpointError, match=expected) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder.*Did you mean .*best.ckpt"):
        read_checkpoint(run)
