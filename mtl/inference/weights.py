"""The weights of a network that computes in 16 bits, cast once instead of in each forward pass."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def hold_weights(model: nn.Module) -> None:
    """Let convolutions and linear layers keep their weights in the type of autocast, in place.

    Autocast casts all weights in each forward pass, which for small batches of small images is a sixth of the time. What a
    layer computes stays the same to the last bit, and without autocast nothing changes. Held weights are made anew when the
    layer's own ones change; they take half the memory of these, and are not stored.

    Args:
        model: Ordinary layers and subclasses of them that compute with what `_conv_forward` is given.
    """
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, nn.Conv2d) and not isinstance(module, _Convolution):
            module.__class__ = _holding(kind)
        elif kind is nn.Linear:
            module.__class__ = _Linear


class _Holding(nn.Module):
    """A layer that holds casts of its parameters."""

    def _held(self, name: str, value: Tensor | None, device: str) -> Tensor | None:
        """Return a parameter as autocast on a kind of device would cast it."""
        if value is None or not torch.is_autocast_enabled(device) or value.dtype != torch.float32 or torch.is_grad_enabled():
            return value
        kind = torch.get_autocast_dtype(device)
        stamp = (value.data_ptr(), value._version, kind)
        kept: dict[str, tuple[Any, Tensor]] = self.__dict__.setdefault("_casts", {})
        if name not in kept or kept[name][0] != stamp:
            kept[name] = (stamp, value.detach().to(kind))
        return kept[name][1]


class _Convolution(_Holding, nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        device = input.device.type
        cast = self._held("weight", weight, device)
        assert cast is not None
        return super()._conv_forward(input, cast, self._held("bias", bias, device))


class _Linear(_Holding, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        """Compute [..., C]."""
        device = input.device.type
        weight = self._held("weight", self.weight, device)
        assert weight is not None
        return nn.functional.linear(input, weight, self._held("bias", self.bias, device))


@cache
def _holding(kind: type[nn.Conv2d]) -> type[_Convolution]:
    """Return a subclass of a convolution that holds its weights."""
    return _Convolution if kind is nn.Conv2d else type(f"Holding{kind.__name__}", (_Convolution, kind), {})
