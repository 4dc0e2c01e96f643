"""Random numbers that depend on a seed and a place in the work, and on nothing drawn before."""

from __future__ import annotations

import numpy as np
import torch

STUDENTS, ORDER, FUSION, HOLDOUT, SETTLE, CHOICE = range(6)  # the streams that share one seed


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for a stream of a seed, e.g. ``generator(0, ORDER, epoch)``.

    Streams are independent, but those that differ only in zeros at the end are one.
    """
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)
