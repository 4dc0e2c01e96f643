"""CUDA graphs: a step's launches are recorded once, then replayed without waiting for the CPU."""

from __future__ import annotations

import gc
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


class StudentRunner:
    """Runs students on their arguments in training mode: ``runner(given)`` gives each one's D1..D3.

    ``given`` are a tuple of tensors (B, ...) for each student. Once one size of batch is recorded,
    batches of that size run as CUDA graphs, others as they are. The same parameters are trained
    either way.
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        self.plain = [TensorArguments(student) for student in students]
        self.recorded: list[nn.Module] = []
        self.recorded_size = 0

    def record(self, given: Sequence[tuple[Tensor, ...]]) -> None:
        """Record batches of this size as CUDA graphs; to be done before the first step.

        What a step on the default stream leaves to autograd lives as long as its loss, and would
        break the recording.
        """
        self.recorded = record([runner.student for runner in self.plain], given)
        self.recorded_size = len(given[0][0])

    def __call__(self, given: Sequence[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        runners = self.recorded if len(given[0][0]) == self.recorded_size else self.plain
        return [run(*arguments) for run, arguments in zip(runners, given, strict=True)]


def record(students: Sequence[nn.Module], given: Sequence[tuple[Tensor, ...]]) -> list[nn.Module]:
    """Record the students' forward and backward passes in training mode, each as a CUDA graph.

    ``given`` are the arguments of each, on the device. What is returned takes arguments of the same
    shapes and trains the same parameters. Recording runs each pass a few times, which moves nothing
    but the running statistics of batch norm. Where it fails there is a warning, and what is
    returned is slower.
    """
    stream = torch.cuda.current_stream()
    collects = gc.isenabled()
    gc.collect()  # an earlier training's graphs: destroyed while this records, they would break it
    gc.disable()
    # What is recorded keeps the nodes that add gradients up on the recording's stream. That steps
    # run on another is meant so, and PyTorch need not warn of it.
    silence = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if silence is not None:  # older versions neither have it nor warn
        silence(False)
    try:
        callables = tuple(TensorArguments(student).train() for student in students)
        return list(torch.cuda.make_graphed_callables(callables, tuple(given)))
    except RuntimeError as error:
        warnings.warn(f"training without CUDA graphs, which is slower: {error}", stacklevel=2)
        return [TensorArguments(student) for student in students]
    finally:
        torch.cuda.set_stream(stream)  # a recording that broke off leaves its own behind
        if collects:
            gc.enable()
