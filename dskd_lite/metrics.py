"""How good a detector is (AUROC, AUPRO, precision and recall) and where to draw its threshold.

Everything here takes NumPy arrays or tensors; tensors are copied to the CPU, where NumPy sorts, and
narrower numbers than float32 are widened to it first.
One idea carries all areas and curves: an area over the false-positive rate is a weighted sum over
the defective pixels of what each adds to it, and what a pixel adds depends only on how many normal
pixels score above it. So the two kinds need not be sorted together: sort the normal scores, of them
only those that the largest false-positive rate of interest can reach, and look up the others.

A score calls a pixel or an image defective when it is strictly greater than the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from dskd_lite.errors import InputError

ArrayLike: TypeAlias = npt.ArrayLike | torch.Tensor
_In = TypeVar("_In")
_Out = TypeVar("_Out")

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_SORT_BLOCK = 500_000  # scores that are worth a thread to sort
_LOOKUP_BLOCK = 100_000  # scores that are looked up at once: bounds memory, fills a thread
_GAMMA_FIT_AT_LEAST = 5
_GAMMA_FIT_AT_MOST = 1_000_000


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, exact: the chance that a defect outscores a normal one.

    Ties count half (Mann–Whitney U), as in scikit-learn's ``roc_auc_score``.

    Args:
        scores: any shape, finite; (N,) image scores or (N, H, W) anomaly maps.
        labels: same shape, 1 (or True) where defective, else 0.

    Returns:
        A value in [0, 1].

    Raises:
        InputError: shapes differ, a score is not finite, a label is not 0 or 1, or one class is
            missing.
    """
    scores, labels = _checked(scores, labels, "scores", "labels")
    positives = scores[labels]
    positives.sort()

    def block_from(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = positives[start : start + _LOOKUP_BLOCK]
        return block, _equal_weights(block)

    starts = range(0, positives.size, _LOOKUP_BLOCK)
    return _area(block_from, starts, scores[~labels], labels.size - positives.size)


def aupro(score_maps: ArrayLike, masks: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve of the whole test set, exact.

    At each threshold the overlap is the flagged share of a defect region, averaged over all
    regions (8-connected components) of all images; the false-positive rate is the flagged share
    of the defect-free pixels of all images. Equal scores form one threshold, thresholds are joined
    by straight lines, and the area from rate 0 to ``max_fpr`` is divided by ``max_fpr``.

    Source: the definition of MVTec's evaluation (Bergmann et al., "The MVTec anomaly detection
    dataset", IJCV 2021, section 5.1).

    Args:
        score_maps: (N, H, W), finite.
        masks: (N, H, W), 1 (or True) on defects, else 0.
        max_fpr: upper end of the integral, in (0, 1].

    Returns:
        A value in [0, 1].

    Raises:
        InputError: shapes differ or are not (N, H, W), a score is not finite, a mask value is not
            0 or 1, no pixel is defective or none is defect-free, or ``max_fpr`` is out of range.
    """
    score_maps, masks, normals, limit = _pro_inputs(score_maps, masks, max_fpr)
    images = _defective_images(masks)
    # Of whole images, for a region must be complete to be weighed.
    blocks = np.cumsum(np.count_nonzero(masks[images], axis=(1, 2))) // _LOOKUP_BLOCK
    images_by_block = np.split(images, np.flatnonzero(np.diff(blocks)) + 1)
    return _area(
        lambda block: _weighted_positives(score_maps, masks, block),
        images_by_block, normals, limit,
    )  # fmt: skip


def legacy_pro(score_maps: ArrayLike, masks: ArrayLike) -> float:
    """Per-region overlap the way RD4AD's code computes it, for comparison with published tables.

    For each image with a defect by itself: 200 thresholds evenly spaced from the map's minimum up
    to, but without, its maximum; the false-positive rate and the mean overlap of that image's
    regions at each; the points with a rate below 0.3 kept, their rates divided by the largest one
    kept; the area under those points by the trapezoid rule. The result is the mean over those
    images. It is not comparable with :func:`aupro`: each image stretches its own rates to [0, 1].

    Where RD4AD's code divides zero by zero (no kept point has a false positive), the largest
    overlap is taken, and an image with no point to keep counts 0.

    Args:
        score_maps: (N, H, W), finite.
        masks: (N, H, W), 1 (or True) on defects, else 0.

    Returns:
        A value in [0, 1].

    Raises:
        InputError: as :func:`aupro`.
    """
    score_maps, masks = _checked_maps(score_maps, masks)
    areas = []
    for image in _defective_images(masks):
        scores, mask = score_maps[image], masks[image]
        thresholds = np.linspace(float(scores.min()), float(scores.max()), 200, endpoint=False)

        normals = np.sort(scores[~mask])
        false_positives = normals.size - np.searchsorted(normals, thresholds, side="right")
        rates = false_positives / max(normals.size, 1)

        weights, positives = _region_weights(mask), scores[mask]
        order = np.argsort(positives)
        missed = np.append(0.0, np.cumsum(weights[order]) / weights.sum())
        overlaps = 1.0 - missed[np.searchsorted(positives[order], thresholds, side="right")]

        kept = rates < 0.3
        rates, overlaps = rates[kept], overlaps[kept]
        largest = rates.max(initial=0.0)
        if largest > 0:
            widths = -np.diff(rates / largest)  # rates fall as thresholds rise
            areas.append(widths @ (overlaps[1:] + overlaps[:-1]) / 2)
        else:
            areas.append(overlaps.max(initial=0.0))
    return float(np.mean(areas))


def roc_curve(
    scores: ArrayLike, labels: ArrayLike, max_points: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ROC curve for a plot, from (0, 0) to (1, 1).

    Args:
        scores, labels: as for :func:`auroc`.
        max_points: at most so many points, at least 2. A curve with fewer corners is returned
            whole; otherwise the points lie on the exact curve, evenly spaced along its length.

    Returns:
        False-positive rates and true-positive rates, float64, each (points,) and rising in [0, 1].

    Raises:
        InputError: as :func:`auroc`.
    """
    scores, labels = _checked(scores, labels, "scores", "labels")
    positives = np.sort(scores[labels])
    return _curve(
        positives,
        _equal_weights(positives) / positives.size,
        scores[~labels],
        labels.size - positives.size,
        max_points,
    )


def pro_curve(
    score_maps: ArrayLike, masks: ArrayLike, max_fpr: float = 0.3, max_points: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the curve under which :func:`aupro` is the area, for a plot.

    Args:
        score_maps, masks, max_fpr: as for :func:`aupro`.
        max_points: as for :func:`roc_curve`.

    Returns:
        False-positive rates, rising from 0 to ``max_fpr``, and per-region overlaps, rising in
        [0, 1]; float64, each (points,).

    Raises:
        InputError: as :func:`aupro`.
    """
    score_maps, masks, normals, limit = _pro_inputs(score_maps, masks, max_fpr)
    positives, weights = _weighted_positives(score_maps, masks, _defective_images(masks))
    rates, overlaps = _curve(positives, weights / weights.sum(), normals, limit, max_points)
    return rates * max_fpr, overlaps


@dataclass(frozen=True)
class Threshold:
    """A threshold and how it was found."""

    value: float
    """Scores strictly greater than this are called defective."""

    method: Literal["gamma", "quantile"]
    """``gamma``: upper quantile of the fitted Gamma distribution; ``quantile``: of the scores
    themselves, because no Gamma distribution describes them."""


def gamma_threshold(normal_scores: ArrayLike, false_positive_rate: float = 0.05) -> Threshold:
    """Threshold that held-out normal scores should exceed at the given rate.

    A Gamma distribution with location 0 is fitted by maximum likelihood and its upper quantile
    taken. The empirical quantile (the smallest score that at most this share of the scores exceeds)
    is used instead where a Gamma distribution cannot describe the scores: fewer than 5 of them, all
    equal, any of them zero or negative, or a share above the Gamma threshold that is not
    plausible for any true rate between half and twice the one asked for (99 % binomial interval;
    this is what a heavy tail fails).

    Args:
        normal_scores: any shape, finite; image scores (N,) or pixels (N, H, W). Of more than a
            million, a million are drawn, always the same ones.
        false_positive_rate: wanted share of normal scores above the threshold, in (0, 1).

    Returns:
        The threshold, in the unit of the scores, and the method that gave it.

    Raises:
        InputError: no score, a score that is not finite, or a rate out of range.
    """
    if not 0 < false_positive_rate < 1:
        raise InputError(
            f"false_positive_rate is {false_positive_rate}; choose one between 0 and 1"
        )
    scores = _finite(normal_scores, "normal_scores").ravel()
    if scores.size > _GAMMA_FIT_AT_MOST:
        # Random, not every n-th: a step that divides the image width would see few columns.
        scores = scores[np.random.default_rng(0).integers(scores.size, size=_GAMMA_FIT_AT_MOST)]
    scores = scores.astype(np.float64)
    value = _fitted_gamma_quantile(scores, false_positive_rate)
    if value is not None:
        return Threshold(value, "gamma")
    quantile = np.quantile(scores, 1 - false_positive_rate, method="inverted_cdf")
    return Threshold(float(quantile), "quantile")


def best_f1_threshold(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The threshold with the best F1 score on these very labels, and that F1 score: an oracle.

    It looks at the answers, so it bounds what any threshold could reach on this set. Never report
    it as the performance of a detector, and never deploy it; that is :func:`gamma_threshold`'s job.

    Args:
        scores, labels: as for :func:`auroc`.

    Returns:
        The threshold (of several equally good ones the highest) and F1 in [0, 1].

    Raises:
        InputError: as :func:`auroc`.
    """
    scores, labels = _checked(scores, labels, "scores", "labels")
    positives = np.sort(scores[labels])
    _, false_positives = _normals_above(positives, _sorted_parts(scores[~labels]))
    # The best cut lies just below a defect's score: any other flags more normal ones for nothing.
    true_positives = positives.size - np.searchsorted(positives, positives)
    f1 = 2 * true_positives / (positives.size + true_positives + false_positives)
    best = f1.size - 1 - np.argmax(f1[::-1])
    below = scores[scores < positives[best]]
    threshold = below.max() if below.size else np.nextafter(positives[best], -np.inf)
    return float(threshold), float(f1[best])


def precision_recall(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[float, float]:
    """Precision and recall of calling defective what scores strictly above the threshold.

    Args:
        scores, labels: as for :func:`auroc`.
        threshold: in the unit of the scores.

    Returns:
        Precision (0 where nothing is above the threshold) and recall, both in [0, 1].

    Raises:
        InputError: as :func:`auroc`.
    """
    scores, labels = _checked(scores, labels, "scores", "labels")
    flagged = scores > threshold
    hits = np.count_nonzero(flagged & labels)
    precision = hits / max(np.count_nonzero(flagged), 1)
    return precision, hits / np.count_nonzero(labels)


# Ranks, areas and curves. `positives` are the scores of the defective pixels (or images) in rising
# order, `weights` what each is worth, `normals` the other scores. The lowest normals may be missing
# as long as more than `limit` false positives are there.


def _area(
    positives_of: Callable[[_In], tuple[np.ndarray, np.ndarray]],
    blocks: Sequence[_In],
    normals: np.ndarray,
    limit: float,
) -> float:
    """Area under the curve from 0 to ``limit`` false positives, divided by ``limit``.

    ``positives_of`` gives the positives and the weights of one block; blocks are in any order. A
    positive's own curve is 0 up to the normals that score higher, 1 from those that score at least
    as high, and a straight line between (equal scores are one threshold).
    """
    parts = _sorted_parts(normals)

    def area_and_weight(block: _In) -> np.ndarray:
        positives, weights = positives_of(block)
        higher, not_lower = _normals_above(positives, parts)
        line_end = np.minimum(not_lower, limit)
        line_width = np.maximum(line_end - higher, 0.0)
        line_height = line_width / np.maximum(not_lower - higher, 1)
        area = weights @ (line_width * line_height / 2 + limit - line_end)
        return np.array([area, weights.sum()])

    area, weight = np.sum(_threaded(area_and_weight, blocks), axis=0)
    return min(float(area / weight / limit), 1.0)  # rounding may leave a hair above 1


def _curve(
    positives: np.ndarray,
    weights: np.ndarray,
    normals: np.ndarray,
    limit: float,
    max_points: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The curve under which :func:`_area` is the area; x runs from 0 to 1 at ``limit``.

    The weights sum to 1.
    """
    if max_points < 2:
        raise InputError(f"max_points is {max_points}; a curve needs at least 2")
    higher, not_lower = _normals_above(positives, _sorted_parts(normals))
    inside = higher <= limit
    # The lines of two positives are the same or do not overlap: the sum of the ends orders them.
    _, first, line = np.unique((higher + not_lower)[inside], return_index=True, return_inverse=True)
    starts, ends = higher[inside][first], not_lower[inside][first]
    after = np.cumsum(np.bincount(line, weights[inside], minlength=first.size))
    before = np.append(0.0, after)[:-1]
    x = np.append(0.0, np.stack([starts, ends], axis=1)) / limit
    y = np.append(0.0, np.stack([before, after], axis=1))
    if x[-1] > 1.0:
        x[-1], y[-1] = 1.0, np.interp(1.0, x[-2:], y[-2:])
    x, y = np.append(x, 1.0), np.minimum(np.append(y, y[-1]), 1.0)

    length = x + y
    corners = np.append(True, np.diff(length) > 0)
    x, y, length = x[corners], y[corners], length[corners]
    if x.size > max_points:
        at = np.linspace(0.0, length[-1], max_points)
        x, y = np.interp(at, length, x), np.interp(at, length, y)
    return x, y


def _sorted_parts(normals: np.ndarray) -> list[np.ndarray]:
    """The normals, sorted in place in one part per thread; counts of normals add up over parts."""
    threads = min(torch.get_num_threads(), math.ceil(normals.size / _SORT_BLOCK))
    parts = np.array_split(normals, threads)
    _threaded(np.ndarray.sort, parts)
    return parts


def _normals_above(positives: np.ndarray, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each positive: how many normals score higher, and how many at least as high."""
    total = sum(part.size for part in parts)
    higher = total - sum(np.searchsorted(part, positives, side="right") for part in parts)
    not_lower = total - sum(np.searchsorted(part, positives, side="left") for part in parts)
    return higher, not_lower


def _threaded(function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """``map`` on as many threads as torch may use; NumPy sorts and searches without the GIL."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, items))


def _pro_inputs(
    score_maps: ArrayLike, masks: ArrayLike, max_fpr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Maps, masks, normals and limit of the per-region overlap over all images."""
    if not 0 < max_fpr <= 1:
        raise InputError(f"max_fpr is {max_fpr}; choose one above 0 and at most 1")
    score_maps, masks = _checked_maps(score_maps, masks)
    limit = max_fpr * (masks.size - np.count_nonzero(masks))
    return score_maps, masks, _highest_normals(score_maps, masks, limit), limit


def _weighted_positives(
    score_maps: np.ndarray, masks: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positives of some images, and their weights: 1 for each region, shared by its pixels."""
    positives = np.concatenate([score_maps[i][masks[i]] for i in images])
    weights = np.concatenate([_region_weights(masks[i]) for i in images])
    order = np.argsort(positives)
    return positives[order], weights[order]


def _highest_normals(score_maps: np.ndarray, masks: np.ndarray, limit: float) -> np.ndarray:
    """The highest normal scores, more than ``limit`` of them where there are so many.

    A sample tells about where to cut; the count tells whether that was low enough.
    """
    sample = score_maps.ravel()[::97][~masks.ravel()[::97]]  # prime: no column is favoured
    share = limit / (masks.size - np.count_nonzero(masks))
    while True:
        share += 0.02
        if share >= 1 or sample.size == 0:
            return score_maps[~masks]
        normals = score_maps[(score_maps >= np.quantile(sample, 1 - share)) & ~masks]
        if normals.size > limit:
            return normals


def _defective_images(masks: np.ndarray) -> np.ndarray:
    return np.flatnonzero(masks.any(axis=(1, 2)))


def _region_weights(mask: np.ndarray) -> np.ndarray:
    """One over its 8-connected region's size, for each defective pixel of one image."""
    rows = np.flatnonzero(mask.any(axis=1))
    mask = mask[rows[0] : rows[-1] + 1]  # most of an image has no defect, and labelling is slow
    labelled, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    region = labelled[mask]
    return 1 / np.bincount(region)[region]


def _equal_weights(positives: np.ndarray) -> np.ndarray:
    return np.broadcast_to(1.0, positives.shape)


# Thresholds


def _fitted_gamma_quantile(scores: np.ndarray, false_positive_rate: float) -> float | None:
    """Upper quantile of the Gamma distribution fitted to the scores; None where none fits."""
    from scipy import stats  # slow to import, needed here only

    if scores.size < _GAMMA_FIT_AT_LEAST or scores.min() <= 0 or scores.min() == scores.max():
        return None
    try:
        with np.errstate(all="ignore"):  # scores equal but for rounding end in NaN, seen below
            shape, _, scale = stats.gamma.fit(scores, floc=0)
            value = float(stats.gamma.isf(false_positive_rate, shape, scale=scale))
    except (stats.FitError, ValueError, ArithmeticError):
        return None
    above = np.count_nonzero(scores > value)
    fewest = stats.binom.ppf(0.005, scores.size, false_positive_rate / 2)
    most = stats.binom.ppf(0.995, scores.size, min(2 * false_positive_rate, 1.0))
    return value if math.isfinite(value) and fewest <= above <= most else None


# Input


def _to_numpy(values: ArrayLike) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # NumPy has no such type
            values = values.float()
        return values.numpy()
    return np.asarray(values)


def _finite(values: ArrayLike, name: str) -> np.ndarray:
    array = _to_numpy(values)
    if array.size == 0:
        raise InputError(f"{name} is empty; give at least one score")
    # Half floats and integers sort slowly or overflow; every one of them fits the wider float.
    array = array.astype(np.result_type(array.dtype, np.float32), copy=False)
    # NaN and infinity both survive minimum and maximum, and no array of flags is needed.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        bad = np.count_nonzero(~np.isfinite(array))
        raise InputError(
            f"{name} holds {bad} NaN or infinite values of {array.size}; "
            "look at the detector that made them"
        )
    return array


def _checked(
    scores: ArrayLike, labels: ArrayLike, scores_name: str, labels_name: str
) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = _to_numpy(scores), _to_numpy(labels)
    if scores.shape != labels.shape:
        raise InputError(
            f"{scores_name} has shape {scores.shape} but {labels_name} {labels.shape}; "
            "give one label per score"
        )
    scores = _finite(scores, scores_name)
    defective = labels.astype(bool, copy=False)
    if labels.dtype != bool and not np.array_equal(labels, defective):
        other = labels[labels != defective].flat[0]
        raise InputError(
            f"{labels_name} holds {other}; give 1 (or True) where defective and 0 elsewhere"
        )
    if defective.all() or not defective.any():
        missing = "normal (0)" if defective.all() else "defective (1)"
        raise InputError(f"{labels_name} has no {missing} entry; this metric needs both classes")
    return scores, defective


def _checked_maps(score_maps: ArrayLike, masks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    score_maps, masks = _checked(score_maps, masks, "score_maps", "masks")
    if score_maps.ndim != 3:
        raise InputError(f"score_maps has shape {score_maps.shape}; give maps as (N, H, W)")
    return score_maps, masks
