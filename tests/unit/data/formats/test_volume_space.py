"""Where and how large voxels are, and that each is a number: read from the header as it says, or refused by name."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mtl.core.errors import DataError
from mtl.data.formats.volumes import read_volume

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
TILTED = np.array([[-1.0, 0, 0, 5], [0, -1.0, 6 * np.tan(np.deg2rad(25)), 7], [0, 0, 6.0, 9], [0, 0, 0, 1]])  # a gantry


def write(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = None, unit: str = "mm") -> Path:
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def test_the_volume_of_a_voxel_is_the_determinant(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "a.nii", affine=TILTED))
    assert volume.voxel_mm3 == pytest.approx(6.0)  # its edges multiply to 6.62
    assert volume.spacing == pytest.approx((6 / np.cos(np.deg2rad(25)), 1.0, 1.0))
    assert volume.skew == pytest.approx((-np.sin(np.deg2rad(25)), 0.0, 0.0), abs=1e-6)  # forwards, against the rows
    assert volume.notes == [
        f"{volume.path}: its axes are 25.0 degrees off a right angle; volumes and distances know that.",
    ]
    for axes, flips in (((2, 0, 1), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1))):  # stored otherwise, the same place
        moved = TILTED[:, [*axes, 3]] * [*flips, 1]
        other = read_volume(write(tmp_path / "b.nii", VOXELS, moved))
        np.testing.assert_allclose(other.steps, volume.steps, atol=1e-6)
        assert other.voxel_mm3 == pytest.approx(6.0)


def test_turned_and_mirrored_volumes_have_right_angles(tmp_path: Path) -> None:
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    for sign in (1.0, -1.0):  # the second counts left-handed
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([sign, 2.0, 3.0])
        volume = read_volume(write(tmp_path / "a.nii", affine=affine))
        assert volume.skew is None and volume.notes == [] and volume.voxel_mm3 == pytest.approx(6.0)
        assert volume.spacing == pytest.approx((3.0, 2.0, 1.0))


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_lengths_are_millimetres_whatever_the_unit(unit: str, scale: float, tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "a.nii", affine=np.diag([scale, 2 * scale, 3 * scale, 1.0]), unit=unit))
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.0)) and volume.voxel_mm3 == pytest.approx(6.0)
    assert volume.matches(read_volume(write(tmp_path / "b.nii")))


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_a_unit_that_makes_no_sense_is_refused(unit: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.nii: neighbouring voxels are .* mm apart; expected 0\.005 to 300"):
        read_volume(write(tmp_path / "a.nii", unit=unit))


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.nii", np.diag([1.0, 2.0, 3.0, 1.0])

    def both(sform: np.ndarray) -> None:
        image = nibabel.Nifti1Image(VOXELS, plain)
        image.set_qform(plain, code=1)
        image.set_sform(sform, code=4)
        nibabel.save(image, path)

    both(np.diag([1.1, 2.2, 3.3, 1.0]))  # as registration to an atlas leaves it
    with pytest.raises(
        DataError, match=r"contradict each other: voxels of 1 x 2 x 3, 6 cubed \(qform\), of 1\.1 x 2\.2 x 3\.3"
    ):
        read_volume(path)
    both(np.diag([-1.0, 2.0, 3.0, 1.0]))
    with pytest.raises(DataError, match="or other directions"):
        read_volume(path)
    moved = plain.copy()
    moved[:3, 3] = 40
    both(moved)  # the same voxels at another place
    assert read_volume(path).voxel_mm3 == pytest.approx(6.0)


def test_a_header_without_any_place_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(VOXELS, None), path)
    (note,) = read_volume(path).notes
    assert note == f"{path}: its header does not say how the volume lies; taken from right to left, back to front, upwards."


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_named(wrong: float, tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3], voxels[2, 0, 0] = wrong, wrong
    volume = read_volume(write(tmp_path / "a.nii.gz", voxels))
    assert volume.may_lack_numbers
    for _ in range(2):  # not only when it is asked for first
        with pytest.raises(DataError, match=r"a\.nii\.gz: 2 of 60 voxels are not numbers .*the first at \[1, 2, 3\]"):
            _ = volume.array
    large = np.where(VOXELS == 7, 1e300, VOXELS)  # finite, but not in single precision
    with pytest.raises(DataError, match="1 of 60 voxels are not numbers"):
        _ = read_volume(write(tmp_path / "b.nii", large)).array
    assert not read_volume(write(tmp_path / "c.nii")).may_lack_numbers


def test_a_volume_without_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty: 0 x 5 x 6 voxels"):
        read_volume(write(tmp_path / "a.nii", np.zeros((0, 5, 6), np.int16)))
