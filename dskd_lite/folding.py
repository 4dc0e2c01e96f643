"""Networks prepared for scoring: the same outputs in fewer passes over memory."""

from __future__ import annotations

import copy
from contextlib import suppress
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dskd_lite.students import StridedConv7, block_kernel, convolve_blocks
from dskd_lite.teacher import BasicBlock, Bottleneck

N = TypeVar("N", bound=nn.Module)


@torch.no_grad()
def fold_batch_norm(network: N) -> N:
    """Copy of a network for scoring, in eval mode: each convolution takes in its batch norm.

    In eval mode batch norm multiplies and shifts each channel by fixed numbers, which a
    convolution's weights and bias can do as well: outputs change by rounding only. A batch norm
    belongs to the convolution that is registered right before it in the same module, as in
    torchvision's blocks and in ``nn.Sequential``. The network itself stays as it is; tensors that
    nothing is folded into are shared with it.
    """
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    folded = copy.deepcopy(network, shared).eval()
    for module in list(folded.modules()):
        children = list(module.named_children())
        for (name, convolution), (norm_name, norm) in pairwise(children):
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            if isinstance(norm, nn.BatchNorm2d) and (
                transposed or isinstance(convolution, nn.Conv2d)
            ):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm, transposed))
                setattr(module, norm_name, nn.Identity())
    return folded


def fuse_blocks(folded: nn.Module, half: torch.dtype) -> None:
    """Make a folded copy faster on CUDA under autocast to ``half``, bfloat16 or float16, in place.

    Convolutions keep their weights in ``half``, each residual block becomes a ``FusedBlock``, and
    each large 7x7 convolution a ``BlockConvolution``.
    """
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BasicBlock | Bottleneck):
                setattr(module, name, FusedBlock(child))
            if isinstance(child, StridedConv7) and child.is_large:
                setattr(module, name, BlockConvolution(child))
    for module in list(folded.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | BlockConvolution):
            for name, tensor in list(module.named_parameters(recurse=False)):
                parameter = nn.Parameter(tensor.to(half), requires_grad=False)
                setattr(module, name, parameter)  # a new one: the old may be the network's own


class BlockConvolution(nn.Module):
    """A ``StridedConv7`` for scoring, whose kernel is put in the order of blocks only once."""

    def __init__(self, convolution: StridedConv7) -> None:
        super().__init__()
        self.kernel = nn.Parameter(block_kernel(convolution.weight), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return convolve_blocks(x, self.kernel, self.bias)


class FusedBlock(nn.Module):
    """A residual block of ResNets, folded, whose convolutions take in what follows them.

    PyTorch adds a convolution's bias on CUDA in a pass over memory of its own, and ReLU and the sum
    with the shortcut take one each; cuDNN does all of it while it writes the convolution's output.
    Takes and gives half precision, (B, C, h, w) on CUDA.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        named = block.named_children()
        self.convolutions = nn.ModuleList(m for name, m in named if name.startswith("conv"))
        self.shortcut = nn.Identity()
        if block.downsample is not None:
            self.shortcut, last = block.downsample[0], self.convolutions[-1]
            # Both end in one sum, so the last convolution can add the shortcut's bias as well.
            last.bias = nn.Parameter(last.bias + self.shortcut.bias, requires_grad=False)
            self.shortcut.bias = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        *inner, last = self.convolutions
        for convolution in inner:
            x = _convolution_relu(convolution, x)
        return _convolution_relu(last, x, shortcut)


def _convolution_relu(
    convolution: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, added: Tensor | None = None
) -> Tensor:
    if isinstance(convolution, nn.Conv2d):  # into a transposed one cuDNN fuses nothing
        weight, bias = convolution.weight, convolution.bias
        form = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        with suppress(RuntimeError):  # cuDNN may have no kernel for a shape on some card
            if added is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *form)
            return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, *form)
    x = convolution(x)
    return torch.relu(x if added is None else x + added)
