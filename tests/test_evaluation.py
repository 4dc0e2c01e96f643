from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from dskd_lite import report
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.datasets.folder import Category, Sample
from dskd_lite.detector import DSKD, Thresholds
from dskd_lite.evaluation import Evaluation, score_images
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


def test_nothing_flagged_is_no_division_by_zero() -> None:
    thresholds = Thresholds(image=99.0, pixel=99.0, false_positive_rate=0.05)
    for v in _evaluation().verdicts("fused", thresholds).values():
        assert (v.precision, v.recall, v.f1, v.false_positive_rate) == (0, 0, 0, 0)


def test_verdicts_need_both_kinds_of_images_and_masks() -> None:
    thresholds = Thresholds(image=9.0, pixel=3.0, false_positive_rate=0.05)
    assert set(_evaluation(normal=0).verdicts("fused", thresholds)) == {"pixel"}
    assert set(_evaluation(masks=False).verdicts("fused", thresholds)) == {"image"}


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
