"""From two sets of features to losses and anomaly maps: the cosine distance of Eq. (1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

COMPARED_STAGES = 3
LossForm = Literal["per-position", "flattened"]


def cosine_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Cosine distance at each position, Eq. (1): (B, C, h, w) twice gives (B, h, w) in [0, 2].

    Computed in float32 at least: near 1 the steps of bf16 are as large as the distances. By
    rounding, equal features come out a few millionths to either side of 0.
    """
    dtypes = {teacher_features.dtype, student_features.dtype}
    if dtypes == {torch.float32} or torch.float64 in dtypes:
        return 1 - F.cosine_similarity(teacher_features, student_features, dim=1)
    return _MixedCosineDistance.apply(teacher_features, student_features)


class _MixedCosineDistance(torch.autograd.Function):
    """Cosine distance where one or both are in half precision, in few passes over them.

    Autograd would take a dozen passes, and round each of the two terms of a gradient in half
    precision, which nearly cancel.
    """

    @staticmethod
    def forward(context: Any, teacher: Tensor, student: Tensor) -> Tensor:
        norms = [  # in float32 they add up what they read in half precision
            torch.linalg.vector_norm(features, dim=1, dtype=torch.float32).clamp_min(1e-8)
            for features in (teacher, student)
        ]
        cosine = (teacher.float() * student).sum(1) / (norms[0] * norms[1])
        context.save_for_backward(teacher, student, *norms, cosine)
        return 1 - cosine

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, norms = context.saved_tensors[:2], context.saved_tensors[2:4]
        cosine = context.saved_tensors[4]
        toward_other = (-gradient / (norms[0] * norms[1])).unsqueeze(1)
        found = []
        for own, needed in enumerate(context.needs_input_grad):
            if not needed:  # the teacher's, as it is frozen
                found.append(None)
                continue
            along_own = (gradient * cosine / norms[own].square()).unsqueeze(1)
            wanted = features[own] * along_own + features[1 - own] * toward_other
            found.append(wanted.to(features[own].dtype))
        return found[0], found[1]


def distillation_loss(
    teacher_features: Sequence[Tensor],
    student_features: Sequence[Tensor],
    form: LossForm = "per-position",
) -> Tensor:
    """Sum over the stages of the mean cosine distance, a scalar.

    ``per-position`` compares the C-vectors at each position (Eq. 1); ``flattened`` compares one
    C*h*w-vector per image and stage, as the official RD4AD code does.
    """
    loss = teacher_features[0].new_zeros(())
    for teacher, student in zip(teacher_features, student_features, strict=True):
        if form == "flattened":
            teacher, student = teacher.flatten(1), student.flatten(1)
        loss = loss + cosine_distance(teacher, student).mean()
    return loss


def anomaly_maps(
    teacher_features: Sequence[Tensor],
    student_features: Sequence[Tensor],
    image_size: tuple[int, int],
) -> Tensor:
    """Cosine distances of each stage, bilinear in image size: (B, T, H, W), values in [0, 2]."""
    return torch.cat(
        [
            F.interpolate(
                cosine_distance(teacher, student).unsqueeze(1),
                size=image_size,
                mode="bilinear",
                align_corners=False,
            )
            for teacher, student in zip(teacher_features, student_features, strict=True)
        ],
        dim=1,
    )


class GaussianSmoothing(nn.Module):
    """Gaussian filter over the last two dimensions, kernel cut at 4 sigma, edges reflected.

    ``sigma`` is in pixels; 0 leaves the maps as they are. H and W must exceed 4 sigma. Equal to
    ``scipy.ndimage.gaussian_filter(mode="mirror")`` on each map.
    """

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = int(4 * sigma + 0.5)
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / max(sigma, 1e-12)) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum()).float(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Smooth maps (B, K, H, W); the shape stays."""
        if self.radius == 0:
            return maps
        rows, columns = (self._as_matrix(n).to(maps.dtype) for n in maps.shape[-2:])
        return rows @ maps @ columns.T

    def _as_matrix(self, n: int) -> Tensor:
        """The filter along n pixels as a matrix (n, n), reflected edges included.

        Two matrix products are several times faster than convolutions of one channel, and need a
        fifth of their memory.
        """
        pixels = torch.arange(n, device=self.kernel.device)
        offsets = torch.arange(-self.radius, self.radius + 1, device=self.kernel.device)
        sources = (pixels[:, None] + offsets).abs()
        sources = torch.where(sources < n, sources, 2 * (n - 1) - sources)
        matrix = torch.zeros(n, n, dtype=self.kernel.dtype, device=self.kernel.device)
        return matrix.scatter_add_(1, sources, self.kernel.expand(n, -1))
