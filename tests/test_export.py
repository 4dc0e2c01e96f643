"""The ONNX file under onnxruntime against the detector that it was made of."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image

from dskd_lite import export
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.cli import main
from dskd_lite.detector import DSKD, DistillationDetector, Thresholds
from dskd_lite.errors import InputError
from dskd_lite.export import export_onnx
from dskd_lite.prediction import predict
from dskd_lite.teacher import Teacher
from dskd_lite.training import train_students

SIZE = 64
IMAGES = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)


def _trained(kind: type[DistillationDetector]) -> DistillationDetector:
    """Trained a little, so that no batch norm or fusion weight is what it started as."""
    torch.manual_seed(0)
    detector = kind(Teacher("offline"), SIZE)
    train_students(detector, IMAGES, 2, batch_size=4)
    if isinstance(detector, DSKD):
        with torch.no_grad():
            detector.fusion.weight.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4, 0.5, -0.6]))
    detector.thresholds = Thresholds(image=0.625, pixel=0.3, false_positive_rate=0.05, held_out=12)
    return detector


@pytest.fixture(scope="module", params=[DSKD, RD4AD])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillationDetector, Path]:
    detector = _trained(request.param)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert export_onnx(detector, path) < 1e-5
    return detector, path


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_gives_what_the_detector_gives(
    exported: tuple[DistillationDetector, Path], batch: int
) -> None:
    detector, path = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]  # weights inside
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = detector(images)
    names = [output.name for output in session.get_outputs()]
    assert names == ["score_maps", "fused_map", "score"]
    maps = 6 if isinstance(detector, DSKD) else 3
    assert expected.score_maps.shape == (batch, maps, SIZE, SIZE)
    for found, value in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), value, rtol=1e-4, atol=1e-5)


def test_metadata_says_what_the_scores_mean(exported: tuple[DistillationDetector, Path]) -> None:
    detector, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["detector"] == type(detector).__name__
    assert int(metadata["image_size"]) == SIZE
    assert float(metadata["image_threshold"]) == 0.625
    assert float(metadata["pixel_threshold"]) == 0.3
    assert float(metadata["false_positive_rate"]) == 0.05
    assert int(metadata["held_out"]) == 12
    assert metadata["teacher"] == "offline" and "torch" in metadata["versions"]


def test_the_command_writes_a_file_that_scores_as_predict_does(tmp_path: Path) -> None:
    detector = _trained(DSKD)
    detector.save(tmp_path / "run" / "model")
    photo = tmp_path / "photo.png"
    Image.fromarray(IMAGES[0]).save(photo)
    file = tmp_path / "new" / "model.onnx"
    assert main(["export", str(tmp_path / "run"), "--out", str(file)]) == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batch = IMAGES[:1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    score = session.run(["score"], {"images": batch})[0][0]
    assert predict(detector, photo, tmp_path / "out")[0].score == pytest.approx(score, rel=1e-4)


def test_the_scripts_of_the_readme_score_as_predict_does(
    exported: tuple[DistillationDetector, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a photo that lies on its side, as phones save them."""
    detector, path = exported
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "model.onnx")
    detector.save(Path("runs/mine/model"))
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    columns = np.random.default_rng(1).integers(0, 256, (1, 70, 3)).repeat(90, axis=0)
    Image.fromarray(columns.astype(np.uint8)).save("photo.jpg", exif=tag)
    (verdict,) = predict(detector, Path("photo.jpg"), Path("out"))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        exec(script, {})
        score, anomalous = capsys.readouterr().out.split()
        assert float(score) == pytest.approx(verdict.score, rel=1e-4)
        assert (anomalous == "True") == (verdict.verdict == "anomalous")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    detector = DSKD(Teacher("offline", "random"), 64)
    with pytest.raises(InputError, match=rf"the package {package}: pip install"):
        export_onnx(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "_difference", lambda detector, path: float("nan"))
    _trained(RD4AD).save(tmp_path / "run" / "model")
    out = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 2
    assert "differs from the detector" in capsys.readouterr().err
    assert not out.exists()
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["thresholds"]


def test_a_file_that_gives_nan_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(onnxruntime.InferenceSession):
        def run(self, *arguments: object) -> list[np.ndarray]:
            maps, fused, score = super().run(*arguments)
            return [maps, fused, score * np.nan]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Broken)
    with pytest.raises(InputError, match="was not written"):
        export_onnx(_trained(RD4AD), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_fused_map_of_zeros_can_be_exported(tmp_path: Path) -> None:
    """The paper's fusion may learn weights whose sum relu cuts off everywhere."""
    detector = _trained(DSKD)
    assert isinstance(detector, DSKD)
    with torch.no_grad():
        detector.fusion.weight.fill_(-0.1)
    assert export_onnx(detector, tmp_path / "model.onnx") < 1e-5
