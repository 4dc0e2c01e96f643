"""The metrics against scikit-learn, against brute force from the definitions, and by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics as sklearn_metrics

from dskd_lite import metrics
from dskd_lite.errors import InputError
from dskd_lite.metrics import (
    aupro,
    auroc,
    best_f1_threshold,
    gamma_threshold,
    legacy_pro,
    precision_recall,
    pro_curve,
    roc_curve,
)

# Independent truth: plain Python from the definitions, exact in fractions


def flood_fill_regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions of one mask, as lists of (row, column)."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, todo = [], [left.pop()]
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            for neighbour in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        regions.append(region)
    return regions


def brute_force_pro_curve(
    score_maps: np.ndarray, masks: np.ndarray
) -> tuple[list[Fraction], list[Fraction]]:
    """(rate, overlap) at every distinct threshold of the whole set, from (0, 0) to (1, 1)."""
    normals = [float(v) for v in score_maps[masks == 0]]
    regions = [
        [float(score_map[pixel]) for pixel in region]
        for score_map, mask in zip(score_maps, masks, strict=True)
        for region in flood_fill_regions(mask)
    ]
    rates, overlaps = [Fraction(0)], [Fraction(0)]
    for threshold in sorted({float(v) for v in np.ravel(score_maps)}, reverse=True):
        rates.append(Fraction(sum(v >= threshold for v in normals), len(normals)))
        shares = [Fraction(sum(v >= threshold for v in r), len(r)) for r in regions]
        overlaps.append(sum(shares) / len(shares))
    return rates, overlaps


def brute_force_area(rates: list[Fraction], overlaps: list[Fraction], max_fpr: float) -> float:
    limit, area = Fraction(max_fpr), Fraction(0)
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return float(area / limit)


def straightforward_legacy_pro(score_maps: np.ndarray, masks: np.ndarray) -> float:
    """One threshold after the other, one region after the other, area by scikit-learn."""
    areas = []
    for score_map, mask in zip(score_maps, masks, strict=True):
        if not mask.any():
            continue
        regions = flood_fill_regions(mask)
        low, high = float(score_map.min()), float(score_map.max())
        rates, overlaps = [], []
        for step in range(200):
            flagged = score_map.astype(np.float64) > low + step * ((high - low) / 200)
            rate = (flagged & (mask == 0)).sum() / (mask == 0).sum()
            if rate < 0.3:
                rates.append(rate)
                overlaps.append(np.mean([np.mean([flagged[p] for p in r]) for r in regions]))
        areas.append(sklearn_metrics.auc(np.array(rates) / max(rates), overlaps))
    return float(np.mean(areas))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Small maps and masks; few score levels on even seeds, so that most scores are tied."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers([1, 2, 2], [5, 10, 10]))
    masks = (rng.random(shape) < rng.choice([0.05, 0.2, 0.6])).astype(np.uint8)
    masks[0, 0, 0], masks[0, -1, -1] = 1, 0
    levels = rng.integers(2, 8) if seed % 2 == 0 else 10**6
    scores = rng.integers(0, levels, shape) / levels + 0.3 * masks * rng.integers(0, 2)
    return scores, masks


def realistic_case(count: int = 12, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps with one to three rectangular defects on most images."""
    rng = np.random.default_rng(7)
    coarse = torch.from_numpy(rng.gamma(2.0, 1.0, (1, count, 16, 16)))
    scores = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0].numpy()
    masks = np.zeros(scores.shape, bool)
    for image in range(2, count):
        for _ in range(rng.integers(1, 4)):
            (y, x), (h, w) = rng.integers(0, size - 12, 2), rng.integers(1, 12, 2)
            masks[image, y : y + h, x : x + w] = True
    return scores + 1.5 * masks, masks


# AUROC


@pytest.mark.parametrize("levels", [2, 10, 10**9])
@pytest.mark.parametrize("shape", [(37,), (1000,), (5, 20, 30)])
def test_auroc_equals_scikit_learn(levels: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(levels)
    labels = rng.random(shape) < 0.2
    scores = rng.integers(0, levels, shape) / levels + 0.1 * labels
    expected = sklearn_metrics.roc_auc_score(labels.ravel(), scores.ravel())
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auroc_by_hand() -> None:
    # Of the 2 × 3 pairs: 0.9 beats three, 0.4 beats one and ties with one.
    assert auroc([0.9, 0.4, 0.5, 0.4, 0.1], [1, 1, 0, 0, 0]) == pytest.approx(4.5 / 6)
    assert auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert auroc([0.8, 0.9, 0.1, 0.2], [0, 0, 1, 1]) == 0.0
    assert auroc(np.zeros(9), np.arange(9) < 4) == 0.5


def test_auroc_with_more_defects_than_normals() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(500) < 0.95
    scores = rng.normal(size=500).round(1) + labels
    expected = sklearn_metrics.roc_auc_score(labels, scores)
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_large_sets_are_split_over_threads_and_blocks_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, masks = realistic_case()
    scores = scores.round(2)
    single = auroc(scores, masks), aupro(scores, masks)
    monkeypatch.setattr(metrics, "_SORT_BLOCK", 100)
    monkeypatch.setattr(metrics, "_LOOKUP_BLOCK", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert (auroc(scores, masks), aupro(scores, masks)) == pytest.approx(single, abs=1e-12)
    expected = sklearn_metrics.roc_auc_score(masks.ravel(), scores.ravel())
    assert auroc(scores, masks) == pytest.approx(expected, abs=1e-12)


# AUPRO


@pytest.mark.parametrize("seed", range(60))
def test_aupro_equals_brute_force_on_random_maps(seed: int) -> None:
    scores, masks = random_case(seed)
    curve = brute_force_pro_curve(scores, masks)
    for max_fpr in (0.01, 0.05, 0.3, 1.0):
        expected = brute_force_area(*curve, max_fpr)
        assert aupro(scores, masks, max_fpr) == pytest.approx(expected, abs=1e-9)
        rates, overlaps = pro_curve(scores, masks, max_fpr, max_points=10**6)
        assert (rates[0], rates[-1]) == pytest.approx((0, max_fpr))
        area = sklearn_metrics.auc(rates, overlaps) / max_fpr
        assert area == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decimals", [1, 2, 15])
def test_aupro_sorting_only_the_top_equals_sorting_all(decimals: int) -> None:
    scores, masks = realistic_case()
    scores = scores.round(decimals)
    # Weighted ROC by scikit-learn, a full sort: each region weighs 1, each normal pixel 1.
    weights = np.ones(scores.shape)
    for image, mask in enumerate(masks):
        for region in flood_fill_regions(mask):
            for y, x in region:
                weights[image, y, x] = 1 / len(region)
    rates, overlaps, _ = sklearn_metrics.roc_curve(
        masks.ravel(), scores.ravel(), sample_weight=weights.ravel(), drop_intermediate=False
    )
    inside = rates <= 0.3
    x = np.append(rates[inside], 0.3)
    y = np.append(overlaps[inside], np.interp(0.3, rates, overlaps))
    expected = sklearn_metrics.auc(x, y) / 0.3
    assert aupro(scores, masks) == pytest.approx(expected, abs=1e-9)


def test_aupro_when_the_sample_that_guesses_the_cut_misleads() -> None:
    # Every 97th score is sampled: here always column 0, which is higher than all the rest.
    scores, masks = realistic_case(count=3, size=97)
    scores = scores.round(1)
    scores[:, :, 0] += 100
    masks[:, :, 0] = False
    expected = brute_force_area(*brute_force_pro_curve(scores, masks), 0.3)
    assert 0.01 < expected
    assert aupro(scores, masks) == pytest.approx(expected, abs=1e-9)


def test_aupro_by_hand() -> None:
    # A region of 2 pixels, a region of 1 pixel, all at the border; 13 normal pixels.
    masks = np.array([[[1, 1, 0, 0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1, 0, 0, 0]]])
    scores = np.array([[[9, 4, 8, 0, 0, 0, 0, 0]], [[0, 0, 0, 0, 6, 5, 0, 0]]], np.float64)
    # Normals are 8, 5 and eleven zeros. Going down: 9 → overlap 1/4; 8 → one false positive;
    # 6 → 3/4; 5 → two false positives; 4 → 1. Area up to 0.3 × 13 = 3.9 false positives:
    assert aupro(scores, masks) == pytest.approx((1 / 4 + 3 / 4 + 1.9 * 1) / 3.9)


@pytest.mark.parametrize("max_fpr", [0.1, 0.3, 1.0])
def test_aupro_of_perfect_inverted_and_constant_maps(max_fpr: float) -> None:
    _, masks = realistic_case()
    assert aupro(masks.astype(np.float32), masks, max_fpr) == pytest.approx(1.0)
    assert aupro(np.ones(masks.shape), masks, max_fpr) == pytest.approx(max_fpr / 2)
    inverted = (~masks).astype(np.float32)
    assert aupro(inverted, masks, max_fpr) == pytest.approx(0.0, abs=1e-12)


def test_aupro_of_random_maps_is_about_half_the_limit() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 100, 100), bool)
    masks[:, 20:60, 20:60] = True
    assert aupro(rng.random(masks.shape), masks) == pytest.approx(0.15, abs=0.005)


def test_aupro_does_not_change_when_scores_are_rescaled() -> None:
    scores, masks = realistic_case()
    assert aupro(np.exp(scores), masks) == pytest.approx(aupro(scores, masks), abs=1e-12)


def test_regions_count_alike_whatever_their_size() -> None:
    masks = np.zeros((1, 10, 10), np.uint8)
    masks[0, :5, :5], masks[0, 9, 9] = 1, 1
    found_large = np.where(masks == 1, 1.0, 0.0)
    found_large[0, 9, 9] = -1.0
    # The lost region appears once all 74 normal pixels are flagged.
    assert aupro(found_large, masks) == pytest.approx(0.5)


def test_diagonal_neighbours_are_one_region_and_images_are_apart() -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 0, 0] = masks[0, 1, 1] = 1  # one region by its corner
    masks[0, 3, 3] = 1
    masks[1, 0, 0] = 1  # touches nothing: it is on another image
    scores = np.zeros((2, 4, 4))
    scores[0, 0, 0] = 1.0
    # Half of one of three regions at once, and then all scores are tied: a straight line to 1.
    start, at_limit = 1 / 6, 1 / 6 + 5 / 6 * 0.3
    assert aupro(scores, masks) == pytest.approx((start + at_limit) / 2)


# legacy_pro


@pytest.mark.parametrize("seed", range(4))
def test_legacy_pro_equals_one_threshold_after_the_other(seed: int) -> None:
    scores, masks = realistic_case(count=8, size=48)
    assert max(len({len(r) for r in flood_fill_regions(mask)}) for mask in masks) > 1
    scores = scores + np.random.default_rng(seed).random(scores.shape)
    assert legacy_pro(scores, masks) == pytest.approx(
        straightforward_legacy_pro(scores, masks), abs=1e-12
    )


def test_legacy_pro_by_hand() -> None:
    # Thresholds 0, 1/200, …; 8 normals, of which 0.101 and 0.601 are not 0; one region {1, 0.501}.
    scores = np.array([[[1.0, 0.501, 0, 0, 0], [0, 0, 0, 0.101, 0.601]]])
    masks = np.array([[[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]])
    # Rate 2/8 (overlap 1) up to 0.1, rate 1/8 (overlap 1, from 0.505 on 1/2), rate 0 (1/2);
    # divided by 2/8: (1, 1), (1/2, 1), (1/2, 1/2), (0, 1/2).
    assert legacy_pro(scores, masks) == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 1)


def test_legacy_pro_by_hand_where_the_curve_neither_starts_at_zero_nor_keeps_all() -> None:
    # The maximum is normal, so no rate is 0: 1/10 from 0.405 on, 2/10 up to 0.4, and 4/10 (dropped)
    # up to 0.2. The region {0.701, 0.301} is flagged by half at 0.305 … 0.7, whole below.
    scores = np.array([[[0.701, 0.301, 1, 0.401, 0.201, 0.201, 0, 0, 0, 0, 0, 0]]])
    masks = (np.arange(12) < 2).reshape(1, 1, 12)
    # Normalised by 2/10: (1, 1), (1, 1/2), (1/2, 1/2), (1/2, 0): nothing left of 1/2.
    assert legacy_pro(scores, masks) == pytest.approx(1 / 2 * 1 / 2)


def test_legacy_pro_flags_only_what_is_strictly_above_a_threshold() -> None:
    # Threshold 100 of 200 is 1/2 exactly. A normal and a defect (at 0.499) both vanish there, so
    # the curve goes straight from (1, 1) to (0, 1/2); flagging the normal there would add (1, 1/2).
    scores = np.array([[[1.0, 0.499, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0]]])
    masks = (np.arange(12) < 2).reshape(1, 1, 12)
    assert legacy_pro(scores, masks) == pytest.approx(3 / 4)


def test_legacy_pro_counts_regions_alike_whatever_their_size() -> None:
    # Of the regions {1, 1, 1} and {0.3} only the first is flagged until the last normals are.
    scores = np.array([[[1, 1, 1, 0, 0.3, 0, 0, 0, 0.5, 0, 0, 0.0]]])
    masks = np.isin(np.arange(12), [0, 1, 2, 4]).reshape(1, 1, 12)
    # Rate 0 (overlap 1/2), then 1/8 (1/2, and 1 below 0.3): a step up at the end.
    assert legacy_pro(scores, masks) == pytest.approx(1 / 2)


def test_legacy_pro_is_the_mean_over_images_with_a_defect() -> None:
    scores, masks = realistic_case(count=6, size=32)
    single = [legacy_pro(scores[i : i + 1], masks[i : i + 1]) for i in range(2, 6)]
    assert not masks[:2].any()
    assert legacy_pro(scores, masks) == pytest.approx(np.mean(single), abs=1e-12)


def test_legacy_pro_where_the_original_divides_zero_by_zero() -> None:
    masks = np.zeros((1, 4, 4), np.uint8)
    masks[0, 1:3, 1:3] = 1
    assert legacy_pro(masks.astype(float), masks) == pytest.approx(1.0)  # no false positive at all
    assert legacy_pro(np.ones(masks.shape), masks) == 0.0  # no score above any threshold
    assert legacy_pro(1.0 - masks, masks) == 0.0  # no threshold below rate 0.3
    # A mask that covers its whole image has no normal pixel to flag wrongly.
    masks = np.concatenate([masks, np.ones_like(masks)])
    scores = masks * np.linspace(0.5, 1.0, 16).reshape(4, 4)
    assert legacy_pro(scores, masks) == pytest.approx((1.0 + 15 / 16) / 2)


# One result for every kind of input


@pytest.mark.parametrize("score_type", [np.float32, np.float64])
@pytest.mark.parametrize("mask_type", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("container", [np.array, torch.tensor])
def test_every_array_type_gives_the_same_result(
    score_type: type, mask_type: type, container: Callable[..., Any]
) -> None:
    scores, masks = realistic_case()
    scores = scores.astype(np.float32)  # exact in both types
    given = container(scores.astype(score_type)), container(masks.astype(mask_type))
    for metric in (auroc, aupro, legacy_pro):
        result = metric(*given)
        assert type(result) is float
        assert result == pytest.approx(metric(scores, masks), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_narrow_types_are_widened_exactly(dtype: torch.dtype) -> None:
    scores, masks = realistic_case()
    narrow = torch.from_numpy(scores * 20).to(dtype)
    wide = narrow.double().numpy()
    assert aupro(narrow, masks) == pytest.approx(aupro(wide, masks), abs=1e-12)


def test_tensors_with_gradient_and_non_contiguous_maps_work_and_inputs_stay_as_they_were() -> None:
    scores, masks = realistic_case()
    tensor = torch.from_numpy(scores.copy()).permute(1, 2, 0).requires_grad_()
    given = tensor.permute(2, 0, 1), torch.from_numpy(masks)
    assert aupro(*given) == pytest.approx(aupro(scores, masks), abs=1e-12)
    assert auroc(scores[:, ::-1], masks[:, ::-1]) == pytest.approx(auroc(scores, masks), abs=1e-12)
    before = scores.copy(), masks.copy()
    for metric in (auroc, aupro, legacy_pro, roc_curve, pro_curve, best_f1_threshold):
        metric(scores, masks)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(masks, before[1])


@pytest.mark.parametrize("rows", [15, 128, 240])  # 6, 50 and 94 % of the pixels
def test_memory_stays_below_three_times_the_maps(rows: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((40, 256, 256), np.float32)
    masks = np.zeros(scores.shape, bool)
    masks[:, :rows] = True
    for metric in (auroc, aupro, legacy_pro):
        tracemalloc.start()
        metric(scores, masks)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * scores.nbytes  # and the maps themselves


# Curves


@pytest.mark.parametrize("seed", range(20))
def test_whole_curves_equal_scikit_learn_and_brute_force(seed: int) -> None:
    scores, masks = random_case(seed)
    rates, recalls = roc_curve(scores, masks, max_points=10**6)
    x, y, _ = sklearn_metrics.roc_curve(masks.ravel(), scores.ravel(), drop_intermediate=False)
    assert (rates[0], recalls[0], rates[-1], recalls[-1]) == pytest.approx((0, 0, 1, 1))
    assert_same_polyline(rates, recalls, x, y)
    rates, overlaps = pro_curve(scores, masks, 1.0, max_points=10**6)
    assert_same_polyline(rates, overlaps, *brute_force_pro_curve(scores, masks))


def assert_same_polyline(
    x: ArrayLike, y: ArrayLike, expected_x: ArrayLike, expected_y: ArrayLike
) -> None:
    """Both are rising; as functions of x + y, which never stands still, they must agree."""
    x, y, expected_x, expected_y = (np.array(v, np.float64) for v in (x, y, expected_x, expected_y))
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    at = np.concatenate([x + y, expected_x + expected_y])
    np.testing.assert_allclose(
        np.interp(at, x + y, x), np.interp(at, expected_x + expected_y, expected_x), atol=1e-12
    )


def test_thinned_curves_have_few_points_that_lie_on_the_whole_curve() -> None:
    scores, masks = realistic_case()
    for curve in (roc_curve, pro_curve):
        whole_x, whole_y = curve(scores, masks, max_points=10**6)
        x, y = curve(scores, masks, max_points=200)
        assert len(whole_x) > 200 and len(x) == len(y) == 200
        assert (x[0], y[0]) == (0, 0) and (x[-1], y[-1]) == (whole_x[-1], whole_y[-1])
        # Rates are stretched to [0, 1] before the points are spaced out.
        whole_x, x = whole_x / whole_x[-1], x / x[-1]
        np.testing.assert_allclose(np.interp(x + y, whole_x + whole_y, whole_y), y, atol=1e-12)
        assert np.diff(x + y).max() < 2 / 199 + 1e-12


# Thresholds


def test_gamma_threshold_finds_the_quantile_of_a_gamma_distribution() -> None:
    scores = stats.gamma(4.0, scale=0.1).rvs(20_000, random_state=0)
    for rate in (0.2, 0.05, 0.001):
        threshold = gamma_threshold(scores, rate)
        assert threshold.method == "gamma"
        assert threshold.value == pytest.approx(stats.gamma(4.0, scale=0.1).isf(rate), rel=0.02)


def test_gamma_threshold_solves_the_likelihood_equations() -> None:
    # The maximum-likelihood shape solves log(k) − digamma(k) = log(mean) − mean(log).
    from scipy import optimize, special

    scores = np.random.default_rng(5).gamma(2.0, 3.0, 60)
    gap = np.log(scores.mean()) - np.log(scores).mean()
    shape = optimize.brentq(lambda k: np.log(k) - special.digamma(k) - gap, 1e-3, 1e3)
    expected = special.gammainccinv(shape, 0.05) * scores.mean() / shape
    assert gamma_threshold(scores).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["numpy", "tensor", "maps"])
def test_gamma_threshold_takes_image_scores_and_pixels(kind: str) -> None:
    scores = np.random.default_rng(0).gamma(3.0, 1.0, (2, 10, 10)).astype(np.float32)
    given = {"numpy": scores.ravel(), "tensor": torch.from_numpy(scores), "maps": scores}[kind]
    assert gamma_threshold(given) == gamma_threshold(scores.astype(np.float64))


@pytest.mark.parametrize(("held_out", "really"), [(4, 0.2), (10, 0.085), (20, 0.066)])
def test_thresholds_of_few_scores_flag_what_the_readme_says(held_out: int, really: float) -> None:
    """The true rate of thresholds for 5 %, on average over drawings of few normal scores."""
    rng, true = np.random.default_rng(0), stats.gamma(30.0)
    rates = [
        true.sf(gamma_threshold(true.rvs(held_out, random_state=rng), 0.05).value)
        for _ in range(500)
    ]
    assert np.mean(rates) == pytest.approx(really, rel=0.1)


def test_many_pixels_are_sampled_always_the_same_way() -> None:
    scores = np.random.default_rng(0).gamma(3.0, 1.0, (20, 256, 256)).astype(np.float32)
    first, second = gamma_threshold(scores, 0.01), gamma_threshold(scores, 0.01)
    assert first == second and first.method == "gamma"
    assert first.value == pytest.approx(stats.gamma(3.0).isf(0.01), rel=0.01)


DEGENERATE = {
    "constant": np.full(40, 0.3),
    "constant but for rounding": 0.3 + 1e-9 * np.random.default_rng(0).random(40),
    "all zero": np.zeros(40),
    "some zeros": np.append(np.zeros(3), np.linspace(0.1, 1.0, 37)),
    "negative": np.linspace(-1.0, 1.0, 40),
    "four": np.array([0.1, 0.2, 0.3, 0.7]),
    "one": np.array([0.25]),
}


@pytest.mark.parametrize("scores", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.filterwarnings("error")
def test_degenerate_scores_fall_back_to_the_empirical_quantile(scores: Any, rate: float) -> None:
    threshold = gamma_threshold(scores, rate)
    assert threshold.method == "quantile"
    assert threshold.value in scores
    assert (scores > threshold.value).mean() <= rate
    lower = scores[scores < threshold.value]
    assert lower.size == 0 or (scores > lower.max()).mean() > rate - 1e-12  # the smallest such


def test_a_heavy_tail_falls_back_where_the_gamma_threshold_would_not_hold() -> None:
    scores = np.abs(stats.cauchy.rvs(size=2000, random_state=1))
    shape, _, scale = stats.gamma.fit(scores, floc=0)
    would_be = stats.gamma.isf(0.001, shape, scale=scale)
    assert (scores > would_be).mean() > 0.003  # over three times the rate that was asked for
    threshold = gamma_threshold(scores, 0.001)
    assert threshold.method == "quantile"
    assert (scores > threshold.value).mean() <= 0.001


def test_best_f1_threshold_equals_trying_every_threshold() -> None:
    for seed in range(30):
        scores, masks = random_case(seed)
        tried = [
            2 * (flagged & (masks == 1)).sum() / (flagged.sum() + masks.sum())
            for flagged in (scores > threshold for threshold in [-1.0, *np.unique(scores)])
        ]
        threshold, f1 = best_f1_threshold(scores, masks)
        assert f1 == pytest.approx(max(tried), abs=1e-12)
        flagged = (scores > threshold).ravel()
        assert sklearn_metrics.f1_score(masks.ravel(), flagged) == pytest.approx(f1, abs=1e-12)
        precision, recall = precision_recall(scores, masks, threshold)
        assert 2 * precision * recall / (precision + recall) == pytest.approx(f1, abs=1e-12)


def test_best_f1_threshold_prefers_the_highest_of_equally_good_ones() -> None:
    # Above 0.2: 2 hits of 4 flagged, F1 = 2/3; above 0.5: 1 hit of 1 flagged, F1 = 2/3.
    assert best_f1_threshold([0.9, 0.3, 0.5, 0.4, 0.2], [1, 1, 0, 0, 0]) == (0.5, 2 / 3)


@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.5, 0.77, 2.0])
def test_precision_and_recall_equal_scikit_learn(threshold: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(200) < 0.3
    scores = (rng.random(200) + 0.2 * labels).round(1)
    precision, recall = precision_recall(torch.from_numpy(scores), labels, threshold)
    flagged = scores > threshold
    assert precision == sklearn_metrics.precision_score(labels, flagged, zero_division=0)
    assert recall == sklearn_metrics.recall_score(labels, flagged)


# Bad input

MAPS = np.random.default_rng(0).random((2, 4, 4))
MASKS = np.zeros((2, 4, 4), np.uint8)
MASKS[1, 1:3, 1:3] = 1
PAIR_METRICS = [auroc, aupro, legacy_pro, roc_curve, pro_curve, best_f1_threshold]


def with_value(value: float) -> np.ndarray:
    maps = MAPS.copy()
    maps[0, 1, 2] = value
    return maps


@pytest.mark.parametrize("metric", PAIR_METRICS)
@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (MAPS, MASKS[:1], r"shape \(2, 4, 4\) but \w+ \(1, 4, 4\)"),
        (with_value(np.nan), MASKS, "1 NaN or infinite values of 32"),
        (with_value(np.inf), MASKS, "1 NaN or infinite"),
        (with_value(-np.inf), MASKS, "1 NaN or infinite"),
        (MAPS, MASKS * 255, "holds 255"),
        (MAPS, MASKS * 0.5, "holds 0.5"),
        (MAPS, MASKS - 1.0, "holds -1"),
        (MAPS, MASKS * np.nan, "holds nan"),
        (MAPS, MASKS * 0, r"no defective \(1\) entry"),
        (MAPS, MASKS * 0 + 1, r"no normal \(0\) entry"),
        (MAPS[:0], MASKS[:0], "empty"),
    ],
)
def test_bad_input_gets_one_clear_line(
    metric: Callable[..., object], scores: Any, labels: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        metric(scores, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", [aupro, legacy_pro, pro_curve])
def test_maps_must_be_stacked(metric: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        metric(MAPS[:, None], MASKS[:, None])


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1, float("nan")])
def test_max_fpr_must_be_a_rate(max_fpr: float) -> None:
    for metric in (aupro, pro_curve):
        with pytest.raises(InputError, match="max_fpr"):
            metric(MAPS, MASKS, max_fpr)


def test_a_curve_needs_two_points() -> None:
    with pytest.raises(InputError, match="max_points"):
        roc_curve(MAPS, MASKS, max_points=1)


@pytest.mark.parametrize("rate", [0.0, 1.0, float("nan")])
def test_false_positive_rate_must_be_a_rate(rate: float) -> None:
    with pytest.raises(InputError, match="false_positive_rate"):
        gamma_threshold(MAPS, rate)


@pytest.mark.parametrize(("scores", "says"), [([], "empty"), ([0.1, np.nan], "1 NaN or infinite")])
def test_gamma_threshold_refuses_scores_that_say_nothing(scores: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        gamma_threshold(scores)


def test_precision_recall_refuses_bad_input_too() -> None:
    with pytest.raises(InputError, match="defective"):
        precision_recall(MAPS, MASKS * 0, 0.5)
