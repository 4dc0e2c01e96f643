"""CUDA graphs: a step's launches are recorded once, then replayed without waiting for the CPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RecordedStep:
    """A step on tensors of fixed shapes as a CUDA graph: ``give`` it tensors, then ``replay``."""

    def __init__(self, step: Callable[..., Tensor], given: Sequence[Tensor]) -> None:
        self.given = [tensor.clone() for tensor in given]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = step(*self.given)

    def give(self, given: Sequence[Tensor]) -> None:
        """Copy tensors, of the shapes recorded, to where the graph reads them."""
        for own, new in zip(self.given, given, strict=True):
            own.copy_(new)

    def replay(self) -> Tensor:
        """Launch the step; its result is overwritten by the next replay."""
        self.graph.replay()
        return self.result


def record(step: Callable[..., Tensor], given: Sequence[Tensor]) -> RecordedStep | None:
    """Record a step on tensors on the device as a CUDA graph; nothing is computed yet.

    The step has to have run before: what it keeps from one time to the next, such as an optimizer's
    state, must exist. Where recording fails there is a warning, and None.
    """
    stream = torch.cuda.current_stream()
    collects = gc.isenabled()
    gc.collect()  # an earlier training's graph: destroyed while this records, it would break it
    gc.disable()
    try:
        return RecordedStep(step, given)
    except RuntimeError as error:
        warnings.warn(f"training without CUDA graphs, which is slower: {error}", stacklevel=2)
        return None
    finally:
        torch.cuda.set_stream(stream)  # a recording that broke off leaves its own behind
        if collects:
            gc.enable()
