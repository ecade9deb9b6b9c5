"""Depthwise convolutions that learn fast on a CPU, against torch's own."""

import copy

import pytest
import torch
from torch import nn

from d2im.networks import InvertedResidual
from d2im.training.depthwise import quicken


def convolution(channels, kernel, stride):
    return nn.Conv2d(channels, channels, kernel, stride, groups=channels, bias=False)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [11, 12])
def test_a_quick_convolution_knows_its_gradient(kernel, stride, side):
    conv = convolution(3, kernel, stride).double()
    x = torch.randn(2, 3, side, side + 1, dtype=torch.float64, requires_grad=True)
    oracle = conv(x).detach()
    quicken(conv)
    torch.testing.assert_close(conv(x), oracle)

    def call(x, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(call, (x, conv.weight.detach().requires_grad_()))


def test_it_learns_alike_in_half_precision():
    conv = convolution(8, 5, 2)
    x = torch.randn(4, 8, 17, 17).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    full = torch.autograd.grad(conv(x).square().mean(), (x, conv.weight))
    quicken(conv)
    with torch.autocast("cpu", torch.bfloat16):
        loss = conv(x).float().square().mean()
    half = torch.autograd.grad(loss, (x, conv.weight))
    for true, found in zip(full, half, strict=True):
        assert found.dtype == torch.float32
        assert (true - found).norm() < 0.02 * true.norm()


def test_a_block_of_the_mobile_encoder_learns_as_before():
    torch.manual_seed(0)
    block = InvertedResidual(6, 6, 3, 1, 6)
    quick = copy.deepcopy(block)
    quicken(quick)
    x = torch.randn(3, 6, 8, 8)
    for one in (block, quick):
        one(x).square().sum().backward()
    names = [
        type(v.grad_fn).__name__
        for v in (
            block.layers[2][1](x.repeat(1, 6, 1, 1)),
            quick.layers[2][1](x.repeat(1, 6, 1, 1)),
        )
    ]
    assert names == ["ConvolutionBackward0", "_DepthwiseBackward"]
    for a, b in zip(block.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": True},
        {"padding": 1},
        {"dilation": 2},
        {"kernel_size": (3, 5)},
        {"stride": (1, 2)},
    ],
)
def test_other_convolutions_are_left_alone(change):
    usual = {"kernel_size": 3, "bias": False}
    conv = nn.Conv2d(4, 4, groups=4, **usual | change)
    quicken(conv)
    assert "_conv_forward" not in vars(conv)
