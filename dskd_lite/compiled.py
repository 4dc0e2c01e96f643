"""torch.compile for the students' blocks: fewer passes over memory, after a slow first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dskd_lite.errors import InputError
from dskd_lite.students import SkipAttention
from dskd_lite.teacher import BasicBlock, Bottleneck

# Of one function; the residual blocks of both students take a dozen forms.
FORMS = 64


@contextmanager
def compiled_blocks(students: Iterable[nn.Module], batch_size: int) -> Iterator[None]:
    """Within this context residual blocks and attention gates run compiled, on batches of one size.

    Blocks of one form share what was compiled, so that this takes half as long as for whole
    students. Batches of another size run as they are. Raises InputError, at the latest at the first
    step, if there is no compiler (on CUDA: no Triton).
    """
    blocks = [
        module
        for student in students
        for module in student.modules()
        if isinstance(module, BasicBlock | Bottleneck | SkipAttention)
    ]
    newer = hasattr(torch._dynamo.config, "recompile_limit")
    limit = {"recompile_limit" if newer else "cache_size_limit": FORMS}
    # Of several processes: a block is far smaller than what DDP sums up at a time.
    with torch._dynamo.config.patch(**limit, optimize_ddp=False):
        try:
            for block in blocks:
                block.forward = _for_batches_of(batch_size, block.forward)
            yield
        finally:
            for block in blocks:
                vars(block).pop("forward", None)
            torch._dynamo.reset()  # or what was compiled would keep the blocks alive


def _for_batches_of(size: int, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    try:
        quick = torch.compile(plain, dynamic=False)
    except RuntimeError as error:  # Python may be too new for this torch
        raise _nothing_to_compile_with(error) from error

    def forward(*given: Tensor) -> Tensor:
        if len(given[0]) != size:
            return plain(*given)
        try:
            return quick(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None) or error
            raise _nothing_to_compile_with(cause) from error

    return forward


def _nothing_to_compile_with(cause: Exception) -> InputError:
    reason = (str(cause) or type(cause).__name__).splitlines()[0]
    return InputError(
        f"torch.compile failed ({reason}): install what it misses, or train without --compile"
    )
