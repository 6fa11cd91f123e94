"""Maps back in the original image: where they belong, whatever was cut off."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mtl.core.raster import content_in, cut_to_working, resize_map, resize_mask, to_original
from mtl.core.types import Window

PLAIN = Window(0, 1, (0.5, 0.5), (0, 0), (0, 0), (60, 80), (64, 96), (60, 80), (120, 160))
# The working raster shows columns 20 to 140 and rows 10 to 110 at half size.
CROPPED = replace(PLAIN, valid=(50, 60), working_size=(50, 60), content=(20, 10, 140, 110))


@pytest.fixture
def channel() -> np.ndarray:
    return np.random.default_rng(0).random((60, 80)).astype(np.float32)


@pytest.mark.parametrize("size", [None, (120, 160), (33, 44), (60, 80)])
def test_without_a_cut_it_is_the_plain_resize(channel: np.ndarray, size: tuple[int, int] | None) -> None:
    expected = resize_map(channel, size or (120, 160))
    np.testing.assert_array_equal(to_original(channel, PLAIN, size), expected)
    np.testing.assert_array_equal(expected, cv2.resize(channel, (size or (120, 160))[::-1]) if size != (60, 80) else channel)


def test_what_was_cut_off_is_zero_and_the_rest_lies_where_it_was() -> None:
    working = np.ones((50, 60), np.float32)
    full = to_original(working, CROPPED)
    assert full.shape == (120, 160) and (CROPPED.cut(full) == 1).all() and full.sum() == 100 * 120
    # A point of the original and its pixel of the map meet again.
    x, y = CROPPED.original_to_working(np.array([100.0, 60.0], np.float32))
    spot = np.zeros((50, 60), np.float32)
    spot[int(y), int(x)] = 1.0
    row, column = np.unravel_index(to_original(spot, CROPPED).argmax(), (120, 160))
    assert abs(row - 60) <= 2 and abs(column - 100) <= 2


def test_a_smaller_picture_of_the_whole_original() -> None:
    full = to_original(np.ones((50, 60), np.float32), CROPPED, (60, 80))
    assert content_in(CROPPED, (60, 80)) == (10, 5, 70, 55)
    assert full.shape == (60, 80) and (full[5:55, 10:70] == 1).all() and full.sum() == 50 * 60
    assert content_in(replace(CROPPED, content=(158, 118, 160, 120)), (4, 4)) == (3, 3, 4, 4)


def test_cells_that_reach_over_the_edge_are_cut() -> None:
    window = replace(PLAIN, working_size=(20, 30), original_size=(40, 60))
    heat = np.zeros((3, 4), np.float32)  # cells of 8: 24 x 32
    heat[:, 3] = 1.0
    working = cut_to_working(heat, window, 8.0)
    assert working.shape == (20, 30)
    np.testing.assert_array_equal(to_original(heat, window, stride=8.0), resize_map(working, (40, 60)))
    # The last column begins at 24 of 30, so at 48 of 60; its middle at 28.
    assert to_original(heat, window, stride=8.0)[0, 57] == 1 and to_original(heat, window, stride=8.0)[0, 38] == 0


def test_specks_survive_in_pictures() -> None:
    mask = np.zeros((600, 900), bool)
    mask[301, 455] = True
    small = resize_mask(mask, (20, 30))
    assert small.dtype == bool and small.sum() == 1 and small[10, 15]
    assert resize_mask(mask, (600, 900)).sum() == 1 and resize_mask(mask, (1200, 1800)).sum() == 4
    assert not resize_mask(np.zeros((600, 900)), (20, 30)).any()


def test_import_stays_light() -> None:
    code = "import sys, mtl.core.raster; print([m for m in ('torch', 'cv2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
