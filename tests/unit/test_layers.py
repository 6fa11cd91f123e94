"""Building blocks that compute what torch's own do, only faster on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.layers import DepthwiseConvolution, DilatedConvolution, Dropout, convolution_block, ready_for_bfloat16, resize

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def gradients(layer: nn.Module, maps: Tensor, mixed: bool) -> list[Tensor]:
    """Output and gradients of input, weight and bias, float32."""
    layer.zero_grad()
    maps = maps.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output = layer(maps)
    generator = torch.Generator().manual_seed(1)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    assert maps.grad is not None
    return [output.detach().float(), maps.grad, *(parameter.grad for parameter in layer.parameters())]  # type: ignore[list-item]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (3, 1, 1, (9, 12)), (3, 2, 1, (10, 9)), (5, 2, 2, (9, 12)), (5, 1, 2, (7, 7)), (7, 1, 3, (11, 8)), (2, 2, 0, (9, 8)),
        (3, 2, 0, (8, 9)),
    ],
)  # fmt: skip
def test_depthwise_in_bfloat16(kernel: int, stride: int, padding: int, size: tuple[int, int], layout: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride, padding, groups=6).to(memory_format=FORMATS[layout])
    fast = nn.Sequential(copy.deepcopy(plain))
    ready_for_bfloat16(fast)
    assert type(fast[0]) is DepthwiseConvolution and list(fast.state_dict()) == ["0.weight", "0.bias"]
    maps = torch.randn(2, 6, *size).contiguous(memory_format=FORMATS[layout])
    exact = gradients(plain, maps, mixed=False)
    for found, theirs, wanted in zip(gradients(fast, maps, True), gradients(plain, maps, True), exact, strict=True):
        # Rounded to 8 bits like torch's own, and no worse.
        assert error(found, wanted) < max(0.005, 1.5 * error(theirs, wanted))
    for found, wanted in zip(gradients(fast, maps, False), exact, strict=True):
        assert torch.equal(found, wanted)


def test_only_depthwise_convolutions_of_torch_are_changed() -> None:
    class Own(nn.Conv2d):
        pass

    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), Own(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4)
    )
    ready_for_bfloat16(layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Conv2d, Own, nn.Conv2d]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dilation", [2, 6, 9, 20])
def test_dilation_beyond_the_map(dilation: int, groups: int, layout: str) -> None:
    """With a map of 6 x 9, a dilation of 6 sees no second row, and one of 9 no second column either."""
    torch.manual_seed(0)
    keys = {"padding": dilation, "dilation": dilation, "groups": groups}
    plain, ours = nn.Conv2d(4, 4, 3, **keys), DilatedConvolution(4, 4, 3, **keys)
    ours.load_state_dict(plain.state_dict())
    maps = torch.randn(2, 4, 6, 9).contiguous(memory_format=FORMATS[layout])
    for found, wanted in zip(gradients(ours, maps, False), gradients(plain, maps, False), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert gradients(ours, maps, True)[0].shape == (2, 4, 6, 9)
    assert isinstance(convolution_block(4, 4, 3, dilation)[0], DilatedConvolution)


@pytest.mark.parametrize("layout", FORMATS)
def test_dropout(layout: str) -> None:
    layer, maps = Dropout(0.3), torch.ones(4, 16, 40, 41).contiguous(memory_format=FORMATS[layout]).requires_grad_()
    torch.manual_seed(0)
    first = layer(maps)
    torch.manual_seed(0)
    assert torch.equal(layer(maps), first) and not torch.equal(layer(maps), first)
    assert first.is_contiguous(memory_format=FORMATS[layout]) and first.dtype == torch.float32
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=1e-4)]
    kept = (first > 0).float()
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.005)
    # Independent of each other, also the four that share a number.
    flat = (kept - kept.mean()).permute(0, 2, 3, 1).flatten()
    assert all(abs(float((flat[step:] * flat[:-step]).mean())) < 0.003 for step in range(1, 9))
    first.sum().backward()
    assert torch.equal(maps.grad, first.detach())  # type: ignore[arg-type]
    assert layer.eval()(maps) is maps and Dropout(0.0)(maps).equal(maps) and float(Dropout(1.0)(maps).abs().max()) == 0
    assert (
        Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
        and Dropout(0.5)(torch.ones(7, dtype=torch.bfloat16)).dtype == torch.bfloat16
    )


@pytest.mark.parametrize("layout", FORMATS)
def test_the_gradient_of_resized_maps_behind_others(layout: str) -> None:
    torch.manual_seed(0)
    fine = torch.randn(2, 3, 8, 12).contiguous(memory_format=FORMATS[layout])
    weight = torch.randn(2, 7, 8, 12)
    found = []
    for enlarge in (lambda maps: resize(maps, (8, 12)), lambda maps: F.interpolate(maps, size=(8, 12), mode="bilinear")):
        torch.manual_seed(1)
        maps = torch.randn(2, 4, 4, 6).contiguous(memory_format=FORMATS[layout]).requires_grad_()
        (torch.cat([fine, enlarge(maps)], dim=1) * weight).sum().backward()
        found.append(maps.grad)
    assert torch.equal(*found)  # type: ignore[misc]
