"""CUDA graphs: a step's launches are recorded once, then replayed without waiting for the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TensorArguments(nn.Module):
    """A student that takes its tensors one by one, as a graph does, with a forward to replace."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *given: Tensor) -> list[Tensor]:
        return self.student(given[0] if len(given) == 1 else given)


def record(students: Sequence[nn.Module], given: Sequence[tuple[Tensor, ...]]) -> list[nn.Module]:
    """Record the students' forward and backward passes in training mode, each as a CUDA graph.

    ``given`` are the arguments of each, on the device. What is returned takes arguments of the same
    shapes and trains the same parameters. Recording runs each pass a few times, which moves nothing
    but the running statistics of batch norm. Where it fails (seen once, in float32, on an H200),
    there is a warning, and what is returned is slower but does the same.
    """
    try:
        callables = tuple(TensorArguments(student).train() for student in students)
        return list(torch.cuda.make_graphed_callables(callables, tuple(given)))
    except RuntimeError as error:
        warnings.warn(f"training without CUDA graphs, which is slower: {error}", stacklevel=2)
        return [TensorArguments(student) for student in students]
