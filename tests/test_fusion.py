from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dskd_lite.fusion import (
    MixLine,
    ScoreMapFusion,
    dice_loss,
    inverse_variance_weights,
    manual_fusion,
    manual_weights,
)


def test_dice_is_equation_4() -> None:
    prediction = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # 1 - 2 * 1.5 / (1.5 + 2)
    assert dice_loss(prediction, mask).item() == pytest.approx(1 - 3 / 3.5)


def test_dice_of_equal_disjoint_and_empty_images() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    assert dice_loss(mask, mask).item() == 0
    assert dice_loss(1 - mask, mask).item() == 1
    assert dice_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)).item() == 0


def test_dice_is_the_mean_over_images() -> None:
    predictions, masks = torch.rand(3, 5, 5), (torch.rand(3, 5, 5) > 0.5).float()
    single = [dice_loss(p[None], m[None]).item() for p, m in zip(predictions, masks, strict=True)]
    assert dice_loss(predictions, masks).item() == pytest.approx(np.mean(single))


def test_dice_has_a_gradient_where_images_are_empty() -> None:
    prediction = torch.zeros(2, 3, 3, requires_grad=True)
    dice_loss(prediction, torch.zeros(2, 3, 3)).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


def test_manual_fusion_is_one_to_three() -> None:
    maps = torch.zeros(1, 6, 2, 2)
    maps[:, :3] = 1.0
    assert manual_fusion(maps).unique().item() == pytest.approx(0.25)
    assert manual_fusion(1 - maps).unique().item() == pytest.approx(0.75)


def test_fusion_is_a_1x1_convolution_with_relu_and_sigmoid() -> None:
    fusion = ScoreMapFusion()
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([2.0, -3.0, 1.0, 0.5, -0.5, 4.0]))
    maps = torch.rand(2, 6, 4, 5)
    convolution = torch.nn.functional.conv2d(maps, fusion.weight.view(1, 6, 1, 1))[:, 0]
    torch.testing.assert_close(fusion(maps), convolution.relu().sigmoid())
    assert sum(p.numel() for p in fusion.parameters()) == 6


def test_sigmoid_of_relu_never_falls_under_one_half_nor_dice_under_its_floor() -> None:
    fusion, maps = ScoreMapFusion(), torch.rand(1, 6, 64, 64)
    assert fusion(maps).min() >= 0.5
    # a perfect map on a mask of share a: p = 1 inside, 0.5 outside
    for share in (0.02, 0.1):
        mask = torch.zeros(1, 100, 100)
        mask[0].flatten()[: int(share * 10_000)] = 1
        best = 0.5 + 0.5 * mask
        floor = 1 - 2 * share / (share + 0.25 * (1 - share) + share)
        assert dice_loss(best, mask).item() == pytest.approx(floor, abs=1e-5)


def test_scale_and_sign() -> None:
    fusion = ScoreMapFusion(nonnegative=True)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([-1.0, 1, 1, 1, 1, 1]))
        fusion.input_scale.copy_(torch.tensor([2.0, 1, 1, 1, 1, 4]))
    expected = torch.tensor([0.5, 1, 1, 1, 1, 0.25])
    torch.testing.assert_close(fusion.map_weights.detach(), expected)
    one = torch.zeros(1, 6, 1, 1)
    one[0, 0] = 3
    assert fusion.activation(one).item() == pytest.approx(1.5)


def test_activation_ranks_as_the_sigmoid_but_never_ties() -> None:
    fusion = ScoreMapFusion()
    with torch.no_grad():
        fusion.weight.fill_(1.0)
    maps = torch.tensor([1.0, 5.0, 6.0]).view(1, 1, 1, 3).expand(1, 6, 1, 3)
    assert fusion(maps)[0, 0, 1] == fusion(maps)[0, 0, 2] == 1  # rounded to the same
    low, middle, high = fusion.activation(maps)[0, 0]
    assert low < middle < high


def test_manual_weights_make_the_manual_mix() -> None:
    fusion = ScoreMapFusion(nonnegative=True)
    with torch.no_grad():
        fusion.input_scale.copy_(torch.tensor([0.1, 0.5, 2.0, 0.3, 1.0, 0.7]))
        fusion.weight.copy_(manual_weights(fusion.input_scale))
    assert fusion.weight.sum().item() == pytest.approx(1)
    maps = torch.rand(2, 6, 5, 5)
    mixed = manual_fusion(maps)
    fused = fusion.activation(maps).detach()
    torch.testing.assert_close(fused / fused.sum(), mixed / mixed.sum())


def test_inverse_variances_are_fishers_discriminant() -> None:
    """scikit-learn finds the same direction between normal pixels and pixels raised by half."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    means = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    spread = np.array([0.2, 0.3, 0.3, 0.5, 0.2, 0.9])
    normal, other = (rng.standard_normal((200_000, 6)) * spread for _ in range(2))
    pixels = np.concatenate([normal + means, other + 1.5 * means])
    found = LinearDiscriminantAnalysis(solver="eigen").fit(pixels, np.arange(400_000) >= 200_000)
    direction = torch.tensor(found.coef_[0] / found.coef_[0].sum())
    scale = torch.tensor(means)
    weights = inverse_variance_weights(scale, torch.tensor(spread) ** 2)
    assert weights.sum().item() == pytest.approx(1)
    of_raw_maps = weights / scale
    torch.testing.assert_close(of_raw_maps / of_raw_maps.sum(), direction, atol=0.01, rtol=0)


def test_the_line_of_mixes_goes_through_the_geometric_mean() -> None:
    first, second = ((x := torch.rand(6) + 0.1) / x.sum() for _ in range(2))
    line = MixLine(first, second)
    halfway = (first * second).sqrt()
    assert line.place.item() == 0.5
    torch.testing.assert_close(line.mix().detach(), halfway / halfway.sum())
    for logit, end in ((-30.0, first), (30.0, second)):
        with torch.no_grad():
            line.place_logit.fill_(logit)
            line.log_factor.fill_(math.log(3))
        torch.testing.assert_close(line.mix().detach(), end)
        torch.testing.assert_close(line().detach(), 3 * end)
