"""Volumes are read upright whatever their stored axes, and masks go back to where they came from."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mtl.core.errors import DataError
from mtl.data.formats.volumes import read_volume, write_mask

SIZE = (3, 5, 7)  # slices, rows, columns of the upright array
SPACING = (6.0, 1.5, 0.75)
UPRIGHT = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE)
# The affine of the same array stored as columns, rows, slices (left, posterior, superior).
PLAIN = np.array([[-0.75, 0, 0, 20.0], [0, -1.5, 0, 30.0], [0, 0, 6.0, -40.0], [0, 0, 0, 1]])


def store(path: Path, axes: tuple[int, int, int], flips: tuple[bool, ...], tilt: float = 0.0) -> np.ndarray:
    """Write UPRIGHT with its axes in another order and direction, describing the same place; return the affine."""
    plain = UPRIGHT.transpose(2, 1, 0)
    moved, affine = plain.transpose(axes), PLAIN[:, [*axes, 3]].copy()
    for axis in np.flatnonzero(flips):
        moved = np.flip(moved, axis)
        affine[:3, 3] += affine[:3, axis] * (moved.shape[axis] - 1)
        affine[:3, axis] *= -1
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine[:3] = turn @ affine[:3]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(moved), affine), path)
    return affine


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_orientation_is_read_upright_and_written_back(axes: tuple[int, int, int], tmp_path: Path) -> None:
    for number, flips in enumerate(itertools.product([False, True], repeat=3)):
        path, out = tmp_path / f"{number}.nii.gz", tmp_path / f"mask{number}.nii.gz"
        affine = store(path, axes, flips, tilt=0.2)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, UPRIGHT)
        assert volume.size == SIZE
        np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-5)
        mask = (UPRIGHT % 5 == 1).astype(np.uint8) * 4
        write_mask(out, mask, like=volume)
        written = nibabel.load(out)
        np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)
        np.testing.assert_allclose(written.affine, affine, atol=1e-4)
        # A voxel of the mask is the voxel of the stored image that it was made from.
        np.testing.assert_array_equal(np.asarray(written.dataobj), (np.asarray(nibabel.load(path).dataobj) % 5 == 1) * 4)
        np.testing.assert_array_equal(read_volume(out).array, mask)


def test_a_written_mask_is_whole_bytes_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "scaled.nii"
    image = nibabel.Nifti1Image(UPRIGHT.transpose(2, 1, 0), PLAIN)
    image.header.set_slope_inter(0.5, 10)
    image.header["cal_max"] = 99
    image.set_sform(PLAIN, code=4)
    nibabel.save(image, path)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.array, UPRIGHT * 0.5 + 10)
    write_mask(tmp_path / "mask.nii", np.full(SIZE, 255), like=volume)
    written = nibabel.load(tmp_path / "mask.nii")
    assert written.get_data_dtype() == np.uint8
    assert (np.asarray(written.dataobj) == 255).all()
    assert written.get_sform(coded=True)[1] == 4
    assert written.header["cal_max"] == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mask.nii", "scaled.nii"]


def test_files_that_are_no_volume_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such volume"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii").write_text("not a volume")
    with pytest.raises(DataError, match=r"text\.nii: cannot be read as a NIfTI volume"):
        read_volume(tmp_path / "text.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), PLAIN), tmp_path / "four.nii")
    with pytest.raises(DataError, match=r"4 dimensions \(4, 4, 4, 2\)"):
        read_volume(tmp_path / "four.nii")
    nibabel.save(nibabel.MGHImage(np.zeros((4, 4, 4), np.float32), PLAIN), tmp_path / "other.mgz")
    with pytest.raises(DataError, match="expected a NIfTI file"):
        read_volume(tmp_path / "other.mgz")
    colours = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for voxels, words in ((colours, "colours or other groups"), (np.zeros((4, 4, 4), np.complex64), "complex numbers")):
        nibabel.save(nibabel.Nifti1Image(voxels, PLAIN), tmp_path / "values.nii")
        with pytest.raises(DataError, match=rf"values\.nii: its voxels are {words}.*; expected one grey value each"):
            read_volume(tmp_path / "values.nii")
    flat = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), PLAIN)
    flat.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=2)
    nibabel.save(flat, tmp_path / "flat.nii")
    with pytest.raises(DataError, match="affine has no inverse"):
        read_volume(tmp_path / "flat.nii")
    whole = tmp_path / "whole.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 999, (40, 40, 40), np.int16), PLAIN), whole)
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"cut\.nii\.gz: cannot be read"):
        _ = read_volume(tmp_path / "cut.nii.gz").array


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_further_axes_of_length_one_say_nothing(more: tuple[int, ...], tmp_path: Path) -> None:
    stored = UPRIGHT.transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(stored.reshape(*stored.shape, *more), PLAIN), tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    np.testing.assert_array_equal(volume.array, UPRIGHT)
    write_mask(tmp_path / "mask.nii", UPRIGHT > 50, like=volume)
    written = nibabel.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored > 50)
    np.testing.assert_array_equal(written.affine, PLAIN)


def test_a_mask_must_fit_its_volume(tmp_path: Path) -> None:
    store(tmp_path / "image.nii", (0, 1, 2), (False, False, False))
    volume = read_volume(tmp_path / "image.nii")
    with pytest.raises(DataError, match=r"expected \(3, 5, 7\)"):
        write_mask(tmp_path / "mask.nii.gz", np.zeros((5, 3, 7)), like=volume)
    with pytest.raises(DataError, match=r"ends in \.nii"):
        write_mask(tmp_path / "mask.png", np.zeros(SIZE), like=volume)


def test_real_volumes_are_upright(real_data: Path) -> None:
    """The nose side is up: skull-stripped brains are narrower in front, and the cerebellum slices are the first."""
    cases = sorted((real_data / "brain_brats").glob("BraTS*/*_flair.nii.gz"))
    if not cases:
        pytest.skip("no BraTS volumes here")
    for path in cases:
        volume = read_volume(path)
        assert volume.size[1:] == (240, 240)
        affine = nibabel.load(path).affine
        assert volume.spacing == (affine[2, 2], 1.0, 1.0)
        stored = np.asarray(nibabel.load(path).dataobj)
        np.testing.assert_array_equal(volume.array[-1], stored[..., -1].T)
    # Superior is last: towards the vertex the brain gets smaller.
    tall = [path for path in cases if path.parent.name[-3:] in ("903", "906")]
    areas = [(read_volume(path).array > 0).mean(axis=(1, 2)) for path in tall]
    assert all(area[-1] < 0.6 * area[5] for area in areas)
