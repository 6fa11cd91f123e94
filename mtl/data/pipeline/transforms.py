"""Training augmentation behind one class; albumentations (2.0.8, MIT) is not visible outside this module.

Every step that moves pixels is affine, so three key points that travel with the image say where all coordinates go; hundreds
of outlines would cost more than the pixels. Coordinates here are continuous (the centre of a pixel is .5), those of
albumentations count pixel centres, hence the shift by half a pixel around the call.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from mtl.core.errors import ConfigError
from mtl.core.types import Objects
from mtl.imaging.stain import STAINS, mix

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version otherwise
import albumentations as A

COLOUR_STEPS = ("color_jitter", "stain_jitter")
QUARTERS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}  # as albumentations counts
# Origin and a point on each axis; their distance is a power of two, so that flips and quarter turns stay exact.
CORNERS = np.array([[0, 0], [1024, 0], [0, 1024]], np.float32)


class Transform:
    """Random augmentation of a network image and everything drawn on it.

    Objects are moved, not clipped: masks need whole outlines (`mtl.imaging.outlines.clip_objects` clips what boxes need).

    Args:
        config: The keys of `data.augmentation`; a missing or null entry, or probability 0, leaves that step out.
        size: (height, width) of the network input. Quarter turns need a square one; otherwise only half turns are made.
        fill: Colour that enters the frame; the padding colour of the geometry.
        rgb: The images are RGB of 8 bits; otherwise grey values in [0, 1] in any number of channels, and a channel that holds
            nothing (a missing modality) stays blank.

    Raises:
        ConfigError: A step that changes colours is asked for although the images have none.
    """

    def __init__(
        self, config: dict[str, Any] | None, size: tuple[int, int], fill: float | tuple[float, ...] = 0, rgb: bool = True
    ) -> None:
        self.size, self.rgb = size, rgb
        colour = [name for name in COLOUR_STEPS if ((config or {}).get(name) or {}).get("probability", 0) > 0]
        if colour and not rgb:
            raise ConfigError(
                f"`data.augmentation.{colour[0]}` changes colours, but the images hold grey values. Set "
                f"data.augmentation.{colour[0]}.probability=0; intensity_jitter is made for them."
            )
        self._compose = A.Compose(
            _steps(config or {}, size[0] == size[1], fill),
            keypoint_params=A.KeypointParams(format="xy", remove_invisible=False, check_each_transform=False),
            p=1.0,
        )

    def __call__(
        self, image: np.ndarray, objects: Objects | None, masks: dict[str, np.ndarray], seed: int
    ) -> tuple[np.ndarray, Objects | None, dict[str, np.ndarray]]:
        """Transform one network image.

        Args:
            image: [H, W, C]: uint8 RGB, or float32 in [0, 1] of one to four channels.
            objects: In network pixels.
            masks: [H, W] or [H, W, K] uint8 by name; resampled by nearest neighbour, 0 enters the frame.
            seed: Decides everything: the same seed gives the same result in any process.

        Raises:
            ConfigError: A float image has values above 1, which noise and jitter would cut off.
        """
        if image.dtype != np.uint8 and image.max(initial=0) > 1 + 1e-4:  # resizing rounds
            raise ConfigError(
                f"The images have values up to {image.max():g}; augmentation expects [0, 1]. Set "
                "data.preprocessing.foreground, or data.augmentation=null."
            )
        # `set_random_seed` would hand every step a fresh copy of one stream, so that both flips always came together; one
        # shared stream keeps the steps independent of each other.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # Plane by plane: the library wants masks of one shape, and OpenCV moves four channels at most.
        planes = [plane for mask in masks.values() for plane in (np.moveaxis(mask, 2, 0) if mask.ndim == 3 else [mask])]
        given: dict[str, Any] = {"image": image, "keypoints": CORNERS - 0.5}
        if planes:
            given["masks"] = [np.ascontiguousarray(plane) for plane in planes]
        moved = self._compose(**given)
        if objects is not None:
            origin, right, below = np.asarray(moved["keypoints"], np.float32) + 0.5
            axes = np.stack([right - origin, below - origin]) / CORNERS.max()
            objects = objects.map(lambda points: points @ axes + origin)
        found = iter(moved.get("masks", ()))
        if not self.rgb:
            moved["image"][..., ~image.any(axis=(0, 1))] = 0  # from noise and fill
        return moved["image"], objects, {name: _gather(mask, found) for name, mask in masks.items()}


def _gather(mask: np.ndarray, planes: Iterator[np.ndarray]) -> np.ndarray:
    """Take as many planes [H, W] as a mask has channels and give them its form."""
    if mask.ndim == 2:
        return next(planes)
    return np.stack([next(planes) for _ in range(mask.shape[2])], axis=2)


def _steps(config: dict[str, Any], square: bool, fill: float | tuple[float, ...]) -> list[Any]:
    def on(name: str) -> dict[str, Any]:
        entry = config.get(name) or {}
        return entry if entry.get("probability", 0) > 0 else {}

    steps: list[Any] = []
    if config.get("horizontal_flip"):
        steps.append(A.HorizontalFlip(p=config["horizontal_flip"]))
    if config.get("vertical_flip"):
        steps.append(A.VerticalFlip(p=config["vertical_flip"]))
    if config.get("rotate90"):
        half_turn = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=config["rotate90"] / 2)
        steps.append(QuarterTurn(p=config["rotate90"]) if square else half_turn)
    if affine := on("affine"):
        shift, shear = abs(affine.get("translate", 0.0)), abs(affine.get("shear", 0.0))
        steps.append(
            A.Affine(
                scale=tuple(affine.get("scale", (1.0, 1.0))),
                translate_percent=(-shift, shift),
                rotate=(-affine.get("rotate", 0.0), affine.get("rotate", 0.0)),
                shear={"x": (-shear, shear), "y": (-shear, shear)},
                keep_ratio=True,
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,  # a reflected border would show objects that nobody labelled
                fill=fill,
                fill_mask=0,
                p=affine["probability"],
            )
        )
    if stain := on("stain_jitter"):
        steps.append(StainJitter(strength=stain.get("strength", 0.05), p=stain["probability"]))
    if colour := on("color_jitter"):
        steps.append(
            A.ColorJitter(
                **{name: _around_one(colour.get(name, 0.0)) for name in ("brightness", "contrast", "saturation")},
                hue=(-colour.get("hue", 0.0), colour.get("hue", 0.0)),
                p=colour["probability"],
            )
        )
    if intensity := on("intensity_jitter"):
        strengths = {name: intensity.get(name, 0.0) for name in ("contrast", "brightness")}
        steps.append(IntensityJitter(**strengths, p=intensity["probability"]))
    if blur := on("blur"):
        steps.append(Blur(kernel=tuple(blur.get("kernel", (3, 7))), p=blur["probability"]))
    if noise := on("noise"):
        steps.append(A.GaussNoise(std_range=tuple(noise.get("std", (0.01, 0.03))), p=noise["probability"]))
    if config.get("channel_dropout"):  # last, so that a blank channel is really blank
        steps.append(ChannelDropout(config["channel_dropout"]))
    return steps


def _around_one(width: float) -> tuple[float, float]:
    return max(0.0, 1.0 - width), 1.0 + width


class QuarterTurn(A.RandomRotate90):
    """Turn by a random number of quarters.

    The one of albumentations turns pictures by a view of NumPy, whose copy in the new order takes ten times as long.
    """

    def apply(self, img: np.ndarray, factor: int, **params: Any) -> np.ndarray:
        """Apply to [H, W] or [H, W, C] of one to four channels."""
        return cv2.rotate(img, QUARTERS[factor]).reshape(img.shape) if factor else img


class StainJitter(A.ImageOnlyTransform):
    """Vary the amount of each stain in optical-density space (Tellez et al. 2018): c -> c * (1 + a) + b.

    a is uniform within +-strength, b within +-strength / 4, drawn per stain.
    """

    def __init__(self, strength: float = 0.05, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        """Sample factors and shifts, [3] each."""
        factor = self.random_generator.uniform(-self.strength, self.strength, 3) + 1.0
        return {"factor": factor, "shift": self.random_generator.uniform(-self.strength, self.strength, 3) / 4}

    def apply(self, img: np.ndarray, factor: np.ndarray, shift: np.ndarray, **params: Any) -> np.ndarray:
        """Apply to [H, W, 3] uint8."""
        # Separation, change and mixing are linear in optical density: one 3 x 4 matrix does all three.
        matrix = STAINS.T @ np.diag(factor) @ np.linalg.inv(STAINS.T)
        return mix(img, np.column_stack([matrix, STAINS.T @ shift]))

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Name the arguments, for the printed form."""
        return ("strength",)


class IntensityJitter(A.ImageOnlyTransform):
    """Vary contrast and brightness of each channel where it is above 0; the background stays exactly 0.

    v -> m + (v - m) * (1 + a) + b with the mean m of the channel's foreground, a uniform within +-contrast and b within
    +-brightness times the value range.
    """

    def __init__(self, contrast: float = 0.2, brightness: float = 0.1, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.contrast, self.brightness = contrast, brightness

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Sample factors and shifts, one per channel."""
        channels = data["image"].shape[2]
        factors = 1.0 + self.random_generator.uniform(-self.contrast, self.contrast, channels)
        return {"factors": factors, "shifts": self.random_generator.uniform(-self.brightness, self.brightness, channels)}

    def apply(self, img: np.ndarray, factors: np.ndarray, shifts: np.ndarray, **params: Any) -> np.ndarray:
        """Apply to [H, W, C]."""
        whole = 255.0 if img.dtype == np.uint8 else 1.0
        output = img.copy()
        for channel, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            inside = img[..., channel] > 0
            values = img[..., channel][inside].astype(np.float64)
            if len(values):
                moved = np.clip(values.mean() + (values - values.mean()) * factor + shift * whole, 0, whole)
                output[..., channel][inside] = np.rint(moved) if whole > 1 else moved
        return output

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Name the arguments, for the printed form."""
        return ("contrast", "brightness")


class ChannelDropout(A.ImageOnlyTransform):
    """Blank each channel with a probability, but never the last one that holds anything: trains for missing modalities.

    The one of albumentations drops a number of channels, whether or not something is left.
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(p=1.0)
        self.probability = probability

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Sample which channels go, [C] bool."""
        filled = data["image"].any(axis=(0, 1))
        dropped = self.random_generator.random(len(filled)) < self.probability
        order = self.random_generator.permutation(len(filled))  # drawn in any case, so that other steps see the same stream
        if filled.any() and not (filled & ~dropped).any():
            dropped[next(channel for channel in order if filled[channel])] = False
        return {"dropped": dropped}

    def apply(self, img: np.ndarray, dropped: np.ndarray, **params: Any) -> np.ndarray:
        """Apply to [H, W, C]."""
        return np.where(dropped, np.zeros((), img.dtype), img)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Name the arguments, for the printed form."""
        return ("probability",)


class Blur(A.ImageOnlyTransform):
    """Gaussian blur with a random odd kernel; OpenCV derives the standard deviation (0.8 px for 3, 1.1 for 5, 1.4 for 7).

    The one of albumentations turns images black when asked to derive it.
    """

    def __init__(self, kernel: tuple[int, int] = (3, 7), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.kernel = kernel

    def get_params(self) -> dict[str, Any]:
        """Sample the side of the kernel in pixels."""
        smallest, largest = self.kernel
        return {"side": 2 * int(self.random_generator.integers(smallest // 2, largest // 2 + 1)) + 1}

    def apply(self, img: np.ndarray, side: int, **params: Any) -> np.ndarray:
        """Apply to [H, W, C]."""
        return cv2.GaussianBlur(img, (side, side), 0).reshape(img.shape)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Name the arguments, for the printed form."""
        return ("kernel",)
