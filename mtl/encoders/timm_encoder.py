"""Any timm network that yields a pyramid of feature maps, behind one contract."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.core.errors import CheckpointError, ConfigError, nearest
from mtl.core.imports import withheld
from mtl.core.places import Place
from mtl.core.registry import ENCODERS
from mtl.encoders.base import Encoder
from mtl.encoders.freeze import check_modules
from mtl.encoders.freeze import freeze as freeze_body
from mtl.encoders.hub import fetch
from mtl.encoders.weights import load_weights as load_file
from mtl.encoders.weights import match

with withheld("wandb"):  # which timm would import to log with, and takes a tenth of the start of a prediction
    import timm
    from timm.models.efficientnet import EfficientNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@ENCODERS.register("timm")
class TimmEncoder(Encoder):
    """A timm network without its classifier.

    Source: https://github.com/huggingface/pytorch-image-models, `features_only`.

    Args:
        load_weights: False where a checkpoint follows: neither the hub nor a weight file is touched.
        architecture: Name in timm, with or without a tag for the published weights (`resnet50`, `resnet50.tv_in1k`).
        pretrained: Start from the published weights (cache or hub). A file in `weights` takes their place.
        weights: Local file: .safetensors, torch state dict, or an mtl checkpoint, of which the encoder is taken.
        reinitialize: Parts that stay at their random start all the same, as module names in timm (`layer4`).
        in_chans: Channels of the image; pretrained first layers are adapted.
        output_stride: Replace later strides by dilation, so that no map is coarser than this.
        image_size: [height, width] for networks that are built for one size; the others take any.
        freeze: `all` keeps the network fixed, norm statistics included.
        unfreeze: Exceptions to `freeze: all`, as module names in timm (`layer4`, `stages.3`, `blocks.5`).
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time. Batch
            norms that train see each batch again in every backward pass, so their running averages move faster.
        drop_path: Rate of stochastic depth, where the network supports it.
        top_convolution: The last map also passes the network's own last 1x1 convolution, norm and activation (`conv_head`,
            `bn2`): 1280 channels instead of 320 for EfficientNet-B0. EfficientNets and their like only.
    """

    def __init__(
        self,
        load_weights: bool = True,
        *,
        architecture: str,
        pretrained: bool = False,
        weights: Place | None = None,
        reinitialize: list = [],  # noqa: B006 (read only)
        in_chans: int | None = None,
        output_stride: int | None = None,
        image_size: list | None = None,
        freeze: Literal["none", "all"] = "none",
        unfreeze: list = [],  # noqa: B006 (read only)
        gradient_checkpointing: bool = False,
        drop_path: float = 0.0,
        top_convolution: bool = False,
    ) -> None:
        super().__init__()
        if unfreeze and freeze != "all":
            raise ConfigError(f"`backbone.unfreeze={unfreeze}` needs `backbone.freeze=all`; nothing is frozen otherwise.")
        if image_size and len(image_size) != 2:
            raise ConfigError(f"`backbone.image_size={image_size}`: expected [height, width] in pixels.")
        self.architecture = architecture
        in_chans = in_chans or 3
        self.in_chans = in_chans
        self.image_size = tuple(image_size) if image_size else None
        self.gradient_checkpointing = gradient_checkpointing

        check_architecture(architecture)
        optional: dict[str, Any] = {"output_stride": output_stride, "img_size": self.image_size}
        arguments: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
        arguments |= {"in_chans": in_chans, "drop_path_rate": drop_path}
        self.top_convolution = top_convolution
        self.body = self._build(arguments)
        self.fresh = [str(name) for name in reinitialize]
        check_modules(self.body, self.fresh, "backbone.reinitialize")
        if weights is not None and load_weights:
            self.report = load_file(self.body, weights, keep=self.fresh)
        elif pretrained and load_weights:
            self._load_published(arguments)

        pyramid: Any = self.body.feature_info
        self.channels = tuple(pyramid.channels())
        if top_convolution:
            top: Any = self.body.get_submodule("conv_head")
            self.channels = (*self.channels[:-1], top.out_channels)
        self.strides = tuple(pyramid.reduction())
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.normalization = normalization_of(self.body, in_chans)
        self._check(output_stride, drop_path)
        if freeze == "all":
            self.frozen_modules = freeze_body(self.body, [str(name) for name in unfreeze])
        self.train()

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps with the adapters in use."""
        maps = self.body(images)
        if self.top_convolution:
            maps = [*maps[:-1], self.body.get_submodule("bn2")(self.body.get_submodule("conv_head")(maps[-1]))]
        return tuple(m.permute(0, 3, 1, 2).contiguous() for m in maps) if self.channels_last else tuple(maps)

    def train(self, mode: bool = True) -> TimmEncoder:
        """Switch the mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        if self.gradient_checkpointing:
            # timm recomputes layer by layer; with one adapter set per task the whole pass is recomputed (`Encoder.forward`).
            switch: Any = self.body.set_grad_checkpointing
            switch(mode and not self.per_task)
        return self

    def example(self) -> Tensor:
        """Return zeros of a size that the network accepts."""
        coarsest = max(self.strides)
        size = self.image_size or (2 * coarsest, 3 * coarsest)
        first = next(self.body.parameters())
        return torch.zeros(1, self.in_chans, *size, device=first.device, dtype=first.dtype)

    def _build(self, arguments: dict[str, Any], file: str | None = None) -> nn.Module:
        body = create_body(self.architecture, file, **arguments)
        if self.top_convolution:
            attach_top(body, self.architecture, file, arguments["in_chans"])
        return body

    def _load_published(self, arguments: dict[str, Any]) -> None:
        path = fetch(self.architecture)
        try:
            self.report = load_file(self.body, path, keep=self.fresh)
        except CheckpointError:
            # Some files keep the key names of their first authors; timm knows how to convert these while it builds.
            converted = self._build(arguments, str(path)).state_dict()
            # timm only warns of keys it did not find; what differs between two builds still is at its random start.
            again = self._build(arguments, str(path)).state_dict()
            random = [key for key, value in converted.items() if not torch.equal(value, again[key])]
            if random:
                problem = f"`{path}` gives no weights for {len(random)} of {len(converted)} keys of `{self.architecture}`"
                raise CheckpointError(
                    f"{problem} (first: `{random[0]}`). Give a file of this network as backbone.weights."
                ) from None
            report, values = match(self.body, converted, f"{path} (converted by timm)", self.fresh)
            self.body.load_state_dict(values, strict=False)
            self.report = report

    def _check(self, output_stride: int | None, drop_path: float) -> None:
        """Refuse networks that do not keep the contract, instead of failing somewhere inside a head."""
        name = self.architecture
        if len(self.strides) > 1 and len(set(self.strides)) == 1:
            raise ConfigError(
                f"`{name}` has maps of a single stride ({self.strides[0]}): expected a pyramid. Use a network with "
                "stages, for example resnet50, convnext_tiny or swin_tiny_patch4_window7_224."
            )
        if output_stride is not None and max(self.strides) > output_stride:
            raise ConfigError(_no_output_stride(name))
        if drop_path > 0 and not any(getattr(part, "drop_prob", 0) for part in self.body.modules()):
            raise ConfigError(f"`backbone.drop_path={drop_path}`: `{name}` has no stochastic depth; set it to 0.")
        if self.gradient_checkpointing and not hasattr(self.body, "set_grad_checkpointing"):
            raise ConfigError(f"`backbone.gradient_checkpointing=true`: `{name}` does not support it; set it to false.")
        images = self.example()
        height, width = images.shape[-2:]
        try:
            self.eval()
            with torch.no_grad():
                shapes = [tuple(m.shape[1:]) for m in self.maps(images)]
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).split("\n")[0]
            hint = "Give the network input's size as `backbone.image_size=[height,width]`, or use another network"
            raise ConfigError(f"`{name}` cannot take an image of {height}x{width}: {reason}. {hint}.") from error
        expected = [(c, -(-height // s), -(-width // s)) for c, s in zip(self.channels, self.strides, strict=True)]
        if shapes != expected:
            raise ConfigError(
                f"`{name}` does not keep its strides: expected maps {expected}, found {shapes}. Use another network."
            )


def check_architecture(architecture: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: With the nearest names, or the valid tags.
    """
    family, _, tag = architecture.partition(".")
    if not timm.is_model(family):
        valid = timm.list_models()
        hint = nearest(family, valid) or " `timm.list_models('*resnet*')` lists names."
        raise ConfigError(f"`backbone.architecture={architecture}`: timm has no such network.{hint}")
    tags = timm.list_pretrained(f"{family}.*")
    if tag and architecture not in tags:
        raise ConfigError(
            f"`backbone.architecture={architecture}`: unknown tag. Expected one of: {', '.join([family, *tags])}."
        )


def create_body(architecture: str, file: str | None = None, **arguments: Any) -> nn.Module:
    """Build the features-only network.

    Optional arguments differ between families; those that only ask for a default are dropped where a family does not
    know them, and the others are errors.

    Args:
        architecture: Name in timm.
        file: Published weights that timm loads, converting their keys.
        arguments: `in_chans`, `drop_path_rate`, `output_stride`, `img_size`.
    """
    # Shifted-window networks are tied to one image size unless told otherwise.
    arguments = arguments if "img_size" in arguments else {**arguments, "strict_img_size": False}
    while True:
        try:
            return timm.create_model(architecture, features_only=True, **_source(file), **arguments)
        except TypeError as error:
            rejected = [key for key in arguments if f"'{key}'" in str(error)]
            if not rejected:
                raise
            problems = [_unsupported(architecture, key) for key in rejected if arguments.pop(key) not in (False, 0.0)]
            if problems:
                raise ConfigError(problems) from error
        # Each family of timm refuses what it cannot do in its own way; what it said stays in the message and the chain.
        except (AssertionError, NotImplementedError, RuntimeError, AttributeError, ValueError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            if file:
                create_body(architecture, **arguments)  # says so if it is the network that cannot be built
                raise CheckpointError(
                    f"`{file}` does not hold weights of `{architecture}`: {reason}. Fetch it again."
                ) from error
            if "output_stride" in arguments:
                # It is the stride that is refused only if the network exists without it.
                create_body(architecture, **{key: value for key, value in arguments.items() if key != "output_stride"})
                raise ConfigError(_no_output_stride(architecture)) from error
            raise ConfigError(f"`backbone.architecture={architecture}` cannot be built as a pyramid: {reason}") from error


def attach_top(body: nn.Module, architecture: str, file: str | None, in_chans: int) -> None:
    """Add the layers behind the last map, under the names that they have in the whole network.

    Args:
        body: From `create_body`; receives `conv_head` and `bn2` (norm and activation), which its own `forward` leaves out.
        architecture: Name in timm.
        file: As for `create_body`.
        in_chans: Channels of the image.

    Raises:
        ConfigError: The network ends in another way.
    """
    whole: Any = timm.create_model(architecture, in_chans=in_chans, **_source(file))
    if not isinstance(whole, EfficientNet):
        raise ConfigError(
            f"`backbone.top_convolution=true`: `{architecture}` has no 1x1 convolution and norm behind its last map. Use an "
            "efficientnet, mobilenetv2 or mnasnet, or set it to false."
        )
    body.add_module("conv_head", whole.conv_head)
    body.add_module("bn2", whole.bn2)


def normalization_of(body: nn.Module, in_chans: int) -> dict[str, list[float]]:
    """Return the mean and std the published weights expect, for `in_chans` channels.

    One channel takes the average over RGB, more than three repeat RGB: the same treatment as the first layer's weights.
    """
    config = getattr(body, "pretrained_cfg", None) or {}
    mean, std = config.get("mean") or IMAGENET[0], config.get("std") or IMAGENET[1]
    if in_chans == 1:
        return {"mean": [round(sum(mean) / len(mean), 6)], "std": [round(sum(std) / len(std), 6)]}
    return {name: [float(v[i % len(v)]) for i in range(in_chans)] for name, v in (("mean", mean), ("std", std))}


def _source(file: str | None) -> dict[str, Any]:
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": file}} if file else {"pretrained": False}


def _no_output_stride(architecture: str) -> str:
    return (
        f"`backbone.output_stride`: `{architecture}` cannot trade strides for dilation to this value. Use 8 or 16 with a "
        "resnet, regnet, efficientnet, mobilenetv3 or convnext, or set it to null."
    )


def _unsupported(architecture: str, key: str) -> str:
    if key == "output_stride":
        return _no_output_stride(architecture)
    if key == "img_size":
        return f"`backbone.image_size`: `{architecture}` takes images of any size; set it to null."
    setting = {"drop_path_rate": "drop_path"}.get(key, key)
    return f"`backbone.{setting}`: `{architecture}` does not support it; remove it."
