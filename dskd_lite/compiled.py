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
    students. Batches of another size run as they are. Raises InputError at the first step if there
    is no compiler.
    """
    blocks = [
        module
        for student in students
        for module in student.modules()
        if isinstance(module, BasicBlock | Bottleneck | SkipAttention)
    ]
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else None
    with torch._dynamo.config.patch(**{limit or "cache_size_limit": FORMS}):
        for block in blocks:
            block.forward = _for_batches_of(batch_size, block.forward)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward
            torch._dynamo.reset()  # or what was compiled would keep the blocks alive


def _for_batches_of(size: int, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    quick = torch.compile(plain, dynamic=False)

    def forward(*given: Tensor) -> Tensor:
        if len(given[0]) != size:
            return plain(*given)
        try:
            return quick(*given)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise InputError(
                f"torch.compile failed ({reason}): install what it misses, or train without "
                "--compile"
            ) from error

    return forward
