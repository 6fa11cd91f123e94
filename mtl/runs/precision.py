"""In which precision and memory format a network computes: decided once before a run, and named in what comes of it.

A run asks for `auto` or for something else; `settled` replaces `auto` by what suits the device, and from there on the
configuration says what is done: in `config.json`, in checkpoints, to stages, ranks, resumed runs and the evaluation at the end.
Whoever uses a checkpoint later gets what it was trained and validated with (`usable`), where the device is made for that.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl.config.plan import Plan
from mtl.config.schema import RunConfig
from mtl.core.errors import ConfigError
from mtl.layers import ready_for_bfloat16

log = logging.getLogger("mtl")
AUTO = "auto"
FLOAT32, BFLOAT16, FLOAT16 = "32-true", "bf16-mixed", "16-mixed"
TYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
# Instructions that multiply bfloat16; without them a CPU computes the same numbers slower than float32.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Computation:
    """How a network computes.

    Attributes:
        precision: `32-true`, `bf16-mixed` or `16-mixed`, as the Trainer takes it.
        channels_last: Maps and weights lie in memory pixel by pixel.
    """

    precision: str = FLOAT32
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{self.precision}, channels_last={str(self.channels_last).lower()}"

    @classmethod
    def of(cls, config: RunConfig) -> Computation:
        """Return what a settled configuration says."""
        return cls(normalized(config.trainer.precision), config.runtime.channels_last is True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as results name them."""
        return {"precision": self.precision, "channels_last": self.channels_last}

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of a forward pass and of decoding."""
        return torch.autocast(device.type, TYPES.get(self.precision, torch.bfloat16), enabled=self.precision in TYPES)

    def arrange(self, model: nn.Module) -> None:
        """Lay out the weights of a network, and choose what computes them."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.precision == BFLOAT16:
            ready_for_bfloat16(model)

    def arranged(self, images: Tensor) -> Tensor:
        """Return [B, C, H, W] laid out as the network computes."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def made_for_bfloat16(kind: str) -> str:
    """Return what a kind of device computes bfloat16 with; empty where it is not made for it, or this is not known.

    Args:
        kind: `cpu`, `cuda`, ...: the type of a torch device. All visible GPUs have to be made for it.
    """
    if kind == "cpu":
        known = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
        return next((name for name in INSTRUCTIONS if known.get(name)), "")
    if kind == "cuda" and torch.cuda.is_available():
        able = []
        for index in range(torch.cuda.device_count()):
            with torch.cuda.device(index):
                able.append(torch.cuda.is_bf16_supported(including_emulation=False))
        return "tensor cores" if able and all(able) else ""
    return ""


def device_kind(accelerator: str) -> str:
    """Return the type of device that the Trainer takes for `trainer.accelerator`."""
    if accelerator in ("cuda", "cpu", "mps"):
        return accelerator
    if accelerator in (AUTO, "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def settled(plan: Plan) -> tuple[Plan, str]:
    """Return a plan that says how the network computes here, and a sentence about it for the log and the report.

    `auto` is bfloat16 with channels_last where the device is made for bfloat16, as measured on CPUs, else float32 without. What
    a configuration says stands, also where the device is not made for it: a resumed run goes on as it began.
    """
    asked, layout = plan.config.trainer.precision, plan.config.runtime.channels_last
    kind = device_kind(plan.config.trainer.accelerator)
    by = made_for_bfloat16(kind)
    precision = normalized(asked) if asked != AUTO else BFLOAT16 if by else FLOAT32
    channels_last = layout if isinstance(layout, bool) else precision != FLOAT32 and bool(by)
    chosen = Computation(precision, channels_last)
    has = f"this {kind} has {by}" if by else f"this {kind} is not made for bfloat16"
    if AUTO in (asked, layout):
        said = f"{chosen} (auto: {has})"
    elif precision == BFLOAT16 and not by:
        said = f"{chosen} (as configured; {has}, so that it is slow)"
    else:
        said = f"{chosen} (as configured)"
    if AUTO not in (asked, layout):
        return plan, said
    # What was configured keeps its spelling: a resumed run is held against its checkpoint.
    return plan.computing(precision if asked == AUTO else asked, channels_last), said


def usable(
    config: RunConfig, device: torch.device, precision: str | int = AUTO, channels_last: str | bool = AUTO
) -> Computation:
    """Return how a trained network computes on a device.

    Args:
        config: Of its run.
        device: Where it is used.
        precision: As `trainer.precision`; `auto` is that of the training, with which it was validated and its thresholds were
            chosen, or float32 on a device that is not made for it.
        channels_last: `auto` is as in training where the precision is that of the training, else with a mixed precision only.

    Raises:
        ConfigError: Not one of these values, or the device cannot do it.
    """
    if str(precision) not in (AUTO, "32", FLOAT32, *TYPES):
        raise ConfigError(f"`precision` is {precision!r}; expected auto, 32, bf16-mixed or 16-mixed.")
    if not isinstance(channels_last, bool) and channels_last != AUTO:
        raise ConfigError(f"`channels_last` is {channels_last!r}; expected auto, true or false.")
    suits = {FLOAT32: True, BFLOAT16: bool(made_for_bfloat16(device.type)), FLOAT16: device.type == "cuda"}
    trained = normalized(config.trainer.precision)
    if trained == AUTO:  # of a network that was stored without training
        trained = BFLOAT16 if suits[BFLOAT16] else FLOAT32
    if precision == AUTO:
        chosen = trained if suits[trained] else FLOAT32
    else:
        chosen = normalized(precision)
        if chosen == FLOAT16 and not suits[FLOAT16]:
            raise ConfigError(f"`precision={FLOAT16}` needs a GPU, not {device.type}. Use precision=auto, bf16-mixed or 32.")
    if isinstance(channels_last, bool):
        return Computation(chosen, channels_last)
    own = config.runtime.channels_last
    as_trained = chosen == trained and isinstance(own, bool)
    return Computation(chosen, own is True if as_trained else chosen != FLOAT32)


def normalized(precision: str | int) -> str:
    """Return a precision by its name: 32 is `32-true`."""
    return FLOAT32 if str(precision) == "32" else str(precision)
