"""Batch norm folded into the convolutions before it: the same maps in fewer passes over memory."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
