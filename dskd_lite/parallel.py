"""Where training computes, and several processes that train as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from torch import Tensor, distributed, nn


def new_accelerator(cpu: bool, precision: str = "fp32") -> Accelerator:
    """HF Accelerate on the CPU, or on the accelerator that it finds, in fp32, bf16 or fp16.

    Accelerators of one process share their state: an earlier one is not to be used any more.
    """
    # Or a second run of one process could change neither device nor precision.
    AcceleratorState._reset_state(reset_partial_state=not distributed.is_initialized())
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        # A weight is used once in a step; and a CUDA graph must not hold what a cache will free.
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm (B, C, h, w) whose statistics in training are those of all processes' images.

    Equal to ``BatchNorm2d`` over the concatenated batch, also for shares of different size; in eval
    mode, or in a single process, it is ``BatchNorm2d``. torch's own ``SyncBatchNorm`` does not run
    on a CPU, and a path that no test can run would be worse than a slower one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        values = x.double()  # E[x^2] - E[x]^2 loses digits
        count = values.new_tensor([x.numel() / x.shape[1]])
        sums = torch.cat([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3)), count])
        total, squares, images = _Sum.apply(sums).split([x.shape[1], x.shape[1], 1])
        mean = total / images
        variance = squares / images - mean * mean
        with torch.no_grad():
            self._track(mean, variance * images / (images - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Let every batch norm of a module see all processes' images; parameters stay the same ones."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncedBatchNorm


def share_of(indices: np.ndarray, rank: int, processes: int) -> np.ndarray:
    """The part of a batch that one process computes; none is empty if there are enough images."""
    return np.array_split(indices, processes)[rank]
