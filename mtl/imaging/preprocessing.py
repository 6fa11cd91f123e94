"""The one object that turns a stored image into network input, in training, evaluation, prediction and export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError
from mtl.core.types import Window
from mtl.imaging.content import Box, content_box, outside_circle
from mtl.imaging.geometry import Geometry
from mtl.imaging.intensity import brain_mask, standardise
from mtl.imaging.stain import METHODS as STAIN_METHODS
from mtl.imaging.stain import Estimate, estimate, restain

PERCENTILE_STD = 0.25  # of values between the 1st and the 99th percentile
METHODS = ("zscore", "percentile")


@dataclass(frozen=True)
class Preprocessing:
    """Crop, stain, resize, contrast, normalisation. Holds plain values only, so a checkpoint can carry it.

    Attributes:
        geometry: Working raster and windows.
        crop_border: None, or `threshold` and `margin` of `mtl.imaging.content.content_box`: a dark border around the picture is
            cut off.
        circle: Fill what lies outside the circle that the picture shows (after the contrast, which amplifies noise there).
        clahe: None, or `clip_limit` and `tiles` (per side) of the contrast-limited adaptive histogram equalisation of the
            L channel (Zuiderveld 1994); a and b stay as they are.
        mean, std: Per channel, in the unit interval for uint8 images and in the image's own unit for float images.
        foreground: None, or `method` and `limit` of `mtl.imaging.intensity.standardise`: grey values of any unit become values
            in [0, 1] that compare between images, measured inside the brain or head; what is outside becomes 0.
        stain: None, or `method` and `density` of `mtl.imaging.stain.estimate`: the colours of stained tissue become those of
            one reference.
    """

    geometry: Geometry
    clahe: dict[str, float] | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_border: dict[str, float] | None = None
    circle: bool = False
    foreground: dict[str, Any] | None = None
    stain: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ConfigError(
                f"`data.preprocessing`: mean {list(self.mean)} and std {list(self.std)} must have one value "
                "per channel, std above 0."
            )
        if self.clahe is not None:
            clip_limit, tiles = self.clahe.get("clip_limit", 2.5), self.clahe.get("tiles", 16)
            if clip_limit <= 0 or tiles < 1:
                raise ConfigError(f"`data.preprocessing.clahe` is {self.clahe}; expected clip_limit above 0 and tiles >= 1.")
            object.__setattr__(self, "clahe", {"clip_limit": float(clip_limit), "tiles": int(tiles)})
        if self.foreground is not None:
            method, limit = self.foreground.get("method", "zscore"), self.foreground.get("limit", 4.0)
            if method not in METHODS or limit <= 0 or self.clahe is not None:
                raise ConfigError(
                    f"`data.preprocessing.foreground` is {self.foreground}; expected method {' or '.join(METHODS)} and a limit "
                    "above 0, and clahe=null, since that is for RGB images."
                )
            object.__setattr__(self, "foreground", {"method": str(method), "limit": float(limit)})
            fill = np.atleast_1d(self.geometry.fill)
            if fill.min() < 0 or fill.max() > 1:
                raise ConfigError(
                    f"`data.geometry.fill` is {self.geometry.to_dict()['fill']}; expected 0 to 1, since "
                    "`data.preprocessing.foreground` maps grey values there. Set data.geometry.fill=0, the background."
                )
        if self.stain is not None:
            method, density = self.stain.get("method", "macenko"), self.stain.get("density", 0.15)
            if method not in STAIN_METHODS or density <= 0:
                raise ConfigError(
                    f"`data.preprocessing.stain` is {self.stain}; expected method {' or '.join(STAIN_METHODS)} and a density "
                    "above 0."
                )
            if self.foreground is not None:
                raise ConfigError(
                    "`data.preprocessing.stain` is for RGB images, `data.preprocessing.foreground` for grey values. Set one of "
                    "them to null."
                )
            object.__setattr__(self, "stain", {"method": str(method), "density": float(density)})

    @classmethod
    def from_config(
        cls, geometry: dict[str, Any], preprocessing: dict[str, Any], normalization: dict[str, Any] | None = None
    ) -> Preprocessing:
        """Build from the configuration.

        Args:
            geometry: Keys of `data.geometry`.
            preprocessing: Keys of `data.preprocessing`.
            normalization: `mean` and `std` of the encoder, used where the configuration has null. None will do where pixels are
                not normalised (preparing a cache). With `foreground` only their number counts: the network then gets what was
                measured inside the head, z for `zscore`, about -2 to 2 for `percentile`.
        """
        normalization = normalization or {"mean": cls.mean, "std": cls.std}
        if (foreground := preprocessing.get("foreground")) is not None:
            zscore, limit = foreground.get("method", "zscore") == "zscore", foreground.get("limit", 4.0)
            spread = 1 / (2 * limit) if zscore and limit > 0 else PERCENTILE_STD
            channels = len(normalization["mean"])
            normalization = {"mean": [0.5] * channels, "std": [spread] * channels}
        mean, std = preprocessing.get("mean"), preprocessing.get("std")
        return cls(
            geometry=Geometry.from_dict(geometry),
            clahe=preprocessing.get("clahe"),
            mean=tuple(normalization["mean"] if mean is None else mean),
            std=tuple(normalization["std"] if std is None else std),
            crop_border=preprocessing.get("crop"),
            circle=bool(preprocessing.get("circle", False)),
            foreground=foreground,
            stain=preprocessing.get("stain"),
        )

    def content(self, image: np.ndarray) -> Box | None:
        """Find the part of a stored image [H, W, C] that the working raster shows; None is all of it."""
        return None if self.crop_border is None else content_box(image, **self.crop_border)

    def stain_of(self, image: np.ndarray) -> Estimate:
        """Describe the staining of a stored image [H, W, C], or of windows of a slide; empty where it does not matter."""
        return {} if self.stain is None else estimate(image, **self.stain)

    def working(
        self, image: np.ndarray, pixel_scale: float = 1.0, content: Box | None = None, stain: Estimate | None = None
    ) -> np.ndarray:
        """Turn a stored image into its working raster: standardise values, cut, resize, equalise, fill around the circle.

        Args:
            image: [H, W, C].
            pixel_scale: Stored pixels per reference pixel.
            content: Result of `content` where the caller already has it.
            stain: Result of `stain_of` where the image is a part of something larger; None looks at the image itself.

        Returns:
            [H, W, C] of the image's type; float16 with `foreground`, so that a cache is half as large and loses nothing.
        """
        content = self.content(image) if content is None else content
        image = self.standardised(image)
        left, top, right, bottom = content or (0, 0, image.shape[1], image.shape[0])
        shown = image[top:bottom, left:right]
        if self.stain is not None:
            shown = restain(shown, self.stain_of(shown) if stain is None else stain)
        raster = self.geometry.to_working(shown, pixel_scale)
        if self.clahe is not None:
            raster = equalise(raster, self.clahe["clip_limit"], int(self.clahe["tiles"]))
        if self.circle:
            scale = raster.shape[1] / (right - left), raster.shape[0] / (bottom - top)
            box = content or content_box(image)
            outside = outside_circle(box, scale, (left, top), (raster.shape[0], raster.shape[1]))
            raster = np.where(outside[..., None], np.asarray(self.geometry.fill, raster.dtype), raster)
        return raster if self.foreground is None else raster.astype(np.float16)

    def standardised(self, image: np.ndarray) -> np.ndarray:
        """Return a stored image [H, W, C] with comparable values: float32 in [0, 1] with `foreground`, else as it is."""
        if self.foreground is None:
            return image
        return standardise(image, brain_mask(image), **self.foreground)

    def windows(self, original_size: tuple[int, int], pixel_scale: float = 1.0, content: Box | None = None) -> list[Window]:
        """List the windows of an image; see `Geometry.windows`."""
        return self.geometry.windows(original_size, pixel_scale, content)

    def crop(self, working: np.ndarray, window: Window) -> np.ndarray:
        """Cut one padded network image out of the working raster: uint8 as it is, else float32."""
        image = self.geometry.crop(working, window)
        return image if image.dtype == np.uint8 else image.astype(np.float32, copy=False)

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Turn a network image [H, W, C] (uint8, or float in its own unit) into [C, H, W] float32, normalised."""
        import cv2

        unit = 255.0 if image.dtype == np.uint8 else 1.0
        mean, std = np.asarray(self.mean, np.float32) * unit, np.asarray(self.std, np.float32) * unit
        channels = image.shape[2]
        if channels != len(self.mean):
            raise ConfigError(f"The image has {channels} channels, `data.preprocessing.mean` has {len(self.mean)} values.")
        output = np.empty((channels, *image.shape[:2]), np.float32)
        for channel, (plane, values) in enumerate(zip(output, cv2.split(image), strict=True)):
            plane[...] = values  # neither conversion nor arithmetic is fast on values that lie `channels` apart
            plane -= mean[channel]
            plane /= std[channel]
        return output

    def denormalize(self, image: np.ndarray) -> np.ndarray:
        """Invert `normalize` for display: [C, H, W] float32 to [H, W, 3] uint8."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return self.display(np.moveaxis(np.asarray(image, np.float32), 0, -1) * std + mean)

    def display(self, raster: np.ndarray) -> np.ndarray:
        """Turn a working raster [H, W, C], uint8 or float in [0, 1], into a picture for figures: [H, W, 3] uint8.

        Colours stay. Of grey values, and of any other number of channels than three, the first channel that holds something is
        shown in grey.
        """
        if raster.dtype != np.uint8:
            raster = np.clip(np.rint(np.asarray(raster, np.float32) * 255.0), 0, 255).astype(np.uint8)
        if raster.shape[2] == 3 and self.foreground is None:
            return raster
        shown = next((channel for channel in range(raster.shape[2]) if raster[..., channel].any()), 0)
        return np.repeat(raster[..., shown : shown + 1], 3, axis=2)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """Turn a stored image [H, W, C] into one for figures, with the grey values that the network sees: [H, W, 3] uint8."""
        image = self.standardised(image)
        if image.dtype != np.uint8 and self.foreground is None:  # in a unit of its own
            image = standardise(image, np.ones(image.shape[:2], bool), "percentile", 1.0)
        return self.display(image)

    def raster_key(self) -> dict[str, Any]:
        """Return what decides the pixels of the working raster; keys a cache. Neither windows nor mean and std belong to it."""
        geometry: dict[str, Any] = {"mode": self.geometry.mode}
        if self.geometry.mode == "tiles":
            geometry["scale"] = self.geometry.scale
        else:
            geometry["size"] = list(self.geometry.size)
        key = {"geometry": geometry, "clahe": self.clahe, "crop": self.crop_border, "circle": self.circle}
        key |= {name: value for name, value in (("foreground", self.foreground), ("stain", self.stain)) if value}
        return key | ({"fill": self.geometry.to_dict()["fill"]} if self.circle else {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as stored in checkpoints."""
        return {
            "geometry": self.geometry.to_dict(),
            "crop": None if self.crop_border is None else dict(self.crop_border),
            "circle": self.circle,
            "clahe": None if self.clahe is None else dict(self.clahe),
            "foreground": None if self.foreground is None else dict(self.foreground),
            "stain": None if self.stain is None else dict(self.stain),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Rebuild from `to_dict`."""
        return cls.from_config(values["geometry"], values)


def equalise(image: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    """Equalise the L channel of an RGB image [H, W, 3] uint8 in LAB space."""
    import cv2

    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ConfigError(
            f"`data.preprocessing.clahe` needs RGB images of 8 bits; found {image.shape[2:]} channels of {image.dtype}. "
            "Set data.preprocessing.clahe=null."
        )
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(tiles, tiles)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
