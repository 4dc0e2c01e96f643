"""Score a test set with every method of a detector, and say how good each is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dskd_lite import metrics
from dskd_lite.datasets.folder import Category, read_masks
from dskd_lite.detector import Thresholds
from dskd_lite.training import to_tensor

MAX_FPR = 0.3
FEW_HELD_OUT = 10  # normal images: under these thresholds flag far more than they are asked to


class Detector(Protocol):
    """What the evaluation needs of a detector."""

    image_size: int

    def for_scoring(self) -> Detector:
        """A detector with the same maps that may be faster."""

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """An anomaly map (B, H, W) for each method, of images (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Scores:
    """Quality of one method, each in [0, 1]; None where the test set cannot tell."""

    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    legacy_pro: float | None


@dataclass(frozen=True)
class Verdicts:
    """How good it is to call everything above a threshold defective; shares in [0, 1].

    None is what the test set cannot tell: without defects all but ``false_positive_rate``, without
    normal images all but ``recall``.
    """

    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    false_positive_rate: float | None
    """Share of the normal test images (pixels) that is flagged."""
    best_f1: float | None
    """F1 of the best threshold that these test labels allow: an oracle, for comparison only."""
    on_normal_images: float | None = None
    """Of pixels: share of the normal images' pixels that is flagged. Defective images may look odd
    all over, so it may be far below ``false_positive_rate``; it is what the threshold was set for.
    """


@dataclass(frozen=True)
class DefectScores:
    """How well one kind of defect, a folder of ``test``, is told from the normal test images."""

    images: int
    image_auroc: float | None
    """In [0, 1]; None without normal test images."""
    flagged: float | None
    """Share of its images above the image threshold, in [0, 1]; None without a threshold."""


@dataclass(frozen=True)
class Evaluation:
    """All that a report shows of one category."""

    category: Category
    images: np.ndarray
    """Test images, (N, H, W, 3) uint8."""
    masks: np.ndarray | None
    """(N, H, W) bool, None if the category has no masks."""
    maps: dict[str, np.ndarray]
    """Anomaly maps (N, H, W) by method."""
    scores: dict[str, Scores]
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool: whether each test image is defective."""
        return np.array([sample.is_defective for sample in self.category.test], dtype=bool)

    def image_scores(self, method: str) -> np.ndarray:
        """(N,): the maximum of each map."""
        return self.maps[method].max(axis=(1, 2))

    def verdicts(self, method: str, thresholds: Thresholds) -> dict[str, Verdicts]:
        """Verdicts on images, and on pixels if there are masks."""
        found = {"image": _verdicts(self.image_scores(method), self.labels, thresholds.image)}
        if self.masks is not None:
            verdicts = _verdicts(self.maps[method], self.masks, thresholds.pixel)
            if not self.labels.all():
                share = float((self.maps[method][~self.labels] > thresholds.pixel).mean())
                verdicts = replace(verdicts, on_normal_images=share)
            found["pixel"] = verdicts
        return found

    def by_defect(self, method: str, thresholds: Thresholds | None) -> dict[str, DefectScores]:
        """Each kind of defect for itself, by the name of its folder."""
        scores = self.image_scores(method)
        kinds = np.array([sample.defect for sample in self.category.test])
        table = {}
        for kind in dict.fromkeys(kinds[self.labels].tolist()):
            own, shown = scores[kinds == kind], (kinds == kind) | ~self.labels
            table[kind] = DefectScores(
                images=len(own),
                image_auroc=(
                    None if self.labels.all() else metrics.auroc(scores[shown], self.labels[shown])
                ),
                flagged=None if thresholds is None else float((own > thresholds.image).mean()),
            )
        return table


@torch.no_grad()
def score_images(
    detector: Detector,
    images: np.ndarray,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Anomaly maps (N, H, W) float32 by method, of uint8 images (N, H, W, 3)."""
    maps: dict[str, np.ndarray] = {}
    detector = detector.for_scoring()
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        for method, values in detector.maps_by_method(to_tensor(batch, device)).items():
            if method not in maps:
                maps[method] = np.empty((len(images), *values.shape[1:]), dtype=np.float32)
            maps[method][start : start + len(batch)] = values.float().cpu().numpy()
        progress(len(batch))
    return maps


def evaluate(
    detector: Detector,
    category: Category,
    images: np.ndarray,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Score the test images of a category, uint8 (N, H, W, 3) in the order of ``category.test``.

    Metrics that the test set cannot give (no masks, no defects, no normal image) are None, and a
    note says why. Raises InputError if a mask is damaged.
    """
    if not category.test:
        return Evaluation(category, images, None, {}, {}, ["No test images: nothing was measured."])
    notes = []
    masks = None
    if category.has_masks:
        masks = read_masks(category.test, detector.image_size)
        if not masks.any() or masks.all():
            extent = "every pixel" if masks.any() else "no pixel"
            notes.append(f"No pixel metrics: at this image size the masks cover {extent}.")
            masks = None
        elif lost := sum(
            s.is_defective and not mask.any() for s, mask in zip(category.test, masks, strict=True)
        ):
            notes.append(
                f"The masks of {lost} defective images are empty at this image size: their pixels "
                "count as normal."
            )
    elif without := sorted({s.defect for s in category.test if s.is_defective and s.mask is None}):
        notes.append(f"No pixel metrics: ground_truth has no masks of {', '.join(without)}.")
    maps = score_images(detector, images, batch_size, device, progress)
    labels = np.array([sample.is_defective for sample in category.test], dtype=bool)
    if labels.all() or not labels.any():
        missing = "normal" if labels.all() else "defective"
        notes.append(f"No image AUROC: the test set has no {missing} image.")
    scores = {method: _scores(values, labels, masks) for method, values in maps.items()}
    return Evaluation(category, images, masks, maps, scores, notes)


def _scores(maps: np.ndarray, labels: np.ndarray, masks: np.ndarray | None) -> Scores:
    both_classes = bool(labels.any() and not labels.all())
    return Scores(
        image_auroc=metrics.auroc(maps.max(axis=(1, 2)), labels) if both_classes else None,
        pixel_auroc=None if masks is None else metrics.auroc(maps, masks),
        aupro=None if masks is None else metrics.aupro(maps, masks, MAX_FPR),
        legacy_pro=None if masks is None else metrics.legacy_pro(maps, masks),
    )


def _verdicts(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Verdicts:
    if labels.all() or not labels.any():
        share = float((scores > threshold).mean())
        recall, flagged = (share, None) if labels.all() else (None, share)
        return Verdicts(threshold, None, recall, None, flagged, None)
    precision, recall = metrics.precision_recall(scores, labels, threshold)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    flagged = float((scores[~labels] > threshold).mean())
    best = metrics.best_f1_threshold(scores, labels)[1]
    return Verdicts(threshold, precision, recall, f1, flagged, best)


def fit_thresholds(maps: np.ndarray, false_positive_rate: float) -> Thresholds:
    """Thresholds from anomaly maps (N, H, W) of held-out normal images: Gamma's upper quantile."""
    return Thresholds(
        image=metrics.gamma_threshold(maps.max(axis=(1, 2)), false_positive_rate).value,
        pixel=metrics.gamma_threshold(maps, false_positive_rate).value,
        false_positive_rate=false_positive_rate,
        held_out=len(maps),
    )


def threshold_notes(thresholds: Thresholds | None) -> list[str]:
    """What has to be said wherever these thresholds are used; nothing if they are sound."""
    if thresholds is None or thresholds.held_out is None or thresholds.held_out >= FEW_HELD_OUT:
        return []
    rate = f"{100 * thresholds.false_positive_rate:g} %"
    return [
        f"The thresholds rest on {thresholds.held_out} held-out normal image"
        f"{'s' if thresholds.held_out > 1 else ''}: of good pieces they may flag far more than the "
        f"{rate} asked for. Train on more of them, or hold out more (--holdout)."
    ]
