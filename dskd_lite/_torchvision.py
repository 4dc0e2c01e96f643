"""Make ``import torchvision`` work beside a torch build that it was not compiled for.

Beside a CPU-only torch, pip may install the torchvision that was built for CUDA. Its compiled
operators then fail to load, and the import dies with "operator torchvision::nms does not exist"
although nothing here calls an operator: models, transforms and datasets are plain Python. Declaring
the two schemas that torchvision registers a fake kernel for is enough. Where the compiled operators
do load, nothing is declared. Import torchvision from here and nowhere else:
``from dskd_lite._torchvision import torchvision``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _declare_missing_operators() -> None:
    if _compiled_operators_load():
        return
    for name, schema in _SCHEMAS.items():
        torch.library.define(name, schema)


_declare_missing_operators()

import torchvision  # noqa: E402  (only now can it be imported)

__all__ = ["torchvision"]
