"""Parameters and multiply–adds of a detector, counted without allocating it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dskd_lite.detector import DSKD
from dskd_lite.teacher import Teacher


def count_cost(teacher: str, image_size: int) -> dict[str, dict[str, int]]:
    """Parameters and multiply–adds for one image (3, H, W), by part, on torch's meta device.

    The parts are ``teacher``, ``forward_student``, ``reverse_student`` and ``fusion``, each with
    ``parameters`` and ``multiply_adds``. The teacher's multiply–adds go to E4, which the reverse
    student starts from. Of the forward student's parameters all count, of its multiply–adds only
    those to D3, since nothing reads its stage 4. Convolutions only: the rest is negligible.

    Raises InputError for an unknown teacher or a size that does not fit it.
    """
    with torch.device("meta"):
        detector = DSKD(Teacher(teacher, weights="unset"), image_size).eval()
        images = torch.empty(1, 3, image_size, image_size)
        features = detector.teacher(images)
        score_maps = torch.empty(1, 6, image_size, image_size)
    parts: dict[str, tuple[torch.nn.Module, Callable[[], object]]] = {
        "teacher": (detector.teacher, lambda: detector.teacher(images)),
        "forward_student": (detector.forward_student, lambda: detector.forward_student(images)),
        "reverse_student": (detector.reverse_student, lambda: detector.reverse_student(features)),
    }
    cost = {}
    for name, (module, compute) in parts.items():
        with FlopCounterMode(display=False) as counter:
            compute()
        cost[name] = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "multiply_adds": counter.get_total_flops() // 2,
        }
    cost["fusion"] = {
        "parameters": detector.fusion.weight.numel(),
        "multiply_adds": score_maps.numel(),
    }
    return cost
