"""A trained detector as one ONNX file, for places that have no torch."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dskd_lite.detector import DistillationDetector, Prediction, versions
from dskd_lite.errors import InputError
from dskd_lite.storage import whole_file

INPUT, OUTPUTS = "images", Prediction._fields
TOLERANCE = 1e-3
"""Of the largest value of each output: so far may a file be from its detector."""


class _Graph(nn.Module):
    """The detector with its outputs as a plain tuple."""

    def __init__(self, detector: DistillationDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector(images))


def export_onnx(detector: DistillationDetector, path: Path) -> float:
    """Write a detector in eval mode, float32, as ONNX, and check the file under onnxruntime.

    Input ``images`` (B, 3, H, W) in [0, 1], RGB, any B, H = W = the detector's image size. Outputs
    as of Prediction: ``score_maps`` (B, 6, H, W; of RD4AD B, 3, H, W), ``fused_map`` (B, H, W),
    ``score`` (B,). Normalisation, smoothing and fusion are in the graph. Metadata, all strings:
    ``detector``, ``teacher``, ``image_size``, ``versions``, and if thresholds are stored
    ``image_threshold``, ``pixel_threshold``, ``false_positive_rate`` and ``held_out``.

    Returns the largest difference between file and detector on random images, of each output over
    that output's largest value.

    Raises InputError if it is no detector with students (statistics of features have no graph), the
    packages of the ``export`` extra are missing, the file cannot be
    written, or it differs from the detector by more than ``TOLERANCE``.
    """
    if not isinstance(detector, DistillationDetector):
        raise InputError(
            f"a {type(detector).__name__} cannot be exported, only detectors with students: train "
            "with --method dskd or rd4ad"
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f'export needs the package {package}: pip install "dskd_lite[export]"'
            ) from error
    graph = _Graph(detector).eval()
    size = detector.image_size
    images = torch.zeros(2, 3, size, size, device=detector.teacher.mean.device)  # 1 would be fixed
    with warnings.catch_warnings(), torch.no_grad():
        # The attention maps are kept to be shown; the graph does without. The other is torch's own.
        warnings.filterwarnings("ignore", "The tensor attributes .*attention_map", UserWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        program = torch.onnx.export(
            graph, (images,), dynamo=True, verbose=False, input_names=[INPUT],
            output_names=list(OUTPUTS), dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )  # fmt: skip
    program.model.metadata_props.update(_metadata(detector))
    with whole_file(path) as temporary:
        program.save(temporary, external_data=False)
        difference = _difference(detector, temporary)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{path} was not written: under onnxruntime it differs from the detector by "
                f"{difference:.1e} of the largest value; install the versions in requirements.txt"
            )
    return difference


def _metadata(detector: DistillationDetector) -> dict[str, str]:
    values = {
        "detector": type(detector).__name__,
        "teacher": detector.teacher.name,
        "image_size": detector.image_size,
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    thresholds = detector.thresholds
    if thresholds is not None:
        values["image_threshold"] = thresholds.image
        values["pixel_threshold"] = thresholds.pixel
        values["false_positive_rate"] = thresholds.false_positive_rate
        if thresholds.held_out is not None:
            values["held_out"] = thresholds.held_out
    return {key: str(value) for key, value in values.items()}


@torch.no_grad()
def _difference(detector: DistillationDetector, path: Path) -> float:
    import onnxruntime

    size = detector.image_size
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {INPUT: images.numpy()})
    expected = [o.cpu().numpy() for o in detector(images.to(detector.teacher.mean.device))]
    smallest = np.finfo(np.float32).tiny  # a fused map may be zero everywhere
    differences = [
        np.abs(a - b).max() / max(np.abs(b).max(), smallest)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.max(differences))  # NaN if one is
