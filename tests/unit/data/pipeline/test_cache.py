from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from data_fakes import FakeFamily

from mtl.core.errors import DataError
from mtl.data.pipeline import cache as cache_module
from mtl.data.pipeline.cache import RasterCache, cache_key, prepare
from mtl.data.pipeline.dataset import SampleDataset
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def check(cache, family, preprocessing) -> None:
    for record in family.records():
        image = family.read_image(record)
        np.testing.assert_array_equal(cache.read(record.sample_id), preprocessing.working(image, record.pixel_scale))
        assert cache.original_size(record.sample_id) == image.shape[:2]


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tiles"])
def test_cached_rasters_are_those_of_the_preprocessing(family, folder, mode):
    preprocessing = Preprocessing(Geometry(mode, (64, 64), 0.5, 32), {"clip_limit": 2.0, "tiles": 4})
    cache = prepare(family, family.records(), preprocessing, folder, progress=False)
    check(cache, family, preprocessing)
    with pytest.raises(ValueError, match="read-only"):
        cache.read("s00")[0, 0] = 0
    assert "s00" in cache and "x" not in cache


def test_second_call_reads_nothing(family, folder, stretch):
    prepare(family, family.records(), stretch, folder, progress=False)
    family.decoded.clear()
    prepare(family, family.records(), stretch, folder, progress=False)
    assert family.decoded == []


def test_key_follows_pixels_settings_and_files(family, stretch, tiles):
    records = family.records()
    key = cache_key(family, records, stretch)
    assert key == cache_key(family, records[::-1], stretch)
    assert key == cache_key(family, records, Preprocessing(stretch.geometry, mean=(0, 0, 0), std=(1, 1, 1)))
    assert key != cache_key(family, records, tiles)
    assert key != cache_key(family, records, Preprocessing(stretch.geometry, {"clip_limit": 2, "tiles": 4}))
    assert key != cache_key(family, records[1:], stretch)
    os.utime(records[0].path, (1, 1))
    assert key != cache_key(family, records, stretch)


def test_changed_settings_do_not_serve_old_pixels(family, folder, stretch):
    prepare(family, family.records(), stretch, folder, progress=False)
    other = Preprocessing(Geometry("stretch", (32, 64)))
    check(prepare(family, family.records(), other, folder, progress=False), family, other)
    check(prepare(family, family.records(), stretch, folder, progress=False), family, stretch)


@pytest.mark.parametrize("damage", ["truncated", "index", "missing"])
def test_a_damaged_cache_is_rebuilt(family, folder, stretch, damage):
    cache = prepare(family, family.records(), stretch, folder, progress=False)
    pixels = cache.folder / "images.bin"
    if damage == "truncated":
        os.truncate(pixels, pixels.stat().st_size - 5)
    elif damage == "index":
        (cache.folder / "index.json").write_text('{"bytes": 12')
    else:
        pixels.unlink()
    check(prepare(family, family.records(), stretch, folder, progress=False), family, stretch)


def test_a_flipped_bit_is_noticed_and_the_image_prepared_anew(family, folder, stretch, caplog, monkeypatch):
    cache = prepare(family, family.records(), stretch, folder, progress=False)
    monkeypatch.setattr(logging.getLogger("mtl"), "propagate", True)
    pixels = cache.folder / "images.bin"
    expected, content = cache.read("s03").copy(), bytearray(pixels.read_bytes())
    content[cache.entries["s03"]["offset"] + 1000] ^= 4
    pixels.write_bytes(content)
    family.decoded.clear()
    dataset = SampleDataset(family, family.records(), {}, stretch, cache=RasterCache(cache.folder))
    np.testing.assert_array_equal(dataset.raster("s03"), expected)
    np.testing.assert_array_equal(dataset.raster("s03"), expected)
    assert family.decoded == ["s03"] and {record.levelname for record in caplog.records} == {"WARNING"}
    check(RasterCache(cache.folder), family, stretch)  # on the disk, too
    for damage in (content, bytes(content[:-1]) + b"\xff"):
        pixels.write_bytes(damage)
        with pytest.raises(DataError, match=r"is damaged at `s.*Remove that folder"):
            [RasterCache(cache.folder).read(record.sample_id) for record in family.records()]
    text = (cache.folder / "index.json").read_text()
    (cache.folder / "index.json").write_text(text.replace('"original_size": [', '"original_size": [1'))
    with pytest.raises(DataError, match="is damaged"):
        RasterCache(cache.folder)
    check(prepare(family, family.records(), stretch, folder, progress=False), family, stretch)


def test_what_a_crash_left_is_checked_before_a_build_goes_on(family, folder, stretch, monkeypatch):
    monkeypatch.setattr(cache_module, "usable_cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(family.root), family.records(), stretch, folder, progress=False)
    (partial,) = folder.glob("*.partial")
    pixels = bytearray((partial / "images.bin").read_bytes())
    pixels[-100:] = bytes(100)  # blocks that never reached the disk read as zeros after a power cut
    (partial / "images.bin").write_bytes(pixels)
    check(prepare(family, family.records(), stretch, folder, progress=False), family, stretch)


class Interrupted(FakeFamily):
    """Stops after a few images, as a killed process would."""

    stop_after = 5

    def read_image(self, record):
        if len(self.decoded) >= self.stop_after:
            raise KeyboardInterrupt
        return super().read_image(record)


Interrupted.__name__ = "FakeFamily"  # the name is part of the key


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_build_goes_on_where_it_stopped(family, folder, stretch, torn, monkeypatch):
    monkeypatch.setattr(cache_module, "usable_cores", lambda: 1)
    records = family.records()
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(family.root), records, stretch, folder, progress=False)
    (partial,) = folder.glob("*.partial")
    assert not (partial / "index.json").exists()
    if torn:  # the last image was only half written, and so was the line about it
        os.truncate(partial / "images.bin", (partial / "images.bin").stat().st_size - 7)
        with (partial / "journal.jsonl").open("a") as journal:
            journal.write('{"sample_id": "s0')
    check_family = FakeFamily(family.root)
    cache = prepare(check_family, records, stretch, folder, progress=False)
    assert len(check_family.decoded) == len(records) - (4 if torn else 5)
    assert not list(folder.glob("*.partial"))
    check(cache, family, stretch)


def _build(root: Path, folder: Path, barrier, queue) -> None:
    family = FakeFamily(root)
    barrier.wait()
    cache = prepare(family, family.records(), Preprocessing(Geometry("stretch", (64, 64))), folder, progress=False)
    queue.put((len(family.decoded), int(cache.read("s03").astype(np.int64).sum())))


def test_two_processes_at_once_build_once(family, folder, stretch):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build, args=(family.root, folder, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=20) for _ in processes]
    for process in processes:
        process.join(20)
    assert sorted(decoded for decoded, _ in results) == [0, len(family.records())]
    assert results[0][1] == results[1][1]


def test_full_disk_is_one_sentence_and_the_next_run_goes_on(family, folder, stretch, monkeypatch):
    real, written = cache_module._write, []

    def fill_up(file, image):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        real(file, image)

    monkeypatch.setattr(cache_module, "_write", fill_up)
    with pytest.raises(DataError, match=r"disk is full.*data\.cache\.folder") as caught:
        prepare(family, family.records(), stretch, folder, progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(cache_module, "_write", real)
    check(prepare(family, family.records(), stretch, folder, progress=False), family, stretch)


def test_unwritable_folder_is_one_sentence(family, tmp_path, stretch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache\.folder"):
        prepare(family, family.records(), stretch, tmp_path / "file" / "cache", progress=False)


def test_broken_image_stops_with_its_own_error(family, folder, stretch):
    Path(family.records()[2].path).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"s02.png.*cannot be decoded"):
        prepare(family, family.records(), stretch, folder, progress=False)


def test_index_is_plain_json(family, folder, stretch):
    cache = prepare(family, family.records(), stretch, folder, progress=False)
    index = json.loads((cache.folder / "index.json").read_text())
    assert index["bytes"] == (cache.folder / "images.bin").stat().st_size == 12 * 64 * 64 * 3
