from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mtl.core.errors import ConfigError
from mtl.data.families.tiger.family import Tiger
from mtl.data.families.tiger.painter import Specimen, generate_region, generate_stain
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing
from mtl.imaging.stain import METHODS, OPTICAL_DENSITY, REFERENCE_STAINS, STAINS, estimate, mix, restain

WHITE = np.full((64, 64, 3), 255, np.uint8)
VECTORS = np.asarray([[0.60, 0.72, 0.35], [0.15, 0.92, 0.36]])
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
GEOMETRY = {"mode": "tiles", "size": [64, 64], "scale": 2.0, "overlap": 32}


def stained(vectors: np.ndarray, seed: int = 0, strength: float = 1.0) -> np.ndarray:
    """An image [96, 96, 3] of two stains in random amounts, with glass at the left."""
    amounts = np.random.default_rng(seed).gamma(1.2, 0.45, (96, 96, 2))
    amounts[:, :12] = 0
    return np.rint(255 * np.exp(-strength * amounts @ vectors)).astype(np.uint8)


def tissue(laboratory: int) -> np.ndarray:
    """The same place on the same tissue, stained in another laboratory."""
    specimen = Specimen(5, generate_stain(np.random.default_rng(laboratory), laboratory))
    return generate_region(specimen, (5000, 8000), (192, 192))[0]


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_macenko_finds_the_stains() -> None:
    found = estimate(stained(VECTORS), "macenko")
    stains = np.asarray(found["stains"])
    assert angle(stains[0], VECTORS[0]) < 4 and angle(stains[1], VECTORS[1]) < 4  # haematoxylin first
    swapped = np.asarray(estimate(stained(VECTORS[::-1]), "macenko")["stains"])
    assert angle(swapped[0], VECTORS[0]) < 4
    np.testing.assert_allclose(np.linalg.norm(stains, axis=1), 1.0, atol=1e-6)
    stronger = estimate(stained(VECTORS, strength=1.3), "macenko")
    np.testing.assert_allclose(np.asarray(stronger["maxima"]) / found["maxima"], 1.3, rtol=0.05)


def test_macenko_gives_the_reference_stains_and_keeps_the_amounts() -> None:
    image = stained(VECTORS)
    again = estimate(restain(image, estimate(image)))
    assert all(angle(np.asarray(again["stains"][k]), REFERENCE_STAINS[k]) < 4 for k in (0, 1))
    np.testing.assert_allclose(again["maxima"], [1.9705, 1.0308], rtol=0.08)
    # What had more of a stain than another pixel still has.
    reference = REFERENCE_STAINS / np.linalg.norm(REFERENCE_STAINS, axis=1, keepdims=True)
    before = OPTICAL_DENSITY[image] @ np.linalg.pinv(VECTORS)
    after = OPTICAL_DENSITY[restain(image, estimate(image))] @ np.linalg.pinv(reference)
    for stain in (0, 1):
        assert np.corrcoef(before[..., stain].ravel(), after[..., stain].ravel())[0, 1] > 0.97


@pytest.mark.parametrize(("method", "left"), [("macenko", 0.2), ("reinhard", 0.85)])
def test_laboratories_come_closer(method: str, left: float) -> None:
    """Laboratories differ in their stain vectors, which is what the one method looks for; the other sees means only."""
    images = [tissue(laboratory) for laboratory in range(3)]
    after = [restain(image, estimate(image, method)) for image in images]
    gaps = [[np.abs(some[a].astype(float) - some[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))] for some in (images, after)]
    assert np.mean(gaps[1]) < left * np.mean(gaps[0]) and (np.asarray(gaps[1]) < gaps[0]).all()
    assert all(image.dtype == np.uint8 and image.shape == (192, 192, 3) for image in after)


@pytest.mark.parametrize("method", METHODS)
def test_without_stain_everything_stays(method: str) -> None:
    glass = np.random.default_rng(0).integers(238, 250, (64, 64, 3)).astype(np.uint8)
    for blank in (WHITE, glass):
        assert estimate(blank, method) == {}
        np.testing.assert_array_equal(restain(blank, estimate(blank, method)), blank)
    # A blank window of a slide that was looked at as a whole.
    np.testing.assert_array_equal(restain(WHITE, estimate(tissue(0), method)), WHITE)


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_restained_like_the_whole(method: str) -> None:
    image = tissue(1)
    found = json.loads(json.dumps(estimate(image, method)))
    whole = restain(image, found)
    np.testing.assert_array_equal(restain(image[40:90, 30:100], found), whole[40:90, 30:100])
    assert np.abs(whole.astype(float) - image).mean() > 4
    # An overview a quarter as wide tells nearly the same as the slide.
    overview = restain(image, estimate(np.ascontiguousarray(image[::4, ::4]), method))
    assert np.abs(overview.astype(float) - whole).mean() < 6


def test_a_single_stain_is_left_alone() -> None:
    amounts = np.random.default_rng(0).gamma(2.0, 0.4, (64, 64, 1))
    image = np.rint(255 * np.exp(-amounts * VECTORS[0])).astype(np.uint8)
    assert estimate(image, "macenko") == {}


def test_density_decides_what_counts() -> None:
    image = tissue(0)
    assert estimate(image, "reinhard", 0.15)["mean"] != estimate(image, "reinhard", 0.6)["mean"]
    assert estimate(image, "macenko", 5.0) == {}


def test_mixing_with_the_identity_changes_nothing() -> None:
    image = tissue(0)
    assert np.abs(mix(image, np.eye(3)).astype(int) - image).max() <= 1
    assert np.abs(mix(image, STAINS.T @ np.linalg.inv(STAINS.T)).astype(int) - image).max() <= 1


def test_grey_images_are_refused_in_one_sentence() -> None:
    for wrong in (np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8, 3), np.float32)):
        for act in (lambda image: estimate(image), lambda image: restain(image, {})):
            with pytest.raises(ConfigError, match=r"needs RGB images of 8 bits; .* Set data\.preprocessing\.stain=null"):
                act(wrong)


# -- as a step of the preprocessing ------------------------------------------------------------------------------------


def preprocessing(stain: dict | None = None, **other: object) -> Preprocessing:
    return Preprocessing.from_config(GEOMETRY, {"stain": stain, **other})


@pytest.mark.parametrize("method", METHODS)
def test_working_rasters_are_restained(method: str) -> None:
    image, step = tissue(1), preprocessing({"method": method, "density": 0.15})
    expected = restain(image, estimate(image, method))
    np.testing.assert_array_equal(step.working(image, 2.0), expected)
    assert (preprocessing().working(image, 2.0) != expected).any()
    # Given what an overview tells, a window gives its part of the whole.
    np.testing.assert_array_equal(step.working(image[:64, :64], 2.0, stain=step.stain_of(image)), expected[:64, :64])
    assert step.working(image, 4.0).shape == (96, 96, 3) and preprocessing().stain_of(image) == {}
    np.testing.assert_array_equal(step.working(WHITE, 2.0), WHITE)
    # Contrast comes afterwards.
    both = preprocessing({"method": method}, clahe={"clip_limit": 2.0, "tiles": 4}).working(image, 2.0)
    np.testing.assert_array_equal(both, preprocessing(clahe={"clip_limit": 2.0, "tiles": 4}).working(expected, 2.0))


def test_it_is_stored_and_keys_the_cache() -> None:
    some = [preprocessing(), *(preprocessing({"method": method}) for method in METHODS), preprocessing({"density": 0.3})]
    assert len({json.dumps(step.raster_key()) for step in some}) == 4
    for step in some:
        assert Preprocessing.from_dict(json.loads(json.dumps(step.to_dict()))) == step
    older = {key: value for key, value in preprocessing().to_dict().items() if key != "stain"}
    assert Preprocessing.from_dict(older) == preprocessing()
    assert "stain" not in preprocessing().raster_key()  # caches made before the step existed stay valid


def test_wrong_settings() -> None:
    for wrong in ({"method": "vahadane"}, {"density": 0}):
        with pytest.raises(ConfigError, match=r"data\.preprocessing\.stain` is"):
            preprocessing(wrong)
    with pytest.raises(ConfigError, match=r"for RGB images, `data\.preprocessing\.foreground` for grey values"):
        Preprocessing(Geometry(), foreground={"method": "zscore"}, stain={"method": "macenko"})
    with pytest.raises(ConfigError, match="needs RGB images"):
        preprocessing({"method": "reinhard"}).working(np.ones((64, 64, 2), np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_real_sources_come_closer(real_data: Path, method: str) -> None:
    if not (real_data / "tiger").is_dir():
        pytest.skip("MTL_DATA_DIR holds no `tiger`: no real regions here")
    family = Tiger(root=str(real_data / "tiger"))
    before: dict[str, list[np.ndarray]] = {}
    after: dict[str, list[np.ndarray]] = {}
    for record in family.records()[::4]:
        image = family.read_image(record)
        for found, picture in ((before, image), (after, restain(image, estimate(image, method)))):
            carries = OPTICAL_DENSITY[picture].mean(axis=2) > 0.15
            found.setdefault(record.source, []).append(picture[carries].mean(axis=0))

    def spread(found: dict[str, list[np.ndarray]]) -> float:
        return float(np.std([np.mean(colours, axis=0) for colours in found.values()], axis=0).mean())

    assert len(before) >= 3 and spread(after) < 0.7 * spread(before)
