from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from dskd_lite import report
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.datasets.folder import Category, Sample
from dskd_lite.detector import DSKD, Thresholds, verdict_on
from dskd_lite.evaluation import (
    FEW_HELD_OUT,
    Evaluation,
    Verdicts,
    fit_thresholds,
    score_images,
    threshold_notes,
)
from dskd_lite.experiment import prepare_detector
from dskd_lite.prediction import predict
from dskd_lite.teacher import Teacher

SIZE = 12


def _evaluation(defective: int = 4, normal: int = 5, masks: bool = True) -> Evaluation:
    """Maps of noise, raised where a defect is; enough to be neither perfect nor useless."""
    rng = np.random.default_rng(0)
    count = defective + normal
    truth = np.zeros((count, SIZE, SIZE), bool)
    truth[:defective, 2:6, 3:8] = True
    maps = (rng.gamma(2.0, 1.0, truth.shape) + 2.0 * truth).astype(np.float32)
    kinds = ["hole"] * defective + ["good"] * normal
    test = tuple(Sample(Path(f"{i}.png"), kind, None) for i, kind in enumerate(kinds))
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    category = Category(Path("nuts"), (), test)
    return Evaluation(category, images, truth if masks else None, {"fused": maps}, {})


def test_verdicts_are_those_of_scikit_learn() -> None:
    evaluation, thresholds = (
        _evaluation(),
        Thresholds(image=9.0, pixel=3.0, false_positive_rate=0.05),
    )
    verdicts = evaluation.verdicts("fused", thresholds)
    assert evaluation.masks is not None
    for kind, scores, truth in (
        ("image", evaluation.maps["fused"].max(axis=(1, 2)), evaluation.labels),
        ("pixel", evaluation.maps["fused"].ravel(), evaluation.masks.ravel()),
    ):
        flagged, v = scores > getattr(thresholds, kind), verdicts[kind]
        assert 0 < flagged.mean() < 1
        assert v.precision == pytest.approx(precision_score(truth, flagged))
        assert v.recall == pytest.approx(recall_score(truth, flagged))
        assert v.f1 == pytest.approx(f1_score(truth, flagged))
        assert v.false_positive_rate == pytest.approx(1 - recall_score(~truth, ~flagged))
        every = [f1_score(truth, scores >= cut) for cut in np.unique(scores)]
        assert v.best_f1 == pytest.approx(max(every)) and v.f1 <= v.best_f1
    on_normal = (evaluation.maps["fused"][~evaluation.labels] > 3.0).mean()
    assert verdicts["image"].on_normal_images is None
    assert verdicts["pixel"].on_normal_images == pytest.approx(on_normal)
    assert on_normal != verdicts["pixel"].false_positive_rate


def test_nothing_flagged_is_no_division_by_zero() -> None:
    thresholds = Thresholds(image=99.0, pixel=99.0, false_positive_rate=0.05)
    for v in _evaluation().verdicts("fused", thresholds).values():
        assert (v.precision, v.recall, v.f1, v.false_positive_rate) == (0, 0, 0, 0)


def test_verdicts_need_both_kinds_of_images_and_masks() -> None:
    thresholds = Thresholds(image=9.0, pixel=3.0, false_positive_rate=0.05)
    defects = _evaluation(normal=0).verdicts("fused", thresholds)
    image_scores = _evaluation(normal=0).image_scores("fused")
    assert defects["image"] == Verdicts(9.0, None, (image_scores > 9).mean(), None, None, None)
    assert defects["pixel"].f1 is not None
    normal = _evaluation(defective=0, masks=False)
    middle = float(np.median(normal.image_scores("fused")))  # of five, so two lie above it
    assert normal.verdicts("fused", Thresholds(middle, 3.0, 0.05)) == {
        "image": Verdicts(middle, None, None, None, 0.4, None)
    }
    assert set(_evaluation(masks=False).verdicts("fused", thresholds)) == {"image"}


def test_kinds_of_defects_are_judged_apart() -> None:
    whole = _evaluation(defective=5, normal=6)
    kinds = ["hole", "crack", "hole", "hole", "crack", *["good"] * 6]
    test = tuple(Sample(Path(f"{i}.png"), kind, None) for i, kind in enumerate(kinds))
    evaluation = replace(whole, category=Category(Path("nuts"), (), test))
    scores = evaluation.image_scores("fused")
    threshold = float(np.median(scores))
    table = evaluation.by_defect("fused", Thresholds(threshold, 0.0, 0.05))
    assert list(table) == ["hole", "crack"]
    for kind, row in table.items():
        own = [s for s, k in zip(scores, kinds, strict=True) if k == kind]
        pairs = [(a > b) + (a == b) / 2 for a in own for b in scores[5:]]
        assert row.images == len(own)
        assert row.image_auroc == pytest.approx(np.mean(pairs))
        assert row.flagged == np.mean([s > threshold for s in own])
    only = evaluation.by_defect("fused", None)["crack"]
    assert (only.images, only.flagged) == (2, None)
    assert _evaluation(normal=0).by_defect("fused", None)["hole"].image_auroc is None


def test_a_verdict_needs_a_threshold_and_a_score_above_it() -> None:
    thresholds = Thresholds(image=1.0, pixel=9.0, false_positive_rate=0.05)
    verdicts = [verdict_on(score, thresholds) for score in (0.9, 1.0, 1.1)]
    assert verdicts == ["normal", "normal", "anomalous"]
    assert verdict_on(9.0, None) == "unknown"


def test_thresholds_of_few_images_are_told_of() -> None:
    assert threshold_notes(None) == []
    assert threshold_notes(Thresholds(1.0, 1.0, 0.05)) == []  # of a model that did not count
    maps = np.random.default_rng(0).gamma(9.0, size=(FEW_HELD_OUT, 4, 4))
    assert threshold_notes(fit_thresholds(maps, 0.05)) == []
    (note,) = threshold_notes(fit_thresholds(maps[1:], 0.01))
    assert "9 held-out normal images" in note and "the 1 % asked for" in note


def test_report_tells_the_verdicts() -> None:
    evaluation, thresholds = (
        _evaluation(),
        Thresholds(image=9.0, pixel=3.0, false_positive_rate=0.05),
    )
    images, pixels = report.verdict_lines(report.verdicts_as_json(evaluation, thresholds))
    v = evaluation.verdicts("fused", thresholds)["image"]
    assert images.startswith("images above 9:") and pixels.startswith("pixels above 3:")
    assert f"precision {100 * v.precision:.1f}, recall {100 * v.recall:.1f}" in images
    assert images in report.section(evaluation, thresholds)
    share = evaluation.verdicts("fused", thresholds)["pixel"].on_normal_images
    assert pixels.endswith(f" % ({100 * share:.1f} % on normal images)")


@pytest.mark.parametrize("kind", [DSKD, RD4AD])
def test_evaluation_and_prediction_score_alike(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = kind(Teacher("offline"), 64).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    maps = list(score_images(detector, images, batch_size=2).values())[-1]
    verdicts = predict(detector, tmp_path, tmp_path / "out")
    assert [v.score for v in verdicts] == pytest.approx(maps.max(axis=(1, 2)), rel=1e-5)


def test_scoring_takes_the_faster_copy() -> None:
    class Copy:
        image_size = 4

        def maps_by_method(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"of the copy": images[:, 0]}

    class Slow(Copy):
        def for_scoring(self) -> Copy:
            return Copy()

        def maps_by_method(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            raise AssertionError("the detector itself was asked")

    assert list(score_images(Slow(), np.zeros((3, 4, 4, 3), np.uint8))) == ["of the copy"]


@pytest.mark.parametrize("kind", [DSKD, RD4AD])
def test_bf16_changes_scores_by_its_rounding_and_maps_stay_float32(kind: type) -> None:
    torch.manual_seed(0)
    detector = kind(Teacher("offline"), 64).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = detector(images)
        prepare_detector(detector, "cpu", "bf16")
        mixed = detector.for_scoring()(images)
    for value, reference in zip(mixed, exact, strict=True):
        assert value.dtype == torch.float32
        assert not torch.equal(value, reference)
        difference = (value - reference).abs().max() / reference.abs().max()
        assert difference < 0.05  # bf16 keeps 8 bits; a dozen layers add up
