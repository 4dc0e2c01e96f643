from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics.pairwise import paired_cosine_distances

from dskd_lite.anomaly_maps import (
    GaussianSmoothing,
    anomaly_maps,
    cosine_distance,
    distillation_loss,
)


def _features(seed: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, s, s, generator=rng) for c, s in ((4, 8), (6, 4), (8, 2))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cosine_distance_is_scikit_learns(dtype: torch.dtype) -> None:
    a, b = _features(0)[0].to(dtype), 200 * _features(1)[0].to(dtype)  # 200^2 is over fp16's range
    rows = [x.float().permute(0, 2, 3, 1).reshape(-1, 4).numpy() for x in (a, b)]
    expected = paired_cosine_distances(*rows).reshape(2, 8, 8)
    np.testing.assert_allclose(cosine_distance(a, b).numpy(), expected, atol=1e-6)


def test_cosine_distance_knows_equal_opposite_and_orthogonal() -> None:
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    y = torch.tensor([-4.0, 3.0]).view(1, 2, 1, 1)
    for other, expected in ((7 * x, 0.0), (-x, 2.0), (y, 1.0), (0 * x, 1.0)):
        assert cosine_distance(x, other).item() == pytest.approx(expected, abs=1e-6)
        assert cosine_distance(x.half(), other.half()).item() == pytest.approx(expected, abs=1e-6)
    short = (1e-5 * x).bfloat16()
    assert cosine_distance(short, short).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16,) * 2])
def test_gradient_in_mixed_precision_is_that_of_float64(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    """Near the end of training too, where its two terms nearly cancel; each side's own."""
    teacher, noise = (features[0].to(dtypes[0]) for features in (_features(0), _features(1)))
    student = (3 * (teacher.float() + 0.01 * noise.float())).to(dtypes[1])
    weights = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = [x.double().requires_grad_() for x in (teacher, student)]
    mixed = [x.clone().requires_grad_() for x in (teacher, student)]
    for sides in (exact, mixed):
        distance = cosine_distance(*sides)
        (distance * weights.to(distance.dtype)).sum().backward()
    for found, expected in zip(mixed, exact, strict=True):
        error = (found.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert error < 2 * torch.finfo(found.dtype).eps + 1e-4


def test_frozen_teacher_gets_no_gradient_in_mixed_precision() -> None:
    teacher, student = _features(0)[0].bfloat16(), _features(1)[0].requires_grad_()
    teacher[:, :, 0, 0] = 0  # nothing to compare with: no gradient, and none that is not finite
    cosine_distance(teacher, student).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad[:, :, 0, 0].abs().max() == 0
    assert torch.isfinite(student.grad).all()


def test_losses_differ_as_their_definitions_do() -> None:
    teacher, student = _features(0), _features(1)
    per_position = sum(
        paired_cosine_distances(
            *(x.permute(0, 2, 3, 1).flatten(0, 2).numpy() for x in (t, s))
        ).mean()
        for t, s in zip(teacher, student, strict=True)
    )
    flattened = sum(
        paired_cosine_distances(t.flatten(1).numpy(), s.flatten(1).numpy()).mean()
        for t, s in zip(teacher, student, strict=True)
    )
    loss = distillation_loss(teacher, student).item()
    assert loss == pytest.approx(float(per_position), abs=1e-5)
    loss = distillation_loss(teacher, student, "flattened").item()
    assert loss == pytest.approx(float(flattened), abs=1e-5)
    assert abs(per_position - flattened) > 1e-3


def test_maps_have_image_size_and_the_stages_order() -> None:
    teacher, student = _features(0), _features(1)
    maps = anomaly_maps(teacher, student, (8, 12))
    assert maps.shape == (2, 3, 8, 12)
    square = anomaly_maps(teacher, student, (8, 8))
    torch.testing.assert_close(square[:, 0], cosine_distance(teacher[0], student[0]))
    # a bilinear map of a 2x2 grid has the grid's four values in its corners
    corners = square[:, 2][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, cosine_distance(teacher[2], student[2]).flatten(1))


@pytest.mark.parametrize("sigma", [0.0, 0.7, 4.0])
def test_smoothing_is_scipys(sigma: float) -> None:
    maps = torch.rand(2, 3, 24, 40, dtype=torch.float64)
    expected = [[gaussian_filter(m, sigma, mode="mirror") for m in image] for image in maps.numpy()]
    smoothed = GaussianSmoothing(sigma)(maps).numpy()
    np.testing.assert_allclose(smoothed, np.array(expected), atol=1e-6)
