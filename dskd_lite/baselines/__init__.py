"""Detectors to compare DSKD with, all used alike: make, ``fit``, ``maps_by_method``."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from dskd_lite.baselines.autoencoder import AutoencoderDetector
from dskd_lite.baselines.classical import (
    GaussianDetector,
    NearestPatchesDetector,
    OneClassSVMDetector,
    PCADetector,
)
from dskd_lite.baselines.pixels import PixelStatisticsDetector
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.detector import StoredDetector
from dskd_lite.errors import InputError
from dskd_lite.evaluation import Detector
from dskd_lite.teacher import Teacher


class Baseline(Detector, Protocol):
    """A detector that learns from normal images; its one map goes under its name."""

    def fit(self, images: np.ndarray) -> None:
        """Learn from normal images, uint8 (N, H, W, 3)."""


DETECTORS: dict[str, type[StoredDetector]] = {
    "pixel-statistics": PixelStatisticsDetector,
    "one-class-svm": OneClassSVMDetector,
    "pca": PCADetector,
    "gaussian": GaussianDetector,
    "nearest-patches": NearestPatchesDetector,
    "autoencoder": AutoencoderDetector,
    "rd4ad": RD4AD,
}


def make_detector(
    name: str, teacher: Teacher | None, image_size: int, seed: int = 0, **options: Any
) -> Baseline:
    """A detector of ``DETECTORS``, not yet fitted; ``options`` are its constructor's own.

    Those on pixels need no teacher. Raises InputError for an unknown name, or an image size that
    does not fit.
    """
    if name == "pixel-statistics":  # nothing in it is random
        return PixelStatisticsDetector(image_size, **options)
    if name == "autoencoder":
        return AutoencoderDetector(image_size, seed=seed, **options)
    if name not in DETECTORS:
        raise InputError(f"no detector is called {name!r}: choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name](teacher, image_size, seed=seed, **options)
