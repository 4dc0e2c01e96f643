"""The study of the fusion's forms: its figures are those of the run, its textures two halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dskd_lite import experiment
from dskd_lite.config import Config
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import scan_category
from dskd_lite.experiment import load_run
from dskd_lite.synthetic_noise import SyntheticNoise
from dskd_lite.training import split_holdout, train_fusion


@pytest.fixture(scope="module")
def forms(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("book/fusion_forms.py")


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Two classes of textures, of one colour each."""
    for name, colour in (("banded", (200, 30, 30)), ("cracked", (30, 30, 200))):
        (tmp_path / "textures" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / "textures" / name / "0.png")
    return tmp_path / "textures"


def test_forms_are_fitted_and_judged_on_different_classes(
    forms: ModuleType, textures: Path
) -> None:
    fitted, judged = forms.halves(str(textures), 32)
    assert [path.parent.name for path in fitted.paths] == ["banded"]
    assert [path.parent.name for path in judged.paths] == ["cracked"]
    with pytest.raises(SystemExit, match="fewer than two subfolders"):
        forms.halves(str(textures / "banded"), 32)


def test_a_moved_piece_comes_from_the_opposite_quarter(forms: ModuleType) -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 0, 0] = 255
    moved = forms.filling("moved", [], image)[0]
    assert moved.sum() == 3 and moved[:, 2, 2].sum() == 3


def test_the_study_gives_what_the_run_and_the_package_give(
    forms: ModuleType, textures: Path, make_category: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = make_category(train=12), tmp_path / "run"
    config = Config(data, out, teacher="offline", textures=str(textures), image_size=64, epochs=1,
                    batch_size=4, fusion_epochs=1, holdout=0.34, seed=5, precision="fp32",
                    device="cpu")  # fmt: skip
    report = experiment.run(config)
    row = forms.study(out, str(textures))
    scores = json.loads(json.dumps(row))["scores"]
    for name in ("forward", "reverse", "manual"):
        for metric, value in scores[name]["test"].items():
            assert value == pytest.approx(report["scores"][name][metric], abs=2e-3), (name, metric)
    for form in scores.values():
        assert form["noise"].keys() == forms.JUDGED_ON.keys()
        assert sum(abs(w) for w in form["weights"]) == pytest.approx(1, abs=1e-5)

    normal = decoded_images(scan_category(data).train, 64, None)
    fitted, held_out = split_holdout(12, 0.34, 5)
    detector = load_run(out)
    noise = SyntheticNoise(forms.halves(str(textures), 64)[0], (64, 64))
    train_fusion(detector, normal[fitted], noise, 20, seed=5, held_out=normal[held_out[::2]])
    weights = detector.fusion.map_weights
    ours = scores["line | paper"]["weights"]
    assert ours == pytest.approx((weights / weights.sum()).tolist(), abs=2e-3)
    assert scores["line | large"]["weights"] != pytest.approx(ours, abs=1e-4)
